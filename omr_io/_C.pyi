# ruff: noqa: N999
"""The C++ core (csrc/bindings.cpp)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class TarFormatError(ValueError):
    """A malformed tar; args are (reason: str, offset: int)."""

def scan_tar(
    tar: Buffer, *, max_name: int = 4096, max_extended: int = 1048576
) -> tuple[list[bytes], NDArray[np.int64]]:
    """List the regular files of a tar held in a contiguous buffer of bytes.

    Returns:
        The names as they stand in the tar, and an (N, 3) int64 table of header offset, data offset
        and size, all in bytes.

    Raises:
        TarFormatError: the tar is malformed; see csrc/tar_scanner.hpp.
    """

class JpegFormatError(ValueError):
    """A JPEG that is not laid out as one; args are (reason: str,)."""

def jpeg_segments(data: bytes, *, tables: bool = False) -> list[tuple[int, int, int]]:
    """List the segments of a JPEG after SOI, without a gap, to EOI and with it.

    Returns:
        (start, stop, marker) of each, in bytes; a scan's entropy-coded data belongs to its SOS.

    Raises:
        JpegFormatError: see csrc/jpeg_segments.hpp.
    """

def resize(
    pixels: NDArray[np.uint8],
    height: int,
    width: int,
    *,
    filter: str = ...,
    vertical_first: bool = ...,
    instructions: str = ...,
) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (height, width, 3) as Pillow does; see csrc/pixels/resize.hpp.

    Raises:
        ValueError: an argument has another shape, or names nothing.
    """

def to_patches(
    pixels: NDArray[np.uint8],
    height: int,
    width: int,
    table: NDArray[Any],
    out: NDArray[Any],
    *,
    patch_size: int,
    merge_size: int,
    frames: int,
    channels_last: bool = ...,
    filter: str = ...,
    vertical_first: bool = ...,
    instructions: str = ...,
) -> None:
    """Resize, look each byte up in `table` (3, 256) and write patches; see csrc/pixels/patches.hpp.

    `table` and `out` have the same dtype, of 2 or 4 bytes.

    Raises:
        ValueError: an argument has another shape, or names nothing.
    """
