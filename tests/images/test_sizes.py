"""Headers against Pillow, caps, strict decoding, sizes and grids against transformers."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from omr_io.config import VisionConfig
from omr_io.errors import ImageError
from omr_io.images import (
    check_caps,
    check_decodes,
    image_grid_thw,
    image_grid_thw_from_sizes,
    num_image_tokens,
    oriented_sizes,
    probe,
    smart_resize,
)
from omr_io.types import ImageInfo

ORIENTATION = 0x0112
PILLOW_NAMES = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff", "GIF": "gif"}


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth noise: it compresses like a photograph and has no symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def exif(value: int) -> Image.Exif:
    block = Image.Exif()
    block[0x010F] = "a maker"
    block[ORIENTATION] = value
    return block


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        check_decodes(data, probe(data))
    return caught.value.reason


CASES = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("WEBP", mode, {"lossless": x}) for mode in ("RGB", "RGBA", "L") for x in (True, False)],
    *[("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16")],
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
    *[("GIF", mode, {}) for mode in ("L", "P", "RGB")],
]


@pytest.mark.parametrize(("name", "mode", "options"), CASES)
def test_probe_says_what_pillow_says(name: str, mode: str, options: dict[str, object]) -> None:
    image = noise(33, 70).convert("L").convert(mode) if mode == "I;16" else noise(33, 70)
    data = encode(image.convert(mode), name, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = PILLOW_NAMES.get(name, name.lower())
        if options.get("progressive"):
            expected = "jpeg-progressive"
        info = probe(data)
        assert info == ImageInfo(*opened.size, expected, opened.mode)
    check_caps(info, len(data))
    check_decodes(data, info)


def test_animations_and_pages_are_their_first_frame() -> None:
    frames = [noise(20, 30, seed) for seed in range(3)]
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(frames[0], name, save_all=True, append_images=frames[1:])
        with Image.open(io.BytesIO(data)) as opened:
            assert getattr(opened, "n_frames", 1) == 3
            info = probe(data)
            assert (info.width, info.height, info.mode) == (*opened.size, opened.mode)
        check_decodes(data, info)


def test_gif_grows_to_its_first_frame() -> None:
    data = bytearray(encode(noise(20, 30), "GIF"))
    data[6:10] = struct.pack("<HH", 5, 50)
    with Image.open(io.BytesIO(bytes(data))) as opened:
        assert opened.size == (30, 50)
    info = probe(bytes(data))
    assert (info.width, info.height) == (30, 50)


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_orientation_equals_pillow(name: str, value: int) -> None:
    data = encode(noise(20, 31), name, exif=exif(value))
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).size
        assert opened.getexif()[ORIENTATION] == value
    info = probe(data)
    assert info.orientation == (value if 1 <= value <= 8 else 1)
    assert info.oriented == upright


@pytest.mark.parametrize("value", [1, 3, 6])
def test_tiff_is_upright_already(value: int) -> None:
    data = encode(noise(20, 31), "TIFF", tiffinfo={ORIENTATION: value})
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert probe(data) == ImageInfo(*opened.size, "tiff", "RGB", 1)
    check_decodes(data, probe(data))


def png_with(chunk: bytes, payload: bytes, before_end: bool) -> bytes:
    data = encode(noise(20, 31), "PNG")
    at = data.index(b"IEND") - 4 if before_end else 33
    crc = struct.pack(">I", zlib.crc32(chunk + payload))
    return data[:at] + struct.pack(">I", len(payload)) + chunk + payload + crc + data[at:]


PROFILE = b"\nexif\n      26\n" + exif(6).tobytes().hex().encode()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("before_end", [False, True])
@pytest.mark.parametrize(
    ("chunk", "payload"),
    [
        (b"eXIf", exif(6).tobytes()[6:]),
        (b"tEXt", b"Raw profile type exif\0" + PROFILE),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0x\0" + zlib.compress(XMP)),
        (b"tEXt", b"Comment\0" + XMP),
    ],
)
def test_png_orientation_wherever_it_sits(chunk: bytes, payload: bytes, before_end: bool) -> None:
    data = png_with(chunk, payload, before_end)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        expected = opened.getexif().get(ORIENTATION, 1)
    assert expected == (1 if payload.startswith(b"Comment") else 6)
    assert probe(data).orientation == expected


def test_xmp_orientation_of_jpeg_and_webp_yields_to_exif() -> None:
    for name in ("JPEG", "WEBP"):
        for options in ({"xmp": XMP}, {"xmp": XMP, "exif": exif(3)}):
            data = encode(noise(20, 31), name, **options)
            with Image.open(io.BytesIO(data)) as opened:
                expected = opened.getexif()[ORIENTATION]
            assert expected == (3 if "exif" in options else 6)
            assert probe(data).orientation == expected


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_damaged_exif_is_no_orientation_and_no_crash(block: bytes) -> None:
    for start in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""):
        data = encode(noise(8, 9), "JPEG", exif=b"Exif\0\0" + start + block)
        assert 1 <= probe(data).orientation <= 8


@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_an_image_or_an_image_error(tail: bytes, name: str) -> None:
    head = encode(noise(8, 9), name)
    for cut in (4, 12, 20, len(head) // 2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of a TIFF's tags
                info = probe(head[:cut] + tail)
        except ImageError:
            continue
        assert info.width > 0
        assert info.height > 0


def test_what_is_no_image() -> None:
    for data, expected in [
        (b"", "image-empty"),
        (b"hello world", "image-format"),
        (b"%PDF-1.7", "image-format"),
        (b"\xff\xd8\xff\xe0", "image-truncated"),
        (b"\xff\xd8\xff\xd9", "image-corrupt"),
        (encode(noise(8, 8), "JPEG2000"), "image-format"),
    ]:
        with pytest.raises(ImageError) as caught:
            probe(data)
        assert caught.value.reason == expected
    with pytest.raises(ImageError, match="68 65 6c 6c 6f"):
        probe(b"hello world")


@pytest.mark.parametrize(("offset", "value", "words"), [(1, 0xC3, "SOF3"), (4, 12, "12 bits")])
def test_jpegs_that_are_not_8_bit_dct_are_named(offset: int, value: int, words: str) -> None:
    data = bytearray(encode(noise(8, 8), "JPEG"))
    data[data.index(b"\xff\xc0") + offset] = value
    with pytest.raises(ImageError, match=words) as caught:
        probe(bytes(data))
    assert caught.value.reason == "image-format"


def huge(name: str) -> bytes:
    """A small file whose header claims 30,000 x 30,000 pixels."""
    data = bytearray(encode(noise(8, 8), name))
    if name == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    elif name == "PNG":
        data[16:24] = struct.pack(">II", 30_000, 30_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name == "GIF":
        data[6:10] = struct.pack("<HH", 30_000, 30_000)
    elif name == "BMP":
        data[18:26] = struct.pack("<II", 30_000, 30_000)
    return bytes(data)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_bomb_is_an_error_with_its_size_and_the_cap(name: str) -> None:
    data = huge(name)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))  # it is a bomb to Pillow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = probe(data)
        with pytest.raises(ImageError, match=r"30000x30000.*64000000") as caught:
            check_caps(info, len(data))
    assert caught.value.reason == "image-too-large"


def test_caps_are_inclusive_and_named() -> None:
    info = ImageInfo(100, 50, "png", "RGB")
    check_caps(info, 10, max_pixels=5000, max_bytes=10)
    with pytest.raises(ImageError, match="4999"):
        check_caps(info, 10, max_pixels=4999)
    with pytest.raises(ImageError, match="10 bytes, the cap is 9"):
        check_caps(info, 10, max_bytes=9)
    check_caps(ImageInfo(200, 1, "png", "RGB"), 10)
    with pytest.raises(ImageError) as caught:
        check_caps(ImageInfo(1, 201, "png", "RGB"), 10)
    assert caught.value.reason == "image-too-narrow"


def test_image_error_keeps_its_reason_through_pickle() -> None:
    error = pickle.loads(pickle.dumps(ImageError("what", mend="mend", reason="image-format")))
    assert (error.what, error.mend, error.reason) == ("what", "mend", "image-format")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_every_cut_is_found(name: str) -> None:
    data = encode(noise(30, 40), name)
    for length in range(len(data)):
        with pytest.raises(ImageError):
            check_decodes(data[:length], probe(data[:length]))
    for cut in (1, 2, 10, len(data) // 3):
        assert reason(data[:-cut]) == "image-truncated"


@pytest.mark.parametrize("name", ["TIFF", "BMP", "GIF"])
def test_a_cut_that_loses_pixels_is_found(name: str) -> None:
    data = encode(noise(30, 40), name)
    for cut in (len(data) // 4, len(data) // 2):
        assert reason(data[:-cut]) in ("image-truncated", "image-corrupt")


def test_every_flipped_bit_in_png_pixels_is_found() -> None:
    data = encode(noise(12, 12), "PNG")
    for at in range(data.index(b"IDAT"), data.index(b"IEND") - 4):
        flipped = bytearray(data)
        flipped[at] ^= 0x04
        with pytest.raises(ImageError):
            check_decodes(bytes(flipped), probe(bytes(flipped)))


def test_libjpeg_warnings_are_errors() -> None:
    data = encode(noise(64, 64), "JPEG")
    stuffed = data[:-2] + b"\x00\x00\x00" + data[-2:]
    with Image.open(io.BytesIO(stuffed)) as opened:
        opened.load()  # Pillow lets it pass
    assert reason(stuffed) == "image-corrupt"
    check_decodes(data + b"bytes after the end are no damage", probe(data))


def test_pixels_of_another_size_are_found() -> None:
    data = encode(noise(30, 40), "JPEG")
    with pytest.raises(ImageError) as caught:
        check_decodes(data, ImageInfo(40, 31, "jpeg", "RGB"))
    assert caught.value.reason == "image-changed"


# Sizes and grids.

VISIONS = [
    VisionConfig("qwen2_vl", 14, min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
    VisionConfig("qwen2_5_vl", 14, min_pixels=128 * 28 * 28, max_pixels=256 * 28 * 28),
    VisionConfig("qwen3_vl", 16),
    VisionConfig("qwen3_vl", 8, merge_size=1, min_pixels=1, max_pixels=128 * 128),
]


@given(st.sampled_from(VISIONS), st.lists(st.tuples(*[st.integers(1, 5000)] * 2), min_size=1))
@settings(max_examples=100, deadline=None)
def test_sizes_equal_transformers(vision: VisionConfig, sizes: list[tuple[int, int]]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    kept = [size for size in sizes if max(size) <= 200 * min(size)]
    expected = [
        theirs(*size, vision.patch_size * vision.merge_size, vision.min_pixels, vision.max_pixels)
        for size in kept
    ]
    assert [smart_resize(*size, vision) for size in kept] == expected
    grid = [(1, h // vision.patch_size, w // vision.patch_size) for h, w in expected]
    infos = [ImageInfo(width, height, "png", "RGB") for height, width in kept]
    np.testing.assert_array_equal(image_grid_thw(infos, vision).reshape(-1, 3).tolist(), grid or [])
    columns = np.array(kept, dtype=np.int32).reshape(-1, 2).T
    np.testing.assert_array_equal(
        image_grid_thw_from_sizes(columns[0], columns[1], vision), image_grid_thw(infos, vision)
    )


@given(st.sampled_from(VISIONS), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_many_sizes_equal_transformers(vision: VisionConfig, seed: int) -> None:
    """2000 sizes an example, some 40,000 in all, of every order of magnitude."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(0, np.log(20_000), (2000, 1))) * np.exp(rng.normal(0, 0.7, (1, 2)))
    sides = np.maximum(1, np.rint(sides * np.exp(rng.normal(0, 0.5, sides.shape)))).astype(np.int64)
    sides = sides[sides.max(axis=1) <= 200 * sides.min(axis=1)]
    assert len(sides) > 500
    factor = vision.patch_size * vision.merge_size
    expected = [
        theirs(height, width, factor, vision.min_pixels, vision.max_pixels)
        for height, width in sides.tolist()
    ]
    grid = image_grid_thw_from_sizes(sides[:, 0], sides[:, 1], vision)
    np.testing.assert_array_equal(grid[:, 1:] * vision.patch_size, expected)


