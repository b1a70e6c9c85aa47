"""Files to views: pictures as a viewer would show them, 8 bits a channel.

Legend: H height, W width, F frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omr_io.demo_corpus.sources import MODALITIES
from omr_io.errors import ImageError, Where
from omr_io.text import one_line
from omr_io.types import UInt8Array

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

_ACROSS: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""The plane that lies across the x, y and z axes of the patient."""

MAX_SIDE = 512
"""Views are scaled down to a short side of this many pixels: crops of 96 to 256 need no more."""

MIN_SIDE = 24
MAX_ASPECT = 5.0
FRAMES = 10
SLICES = 6

_BODY_PARTS: tuple[tuple[str, str], ...] = (
    ("head", "head"),
    ("brain", "head"),
    ("skull", "head"),
    ("neck", "neck"),
    ("chest", "chest"),
    ("thorax", "chest"),
    ("lung", "chest"),
    ("echocardiogram", "heart"),
    ("heart", "heart"),
    ("abdomen", "abdomen"),
    ("pancreas", "abdomen"),
    ("liver", "abdomen"),
    ("pelvis", "pelvis"),
    ("shoulder", "shoulder"),
    ("knee", "leg"),
    ("tibia", "leg"),
    ("eye", "eye"),
)
"""A word in BodyPartExamined, else in StudyDescription -> the body part asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One picture of a study.

    Attributes:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8, as displayed: windowed, bright where the file's
            photometric interpretation says bright. The short side is at most MAX_SIDE.
        plane: the anatomical plane, where the file says it and it is not oblique.
    """

    pixels: UInt8Array
    plane: Plane | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file gives: its views, and what its metadata says about them."""

    views: tuple[View, ...]
    modality: str | None = None
    body_part: str | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings that pydicom and nibabel give on deliberately odd test files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_image(path: Path) -> Reading:
    """A PNG, JPEG, TIFF, ... file: one view, its first frame, upright."""
    from PIL import ImageOps

    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            return Reading((View(_shrink(_stretch(np.asarray(opened)))),))
        upright = ImageOps.exif_transpose(opened)
        picture = upright.convert("L" if upright.mode in ("L", "1", "LA") else "RGB")
    return Reading((View(_shrink(np.asarray(picture))),))


def read_volume(path: Path) -> Reading:
    """A NIfTI or AFNI volume: up to SLICES slices a plane, in its first volume if it is 4-D.

    The axes come from the affine: in nibabel's closest canonical orientation (RAS+) axis 0 is
    left to right (sagittal slices), 1 back to front (coronal), 2 feet to head (axial).

    Raises:
        ImageError: it is not a volume, or shows nothing.
    """
    import nibabel

    with quiet():
        image = nibabel.load(path)
        while len(image.shape) > 3:
            image = image.slicer[..., 0]
        image = nibabel.as_closest_canonical(image)
        volume = np.asarray(image.dataobj, dtype=np.float64)
    if volume.ndim != 3:
        raise ImageError("not a volume of three axes", where=Where(source=str(path)))
    shown = _stretch(np.nan_to_num(volume))
    zooms = [float(size) for size in image.header.get_zooms()[:3]]
    views = []
    for axis, plane in enumerate(_ACROSS):
        across, up = (other for other in range(3) if other != axis)
        width = round(shown.shape[across] * zooms[across] / min(zooms[across], zooms[up]))
        height = round(shown.shape[up] * zooms[up] / min(zooms[across], zooms[up]))
        if min(shown.shape[across], shown.shape[up]) < MIN_SIDE or max(width, height) > 2.5 * min(
            width, height
        ):
            continue
        count = shown.shape[axis]
        for position in np.unique(np.linspace(0.30 * count, 0.72 * count, SLICES).astype(int)):
            slice_hw = np.rot90(np.take(shown, position, axis))
            isotropic = Image.fromarray(slice_hw).resize((width, height), Image.Resampling.BICUBIC)
            views.append(View(_shrink(np.asarray(isotropic)), plane))
    return Reading(tuple(views))


def read_dicom(path: Path, *, plugins: tuple[str, ...] = ("pillow", "pydicom")) -> Reading:
    """A DICOM file: its picture, or up to FRAMES of its frames, as a viewer shows them.

    Modality LUT, then VOI window or LUT, then MONOCHROME1 or the palette (PS3.4 N.2, PS3.3
    C.7.6.3); YBR becomes RGB. Without a window the 0.5 and 99.5 percentiles are black and white.

    Args:
        plugins: pydicom's decoders to try for compressed pixels; "" stands for any installed one.

    Raises:
        ImageError: it is no picture of anatomy, or none of the plugins decodes it.
    """
    import pydicom

    with quiet():
        dataset = pydicom.dcmread(path)
        code = str(dataset.get("Modality", ""))
        if code not in MODALITIES:
            raise ImageError(f"modality {code!r} is no picture of anatomy")
        if not ({"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir())):
            raise ImageError("it has no pixels")
        count = int(dataset.get("NumberOfFrames") or 1)
        frames = np.unique(np.linspace(0, count - 1, FRAMES).astype(int)) if count > 1 else [None]
        plane = _plane(dataset)
        views = tuple(View(_shrink(_frame(dataset, at, plugins)), plane) for at in frames)
    return Reading(views, code, _body_part(dataset))


def _frame(dataset: Any, index: int | None, plugins: tuple[str, ...]) -> UInt8Array:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    failures = []
    stored: NDArray[Any] | None = None
    at = None if index is None else int(index)
    for plugin in plugins if dataset.file_meta.TransferSyntaxUID.is_encapsulated else ("",):
        try:
            stored = pixel_array(dataset, index=at, decoding_plugin=plugin)
            break
        except Exception as error:  # pydicom's decoders raise whatever their libraries raise
            failures.append(one_line(error))
    if stored is None:
        raise ImageError("its pixels do not decode: " + "; ".join(failures))
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        eight_bit = coloured >> 8 if coloured.dtype == np.uint16 else coloured
        return np.asarray(eight_bit, dtype=np.uint8)
    if stored.ndim == 3:
        return stored.astype(np.uint8) if stored.dtype == np.uint8 else _stretch(stored)
    values = apply_modality_lut(stored, dataset)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        values = apply_voi_lut(values, dataset)
        shown = _stretch(values, float(values.min()), float(values.max()))
    else:
        shown = _stretch(values)
    return 255 - shown if photometric == "MONOCHROME1" else shown


def _plane(dataset: Any) -> Plane | None:
    """From ImageOrientationPatient: the axis along which the slice's normal lies, if within 25°."""
    cosines = dataset.get("ImageOrientationPatient")
    if not cosines or len(cosines) != 6:
        return None
    row, column = (np.array([float(x) for x in part]) for part in (cosines[:3], cosines[3:]))
    normal = np.abs(np.cross(row, column))
    return _ACROSS[int(normal.argmax())] if normal.max() >= np.cos(np.radians(25)) else None


