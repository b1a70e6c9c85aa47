"""Images that claim to be huge, or become huge when they are decoded."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

GIGABYTE = 1 << 30


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def small() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    return Image.fromarray(pixels)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, *extra: bytes, data: bytes | None = None) -> bytes:
    """A PNG that claims side x side RGB pixels; `extra` are chunks before its pixels."""
    rows = zlib.compress((b"\0" + bytes(3 * 40)) * 40) if data is None else data
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *extra, _chunk(b"IDAT", rows), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(side: int, **options: Any) -> bytes:
    """A JPEG of 40 x 40 pixels that claims side x side."""
    data = bytearray(encode(small(), "JPEG", **options))
    frame = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def many_scans(count: int, side: int = 40) -> bytes:
    """A progressive JPEG whose last scan is there over and over."""
    image = small().resize((side, side))
    data = encode(image, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def gif(screen: int, frame: int) -> bytes:
    data = bytearray(encode(small().convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", screen, screen)
    at = 13 + (3 << ((data[10] & 7) + 1))
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    data[at + 5 : at + 9] = struct.pack("<HH", frame, frame)
    return bytes(data)


def bmp(side: int) -> bytes:
    data = bytearray(encode(small(), "BMP"))
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def tiff(side: int, **options: Any) -> bytes:
    """A TIFF whose tags claim side x side pixels in one strip."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(encode(small(), "TIFF", tiffinfo=tags, **options))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257, 278):  # width, length, rows of a strip
            struct.pack_into("<HII", data, at + 2, 4, 1, side)
    return bytes(data)


def tiff_bomb() -> bytes:
    """A TIFF of 40 x 40 whose strip inflates to a gigabyte."""
    data = bytearray(encode(small(), "TIFF", compression="tiff_adobe_deflate"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    bomb = zeros()
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag == 273:
            struct.pack_into("<HII", data, at + 2, 4, 1, len(data))
        elif tag == 279:
            struct.pack_into("<HII", data, at + 2, 4, 1, len(bomb))
    return bytes(data) + bomb


def tiff_counts() -> bytes:
    """A TIFF that claims to have a thousand million strips."""
    data = bytearray(encode(small(), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (273, 279):
            struct.pack_into("<HII", data, at + 2, 4, 1_000_000_000, 8)
    return bytes(data)


def webp_canvas(side: int) -> bytes:
    """An extended WebP whose canvas claims side x side and whose frame is 40 x 40."""
    data = bytearray(encode(small(), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def webp_frame(side: int) -> bytes:
    """A plain lossy WebP whose frame claims side x side (14 bits)."""
    data = bytearray(encode(small(), "WEBP"))
    assert data[12:16] == b"VP8 "
    data[26:30] = struct.pack("<HH", side, side)
    return bytes(data)


def webp_frame_in_canvas(side: int) -> bytes:
    """An extended WebP with a canvas of 40 x 40, whose frame claims side x side."""
    data = bytearray(encode(small(), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"))
    at = data.index(b"VP8 ")
    data[at + 14 : at + 18] = struct.pack("<HH", side, side)
    return bytes(data)


def webp_lossless(side: int) -> bytes:
    """A sound WebP of one colour: 16,383 x 16,383 pixels in a few hundred bytes."""
    bits = (side - 1) | (side - 1) << 14
    data = bytearray(encode(Image.new("RGB", (40, 40)), "WEBP", lossless=True))
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", bits)
    return bytes(data)


_ZEROS: list[bytes] = []


def zeros() -> bytes:
    """A gigabyte of zeros, deflated: one megabyte."""
    if not _ZEROS:
        packer = zlib.compressobj(9)
        block = bytes(1 << 24)
        _ZEROS.append(
            b"".join(packer.compress(block) for _ in range(GIGABYTE >> 24)) + packer.flush()
        )
    return _ZEROS[0]


def claims(side: int) -> dict[str, bytes]:
    """Every format, claiming side x side pixels; up to 65,535."""
    found = {
        "jpeg": jpeg(side),
        "progressive jpeg": jpeg(side, progressive=True),
        "grey-sampled jpeg": jpeg(side, subsampling=0),
        "png": png(side),
        "gif screen": gif(side, 40),
        "gif frame": gif(40, side),
        "bmp": bmp(side),
        "tiff": tiff(side),
        "tiff, deflated": tiff(side, compression="tiff_adobe_deflate"),
        "webp canvas": webp_canvas(side),
    }
    if side < 1 << 14:
        found["webp frame"] = webp_frame(side)
        found["webp lossless"] = webp_lossless(side)
    return found


def tiff_tile(side: int) -> bytes:
    """A TIFF of 40 x 40 pixels in one tile of side x side, which are there."""
    data = zeros()
    numbers = {
        256: 40, 257: 40, 258: 8, 259: 8, 262: 2, 277: 3, 284: 1,
        322: side, 323: side, 324: 8 + 2 + 12 * 11 + 4, 325: len(data),
    }  # fmt: skip
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4) + data


def bombs() -> dict[str, bytes]:
    """Images of 40 x 40 pixels, by their headers, that hold a gigabyte."""
    text = b"Comment\0\0" + zeros()
    profile = b"profile\0\0" + zeros()
    international = b"XML:com.adobe.xmp\0\1\0\0\0" + zeros()
    exif = b"Raw profile type exif\0\0" + zeros()
    rows = zeros()
    assert PngImagePlugin.MAX_TEXT_CHUNK < GIGABYTE
    return {
        "png text": png(40, _chunk(b"zTXt", text)),
        "png international text": png(40, _chunk(b"iTXt", international)),
        "png exif text": png(40, _chunk(b"zTXt", exif)),
        "png profile": png(40, _chunk(b"iCCP", profile)),
        "png pixels": png(40, data=rows),
        "tiff strip": tiff_bomb(),
        "tiff counts": tiff_counts(),
        "tiff tile": tiff_tile(16_000),
        "webp frame in a small canvas": webp_frame_in_canvas(13_000),
        "webp canvas smaller than its frame": webp_canvas(20),
        "jpeg of ten thousand scans": many_scans(10_000),
    }
