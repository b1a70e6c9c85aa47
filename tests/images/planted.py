"""Image files with a unique string in every place where metadata, or anything else, can hide."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
Ifd = list[tuple[int, int, "bytes | Ifd"]]


@dataclass
class Planter:
    """Gives unique strings and remembers them."""

    seed: str
    strings: list[str] = field(default_factory=list)

    def text(self) -> str:
        self.strings.append(f"{self.seed}~{len(self.strings):04d}~Jane Doe")
        return self.strings[-1]

    def raw(self) -> bytes:
        return self.text().encode()

    def utf16(self, big: bool = False) -> bytes:
        return self.text().encode("utf-16-be" if big else "utf-16-le")


def picture(mode: str = "RGB", height: int = 37, width: int = 50, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return image
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16)
        return Image.fromarray(grey * 3)
    return image.convert(mode)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def write_ifd(file: bytearray, order: str, entries: Ifd, following: int = 0) -> int:
    """Append a TIFF directory with its values and sub-directories; gives its offset."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
    packed = []
    for tag, kind, value in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(value, list):
            value = struct.pack(order + "I", write_ifd(file, order, value))
        count = len(value) // sizes[kind]
        if len(value) > 4:
            file += bytes(len(file) % 2)
            at = len(file)
            file += value
            value = struct.pack(order + "I", at)
        packed.append(struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
    file += bytes(len(file) % 2)
    start = len(file)
    file += struct.pack(order + "H", len(packed)) + b"".join(packed)
    file += struct.pack(order + "I", following)
    return start


def exif_tags(plant: Planter, order: str, orientation: int) -> Ifd:
    """The first directory of an EXIF block: 36 strings in it and below it."""
    big = order == ">"
    entries: Ifd = [(ORIENTATION, 3, struct.pack(order + "H", orientation))]
    ascii_tags = (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, 0xC614)
    entries += [(tag, 2, plant.raw() + b"\0") for tag in ascii_tags]
    entries += [(tag, 1, plant.utf16() + b"\0\0") for tag in range(0x9C9B, 0x9CA0)]
    inner: Ifd = [(tag, 2, plant.raw() + b"\0") for tag in (0x9003, 0x9004, 0x9290, 0xA420)]
    inner += [(tag, 2, plant.raw() + b"\0") for tag in range(0xA430, 0xA436) if tag != 0xA432]
    inner.append((0x927C, 7, b"Nikon\0" + plant.raw()))
    inner.append((0x9286, 7, b"UNICODE\0" + plant.utf16(big)))
    inner.append((0xA005, 4, [(1, 2, b"R98\0"), (0x1000, 2, plant.raw() + b"\0")]))
    entries.append((0x8769, 4, inner))
    gps: Ifd = [(tag, 2, plant.raw() + b"\0") for tag in (0x08, 0x12, 0x1D)]
    gps += [(tag, 7, b"ASCII\0\0\0" + plant.raw()) for tag in (0x1B, 0x1C)]
    entries.append((0x8825, 4, gps))
    return entries


def exif_block(plant: Planter, order: str = "<", orientation: int = 6) -> bytes:
    """An EXIF block without "Exif\\0\\0", with a thumbnail."""
    file = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    entries = exif_tags(plant, order, orientation)
    thumbnail = jpeg_with(encode(picture(height=8, width=8), "JPEG"), [(0xFE, plant.raw())])
    at = len(file)
    file += thumbnail + plant.raw()
    second: Ifd = [(0x0201, 4, struct.pack(order + "I", at)), (0x010E, 2, plant.raw() + b"\0")]
    second.append((0x0202, 4, struct.pack(order + "I", len(thumbnail))))
    following = write_ifd(file, order, second)
    start = write_ifd(file, order, entries, following)
    file[4:8] = struct.pack(order + "I", start)
    return bytes(file)


XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"


def xmp(plant: Planter) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:creator="'
        + plant.raw()
        + b'"/></x:xmpmeta>'
    )


