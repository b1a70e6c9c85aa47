"""Images: what the header says, the caps, and the sizes that follow.

Everything that the plan needs (how many image tokens a sample holds) follows from `ImageInfo`
without decoding a pixel.

Legend: N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from omr_io.config import ExifPolicy, VisionConfig
from omr_io.errors import ImageError
from omr_io.images import headers
from omr_io.types import ImageInfo, Int64Array

MAX_PIXELS: Final = 64_000_000
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_ASPECT: Final = 200
"""transformers' smart_resize refuses a longer side more than 200 times the shorter one."""

_PARSERS: Final[tuple[tuple[bytes, Callable[[bytes], ImageInfo]], ...]] = (
    (b"\xff\xd8\xff", headers.jpeg),
    (b"\x89PNG\r\n\x1a\n", headers.png),
    (b"GIF87a", headers.gif),
    (b"GIF89a", headers.gif),
    (b"BM", headers.bmp),
    (b"II*\0", headers.tiff),
    (b"MM\0*", headers.tiff),
)


def probe(data: bytes) -> ImageInfo:
    """Read an image's size, format, mode and orientation from its header.

    No pixel is decoded and nothing is allocated by the size the header claims, so any bytes may be
    given. See `check_caps` for limits and `check_decodes` for the rest of the file.

    Raises:
        ImageError: "image-empty", "image-format" (not JPEG, PNG, WebP, TIFF, BMP or GIF, or a kind
            of JPEG that is not 8-bit), "image-truncated" or "image-corrupt".
    """
    if not data:
        raise ImageError("the image is empty: 0 bytes", reason="image-empty")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        info = headers.webp(data)
    else:
        for magic, parse in _PARSERS:
            if data.startswith(magic):
                info = parse(data)
                break
        else:
            raise ImageError(
                f"unknown image format: the bytes begin with {data[:12].hex(' ')}",
                reason="image-format",
                mend="Use JPEG, PNG, WebP, TIFF, BMP or GIF",
            )
    if info.width < 1 or info.height < 1:
        raise ImageError(f"the header gives a size of {info.width}x{info.height} pixels")
    return info


