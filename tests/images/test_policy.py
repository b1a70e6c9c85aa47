"""Kinds of unusual images, their default, and that "taken" means what transformers makes of it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from omr_io.errors import ConfigError, ImageError
from omr_io.images import policy as module
from omr_io.images import probe
from omr_io.images.metadata import strip_metadata
from omr_io.images.pixels import decode_rgb
from omr_io.images.policy import DEFAULT_REFUSED, KINDS, ImagePolicy, unusual_kinds
from tests.images.planted import chunk, clear_gif, encode, picture, write_ifd

WIDE = np.array([[0, 100, 255, 256, 1000, 65535]] * 4, np.uint16)


def png16(colour: int, samples: int) -> bytes:
    row = b"\0" + WIDE[0].astype(">u2").repeat(samples).tobytes()
    head = struct.pack(">IIBBBBB", 6, 4, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16_rgb() -> bytes:
    file = bytearray(b"II*\0" + bytes(4) + WIDE.repeat(3).astype("<u2").tobytes())
    numbers = {256: 6, 257: 4, 259: 1, 262: 2, 277: 3, 278: 4}
    entries = [(tag, 3, struct.pack("<H", value)) for tag, value in numbers.items()]
    entries.append((258, 3, struct.pack("<HHH", 16, 16, 16)))
    entries += [(273, 4, struct.pack("<I", 8)), (279, 4, struct.pack("<I", 144))]
    file[4:8] = struct.pack("<I", write_ifd(file, "<", entries))
    return bytes(file)


def pages(*subfiles: int) -> bytes:
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, True) as writer:
        for number, subfile in enumerate(subfiles):
            picture(seed=number).save(writer, "TIFF", tiffinfo={254: subfile})
            writer.newFrame()
    return file.getvalue()


RAMP = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (16, 1)))


def frames(name: str, **options: object) -> bytes:
    return encode(picture(), name, save_all=True, append_images=[picture(seed=1)], **options)


IMAGES = {
    "jpeg": (encode(picture(), "JPEG"), set()),
    "jpeg-grey": (encode(picture("L"), "JPEG"), set()),
    "jpeg-cmyk": (encode(picture("CMYK"), "JPEG"), set()),
    "mpo": (frames("MPO"), {"mpo"}),
    "mpo-progressive": (frames("MPO", progressive=True), {"mpo"}),
    "png": (encode(picture(), "PNG"), set()),
    "png-grey": (encode(picture("L"), "PNG"), set()),
    "png-1": (encode(picture("1"), "PNG"), {"1-bit"}),
    "png-P": (encode(picture("P"), "PNG"), {"palette"}),
    "png-P-tRNS": (encode(picture("P"), "PNG", transparency=1), {"palette", "alpha"}),
    "png-RGB-tRNS": (encode(picture(), "PNG", transparency=(1, 2, 3)), {"alpha"}),
    "png-LA": (encode(picture("LA"), "PNG"), {"alpha"}),
    "png-RGBA": (encode(picture("RGBA"), "PNG"), {"alpha"}),
    "png-16": (encode(Image.fromarray(WIDE), "PNG"), {"16-bit"}),
    "png-16-RGB": (png16(2, 3), {"16-bit-colour"}),
    "png-16-LA": (png16(4, 2), {"16-bit-colour", "alpha"}),
    "apng": (frames("PNG"), {"animated"}),
    "apng-one-frame": (encode(picture(), "PNG", save_all=True), set()),
    "gif": (encode(picture("P"), "GIF"), {"palette"}),
    "gif-clear": (clear_gif(), {"palette", "alpha"}),
    "gif-frames": (frames("GIF"), {"palette", "animated"}),
    # A palette that is a ramp of greys: a plain mode.
    "gif-grey": (encode(RAMP, "GIF"), set()),
    "gif-grey-clear": (encode(RAMP, "GIF", transparency=3), {"alpha"}),
    "gif-grey-frames": (
        encode(RAMP, "GIF", save_all=True, append_images=[RAMP.rotate(180)]),
        {"animated"},
    ),
    "webp": (encode(picture(), "WEBP"), set()),
    "webp-RGBA": (encode(picture("RGBA"), "WEBP"), {"alpha"}),
    "webp-frames": (frames("WEBP"), {"animated"}),
    "tiff": (encode(picture(), "TIFF"), set()),
    "tiff-cmyk": (encode(picture("CMYK"), "TIFF"), set()),
    "tiff-1": (encode(picture("1"), "TIFF"), {"1-bit"}),
    "tiff-P": (encode(picture("P"), "TIFF"), {"palette"}),
    "tiff-RGBA": (encode(picture("RGBA"), "TIFF"), {"alpha"}),
    "tiff-16": (encode(Image.fromarray(WIDE), "TIFF"), {"16-bit"}),
    "tiff-16-RGB": (tiff16_rgb(), {"16-bit-colour"}),
    "tiff-signed": (encode(Image.fromarray(WIDE.astype(np.int32) - 50), "TIFF"), {"32-bit"}),
    "tiff-float": (encode(Image.fromarray(WIDE / np.float32(9)), "TIFF"), {"32-bit"}),
    "tiff-lab": (encode(Image.new("LAB", (9, 9), (90, 128, 128)), "TIFF"), {"lab"}),
    "tiff-ycbcr": (encode(picture("YCbCr"), "TIFF"), {"ycbcr"}),
    "tiff-pages": (pages(0, 0), {"multi-page"}),
    "tiff-thumbnail": (pages(0, 1), set()),
    "bmp": (encode(picture(), "BMP"), set()),
    "bmp-P": (encode(picture("P"), "BMP"), {"palette"}),
    "bmp-1": (encode(picture("1"), "BMP"), {"1-bit"}),
}


@pytest.mark.parametrize("name", IMAGES)
def test_kinds(name: str) -> None:
    data, kinds = IMAGES[name]
    assert set(unusual_kinds(data, probe(data))) == kinds


@pytest.mark.parametrize("name", IMAGES)
def test_policy_refuses_by_kind(name: str) -> None:
    data, kinds = IMAGES[name]
    info = probe(data)
    ImagePolicy(()).check(data, info)
    for kind in KINDS:
        policy = ImagePolicy((kind,))
        if kind not in kinds:
            policy.check(data, info)
            continue
        with pytest.raises(ImageError) as caught:
            policy.check(data, info)
        assert caught.value.reason == f"image-{kind}"
        assert f"--take {kind}" in str(caught.value)
    if kinds & set(DEFAULT_REFUSED):
        with pytest.raises(ImageError):
            ImagePolicy().check(data, info)
    else:
        ImagePolicy().check(data, info)


@pytest.mark.parametrize("name", IMAGES)
def test_taken_is_what_transformers_makes_of_it(name: str) -> None:
    """And stripping does not change that, nor the kind, but for frames that it leaves out."""
    convert_to_rgb = pytest.importorskip("transformers.image_transforms").convert_to_rgb
    data, kinds = IMAGES[name]
    info = probe(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(convert_to_rgb(image))
    np.testing.assert_array_equal(decode_rgb(data, info), expected)
    stripped = strip_metadata(data, info)
    assert probe(stripped) == info
    np.testing.assert_array_equal(decode_rgb(stripped, info), expected)
    assert set(unusual_kinds(stripped, info)) == kinds - {"animated", "multi-page", "mpo"}
    with Image.open(io.BytesIO(stripped)) as image:
        assert getattr(image, "n_frames", 1) == 1


def test_the_meaning_of_16_bits() -> None:
    """The facts behind the table: grey is cut off at 255, colour keeps the upper 8 bits."""
    low = [0, 100, 255, 255, 255, 255]
    for name in ("png-16", "tiff-16"):
        assert decode_rgb(IMAGES[name][0], probe(IMAGES[name][0]))[0, :, 0].tolist() == low
    high = [0, 0, 0, 1, 3, 255]
    for name in ("png-16-RGB", "tiff-16-RGB"):
        assert decode_rgb(IMAGES[name][0], probe(IMAGES[name][0]))[0, :, 0].tolist() == high
    signed = IMAGES["tiff-signed"][0]
    assert decode_rgb(signed, probe(signed))[0, :, 0].tolist() == [0, 50, 205, 206, 255, 255]


def test_the_docstring_states_the_defaults() -> None:
    rows = [line.split("|") for line in (module.__doc__ or "").splitlines() if line[:1] == "|"]
    stated = {row[1].strip(): row[2].strip() for row in rows[2:]}
    assert stated == {kind: "refuse" if kind in DEFAULT_REFUSED else "take" for kind in KINDS}


def test_policy_of_choices() -> None:
    assert ImagePolicy.of({}) == ImagePolicy()
    changed = ImagePolicy.of({"16-bit": "take", "alpha": "refuse"})
    assert set(changed.refused) == {*DEFAULT_REFUSED, "alpha"} - {"16-bit"}
    assert ImagePolicy(("lab", "16-bit")) == ImagePolicy(("16-bit", "lab"))
    with pytest.raises(ConfigError, match=r"'sepia' is no kind .* palette"):
        ImagePolicy.of({"sepia": "take"})
    with pytest.raises(ConfigError, match="'maybe' is no choice"):
        ImagePolicy.of({"alpha": "maybe"})
    with pytest.raises(ConfigError):
        ImagePolicy(("sepia",))
