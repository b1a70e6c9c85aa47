"""Python, packages, the C++ core, decoders, torch and its accelerators."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from omr_io.doctor.finding import Finding, ProbeError, probe

_REBUILD = "Build it: make install (or pip install -e .)"
_OLDEST_PYTHON = (3, 11)
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?")


def python() -> Finding:
    """The interpreter and the system."""
    found = (
        f"{platform.python_implementation()} {platform.python_version()} "
        f"on {platform.system()} {platform.machine()}, {sys.executable}"
    )
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "fail", found, "Use Python 3.11 or later")
    if sys.platform != "linux":
        return Finding("python", "fail", found, "omr_io runs on Linux only")
    return Finding("python", "ok", found)


def needed(root: Path) -> dict[str, list[str]]:
    """Requirements by extra ("" for those of omr_io itself).

    From the installed package's metadata, or in a source tree from its pyproject.toml.

    Args:
        root: the folder that holds the package.
    """
    project = root / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if table.get("name") == "omr_io":
            return {"": table["dependencies"], **table.get("optional-dependencies", {})}
    found: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("omr_io") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return found


def unmet(requirements: list[str]) -> tuple[list[str], list[str]]:
    """Requirements whose package is missing, and those whose package is too old."""
    missing, old = [], []
    for requirement in requirements:
        parts = _REQUIREMENT.match(requirement)
        if parts is None:
            continue
        try:
            version = importlib.metadata.version(parts[1])
        except importlib.metadata.PackageNotFoundError:
            if parts[1].lower() != "pillow" or not _has("pillow-simd"):
                missing.append(requirement)
            continue
        if parts[2] and _release(version) < _release(parts[2]):
            old.append(f"{parts[1]} {version} (needs {parts[2]})")
    return missing, old


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    release = [int(part) for part in numbers[0].split(".")] if numbers else []
    while release and release[-1] == 0:
        release.pop()
    return tuple(release)


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def packages(root: Path) -> Finding:
    """What omr_io itself needs."""
    requirements = needed(root)[""]
    missing, old = unmet(requirements)
    if missing or old:
        what = [f"{name} is missing" for name in missing] + [f"{name} is too old" for name in old]
        return Finding("packages", "fail", "; ".join(what), "pip install --upgrade omr_io")
    return Finding("packages", "ok", f"all {len(requirements)} that omr_io needs")


def extras(root: Path) -> Finding:
    """What the optional parts need."""
    whole, partly, old_ones = [], [], []
    for extra, requirements in needed(root).items():
        if not extra:
            continue
        missing, old = unmet(requirements)
        old_ones += old
        if not missing:
            whole.append(extra)
        else:
            partly.append(extra)
    words = f"there: {', '.join(whole) or 'none'}; not there: {', '.join(partly) or 'none'}"
    if old_ones:
        words += f"; too old: {', '.join(old_ones)}"
        return Finding("extras", "warn", words, "pip install --upgrade 'omr_io[EXTRA]'")
    return Finding("extras", "ok", words, "pip install 'omr_io[EXTRA]'" if partly else "")


def core(root: Path) -> Finding:
    """The C++ core: there, importable, and not older than its sources."""
    try:
        path = Path(probe("import json, omr_io._C as c; print(json.dumps(c.__file__))"))
    except ProbeError as error:
        return Finding("C++ core", "fail", f"it cannot be imported: {error}", _REBUILD)
    built = path.stat().st_mtime
    sources = [
        *root.glob("csrc/**/*.?pp"),
        *root.glob("csrc/**/*.inc"),
        root / "csrc/CMakeLists.txt",
    ]
    newer = sorted(
        source.name
        for source in sources
        if source.parent.name != "fuzz" and source.is_file() and source.stat().st_mtime > built
    )
    if newer:
        found = f"{path} is older than its sources {', '.join(newer)}"
        return Finding("C++ core", "warn", found, _REBUILD)
    return Finding("C++ core", "ok", str(path))


_DECODERS = """
import io, json
import numpy as np
import PIL
from PIL import Image, features
import simplejpeg
pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
file = io.BytesIO()
Image.fromarray(pixels).resize((112, 80)).save(file, "JPEG", quality=90)
data = file.getvalue()
mine = simplejpeg.decode_jpeg(data, "RGB")
with Image.open(io.BytesIO(data)) as image:
    equal = bool(np.array_equal(mine, np.asarray(image.convert("RGB"))))