def check_caps(
    info: ImageInfo,
    num_bytes: int,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Refuse an image that is too large to decode, or too narrow for any model.

    Args:
        num_bytes: the size of the encoded file.
        max_pixels: cap on width x height.
        max_bytes: cap on `num_bytes`.

    Raises:
        ImageError: "image-too-large" or "image-too-narrow".
    """
    pixels = info.width * info.height
    if pixels > max_pixels:
        raise ImageError(
            f"the image has {info.width}x{info.height} = {pixels} pixels, the cap is {max_pixels}",
            reason="image-too-large",
            mend="Shrink it, or raise max_pixels",
        )
    check_bytes(num_bytes, max_bytes)
    _check_aspect(info.height, info.width)


def check_bytes(num_bytes: int, max_bytes: int = MAX_BYTES) -> None:
    """Refuse an encoded image of more than `max_bytes`, before anything in it is looked at.

    Raises:
        ImageError: "image-too-large".
    """
    if num_bytes > max_bytes:
        raise ImageError(
            f"the image file has {num_bytes} bytes, the cap is {max_bytes}",
            reason="image-too-large",
            mend="Compress it, or raise max_bytes",
        )


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(
            f"the image is {width}x{height}: one side is over {MAX_ASPECT} times the other",
            reason="image-too-narrow",
            mend="Crop it: Qwen's image processors refuse it too",
        )


def check_decodes(data: bytes, info: ImageInfo) -> None:
    """Decode an image in full and strictly, and drop the pixels.

    Caught, besides what makes Pillow fail: a JPEG for which libjpeg-turbo gives any warning
    (premature end, bytes missing or left over before a marker), a PNG with a wrong checksum in
    a critical chunk (IDAT among them) or without its IEND, a WebP shorter than it says, and pixels
    of another size than the header's. Not caught, since the formats carry no checksum: a flipped
    bit in a JPEG, WebP, TIFF, BMP or GIF that still decodes. In a JPEG that is 9 flips of 10.
    Nor is a progressive JPEG that ends well without its last scans: that is a coarser picture.

    Raises:
        ImageError: "image-truncated", "image-corrupt", "image-changed" or "image-format".
    """
    # Here, not above: Pillow takes 20 ms to import, and headers need none of it.
    from omr_io.images.pixels import decode_rgb

    decode_rgb(data, info)


def smart_resize(height: int, width: int, vision: VisionConfig) -> tuple[int, int]:
    """The size an image is resized to: multiples of patch_size x merge_size, within the bounds.

    The arithmetic is transformers' (models/qwen2_vl, smart_resize), rounding halves to even.

    Args:
        height, width: in pixels, oriented.

    Returns:
        (height, width) in pixels.

    Raises:
        ImageError: "image-too-narrow" when one side is over 200 times the other.
    """
    _check_aspect(height, width)
    factor = vision.patch_size * vision.merge_size
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > vision.max_pixels:
        beta = math.sqrt((height * width) / vision.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < vision.min_pixels:
        beta = math.sqrt(vision.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


def image_grid_thw(infos: Sequence[ImageInfo], vision: VisionConfig) -> Int64Array:
    """The patches of each image before merging.

    Returns:
        (N, 3) int64: frames (1), rows and columns of patches.

    Raises:
        ImageError: "image-too-narrow".
    """
    turned = vision.exif == "apply"
    sizes = [info.oriented if turned else (info.width, info.height) for info in infos]
    grid_N3 = np.ones((len(sizes), 3), dtype=np.int64)
    for row, (width, height) in zip(grid_N3, sizes, strict=True):
        row[1:] = smart_resize(height, width, vision)
    grid_N3[:, 1:] //= vision.patch_size
    return grid_N3


def image_grid_thw_from_sizes(
    heights_N: NDArray[Any], widths_N: NDArray[Any], vision: VisionConfig
) -> Int64Array:
    """`image_grid_thw` over columns: the same integers, without a Python loop.

    Args:
        heights_N, widths_N: (N,) integers, oriented sizes in pixels; see `oriented_sizes`.

    Returns:
        (N, 3) int64.

    Raises:
        ImageError: "image-too-narrow", naming the first such row.
    """
    heights, widths = heights_N.astype(np.int64), widths_N.astype(np.int64)
    narrow = np.maximum(heights, widths) > MAX_ASPECT * np.minimum(heights, widths)
    if narrow.any():
        row = int(np.argmax(narrow))
        try:
            _check_aspect(int(heights[row]), int(widths[row]))
        except ImageError as error:
            raise ImageError(
                f"image {row}: {error.what}", mend=error.mend, reason=error.reason
            ) from None
    factor = vision.patch_size * vision.merge_size
    sides = np.stack([heights, widths]).astype(np.float64)
    plain = np.rint(sides / factor).astype(np.int64)  # in units of factor; halves go to even
    pixels = (heights * widths).astype(np.float64)  # exact below 2**53
    shrink = np.maximum(1, np.floor(sides / np.sqrt(pixels / vision.max_pixels) / factor))
    grow = np.ceil(sides * np.sqrt(vision.min_pixels / pixels) / factor)
    size = plain[0] * plain[1] * factor**2
    cells = np.where(
        size > vision.max_pixels, shrink, np.where(size < vision.min_pixels, grow, plain)
    )
    grid_N3 = np.ones((len(heights), 3), dtype=np.int64)
    grid_N3[:, 1:] = (cells.astype(np.int64) * vision.merge_size).T
    return grid_N3


def oriented_sizes(
    heights_N: NDArray[Any],
    widths_N: NDArray[Any],
    orientations_N: NDArray[Any],
    exif: ExifPolicy,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(heights, widths), each (N,), after the EXIF policy: orientations 5 to 8 swap the sides."""
    swap = (orientations_N >= 5) if exif == "apply" else np.zeros(len(heights_N), dtype=np.bool_)
    return np.where(swap, widths_N, heights_N), np.where(swap, heights_N, widths_N)


def num_image_tokens(grid_N3: Int64Array, merge_size: int) -> Int64Array:
    """Image tokens of each image: merge_size x merge_size patches make one.

    Args:
        grid_N3: (N, 3) int64, as `image_grid_thw` gives it.

    Returns:
        (N,) int64.
    """
    tokens: Int64Array = grid_N3.prod(axis=1) // merge_size**2
    return tokens