def icc(plant: Planter) -> bytes:
    """A real sRGB profile whose description is planted."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile + b"desc" + plant.raw() + plant.utf16(big=True)


def jpeg_with(data: bytes, segments: list[tuple[int, bytes]], at: int = 2) -> bytes:
    made = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload
        for marker, payload in segments
    )
    return data[:at] + made + data[at:]


def jpeg(plant: Planter, base: bytes, order: str, orientation: int) -> bytes:
    """Every APPn, COM, JFIF thumbnail, segments between scans, and trailers."""
    if base.startswith(b"\xff\xe0", 2):  # JFIF: a thumbnail of 5x4 pixels
        thumbnail = (plant.raw() * 3)[:60].ljust(60, b"x")
        payload = base[6:18] + bytes((5, 4)) + thumbnail
        base = jpeg_with(base[:2] + base[20:], [(0xE0, payload)])
        head = 2 + 4 + len(payload)
    else:
        head = 2
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 60, 0)
    iptc = b"\x1c\x02\x78\0\x20" + plant.raw()
    segments = [
        (0xE0, b"JFXX\0\x13\x02\x02" + plant.raw()),
        (0xE0, b"AVI1" + plant.raw()),
        (0xE1, b"Exif\0\0" + exif_block(plant, order, orientation)),
        (0xE1, XMP_HEAD + xmp(plant)),
        (0xE1, extended + plant.raw()),
        (0xE1, plant.raw()),
        (0xE2, b"ICC_PROFILE\0\1\1" + icc(plant)),
        (0xE2, b"MPF\0II*\0\x08\0\0\0" + plant.raw()),
        (0xE2, b"FPXR\0" + plant.raw()),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x30" + iptc + plant.utf16()),
        *[(0xE0 + number, plant.raw()) for number in range(3, 13)],
        (0xEF, plant.raw()),
        (0xEE, b"AdobeDoe"),  # too short: no decoder takes it for Adobe's
        (0xFE, plant.raw()),
        (0xFE, plant.utf16()),
        (0xFE, plant.utf16(big=True)),
    ]
    data = jpeg_with(base, segments, head)
    scan = data.rfind(b"\xff\xda")  # of a progressive file: the last of many
    data = jpeg_with(data, [(0xFE, plant.raw()), (0xE1, b"Exif\0\0" + plant.raw())], scan)
    second = jpeg_with(encode(picture(height=9, width=9), "JPEG"), [(0xFE, plant.raw())])
    return data + second + b"SEFH" + plant.raw() + b"SEFT" + plant.utf16()


def chunk(kind: bytes, payload: bytes) -> bytes:
    crc = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)


def png(plant: Planter, base: bytes, orientation: int) -> bytes:
    """Every text chunk, time, private chunks before and behind the pixels, IEND's payload."""
    profile = exif_block(plant, ">", orientation)
    hexadecimal = b"\nexif\n%8d\n" % len(profile) + profile.hex().encode() + b"\n"
    early = [
        chunk(b"gAMA", b"\0\0\xb1\x8f"),
        chunk(b"tEXt", b"Author\0" + plant.raw()),
        chunk(b"tEXt", plant.raw() + b"\0a keyword"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(plant.raw() * 3)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)),
        chunk(b"iTXt", b"Title\0\0\0en\0" + plant.raw() + b"\0" + plant.raw()),
        chunk(b"iTXt", b"Title\0\1\0en\0x\0" + zlib.compress(plant.utf16())),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(plant)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(icc(plant))),
        chunk(b"sPLT", plant.raw() + b"\0\x08"),
        chunk(b"prVt", plant.raw()),
        chunk(b"caBX", plant.utf16()),
    ]
    late = [
        chunk(b"eXIf", exif_block(plant, "<", orientation)),
        chunk(b"tEXt", b"Software\0" + plant.raw()),
        chunk(b"tIME", struct.pack(">HBBBBB", 2020, 1, 2, 3, 4, 5)),
        chunk(b"teSt", plant.utf16(big=True)),
    ]
    end = base.index(b"IEND") - 4
    body = base[:33] + b"".join(early) + base[33:end] + b"".join(late)
    return body + chunk(b"IEND", plant.raw()) + plant.raw() + chunk(b"tEXt", b"x\0" + plant.raw())


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def riff_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) & 1)


