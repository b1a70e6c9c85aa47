# ruff: noqa: N999
"""The C++ core (csrc/bindings*.cpp)."""

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

def plain_jpeg(data: bytes) -> tuple[int, int, int, bool] | None:
    """Recognise a JPEG of which nothing needs to be taken out; the GIL is released meanwhile.

    Returns:
        (width, height, components, whether it is progressive), or None for any other file; see
        csrc/jpeg_segments.hpp.
    """

def is_printable(text: str) -> bool:
    """False if a text holds U+0000 to U+001F but tab, LF and CR, U+007F, or half a surrogate."""

def json_of_texts(value: object) -> bytes | None:
    """What `json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))` makes of texts, as UTF-8.

    Returns:
        None if there is anything but str, list, tuple and dict (no subclasses), half a surrogate
        pair, or more than 16 levels.
    """

def tar_header(name: str, size: int) -> bytes:
    """The ustar header, 512 bytes, of a regular file: mode 644, owner 0, time 0.

    Raises:
        ValueError: `name` is not 1 to 100 bytes of ASCII without NUL, or `size` not below 8 GiB.
    """
