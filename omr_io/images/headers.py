"""Image headers, read without decoding a pixel: one small parser a format.

Each parser takes the whole file and gives an `ImageInfo`, and agrees with what Pillow says after
opening it. They are our own for three reasons: Pillow's `Image.open` warns or raises above a
global pixel limit, finds a PNG's orientation by decoding the image, and is slower than reading the
few bytes that matter. BMP and TIFF, rare and intricate, go through Pillow's plugin classes, which
do not apply that limit.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any, Final

from omr_io.errors import ImageError
from omr_io.types import ImageFormat, ImageInfo

MAX_TEXT_BYTES: Final = 1 << 20  # of an inflated PNG text chunk: where a zip bomb would sit
MAX_TILE_PIXELS: Final = 1 << 22  # of a TIFF whose one tile is larger than its picture
ORIENTATION_TAG: Final = 0x0112
_TILE_SIDES: Final = (322, 323)
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# EXIF value types that Pillow reads as an integer: SHORT, LONG, SBYTE, SSHORT, SLONG.
_INTEGER_TYPES: Final = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}

# Lossless, hierarchical and 12-bit JPEGs exist in medicine (inside DICOM), but no decoder we use
# reads them into 8-bit RGB.
_JPEG_FRAMES: Final[dict[int, ImageFormat]] = {
    0xC0: "jpeg",  # baseline
    0xC1: "jpeg",  # extended sequential
    0xC2: "jpeg-progressive",
    0xC9: "jpeg",  # sequential, arithmetic coding
    0xCA: "jpeg-progressive",  # arithmetic coding
}
_JPEG_OTHER_FRAMES: Final = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_BARE: Final = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0-7, SOI
_JPEG_FILL: Final = {0x00, 0xD9, 0xFF, *_JPEG_BARE}
_JPEG_MODES: Final = {1: "L", 3: "RGB", 4: "CMYK"}

_PNG_MODES: Final = {
    (1, 0): "1",
    (2, 0): "L",
    (4, 0): "L",
    (8, 0): "L",
    (16, 0): "I;16",
    (8, 2): "RGB",
    (16, 2): "RGB",
    (1, 3): "P",
    (2, 3): "P",
    (4, 3): "P",
    (8, 3): "P",
    (8, 4): "LA",
    (16, 4): "RGBA",
    (8, 6): "RGBA",
    (16, 6): "RGBA",
}


def truncated(what: str) -> ImageError:
    """The error of a file that ends too early."""
    return ImageError(what, reason="image-truncated")


def unsupported(what: str) -> ImageError:
    """The error of a format, or a variant of one, that is not read."""
    return ImageError(
        what,
        reason="image-format",
        mend="Re-encode it as an 8-bit JPEG or PNG",
    )


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation, 1 to 8, by Pillow's rule: EXIF's first directory, else XMP, else 1.

    Damaged metadata counts as none: it says nothing about the pixels.
    """
    value = _exif_orientation(exif)
    if value is None:
        match = _XMP_ORIENTATION.search(xmp)
        value = int(match[1]) if match else 1
    return value if 1 <= value <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The value of tag 0x0112 in the first directory of an EXIF (TIFF) block, or None."""
    exif = re.sub(rb"^(?:Exif\x00\x00){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    found = None
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHI", exif, at)
        if tag == ORIENTATION_TAG:
            known = kind in _INTEGER_TYPES and length == 1
            # Another type is no orientation, yet the tag is there and XMP is not asked.
            found = (
                struct.unpack_from(order + _INTEGER_TYPES[kind], exif, at + 8)[0] if known else 0
            )
    return found


def jpeg_header_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end of its payload) of each segment up to and with the first scan.

    Lenient, as Pillow is: bytes between segments are passed over.

    Raises:
        ImageError: "image-truncated" or "image-corrupt", when iteration comes there.
    """
    at = 2
    while True:
        if data[at : at + 1] != b"\xff":
            at = data.find(b"\xff", at)
            if at < 0:
                raise truncated("the JPEG ends within its header")
        head = data[at + 1 : at + 4]
        if len(head) < 3 or head[0] in _JPEG_FILL:  # a marker without a length, or fill before one
            at = _past_fill(data, at)
            continue
        marker, length = head[0], head[1] << 8 | head[2]
        at += 2
        if at + max(length, 2) > len(data):
            raise truncated("the JPEG ends within its header")
        if length < 2:
            raise ImageError(f"the JPEG has a segment 0x{marker:02X} of length {length}")
        yield marker, at + 2, at + length
        if marker == 0xDA:
            return
        at += length


