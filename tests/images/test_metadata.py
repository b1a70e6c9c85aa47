"""Stripping against Pillow, and against strings planted wherever something can hide."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from omr_io.errors import ImageError
from omr_io.images import check_decodes, probe
from omr_io.images.metadata import strip_metadata
from omr_io.images.pixels import decode_rgb
from tests.images import planted
from tests.images.planted import encode, jpeg_with, picture, riff, riff_chunk

pytestmark = [
    pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO file"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
    pytest.mark.filterwarnings("ignore:Tag data larger than file"),
]
FILES = {name: (data, strings) for name, data, strings in planted.all_planted()}


def strip(data: bytes, **options: bool) -> bytes:
    return strip_metadata(data, probe(data), **options)


def streams(data: bytes) -> Iterator[bytes]:
    """The bytes, and whatever inflates out of them at any offset."""
    yield data
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data):
        try:
            yield zlib.decompressobj().decompress(data[match.start() :], 1 << 20)
        except zlib.error:
            continue


def found_in(data: bytes, strings: list[str]) -> set[str]:
    """Those of the strings that stand in the bytes in any of the ways they were planted."""
    found = set()
    everything = [*streams(data)]
    for string in strings:
        raw = string.encode()
        ways = [raw, string.encode("utf-16-le"), string.encode("utf-16-be")]
        ways += [way.hex().encode() for way in ways]  # ImageMagick's profiles in PNG
        if any(way in stream for way in ways for stream in everything):
            found.add(string)
    return found


def pillow_pixels(data: bytes) -> tuple[str, bytes]:
    """First frame, upright, in the image's own mode."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        palette = str(image.getpalette("RGBA")) if image.mode == "P" else ""
        return f"{turned.mode} {turned.size} {palette}", turned.tobytes()


def assert_same_image(before: bytes, after: bytes) -> None:
    info = probe(before)
    assert probe(after) == info
    np.testing.assert_array_equal(decode_rgb(after, info), decode_rgb(before, info))
    assert pillow_pixels(after) == pillow_pixels(before)


def test_over_500_strings_were_planted_and_can_be_found() -> None:
    assert sum(len(strings) for _, strings in FILES.values()) >= 500
    unique = {string for _, strings in FILES.values() for string in strings}
    assert len(unique) == sum(len(strings) for _, strings in FILES.values())


@pytest.mark.parametrize("name", FILES)
def test_no_planted_string_is_left(name: str) -> None:
    data, strings = FILES[name]
    assert found_in(data, strings) == set(strings)
    after = strip(data)
    assert found_in(after, strings) == set()
    assert b"Doe" not in after
    assert_same_image(data, after)
    assert strip(after) is after
    assert strip(bytes(bytearray(data))) == after


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("gif", "bmp"))])
def test_icc_is_kept_on_request_and_alone(name: str) -> None:
    data, strings = FILES[name]
    after = strip(data, keep_icc=True)
    with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(after)) as kept:
        profile = image.info["icc_profile"]
        assert kept.info["icc_profile"] == profile
    assert found_in(after, strings) == found_in(profile, strings) != set()
    assert_same_image(data, after)
    assert strip(after, keep_icc=True) is after
    assert strip(after) == strip(data)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_kept(name: str, value: int) -> None:
    block = Image.Exif()
    block[planted.ORIENTATION] = value
    block[0x010F] = "Maker of Scopes"
    data = encode(picture(), name, exif=block)
    after = strip(data)
    assert b"Scopes" in data
    assert b"Scopes" not in after
    assert_same_image(data, after)
    with Image.open(io.BytesIO(after)) as image:
        if name == "TIFF":
            assert dict(image.tag_v2)[planted.ORIENTATION] == value
        else:
            assert dict(image.getexif()) == ({} if value == 1 else {planted.ORIENTATION: value})


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_from_xmp_is_kept(name: str) -> None:
    text = b'<x:xmpmeta><rdf:Description tiff:Orientation="3" by="Jane Doe"/></x:xmpmeta>'
    data = encode(picture(), name, **({} if name in ("PNG", "TIFF") else {"xmp": text}))
    if name == "PNG":
        made = planted.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
        data = data[:33] + made + data[33:]
    if name == "TIFF":
        data = encode(picture(), name, tiffinfo={700: text})
    after = strip(data)
    assert b"Doe" in data
    assert b"Doe" not in after
    assert_same_image(data, after)
    assert pillow_pixels(after)[1] == picture().rotate(180).tobytes() or name in ("JPEG", "WEBP")


