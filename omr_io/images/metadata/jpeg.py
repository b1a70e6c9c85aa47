"""JPEG: segments are kept or dropped whole, entropy-coded data is never changed.

Legend: N bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from omr_io.errors import ImageError
from omr_io.images.metadata.common import damaged, minimal_exif

_SOS, _EOI, _APP0, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE2, 0xEE, 0xFE
# Frame headers, DHT, DQT, DAC: what decoders read. Those of a fixed size are in _FIXED.
_NEEDED: Final = {0xC4, 0xCC, 0xDB}
_FRAMES: Final = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_FIXED: Final = {0xDC: 4, 0xDD: 4}  # DNL, DRI: length field included
_CHUNK: Final = 1 << 18
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
    """Where the index of a file of several pictures (MPF) stands in the header, or -1."""
    try:
        for start, stop, marker in _segments(data, tables=True):
            if marker == _APP2 and data.startswith(b"MPF\0", _payload(data, start, stop)):
                return start
            if marker == _SOS:
                break
    except (IndexError, ImageError):  # damaged: the decode check says so
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


def _segments(data: bytes, *, tables: bool) -> Iterator[tuple[int, int, int]]:
    """(start, stop, marker) of each segment after SOI, without a gap, to EOI and with it.

    A scan's entropy-coded data belongs to its SOS segment, fill bytes to the marker behind them.
    """
    at, scans = 2, 0
    while True:
        start = at
        if data[at] != 0xFF:
            raise damaged(f"bytes that belong to no segment, at byte {at} of the JPEG")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == _EOI:
            if not scans and not tables:
                raise damaged("the JPEG ends before any scan")
            yield start, at, marker
            return
        if marker not in _NEEDED and marker < _APP0 and not _is_known(marker):
            raise damaged(f"the marker 0x{marker:02X} at byte {start} of the JPEG")
        length = data[at] << 8 | data[at + 1]
        at += length
        if length < 2 or at > len(data) or not _fits(data, marker, at - length, length):
            raise damaged(f"a segment 0x{marker:02X} of a wrong length at byte {start}")
        if marker == _SOS:
            scans += 1
            at = _scan_end(data, at)
        yield start, at, marker


def _is_known(marker: int) -> bool:
    return marker == _SOS or marker in _FRAMES or marker in _FIXED


def _fits(data: bytes, marker: int, at: int, length: int) -> bool:
    """True unless a segment is longer than what it says it holds, as libjpeg checks too."""
    if marker in _FRAMES:
        return length >= 8 and length == 8 + 3 * data[at + 7]
    if marker == _SOS:
        return length >= 6 and length == 6 + 2 * data[at + 2]
    if marker in _FIXED:
        return length == _FIXED[marker]
    return marker < 0xF0 or marker == _COM  # JPGn are reserved


def _scan_end(data: bytes, at: int) -> int:
    """Where the marker stands that ends a scan's entropy-coded data.

    In such data 0xFF is followed by 0 (it is a data byte), by a restart marker or by another 0xFF
    (it is fill). Anything else is the next marker; there is no other way to be exact, as bytes
    that look like one may stand in a later segment or behind the image.
    """
    view_N = np.frombuffer(data, np.uint8)
    while at < len(data) - 1:
        now, behind = view_N[at : at + _CHUNK], view_N[at + 1 : at + 1 + _CHUNK]
        now = now[: len(behind)]
        is_mark = now == 0xFF
        is_mark &= behind != 0
        first = int(is_mark.argmax())
        if is_mark[first]:
            following = data[at + first + 1]
            if following != 0xFF and not 0xD0 <= following <= 0xD7:
                return at + first
            marks = np.flatnonzero(is_mark)
            after = behind[marks]
            ends = marks[(after != 0xFF) & ((after & 0xF8) != 0xD0)]
            if len(ends):
                return at + int(ends[0])
        at += len(behind)
    raise damaged("the JPEG has no end marker")