def _past_fill(data: bytes, at: int) -> int:
    """Where to go on from a 0xFF at `at` that begins no segment with a length."""
    while data[at + 1 : at + 2] == b"\xff":
        at += 1
    marker = data[at + 1 : at + 2]
    if marker == b"\xd9":
        raise ImageError("the JPEG ends before any scan")
    if not marker or (marker[0] not in _JPEG_FILL and at + 4 > len(data)):
        raise truncated("the JPEG ends within its header")
    return at + 2 if marker[0] in _JPEG_FILL else at


def jpeg(data: bytes) -> ImageInfo:
    """JPEG: the frame header (SOF), and orientation from APP1."""
    frame: tuple[ImageFormat, int, int, str] | None = None
    exif = xmp = b""
    for marker, start, end in jpeg_header_segments(data):
        if marker in _JPEG_FRAMES:
            frame = (_JPEG_FRAMES[marker], *_jpeg_frame(data[start:end]))
        elif marker in _JPEG_OTHER_FRAMES:
            raise unsupported(f"the JPEG is of a kind that is not supported: SOF{marker - 0xC0}")
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start, end):
            exif += data[start + 6 : end]
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start, end):
            xmp = data[start + 29 : end]
    if frame is None:
        raise ImageError("the JPEG has a scan before any frame header")
    kind, width, height, mode = frame
    return ImageInfo(width, height, kind, mode, orientation(exif, xmp))


def _jpeg_frame(payload: bytes) -> tuple[int, int, str]:
    """(width, height, mode) of a frame header."""
    if len(payload) < 6:
        raise ImageError("the JPEG's frame header is too short")
    bits, height, width, components = struct.unpack_from(">BHHB", payload)
    if bits != 8:
        raise unsupported(f"the JPEG has {bits} bits a sample, not 8")
    if components not in _JPEG_MODES:
        raise unsupported(f"the JPEG has {components} components, not 1, 3 or 4")
    return width, height, _JPEG_MODES[components]


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end of its payload) of each PNG chunk, to IEND or the end of the file.

    Raises:
        ImageError: "image-truncated" when the file ends before IEND.
    """
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            break
        yield kind, at + 8, at + 8 + length
        if kind == b"IEND":
            return
        at += 12 + length
    raise truncated("the PNG ends before its IEND chunk")


def png(data: bytes) -> ImageInfo:
    """PNG: IHDR, and orientation from eXIf, ImageMagick's raw profile or XMP."""
    if len(data) < 33:
        raise truncated("the PNG ends within its header")
    if data[12:16] != b"IHDR":
        raise ImageError("the PNG does not begin with IHDR")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if (bits, colour) not in _PNG_MODES:
        raise ImageError(
            f"the PNG has {bits} bits of colour type {colour}, which PNG does not know"
        )
    exif = profile = xmp = b""
    for kind, start, end in png_chunks(data):
        if kind == b"eXIf":
            exif = data[start:end]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name, text = _png_text(kind, data[start:end])
            if name == b"Raw profile type exif":
                profile = _raw_profile(text)
            elif name == b"XML:com.adobe.xmp":
                xmp = text
    mode = _PNG_MODES[bits, colour]
    return ImageInfo(width, height, "png", mode, orientation(exif or profile, xmp))