print(json.dumps({
    "pillow": PIL.__version__,
    "turbo": features.version_feature("libjpeg_turbo"),
    "equal": equal,
}))
"""


def decoders() -> Finding:
    """Pillow and simplejpeg, and whether they agree on a JPEG."""
    try:
        found = probe(_DECODERS)
    except ProbeError as error:
        mend = "pip install --force-reinstall pillow simplejpeg"
        return Finding("JPEG decoders", "fail", f"they do not work: {error}", mend)
    turbo = found["turbo"] and f"libjpeg-turbo {found['turbo']}"
    words = f"simplejpeg, Pillow {found['pillow']} with {turbo or 'another libjpeg'}"
    if not found["equal"]:
        return Finding(
            "JPEG decoders", "warn", f"{words}: they decode a JPEG to different pixels",
            "pip install --force-reinstall pillow simplejpeg, for wheels with libjpeg-turbo",
        )  # fmt: skip
    return Finding("JPEG decoders", "ok", f"{words}: equal pixels")


def pillow() -> Finding:
    """Pillow, or pillow-simd in its place, whole or half overwritten."""
    versions = {}
    for name in ("pillow", "pillow-simd"):
        if _has(name):
            versions[name] = importlib.metadata.version(name)
    try:
        version = str(probe("import json, PIL; print(json.dumps(PIL.__version__))", 30))
    except ProbeError as error:
        return Finding("Pillow", "fail", f"it cannot be imported: {error}", "pip install pillow")
    if len(versions) == 2:
        return Finding(
            "Pillow", "warn",
            f"pillow {versions['pillow']} and pillow-simd {versions['pillow-simd']} lie in one "
            f"folder, and {version} is what is imported",
            "pip uninstall both, then install the one you want",
        )  # fmt: skip
    if "pillow-simd" in versions or "post" in version:
        return Finding(
            "Pillow", "warn", f"pillow-simd {version}: its resize is not bit-equal to Pillow's",
            "pip uninstall pillow-simd && pip install pillow, where pixels must equal others'",
        )  # fmt: skip
    if versions and versions["pillow"] != version:
        return Finding(
            "Pillow", "warn", f"{versions['pillow']} is installed and {version} is imported",
            "pip install --force-reinstall pillow",
        )  # fmt: skip
    return Finding("Pillow", "ok", version)


def torch_build() -> tuple[str, str | None] | None:
    """torch's version and the CUDA version it was built for (None: CPU); None without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    version = re.search(r"__version__[^=]*=\s*['\"]([^'\"]+)", text)
    cuda = re.search(r"^cuda[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return (version[1] if version else "unknown version"), (cuda[1] if cuda else None)


def torch() -> Finding:
    """torch's build, and that it can be imported."""
    build = torch_build()
    if build is None:
        return Finding("torch", "fail", "it is not installed", "pip install torch")
    version, cuda = build
    words = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    try:
        probe("import json, torch; print(json.dumps(torch.ones(2).sum().item()))")
    except ProbeError as error:
        mend = "pip install --force-reinstall torch, or wait and try again if it was slow"
        return Finding("torch", "fail", f"{words}; it cannot be imported: {error}", mend)
    return Finding("torch", "ok", words)


def optional(name: str, module: str, extra: str) -> Finding:
    """A package of an extra that is known to break on import where it does not fit."""
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        there = False
    if not there:
        mend = f"If you want it: pip install 'omr_io[{extra}]'"
        return Finding(name, "ok", "not installed, and needed only for its own parts", mend)
    code = f"import json, {module} as m; print(json.dumps(str(getattr(m, '__version__', ''))))"
    try:
        return Finding(name, "ok", probe(code) or "importable")
    except ProbeError as error:
        return Finding(
            name, "warn", f"installed, but it cannot be imported: {error}",
            f"pip install --upgrade 'omr_io[{extra}]', or uninstall it",
        )  # fmt: skip


def gpu() -> Finding:
    """GPUs and their driver, by nvidia-smi, against what torch was built for."""
    build = torch_build()
    cuda = build[1] if build else None
    program = shutil.which("nvidia-smi")
    if program is None:
        note = f"; torch's CUDA {cuda} is of no use here" if cuda else ""
        return Finding("GPU", "ok", f"none (there is no nvidia-smi){note}")
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        listed = _run(program, *query).splitlines()
        driver_cuda = re.search(r"CUDA Version:\s*([0-9.]+)", _run(program))
    except (OSError, subprocess.SubprocessError) as error:
        mend = "Check the driver: nvidia-smi must work, in a container with --gpus all"
        return Finding("GPU", "warn", f"nvidia-smi failed: {error}", mend)
    words = "; ".join(line.strip() for line in listed if line.strip()) or "none"
    if driver_cuda:
        words += f"; the driver takes CUDA {driver_cuda[1]}"
    if words.startswith("none"):
        return Finding("GPU", "ok", words)
    if build is not None and cuda is None:
        mend = "Install torch's CUDA build: see constraints/cuda.txt, or make install"
        return Finding("GPU", "warn", f"{words}; torch is built for the CPU only", mend)
    if cuda and driver_cuda and _release(cuda)[:1] > _release(driver_cuda[1])[:1]:
        mend = "Update the driver, or install a torch built for an older CUDA"
        return Finding("GPU", "warn", f"{words}; torch is built for CUDA {cuda}", mend)
    return Finding("GPU", "ok", words)


def _run(*command: str) -> str:
    done = subprocess.run(  # noqa: S603  # nvidia-smi, found on the PATH, without a shell
        command, capture_output=True, text=True, timeout=20, check=True, errors="replace"
    )
    return done.stdout
