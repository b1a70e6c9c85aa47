"""JPEG: segments are kept or dropped whole, entropy-coded data is never changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from omr_io.errors import ImageError
from omr_io.images import headers
from omr_io.images.metadata.common import damaged, minimal_exif

_SOS, _APP0, _APP2, _APP14 = 0xDA, 0xE0, 0xE2, 0xEE
_ADOBE_BYTES: Final = 12  # "Adobe", version, two flags, colour transform
_JFIF_BYTES: Final = 14  # "JFIF\0", version, units, densities, thumbnail width and height


def strip(data: bytes, orientation: int, keep_icc: bool) -> bytes:
    """Strip a JPEG file; see `strip_metadata`."""
    pieces = list(_kept(data, keep_icc, tables=False))
    if orientation == 1:
        return data if len(pieces) == 1 and len(pieces[0]) == len(data) else b"".join(pieces)
    exif = b"Exif\0\0" + minimal_exif(orientation)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    out = b"".join(pieces)
    # JFIF asks to be first, and EXIF next to it.
    at = 6 + _JFIF_BYTES if out.startswith(b"\xff\xe0\0\x10JFIF\0", 2) else 2
    out = out[:at] + segment + out[at:]
    return data if out == data else out


def strip_stream(data: bytes, *, tables: bool) -> bytes:
    """Strip a JPEG stream that is part of a TIFF; `tables`: it holds tables and no scan."""
    return b"".join(_kept(data, False, tables=tables))


def mpf_offset(data: bytes) -> int:
    """Where the payload of the index of several pictures (MPF) starts in the header, or -1."""
    try:
        for marker, start, _ in headers.jpeg_header_segments(data):
            if marker == _APP2 and data.startswith(b"MPF\0", start):
                return start
    except ImageError:  # damaged: the decode check says so
        pass
    return -1


def _kept(data: bytes, keep_icc: bool, *, tables: bool) -> Iterator[bytes]:
    """The stretches to keep, in order; `data` itself when that is all of it."""
    since, scans = 0, 0  # `since`: the start of the stretch that is being kept
    stop = 2
    for start, stop, marker in _segments(data, tables=tables):
        if marker == _SOS:
            scans += 1
        elif marker >= _APP0:  # APPn or COM
            instead = _replacement(data, start, stop, marker, keep_icc) if not scans else b""
            if instead is not None:
                if since < start:
                    yield data[since:start]
                yield instead
                since = stop
    if since == 0 and stop == len(data):
        yield data
    else:
        yield data[since:stop]


def _replacement(data: bytes, start: int, stop: int, marker: int, keep_icc: bool) -> bytes | None:
    """What stands for an APPn or COM segment before the first scan; None keeps it as it is.

    libjpeg takes the colour space from JFIF and Adobe's marker, if they are long enough.
    """
    at = _payload(data, start, stop)
    if marker == _APP0 and stop - at >= _JFIF_BYTES and data.startswith(b"JFIF\0", at):
        whole = b"\xff\xe0\0\x10" + data[at : at + 12] + b"\0\0"  # no thumbnail
    elif marker == _APP14 and stop - at >= _ADOBE_BYTES and data.startswith(b"Adobe", at):
        whole = b"\xff\xee\0\x0e" + data[at : at + _ADOBE_BYTES]
    elif keep_icc and marker == _APP2 and data.startswith(b"ICC_PROFILE\0", at):
        return None
    else:
        return b""
    return None if data[start:stop] == whole else whole


def _payload(data: bytes, start: int, stop: int) -> int:
    """Where a segment's payload begins: after fill bytes, marker and length."""
    at = start + 1
    while data[at] == 0xFF:
        at += 1
    return min(at + 3, stop)


def _segments(data: bytes, *, tables: bool) -> list[tuple[int, int, int]]:
    """(start, stop, marker) of each segment after SOI, without a gap, to EOI and with it.

    A scan's entropy-coded data belongs to its SOS segment, fill bytes to the marker behind them.
    """
    # Here, not above: headers are read from a source tree whose C++ is not built.
    from omr_io import _C

    try:
        return _C.jpeg_segments(data, tables=tables)
    except _C.JpegFormatError as error:
        raise damaged(str(error)) from None