def _body_part(dataset: Any) -> str | None:
    for field in ("BodyPartExamined", "StudyDescription"):
        text = str(dataset.get(field) or "").lower()
        for word, part in _BODY_PARTS:
            if word in text:
                return part
    return None


def _stretch(
    values: NDArray[Any], low: float | None = None, high: float | None = None
) -> UInt8Array:
    """Map low..high, by default the 0.5 and 99.5 percentiles, to 0..255."""
    numbers = values.astype(np.float64)
    if low is None or high is None:
        low, high = (float(x) for x in np.percentile(numbers, (0.5, 99.5)))
    if not high > low:
        raise ImageError("all its pixels are alike")
    return np.clip((numbers - low) * (255.0 / (high - low)) + 0.5, 0, 255).astype(np.uint8)


def _shrink(pixels: UInt8Array) -> UInt8Array:
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{width} x {height} pixels: too small or too narrow")
    if min(height, width) <= MAX_SIDE:
        return pixels
    factor = MAX_SIDE / min(height, width)
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def crop_region(view: View, region: tuple[float, float, float, float]) -> View:
    """The part of a view between left, top, right and bottom, given as fractions of its sides."""
    height, width = view.pixels.shape[:2]
    left, top, right, bottom = region
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    return View(np.ascontiguousarray(view.pixels[rows, columns]), view.plane)