def webp(plant: Planter, image: Image.Image, orientation: int, **options: object) -> bytes:
    made = encode(
        image,
        "WEBP",
        exif=exif_block(plant, "<", orientation),
        xmp=xmp(plant),
        icc_profile=icc(plant),
        **options,
    )
    head = 12 + 18  # VP8X
    body = made[12:head] + riff_chunk(b"prVt", plant.raw()) + made[head:]
    body += riff_chunk(b"zzzz", plant.utf16()) + riff_chunk(b"EXIF", plant.raw())
    return riff(body) + plant.raw()


def tiff(plant: Planter, base: bytes, order: str) -> bytes:
    """A TIFF by Pillow, its first directory replaced by one with strings; the old one orphaned.

    A second page, a SubIFD, EXIF and GPS directories, private tags, gaps, a trailer.
    """
    own = "<" if base[:2] == b"II" else ">"
    assert own == order
    (start,) = struct.unpack_from(order + "I", base, 4)
    (count,) = struct.unpack_from(order + "H", base, start)
    file = bytearray(base)
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
    entries: Ifd = []
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length, offset = struct.unpack_from(order + "HHII", base, at)
        size = sizes[kind] * length
        offset = at + 8 if size <= 4 else offset
        entries.append((tag, kind, base[offset : offset + size]))
    file += plant.raw() + plant.utf16()  # a gap
    present = {entry[0] for entry in entries}
    planted = [entry for entry in exif_tags(plant, order, 1) if entry[0] not in present]
    entries += planted
    texts = (269, 285, 337, 33432, 34016, 42112, 42113, 50708, 65000)
    entries += [(tag, 2, plant.raw() + b"\0") for tag in texts if tag not in {33432, 269}]
    entries.append((700, 1, xmp(plant)))
    entries.append((33723, 7, b"\x1c\x02\x78\0\x20" + plant.raw()))
    entries.append((34377, 7, b"8BIM\x04\x04" + plant.raw()))
    entries.append((37724, 7, b"Adobe Photoshop Document Data Block\0" + plant.raw()))
    entries.append((34675, 7, icc(plant)))
    entries.append((330, 4, [(254, 4, struct.pack(order + "I", 1)), (270, 2, plant.raw())]))
    second = write_ifd(file, order, [(254, 4, struct.pack(order + "I", 1)), (270, 2, plant.raw())])
    first = write_ifd(file, order, entries, second)
    file[4:8] = struct.pack(order + "I", first)
    return bytes(file) + plant.raw()


def clear_gif() -> bytes:
    """A GIF of which some pixels are transparent."""
    image = picture("P")
    return encode(image, "GIF", transparency=image.getpixel((0, 0)))


def gif_blocks(payload: bytes) -> bytes:
    parts = [payload[i : i + 255] for i in range(0, len(payload), 255)]
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def gif(plant: Planter, base: bytes) -> bytes:
    head = 13 + (6 << (base[10] & 7) if base[10] & 0x80 else 0)
    extensions = [
        b"\x21\xfe" + gif_blocks(plant.raw() * 20),
        b"\x21\xfe" + gif_blocks(plant.utf16()),
        b"\x21\x01\x0c" + bytes(12) + gif_blocks(plant.raw()),
        b"\x21\xff\x0bNETSCAPE2.0" + gif_blocks(b"\1\0\0" + plant.raw()),
        b"\x21\xff\x0bXMP DataXMP" + gif_blocks(xmp(plant)),
        b"\x21\xff\x0bICCRGBG1012" + gif_blocks(icc(plant)),
    ]
    assert base.endswith(b";")
    late = b"\x21\xfe" + gif_blocks(plant.raw())
    return base[:head] + b"".join(extensions) + base[head:-1] + late + b";" + plant.raw()


