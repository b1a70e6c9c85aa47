"""PNG: chunks are kept or dropped whole; those kept are not changed, nor are their checksums."""

from __future__ import annotations

import zlib
from typing import Final

from omr_io.images.headers import png_chunks
from omr_io.images.metadata.common import damaged, minimal_exif

_IEND: Final = b"\0\0\0\0IEND\xaeB`\x82"
_COLOUR: Final = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}  # and their exact sizes
_KNOWN: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def strip(data: bytes, orientation: int, keep_icc: bool) -> bytes:
    """Strip a PNG file; see `strip_metadata`.

    gAMA, cHRM, sRGB, cICP and iCCP change what a viewer shows, not the numbers that Pillow and
    transformers decode, so they are kept only with `keep_icc`. sBIT, bKGD and hIST change neither.
    acTL, fcTL and fdAT make an animation, whose first frame, or the picture shown in its place, is
    what IDAT holds.
    """
    colour = data[25]
    pieces = []
    seen: list[bytes] = []
    for kind, start, end in png_chunks(data):
        if kind == b"IEND":
            break
        if not kind[0] & 0x20 and kind not in _KNOWN:
            raise damaged(f"the PNG has a critical chunk {kind!r}, which PNG does not know")
        if _is_needed(kind, end - start, colour) or (keep_icc and _is_colour(kind, end - start)):
            if kind != b"IDAT" and kind in seen:
                raise damaged(f"the PNG has two {kind.decode()} chunks")
            if kind in (b"PLTE", b"tRNS") and b"IDAT" in seen:
                raise damaged(f"the PNG's {kind.decode()} stands behind its pixels")
            pieces.append(data[start - 8 : end + 4])
        if kind == b"IDAT" and b"IDAT" in seen and seen[-1] != b"IDAT":
            raise damaged("other chunks stand between the PNG's IDAT chunks")
        seen.append(kind)
    if orientation != 1:
        pieces.insert(1, _chunk(b"eXIf", minimal_exif(orientation)))
    out = b"".join((data[:8], *pieces, _IEND))
    return data if out == data else out


def _is_needed(kind: bytes, size: int, colour: int) -> bool:
    """True for a chunk without which the pixels are not the same."""
    if kind == b"IHDR":
        fits = size == 13
    elif kind == b"PLTE":
        if colour != 3:  # a suggestion for screens of 256 colours
            return False
        fits = size <= 768 and size % 3 == 0
    elif kind == b"tRNS":
        if colour in (4, 6):  # not allowed there, and ignored
            return False
        fits = size == {0: 2, 2: 6}.get(colour, size) and size <= 256
    else:
        return kind == b"IDAT"
    if not fits:
        raise damaged(f"the PNG has a {kind.decode()} chunk of {size} bytes")
    return True


def _is_colour(kind: bytes, size: int) -> bool:
    return kind == b"iCCP" or _COLOUR.get(kind) == size


def _chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload).to_bytes(4, "big")
    return len(payload).to_bytes(4, "big") + kind + payload + checksum