@pytest.mark.parametrize("colours", ["CMYK", "YCCK", "RGB"])
def test_adobe_marker_decides_the_colours_and_stays(colours: str) -> None:
    if colours == "RGB":
        data = encode(picture(), "JPEG", keep_rgb=True)
    else:
        data = encode(picture("CMYK"), "JPEG")
        at = data.index(b"Adobe") + 11
        data = data[:at] + bytes((2 if colours == "YCCK" else 0,)) + data[at + 1 :]
    assert data.count(b"\xff\xee\0\x0eAdobe") == 1
    after = strip(jpeg_with(data, [(0xFE, b"Jane Doe")]))
    assert after == data
    at = data.index(b"\xff\xee")
    without = data[:at] + data[at + 16 :]
    info = probe(data)
    differs = not np.array_equal(decode_rgb(without, info), decode_rgb(data, info))
    assert differs is (colours == "YCCK")  # or it would not matter that it stays
    assert_same_image(data, after)


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(), "JPEG"),
        encode(picture(), "JPEG", progressive=True, restart_marker_rows=1),
        simplejpeg.encode_jpeg(np.asarray(picture()), 90, "RGB", "444"),
        encode(picture(), "PNG"),
        encode(picture("P"), "PNG", transparency=1),
        encode(picture(), "WEBP"),
        encode(picture("RGBA"), "WEBP"),
        encode(picture(), "BMP")[:38] + bytes(8) + encode(picture(), "BMP")[46:],
    ],
    ids=["jpeg", "progressive", "simplejpeg", "png", "palette", "webp", "webp-alpha", "bmp"],
)
def test_a_clean_file_is_the_same_object(data: bytes) -> None:
    assert strip(data) is data


