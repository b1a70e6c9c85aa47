"""Images of a gallery: decoded as training decodes them, made small, encoded anew."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from omr_io.images.decode import CpuDecoder
from omr_io.types import ImageFailure, ImageInfo, UInt8Array

_SIDES = (720, 560, 420, 320, 240, 160, 96)
_QUALITIES = (88, 78, 64)


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail for the page.

    Attributes:
        uri: a data: URI of a JPEG that holds pixels only.
        width, height: of the thumbnail.
    """

    uri: str
    width: int
    height: int


def thumbnail(data: bytes, info: ImageInfo, max_bytes: int) -> Picture | ImageFailure:
    """Make an encoded image small enough for the page.

    The pixels are those of training (EXIF orientation applied, alpha over white, 16 bits cut off).

    Args:
        data: the encoded image.
        info: what the index says of it.
        max_bytes: of the thumbnail's file; the largest and best that fits is taken, and of an image
            that never fits the smallest.
    """
    [pixels] = CpuDecoder().decode([data], [info])
    if isinstance(pixels, ImageFailure):
        return pixels
    picture = _plain(pixels)
    small, encoded = picture, b""
    for side, quality in _steps(max(picture.size)):
        if max(small.size) > side:
            small = picture.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
        encoded = _encode(small, quality)
        if len(encoded) <= max_bytes:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")
    return Picture(uri, *small.size)


def _plain(pixels_HW3: UInt8Array) -> Image.Image:
    """Grey as one channel: most radiographs are, and a third of the size."""
    grey = pixels_HW3[..., 0]
    if np.array_equal(grey, pixels_HW3[..., 1]) and np.array_equal(grey, pixels_HW3[..., 2]):
        return Image.fromarray(np.ascontiguousarray(grey))
    return Image.fromarray(pixels_HW3)


def _steps(longest: int) -> Iterator[tuple[int, int]]:
    for side in sorted({min(longest, side) for side in _SIDES}, reverse=True):
        for quality in _QUALITIES:
            yield side, quality


def _encode(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()
