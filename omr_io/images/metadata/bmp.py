"""BMP: headers written anew with the fields that decoding needs, palette and pixels copied."""

from __future__ import annotations

import struct
from typing import Final

from omr_io.images.metadata.common import damaged
from omr_io.images.metadata.verified import verified

_HEADERS: Final = (12, 40, 52, 56, 64, 108, 124)
_RGB, _RLE8, _RLE4, _BITFIELDS = 0, 1, 2, 3
_MAX_RESOLUTION: Final = 1_000_000  # pixels a metre: 25,400 an inch, and less than any 4 letters
_SRGB: Final = struct.pack("<I", 0x73524742)  # LCS_sRGB, for the colour space of V4 and V5


def strip(data: bytes) -> bytes:
    """Strip a BMP file; see `strip_metadata`.

    Gone are colour profiles, gaps, reserved fields, end points, and a resolution that is none.
    """
    (offset, size) = struct.unpack_from("<II", data, 10)
    if size == 12:
        head, masks, palette, offset, length = _core(data, offset)
    elif size in _HEADERS:
        head, masks, palette, offset, length = _info(data, offset, size)
    else:
        raise damaged(f"the BMP has a header of {size} bytes")
    if offset + length > len(data):
        raise damaged("the BMP ends within its pixels")
    middle = head + masks + palette
    first = struct.pack("<2sIII", b"BM", 14 + len(middle) + length, 0, 14 + len(middle))
    out = first + middle + data[offset : offset + length]
    return verified(data, out, "bmp")


def _core(data: bytes, offset: int) -> tuple[bytes, bytes, bytes, int, int]:
    """OS/2 1: (header, masks, palette, offset and length of the pixels)."""
    width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    colours = 1 << bits if bits <= 8 else 0
    palette = data[26 : 26 + 3 * colours]
    if offset == 26:  # some writers leave the palette out of the offset
        offset += len(palette)
    return data[14:26], b"", palette, offset or 26 + len(palette), _row(width, bits) * height


def _info(data: bytes, offset: int, size: int) -> tuple[bytes, bytes, bytes, int, int]:
    """Windows 3 and later, OS/2 2: as `_core`."""
    width, height, planes, bits, packing = struct.unpack_from("<IiHHI", data, 18)
    used = struct.unpack_from("<I", data, 46)[0] if bits <= 8 else 0
    colours = (used or 1 << bits) if bits <= 8 else 0
    if colours > 256 or packing > _BITFIELDS:
        raise damaged(f"the BMP has {colours} colours, compression {packing}")
    at = 14 + size
    masks = data[at : at + 12] if size == 40 and packing == _BITFIELDS else b""
    at += len(masks)
    palette = bytearray(data[at : at + 4 * colours])
    if len(palette) != 4 * colours:
        raise damaged("the BMP ends within its palette")
    palette[3::4] = bytes(colours)  # reserved
    if offset == 14 + size:
        offset += len(palette)
    offset = offset or at + len(palette)
    if packing in (_RLE8, _RLE4):
        if offset % 2:  # Pillow aligns to the file, not to the pixels
            raise damaged("the compressed BMP's pixels stand at an odd offset")
        length = _run_length(data, offset, packing == _RLE4)
    else:
        length = _row(width, bits) * abs(height)
    across, down, _, important = struct.unpack_from("<IIII", data, 38)
    if max(across, down) > _MAX_RESOLUTION:
        across = down = 0
    important = important if important <= used else 0
    fields = (size, width, height, planes, bits, packing, length & 0xFFFFFFFF)
    head = struct.pack("<IIiHHIIIIII", *fields, across, down, used, important)
    if size >= 52 and size != 64:
        head += data[54 : 54 + min(size - 40, 16)]  # the masks
    if size >= 108:
        head += _SRGB
    return head.ljust(size, b"\0"), masks, bytes(palette), offset, length


def _row(width: int, bits: int) -> int:
    """Bytes of a row, which is padded to 4."""
    return (width * bits + 31) // 32 * 4


def _run_length(data: bytes, start: int, nibbles: bool) -> int:
    """Bytes of run-length coded pixels, up to and with the end mark."""
    at = start
    while True:
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            continue
        if value == 1:
            return at - start
        if value == 2:
            at += 2
        elif value > 2:
            size = (value + 1) // 2 if nibbles else value
            at += size + (size & 1)