def test_entropy_coded_data_is_untouched() -> None:
    """Restart markers, fill bytes, and a large file in which chunks of the search meet."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    for options in ({}, {"restart_marker_blocks": 1}, {"progressive": True}):
        data = encode(Image.fromarray(noise), "JPEG", quality=95, **options)
        assert len(data) > 3 << 18
        scan = data.index(b"\xff\xda")
        after = strip(jpeg_with(data, [(0xE1, b"Exif\0\0" + bytes(9))]) + b"\xff\xd9 Jane Doe")
        assert after == data
        filled = data[:scan] + b"\xff\xff" + data[scan:-2] + b"\xff\xff\xff" + data[-2:]
        assert strip(filled) is filled


def test_tiled_and_planar_tiffs() -> None:
    height, width = 37, 50
    pixels = np.asarray(picture("L"))
    tiles = []
    for top in range(0, height, 16):
        for left in range(0, width, 16):
            tile = np.zeros((16, 16), np.uint8)
            part = pixels[top : top + 16, left : left + 16]
            tile[: part.shape[0], : part.shape[1]] = part
            tiles.append(tile.tobytes() + b"Jane Doe")
    planes = [np.asarray(picture())[..., i].tobytes() for i in range(3)]
    for order in "<>":
        short = lambda *v, o=order: struct.pack(f"{o}{len(v)}H", *v)  # noqa: E731
        long = lambda *v, o=order: struct.pack(f"{o}{len(v)}I", *v)  # noqa: E731
        magic = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
        for kind in ("tiled", "planar"):
            file = bytearray(magic + b"Jane Doe")
            blocks = tiles if kind == "tiled" else planes
            places = []
            for block in blocks:
                places.append(len(file))
                file += block
            sizes = long(*map(len, blocks))
            entries: planted.Ifd = [(256, 3, short(width)), (257, 3, short(height))]
            entries += [(259, 3, short(1)), (270, 2, b"Jane Doe\0")]
            if kind == "tiled":
                entries += [(258, 3, short(8)), (262, 3, short(1)), (322, 3, short(16))]
                entries += [(323, 3, short(16)), (324, 4, long(*places)), (325, 4, sizes)]
            else:
                entries += [(258, 3, short(8, 8, 8)), (262, 3, short(2)), (277, 3, short(3))]
                entries += [(284, 3, short(2)), (273, 4, long(*places)), (279, 4, sizes)]
                entries += [(278, 3, short(height))]
            file[4:8] = long(planted.write_ifd(file, order, entries))
            data = bytes(file)
            after = strip(data)
            assert b"Doe" not in after
            assert_same_image(data, after)
            mode = "L" if kind == "tiled" else "RGB"
            assert pillow_pixels(after)[1] == picture(mode).tobytes()


def test_bmp_variants() -> None:
    """Run-length coding (by hand: nobody writes it), bit fields, OS/2's short header."""
    rle = bytes((5, 1, 0, 0, 0, 3, 1, 2, 3, 0, 2, 0, 0, 0, 0, 1))
    head = struct.pack("<IiiHHIIiiII", 40, 5, 2, 1, 8, 1, len(rle), 0x444F4520, 0, 256, 0)
    palette = bytes(i * 7 % 256 for i in range(1024))
    data = b"BM" + struct.pack("<III", 0, 0, 14 + 40 + 1024) + head + palette + rle + b"Doe"
    assert_same_image(data, strip(data))
    assert b"Doe" not in strip(data)
    pixels = bytes(range(64))
    head = struct.pack("<IiiHHIIiiII", 40, 4, -4, 1, 32, 3, 64, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    data = b"BM" + struct.pack("<III", 0, 0, 66 + 3) + head + masks + b"Doe" + pixels
    assert_same_image(data, strip(data))
    assert b"Doe" not in strip(data)
    head = struct.pack("<IHHHH", 12, 4, 4, 1, 24)
    data = b"BM" + struct.pack("<III", 0, 0, 26) + head + pixels[:48] + b"Doe"
    assert_same_image(data, strip(data))
    assert b"Doe" not in strip(data)


REFUSED = {
    "jpeg without an end": encode(picture(), "JPEG")[:-2],
    "jpeg with bytes between segments": encode(picture(), "JPEG")[:20]
    + b"Jane Doe"
    + encode(picture(), "JPEG")[20:],
    "jpeg with a reserved marker": jpeg_with(encode(picture(), "JPEG"), [(0xF3, b"Jane Doe")]),
    "jpeg with a long DRI": jpeg_with(encode(picture(), "JPEG"), [(0xDD, b"\0\0Jane Doe")]),
    "png with an unknown critical chunk": encode(picture(), "PNG")[:33]
    + planted.chunk(b"JaNE", b"Doe")
    + encode(picture(), "PNG")[33:],
    "tiff of old JPEG": encode(picture(), "TIFF").replace(
        struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 6)
    ),
    "gif that ends early": encode(picture("P"), "GIF")[:-9],
    "webp whose chunk ends behind it": riff(encode(picture(), "WEBP")[12:] + b"prVt\xff\0\0\0Jane"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_doubt_is_an_error(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        strip(REFUSED[name])
    assert caught.value.reason == "image-metadata", caught.value
    assert "--keep-metadata" in str(caught.value)


def test_simple_webp_with_chunks_behind_it() -> None:
    data = encode(picture(), "WEBP")
    assert strip(riff(data[12:] + riff_chunk(b"EXIF", b"Jane Doe"))) == data


def decodes(data: bytes) -> bytes | None:
    try:
        info = probe(data)
        check_decodes(data, info)
        return decode_rgb(data, info).tobytes()
    except ImageError:
        return None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_are_errors_or_stay_equal(draw: st.DataObject) -> None:
    """Whatever the bytes: an ImageError, or the same header and the same pixels if it decodes."""
    data = FILES[draw.draw(st.sampled_from(sorted(FILES)))][0]
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 4))):
        near = draw.draw(st.booleans())  # headers are small: half of the changes go there
        at = draw.draw(st.integers(0, min(200, len(data) - 1) if near else len(data) - 1))
        changed[at] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        del changed[draw.draw(st.integers(0, len(data))) :]
    made = bytes(changed)
    try:
        info = probe(made)
        if info.width * info.height > 1_000_000:
            return
        after = strip_metadata(made, info)
    except ImageError:
        return
    assert probe(after) == info
    assert strip(after) == after
    before = decodes(made)
    if before is not None:
        # An error, too, is legal: libjpeg-turbo and Pillow's GIF look less closely at corrupt data
        # that has something behind it. Other pixels are not.
        assert decodes(after) in (before, None)


def test_srgb_profile_reads() -> None:
    """The profile that is kept is still a profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        after = strip(encode(picture(), name, icc_profile=profile), keep_icc=True)
        with Image.open(io.BytesIO(after)) as image:
            assert image.info["icc_profile"] == profile