def _png_text(kind: bytes, chunk: bytes) -> tuple[bytes, bytes]:
    """(keyword, text) of a text chunk; the text of a damaged or overlong one is empty."""
    name, _, rest = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the compression method: 0 is the only one
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]  # past language and translated keyword
    if packed:
        try:
            inflate = zlib.decompressobj()
            rest = inflate.decompress(rest, MAX_TEXT_BYTES)
        except zlib.error:
            return name, b""
        if inflate.unconsumed_tail:
            return name, b""
    return name, rest


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's hexadecimal profile: three lines of preamble, then the bytes."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def webp(data: bytes) -> ImageInfo:
    """WebP: the canvas of VP8X, or the frame of VP8 or VP8L; orientation from EXIF or XMP."""
    if len(data) < 30:
        raise truncated("the WebP ends within its header")
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise truncated("the WebP is shorter than its header says")
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        alpha = bool(data[20] & 0x10)
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
        alpha = False
    else:
        raise ImageError(f"the WebP begins with {kind!r}, which is no image")
    chunks = _webp_metadata(data) if kind == b"VP8X" else {}
    turned = orientation(chunks.get(b"EXIF", b""), chunks.get(b"XMP ", b""))
    return ImageInfo(width, height, "webp", "RGBA" if alpha else "RGB", turned)


def _webp_metadata(data: bytes) -> dict[bytes, bytes]:
    """The first EXIF and the first XMP chunk, of those that the flags of VP8X announce."""
    at, end = 12, 8 + int.from_bytes(data[4:8], "little")
    wanted = {kind for kind, flag in ((b"EXIF", 0x08), (b"XMP ", 0x04)) if data[20] & flag}
    found: dict[bytes, bytes] = {}
    while at + 8 <= end:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in wanted:
            found.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length + (length & 1)
    return found


def gif(data: bytes) -> ImageInfo:
    """GIF: the logical screen, grown to hold the first frame; "L" for a palette that is a ramp."""
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at, table = 13, b""
        if flags & 0x80:
            table = data[13 : 13 + (6 << (flags & 7))]
            at += 6 << (flags & 7)
        while data[at] == 0x21:  # an extension: skip its blocks
            at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
        if data[at] != 0x2C:
            raise ImageError("the GIF holds no image")
        left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
        if flags & 0x80:
            table = data[at + 10 : at + 10 + (6 << (flags & 7))]
    except (IndexError, struct.error):
        raise truncated("the GIF ends within its header") from None
    grey = all(table[i] == i // 3 for i in range(len(table) // 3 * 3))
    return ImageInfo(max(width, left + wide), max(height, top + high), "gif", "L" if grey else "P")


def bmp(data: bytes) -> ImageInfo:
    """BMP, by Pillow's plugin."""
    from PIL import BmpImagePlugin

    return _by_pillow(data, "bmp", BmpImagePlugin.BmpImageFile)


def tiff(data: bytes) -> ImageInfo:
    """TIFF, by Pillow's plugin, which always turns the first page upright: orientation is 1."""
    from PIL import TiffImagePlugin

    return _by_pillow(data, "tiff", TiffImagePlugin.TiffImageFile)


def _by_pillow(data: bytes, kind: ImageFormat, plugin: Callable[[BytesIO], Any]) -> ImageInfo:
    try:
        image = plugin(BytesIO(data))
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds for malformed bytes
        raise ImageError(f"the {kind.upper()}'s header cannot be read: {error}") from error
    width, height = image.size
    if kind == "tiff":
        _check_tile(image.tag_v2, (width + 15) * (height + 15))
    return ImageInfo(width, height, kind, image.mode)


def _check_tile(tags: Mapping[int, object], pixels: int) -> None:
    """Refuse a TIFF of tiles that are far larger than it: memory is taken for a whole tile."""
    tile = [side for tag in _TILE_SIDES if isinstance(side := tags.get(tag), int)]
    if len(tile) == 2 and tile[0] * tile[1] > max(pixels, MAX_TILE_PIXELS):
        raise ImageError(
            f"the TIFF is made of tiles of {tile[0]}x{tile[1]} pixels, larger than itself",
            reason="image-too-large",
            mend="Write it again in strips, or in tiles of 256x256",
        )
