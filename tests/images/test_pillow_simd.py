"""pillow-simd in Pillow's place, in an environment of its own: the pixels must be the same.

The environment is made from the package registry (10 s here, pillow-simd is built from source), or
$OMR_IO_SIMD_PYTHON names an interpreter of this Python's version that has pillow-simd, NumPy and
simplejpeg. Without either the tests are skipped, with CI=true they fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import omr_io
from omr_io import _C
from omr_io.config import VisionConfig
from omr_io.images import probe
from omr_io.images.decode import CpuDecoder
from omr_io.images.patches import resize
from omr_io.types import ImageFailure
from tests.images.test_decode import encode, exif, photograph, transparent_images

pytestmark = pytest.mark.slow

PACKAGES = ["pillow-simd==12.1.1.post0", f"numpy=={np.__version__}", "simplejpeg==1.9.0"]
SECONDS = 900
SIZE = (96, 64)

SCRIPT = """
import importlib.metadata, json, sys
from pathlib import Path

import numpy as np
from PIL import features

from omr_io import _C
from omr_io.errors import ConfigError
from omr_io.images import probe
from omr_io.images.decode import CpuDecoder, describe
from omr_io.images.pixels import installed_pass_order
from omr_io.types import ImageFailure

folder = Path(sys.argv[1])
size = json.loads(sys.argv[2])
told = {"pass_order": installed_pass_order(), "describe": describe(CpuDecoder()),
        "version": importlib.metadata.version("pillow-simd"), "failures": {}, "refused": {},
        "libraries": [name for name in ("webp", "libtiff") if features.check(name)]}
for path in sorted(folder.glob("*.image")):
    data = path.read_bytes()
    try:
        (pixels,) = CpuDecoder().decode([data], [probe(data)])
    except ConfigError as error:
        told["refused"][path.stem] = str(error)
        continue
    if isinstance(pixels, ImageFailure):
        told["failures"][path.stem] = pixels.reason + ": " + pixels.detail
        continue
    np.save(path.with_suffix(".npy"), pixels)
    resized = _C.resize(pixels, *size, filter="bicubic", instructions="best",
                        vertical_first=installed_pass_order() != "horizontal-first")
    np.save(path.with_suffix(".resized.npy"), resized)
print(json.dumps(told))
"""


def images() -> dict[str, bytes]:
    found = {}
    for n, (kind, mode, options) in enumerate(
        [
            *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
            ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
            ("JPEG", "RGB", {"keep_rgb": True}),
            *(("JPEG", "RGB", {"exif": exif(value)}) for value in (3, 6, 8)),
            *(("PNG", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
            ("PNG", "RGB", {"exif": exif(6)}),
            *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")),
            *(("GIF", mode, {}) for mode in ("L", "P")),
            *(("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "CMYK", "I;16")),
            ("TIFF", "RGB", {"compression": "tiff_lzw"}),
            ("TIFF", "RGB", {"compression": "tiff_deflate"}),
            ("WEBP", "RGB", {"quality": 80}),
            ("WEBP", "RGB", {"lossless": True}),
        ]
    ):
        image = photograph(211, 307, n)
        image = (image.convert("L") if mode == "I;16" else image).convert(mode)
        what = mode.replace(";", "") + "".join(sorted(options))
        found[f"{n:02d}-{kind}-{what}"] = encode(image, kind, **options)
    for n, data in enumerate(transparent_images()):
        found[f"transparent-{n}-{probe(data).format.upper()}"] = data
    return found


@pytest.fixture(scope="module")
def simd_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with pillow-simd."""
    named = os.environ.get("OMR_IO_SIMD_PYTHON")
    if named:
        return named
    folder = tmp_path_factory.mktemp("simd")
    try:
        venv.create(folder, with_pip=True)
        python = str(folder / "bin" / "python")
        command = [python, "-m", "pip", "install", "-q", "--no-input", *PACKAGES]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", "") or str(error))[-300:]
        text = f"no environment with pillow-simd can be made here: {why}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(f"{text}; $OMR_IO_SIMD_PYTHON may name one")
    return python


def package_alone(folder: Path) -> Path:
    """A folder to import from, with the omr_io of this process, its compiled module and no more.

    An editable installation keeps the module apart from the sources, and its site-packages would
    bring Pillow along.
    """
    package = folder / "omr_io"
    package.mkdir(parents=True)
    for entry in [*Path(omr_io.__file__).parent.iterdir(), Path(_C.__file__)]:
        if not (package / entry.name).exists():
            (package / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def told(simd_python: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:  # type: ignore[type-arg]
    """What the script says, and the folder with its pixels."""
    folder = tmp_path_factory.mktemp("pixels")
    for name, data in images().items():
        (folder / f"{name}.image").write_bytes(data)
    done = subprocess.run(
        [simd_python, "-c", SCRIPT, str(folder), json.dumps(SIZE)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=package_alone(folder / "package"),  # first in the path of `python -c`
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), folder


def test_it_is_pillow_simd_that_decodes_there(told: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    """And not a Pillow that some package put in its place, which pip does without a word."""
    said, _ = told
    assert said["version"].startswith("12.")
    assert f"Pillow-simd {said['version']}" in said["describe"]


def test_resize_follows_the_pillow_it_is_based_on(told: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    said, _ = told
    assert said["pass_order"] == "horizontal-first"


def test_pixels_are_equal_to_those_under_pillow(told: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    said, folder = told
    assert not said["failures"]
    compared = set()
    for name, data in images().items():
        if name in said["refused"]:
            continue
        (pixels,) = CpuDecoder().decode([data], [probe(data)])
        assert not isinstance(pixels, ImageFailure)
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), pixels, err_msg=name)
        compared.add(probe(data).format)
        ours = resize(pixels, *SIZE, VisionConfig(pass_order="horizontal-first"))
        np.testing.assert_array_equal(np.load(folder / f"{name}.resized.npy"), ours, err_msg=name)
    assert compared >= {"jpeg", "jpeg-progressive", "png", "bmp", "gif", "tiff"}


def test_a_library_it_was_built_without_is_named_and_no_image_is_blamed(
    told: tuple[dict, Path],  # type: ignore[type-arg]
) -> None:
    said, _ = told
    lacking = {"webp", "libtiff"} - set(said["libraries"])
    for name, error in said["refused"].items():
        assert name.split("-")[1] in ("WEBP", "TIFF") or name.split("-")[2] == "WEBP"
        assert "was built without " in error
    assert {
        error.split("built without ")[1].split(",")[0] for error in said["refused"].values()
    } == (lacking)


def test_the_refusal_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same here, with a Pillow that says it has no libwebp."""
    from PIL import WebPImagePlugin, features

    from omr_io.errors import ConfigError

    data = encode(Image.new("RGB", (8, 8)), "WEBP")

    def lacking(*_: object) -> None:
        raise NameError("name '_webp' is not defined")

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", lacking)
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(ConfigError, match="built without webp"):
        CpuDecoder().decode([data], [probe(data)])
