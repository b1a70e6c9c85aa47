"""Transcoding against Pillow, its bounds, and when it leaves an image alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from omr_io.errors import ConfigError, ImageError
from omr_io.images import probe
from omr_io.images.transcode import Transcode, library_versions
from tests.images.planted import ORIENTATION, encode, picture


def apply(transcode: Transcode, data: bytes) -> bytes:
    return transcode.apply(data, probe(data))


@pytest.mark.parametrize("value", range(1, 9))
def test_pixels_are_turned_upright_shrunk_and_encoded(value: int) -> None:
    block = Image.Exif()
    block[ORIENTATION] = value
    data = encode(picture(height=90, width=140), "JPEG", quality=95, exif=block)
    made = apply(Transcode(max_side=70, quality=80), data)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    size = (45, 70) if value >= 5 else (70, 45)
    shrunk = np.asarray(upright.resize(size, Image.Resampling.BICUBIC))
    assert made == encode(Image.fromarray(shrunk), "JPEG", quality=80, subsampling="4:4:4")
    assert simplejpeg.decode_jpeg_header(made) == (size[1], size[0], "YCbCr", "444")
    info = probe(made)
    assert (info.orientation, info.format, info.mode) == (1, "jpeg", "RGB")
    assert apply(Transcode(max_side=70, quality=80), data) == made


def test_420_and_grey() -> None:
    data = encode(picture(height=90, width=140), "PNG")
    made = apply(Transcode(max_side=70, subsampling="420"), data)
    assert simplejpeg.decode_jpeg_header(made)[3] == "420"
    for mode in ("L", "1"):
        data = encode(picture(mode, 90, 140), "PNG")
        assert probe(apply(Transcode(max_side=70), data)).mode == "L"


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    made = apply(Transcode(max_side=32), encode(image, "PNG"))
    assert (simplejpeg.decode_jpeg(made) == 255).all()


def test_a_smaller_file_within_the_bounds_stays_as_it_is() -> None:
    small = encode(picture(), "JPEG", quality=30)
    assert apply(Transcode(max_side=1000, quality=90), small) is small
    assert apply(Transcode(quality=90), small) is small
    large = encode(picture(), "JPEG", quality=100, subsampling=0)
    made = apply(Transcode(max_side=1000, quality=50), large)
    assert len(made) < len(large)
    assert probe(made) == probe(large)
    shrunk = apply(Transcode(max_side=49, quality=100), small)  # the bound holds all the same
    assert probe(shrunk).width == 49


def test_a_bad_image_is_an_error() -> None:
    data = encode(picture(), "JPEG")
    with pytest.raises(ImageError) as caught:
        Transcode(max_side=9).apply(data[:-40], probe(data))
    assert caught.value.reason == "image-truncated"


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.none() | SIDES, st.none() | st.integers(1, 4_000_000))
def test_sizes_keep_bounds_and_aspect(
    width: int, height: int, max_side: int | None, max_pixels: int | None
) -> None:
    new_width, new_height = Transcode(max_side, max_pixels).size(width, height)
    assert 1 <= new_width <= width
    assert 1 <= new_height <= height
    assert max(new_width, new_height) <= (max_side or 3000)
    assert new_width * new_height <= (max_pixels or 9_000_000)
    if max(width, height) <= 200 * min(width, height):
        assert max(new_width, new_height) <= 200 * min(new_width, new_height)
        if min(new_width, new_height) > 1:
            scale = max(new_width, new_height) / max(width, height)
            assert abs(new_width - width * scale) <= 1.5
            assert abs(new_height - height * scale) <= 1.5
    if max(width, height) <= (max_side or 3000) and width * height <= (max_pixels or 9_000_000):
        assert (new_width, new_height) == (width, height)


def test_options() -> None:
    assert Transcode.parse("1024") == Transcode(max_side=1024)
    assert Transcode.parse("1024:75") == Transcode(max_side=1024, quality=75)
    for text in ("", "big", "1024:", ":90", "-5", "1024:90:1", "10.5"):
        with pytest.raises(ConfigError, match="1024:90"):
            Transcode.parse(text)
    for options in ({"max_side": 0}, {"max_pixels": 0}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ConfigError):
            Transcode(**options)
    with pytest.raises(ConfigError):
        Transcode(format="png")
    with pytest.raises(ConfigError):
        Transcode(subsampling="422")
    assert library_versions()["pillow"] == Image.__version__
