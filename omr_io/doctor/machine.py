"""Cores, memory, limits, temporary space, and what the environment says."""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from omr_io.doctor.finding import Finding
from omr_io.text import human_bytes

GIB = 1 << 30
_ENOUGH_MEMORY = 2 * GIB  # convert stays under 1 GiB; torch and a tokenizer come on top
_ENOUGH_SHM = 256 << 20  # containers start with 64 MiB
_ENOUGH_FILES = 1024
_ENOUGH_TEMP = GIB
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 says so with a number near 2**63


def own_cgroups(root: Path = _CGROUPS, text: str | None = None) -> Iterator[tuple[str, Path]]:
    """Folders of this process's control groups, innermost first, each with its controllers.

    Version 2 has one hierarchy (controllers ""), version 1 one a controller. In a container the
    path in /proc may not be mounted; then the root folder is its own.
    """
    if text is None:
        text = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / controllers if controllers else root
        folder = base / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield controllers, folder
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def cpu_quota(root: Path = _CGROUPS, text: str | None = None) -> float | None:
    """Cores' worth of time that control groups allow; None without a limit."""
    limits = []
    for controllers, folder in own_cgroups(root, text):
        if not controllers:
            words = _read(folder / "cpu.max").split()
            if len(words) == 2 and words[0] != "max":
                limits.append(int(words[0]) / int(words[1]))
        elif "cpu" in controllers.split(","):
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if quota and period and int(quota) > 0:
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = _CGROUPS, text: str | None = None) -> int | None:
    """Bytes that control groups allow; None without a limit."""
    limits = []
    for controllers, folder in own_cgroups(root, text):
        if not controllers:
            words = _read(folder / "memory.max")
        elif "memory" in controllers.split(","):
            words = _read(folder / "memory.limit_in_bytes")
        else:
            continue
        if words and words != "max" and int(words) < _UNLIMITED:
            limits.append(int(words))
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def cores() -> Finding:
    """Cores that this process may use."""
    allowed, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = cpu_quota()
    words = f"{allowed} of {total}"
    if quota is not None and quota < allowed:
        threads = max(1, math.floor(quota))
        return Finding(
            "cores", "warn", f"{words}, and a control group allows the time of {quota:.3g}",
            f"Give threads by hand, for example --threads {threads}: the default is one a core",
        )  # fmt: skip
    return Finding("cores", "ok", words)


def memory() -> Finding:
    """Memory there is, and what a control group leaves of it."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines()
    )
    total, free = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    words = f"{human_bytes(total)}, {human_bytes(free)} of it free"
    if limit is not None and limit < total:
        words += f"; a control group allows {human_bytes(limit)}"
    if min(total, limit or total) < _ENOUGH_MEMORY:
        return Finding("memory", "warn", words, "Give 2 GiB or more")
    return Finding("memory", "ok", words)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # only its size is read
    """The size of /dev/shm, through which torch's processes and NCCL talk."""
    if not path.is_dir():
        mend = "Mount it; in a container: --shm-size=8g. Only runs on several GPUs need it"
        return Finding("shared memory", "warn", f"there is no {path}", mend)
    size = shutil.disk_usage(path).total
    words = f"{path} has {human_bytes(size)}"
    if size < _ENOUGH_SHM:
        mend = "In a container: --shm-size=8g. Runs on several GPUs need it, omr_io itself does not"
        return Finding("shared memory", "warn", words, mend)
    return Finding("shared memory", "ok", words)


def open_files() -> Finding:
    """How many files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = " of ".join(
        "unlimited" if n == resource.RLIM_INFINITY else str(n) for n in (soft, hard)
    )
    if soft != resource.RLIM_INFINITY and soft < _ENOUGH_FILES:
        return Finding("open files", "warn", words, f"ulimit -n {_ENOUGH_FILES}, or more")
    return Finding("open files", "ok", words)


def temporary_space() -> Finding:
    """Where temporary files go."""
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    except OSError as error:
        mend = "Free space there, or set TMPDIR to a folder that can be written"
        return Finding("temporary files", "warn", f"none can be written: {error}", mend)
    free = shutil.disk_usage(folder).free
    words = f"{folder} has {human_bytes(free)} free"
    if free < _ENOUGH_TEMP:
        return Finding("temporary files", "warn", words, "Free space there, or set TMPDIR")
    return Finding("temporary files", "ok", words)


def encoding() -> Finding:
    """How file names are encoded: UTF-8 or names from a corpus may not be writable."""
    found = f"{sys.getfilesystemencoding()} for file names, {sys.stdout.encoding} for output"
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        return Finding("encoding", "warn", found, "export LC_ALL=C.UTF-8, or PYTHONUTF8=1")
    return Finding("encoding", "ok", found)


def hugging_face_token() -> Finding:
    """Whether there is a token for gated data sets. It is never printed."""
    name = "Hugging Face token"
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable):
            return Finding(name, "ok", f"{variable} is set")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    if path.is_file():
        return Finding(name, "ok", f"in {path}")
    mend = "For gated data sets: export HF_TOKEN=..., or hf auth login"
    return Finding(name, "ok", "none; open data sets need none", mend)


def proxies() -> Finding:
    """Proxies that downloads go through, without their passwords."""
    found = []
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            value = os.environ.get(variable)
            if value:
                shown = value if name == "no_proxy" else _without_password(value)
                found.append(f"{variable}={shown}")
    return Finding("proxies", "ok", ", ".join(found) or "none")


def _without_password(address: str) -> str:
    # Without a scheme urlsplit would take the password for a part of the path.
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    return f"{scheme}{parts.hostname or '(not an address)'}{port}"