@pytest.mark.parametrize("vision", VISIONS)
def test_columns_equal_scalars_at_every_half(vision: VisionConfig) -> None:
    half = vision.patch_size * vision.merge_size // 2
    heights, widths = np.meshgrid(np.arange(1, 90) * half, np.arange(1, 90) * half)
    heights, widths = heights.ravel(), widths.ravel()
    scalar = [smart_resize(int(h), int(w), vision) for h, w in zip(heights, widths, strict=True)]
    grid = image_grid_thw_from_sizes(heights, widths, vision)
    np.testing.assert_array_equal(grid[:, 1:] * vision.patch_size, scalar)
    # Every branch was taken, and halves were rounded both ways.
    sizes = np.prod(scalar, axis=1)
    plain = np.rint(heights / half / 2) * np.rint(widths / half / 2) * (2 * half) ** 2
    assert (plain > vision.max_pixels).any()
    assert (plain == sizes).any()
    assert (plain < vision.min_pixels).any()


@pytest.mark.parametrize("size", [(50, 9000), (9000, 50), (28, 5600), (14, 1400)])
def test_a_shrunk_side_keeps_one_image_token(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    vision = VisionConfig("qwen2_vl", 14, min_pixels=28 * 28, max_pixels=28 * 28 * 40)
    expected = theirs(*size, 28, vision.min_pixels, vision.max_pixels)
    assert min(expected) == 28
    assert smart_resize(*size, vision) == expected
    grid = image_grid_thw_from_sizes(*np.array(size).reshape(2, 1), vision)
    assert tuple(grid[0, 1:] * 14) == expected


def test_too_narrow_is_an_error_that_names_the_row() -> None:
    vision = VISIONS[0]
    with pytest.raises(ImageError) as caught:
        smart_resize(10, 2001, vision)
    assert caught.value.reason == "image-too-narrow"
    sides = np.array([100, 10, 10]), np.array([100, 2000, 2001])
    with pytest.raises(ImageError, match="image 2: the image is 2001x10"):
        image_grid_thw_from_sizes(*sides, vision)


def test_orientation_swaps_the_grid_by_policy() -> None:
    infos = [ImageInfo(600, 400, "jpeg", "RGB", turned) for turned in (1, 6)]
    apply, ignore = VisionConfig(), VisionConfig(exif="ignore")
    assert (
        image_grid_thw(infos, apply)[1].tolist()
        == image_grid_thw(infos, apply)[0, [0, 2, 1]].tolist()
    )
    assert image_grid_thw(infos, ignore)[1].tolist() == image_grid_thw(infos, ignore)[0].tolist()
    columns = np.array([400, 400]), np.array([600, 600]), np.array([1, 6])
    for vision in (apply, ignore):
        heights, widths = oriented_sizes(*columns, vision.exif)
        np.testing.assert_array_equal(
            image_grid_thw_from_sizes(heights, widths, vision), image_grid_thw(infos, vision)
        )


def test_num_image_tokens() -> None:
    grid_N3 = np.array([[1, 4, 6], [1, 16, 16]], dtype=np.int64)
    assert num_image_tokens(grid_N3, 2).tolist() == [6, 64]
    assert num_image_tokens(grid_N3[:0], 2).tolist() == []


def test_probe_does_not_touch_pillows_global_limit() -> None:
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    probe(huge("PNG"))
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK)
