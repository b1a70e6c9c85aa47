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


def plain_jpeg(data: bytes) -> tuple[int, int, int, bool] | None:
    """(width, height, components, is progressive) of a plain JPEG; see csrc/jpeg_segments.hpp."""
    try:
        segments = jpeg_segments(data)
    except ValueError:
        return None
    markers = [marker for *_, marker in segments]
    scan = markers.index(_SOS)
    frames = [place for place, marker in enumerate(markers) if marker in _FRAMES]
    filled = any(data[start + 1] == 0xFF for start, _, _ in segments)
    whole = data[:2] == b"\xff\xd8" and segments[-1][1] == len(data)
    if filled or not whole or len(frames) != 1 or frames[0] > scan:
        return None
    for place, (start, stop, marker) in enumerate(segments):
        said = marker == _COM or _APP0 <= marker < 0xF0
        if said and (place > scan or not _is_usual(data[start:stop])):
            return None
    start, _, marker = segments[frames[0]]
    bits, components = data[start + 4], data[start + 9]
    height, width = (int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7))
    if bits != 8 or components not in (1, 3, 4) or not width or not height:
        return None
    return width, height, components, marker in (0xC2, 0xCA)


def _is_usual(segment: bytes) -> bool:
    """JFIF's APP0 without a thumbnail, or Adobe's APP14, in their usual lengths."""
    jfif = segment.startswith(b"\xff\xe0\0\x10JFIF\0") and segment.endswith(b"\0\0")
    return jfif or segment.startswith(b"\xff\xee\0\x0eAdobe")


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