def bmp(plant: Planter, base: bytes) -> bytes:
    """A version 5 header with end points and a profile, a gap before the pixels, a trailer."""
    (offset,) = struct.unpack_from("<I", base, 10)
    palette = base[54:offset]
    profile = icc(plant)
    tail = (plant.raw() * 3)[:48]  # end points and gamma: text fits
    gap = plant.raw()
    pixels = base[offset:]
    start = 14 + 124 + len(palette) + len(gap)
    v5 = struct.pack("<I", 124) + base[18:54] + bytes(16) + b"DEBM" + tail
    v5 += struct.pack("<IIII", 4, start - 14 + len(pixels), len(profile), 0)
    head = b"BM" + struct.pack("<IHHI", 0, 0x4A41, 0x4E45, start)
    return head + v5 + palette + gap + pixels + profile + plant.raw()


def all_planted() -> Iterator[tuple[str, bytes, list[str]]]:
    """(name, file, strings in it) over all formats."""
    jpegs: dict[str, tuple[str, dict[str, object]]] = {
        "baseline": ("RGB", {}),
        "progressive": ("RGB", {"progressive": True}),
        "grey": ("L", {}),
        "cmyk": ("CMYK", {}),
        "rgb": ("RGB", {"keep_rgb": True}),
        "restarts": ("RGB", {"restart_marker_blocks": 1}),
    }
    for number, (name, (mode, options)) in enumerate(jpegs.items()):
        plant = Planter(f"jpeg-{name}")
        base = encode(picture(mode), "JPEG", **options)
        yield plant.seed, jpeg(plant, base, "<>"[number % 2], number + 3), plant.strings
    for number, mode in enumerate(("RGB", "P", "L", "RGBA", "1", "I;16", "animated")):
        plant = Planter(f"png-{mode}")
        more = [picture(seed=1), picture(seed=2)]
        options = {"save_all": True, "append_images": more} if mode == "animated" else {}
        base = encode(picture("RGB" if mode == "animated" else mode), "PNG", **options)
        yield plant.seed, png(plant, base, number + 1), plant.strings
    for number, mode in enumerate(("RGB", "RGBA", "lossless", "animated")):
        plant = Planter(f"webp-{mode}")
        image = picture("RGBA" if mode in ("RGBA", "lossless") else "RGB")
        options = {"lossless": True} if mode == "lossless" else {}
        if mode == "animated":
            options |= {"save_all": True, "append_images": [picture(seed=1)]}
        yield plant.seed, webp(plant, image, number + 5, **options), plant.strings
    tiffs: dict[str, tuple[str, dict[str, object]]] = {
        "raw": ("RGB", {}),
        "lzw": ("RGBA", {"compression": "tiff_lzw"}),
        "jpeg": ("RGB", {"compression": "jpeg"}),
        "g4": ("1", {"compression": "group4"}),
        "palette": ("P", {"compression": "tiff_deflate"}),
        "big": ("I;16B", {}),
    }
    for name, (mode, options) in tiffs.items():
        plant = Planter(f"tiff-{name}")
        if mode == "I;16B":
            pixels = np.asarray(picture("I;16")).astype(">u2")
            base = encode(Image.frombytes("I;16B", (50, 37), pixels.tobytes()), "TIFF")
        else:
            base = encode(picture(mode), "TIFF", tiffinfo={ORIENTATION: 6}, **options)
        yield plant.seed, tiff(plant, base, "<" if base[:2] == b"II" else ">"), plant.strings
    for mode in ("P", "L", "transparent"):
        plant = Planter(f"gif-{mode}")
        base = clear_gif() if mode == "transparent" else encode(picture(mode), "GIF")
        yield plant.seed, gif(plant, base), plant.strings
    for mode in ("RGB", "P", "1"):
        plant = Planter(f"bmp-{mode}")
        yield plant.seed, bmp(plant, encode(picture(mode), "BMP")), plant.strings
