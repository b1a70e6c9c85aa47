"""The segments of a JPEG, found byte by byte: the oracle of csrc/jpeg_segments.cpp.

Legend: N bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_SOS, _EOI, _APP0, _COM = 0xDA, 0xD9, 0xE0, 0xFE
# Frame headers, DHT, DQT, DAC: what decoders read. Those of a fixed size are in _FIXED.
_NEEDED: Final = {0xC4, 0xCC, 0xDB}
_FRAMES: Final = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_FIXED: Final = {0xDC: 4, 0xDD: 4}  # DNL, DRI: length field included


def jpeg_segments(data: bytes, *, tables: bool = False) -> list[tuple[int, int, int]]:
    """(start, stop, marker) of each segment after SOI; see csrc/jpeg_segments.hpp.

    Raises:
        ValueError: as `omr_io._C.JpegFormatError`, in the same words.
    """
    try:
        return list(_segments(data, tables=tables))
    except IndexError:
        raise ValueError("the jpeg image ends within its own structure") from None


def _segments(data: bytes, *, tables: bool) -> Iterator[tuple[int, int, int]]:
    """(start, stop, marker) of each segment after SOI, without a gap, to EOI and with it.

    A scan's entropy-coded data belongs to its SOS segment, fill bytes to the marker behind them.
    """
    at, scans = 2, 0
    while True:
        start = at
        if data[at] != 0xFF:
            raise ValueError(f"bytes that belong to no segment, at byte {at} of the JPEG")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == _EOI:
            if not scans and not tables:
                raise ValueError("the JPEG ends before any scan")
            yield start, at, marker
            return
        if marker not in _NEEDED and marker < _APP0 and not _is_known(marker):
            raise ValueError(f"the marker 0x{marker:02X} at byte {start} of the JPEG")
        length = data[at] << 8 | data[at + 1]
        at += length
        if length < 2 or at > len(data) or not _fits(data, marker, at - length, length):
            raise ValueError(f"a segment 0x{marker:02X} of a wrong length at byte {start}")
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
    while at < len(data) - 1:
        following = data[at + 1]
        is_mark = data[at] == 0xFF and following not in (0x00, 0xFF)
        if is_mark and not 0xD0 <= following <= 0xD7:
            return at
        at += 1
    raise ValueError("the JPEG has no end marker")
