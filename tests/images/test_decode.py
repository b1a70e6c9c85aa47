"""Every decoder against Pillow and transformers, and what each does with bad images."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from omr_io.config import VisionConfig
from omr_io.images import probe
from omr_io.images.decode import (
    CpuDecoder,
    DaliDecoder,
    Decoder,
    NvimgcodecDecoder,
    make_decoder,
)
from omr_io.types import ImageFailure, ImageInfo, UInt8Array

ORIENTATION = 0x0112


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def by_pillow(data: bytes, upright: bool = True) -> UInt8Array:
    """The oracle of images without transparency."""
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(turned.convert("RGB"))


def exif(value: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = value
    return block


BATCHED = {"dali": DaliDecoder, "nvimgcodec": NvimgcodecDecoder}
NAMES = ("cpu", "dali", "nvimgcodec")


def need(name: str) -> None:
    """Skip where a decoder's package is not installed."""
    if name != "cpu":
        pytest.importorskip(f"nvidia.{name}", reason=f"{name} is not installed")


@pytest.fixture(scope="module", params=NAMES)
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    need(request.param)
    made = make_decoder(request.param, VisionConfig())
    yield made
    made.close()


def decode(decoder: Decoder, images: list[bytes]) -> list[UInt8Array | ImageFailure]:
    return decoder.decode(images, [probe(data) for data in images])


def assert_equal(
    results: list[UInt8Array | ImageFailure], images: list[bytes], upright: bool = True
) -> None:
    assert len(results) == len(images)
    for result, data in zip(results, images, strict=True):
        assert isinstance(result, np.ndarray), result
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, by_pillow(data, upright))


SIZES = [(1, 1), (1, 17), (16, 15), (31, 33), (65, 64), (203, 301)]


def test_jpegs_equal_pillow(decoder: Decoder) -> None:
    """Subsamplings, odd sizes, progressive, restart markers, grey, RGB and CMYK."""
    images = []
    for seed, size in enumerate(SIZES):
        image = photograph(*size, seed)
        for subsampling in ("444", "422", "420", "440", "411", "Gray"):
            pixels = np.asarray(image.convert("L"))[..., None] if subsampling == "Gray" else image
            space = "Gray" if subsampling == "Gray" else "RGB"
            array = np.ascontiguousarray(pixels)
            images.append(simplejpeg.encode_jpeg(array, 80, space, subsampling))
        for options in (
            {"progressive": True},
            {"progressive": True, "subsampling": 0},
            {"restart_marker_blocks": 3},
            {"quality": 5},
            {"quality": 100, "optimize": True},
            {"keep_rgb": True},
        ):
            images.append(encode(image, "JPEG", **options))
        images.append(encode(image.convert("CMYK"), "JPEG"))
        images.append(encode(image.convert("L"), "JPEG", progressive=True))
    assert_equal(decode(decoder, images), images)


def test_real_images_equal_pillow(decoder: Decoder) -> None:
    data = pytest.importorskip("skimage.data")
    images = []
    for name in ("retina", "immunohistochemistry", "cell"):
        image = Image.fromarray(getattr(data, name)())
        image.thumbnail((700, 700))
        images += [encode(image, "JPEG", quality=q, progressive=q < 80) for q in (60, 85, 95)]
        images.append(encode(image, "PNG"))
    assert_equal(decode(decoder, images), images)


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("PNG", ["1", "L", "P", "RGB", "I;16"]),
        ("WEBP", ["RGB", "L"]),
        ("TIFF", ["1", "L", "P", "RGB", "CMYK", "I;16"]),
        ("BMP", ["1", "L", "P", "RGB"]),
        ("GIF", ["L", "P"]),
    ],
)
def test_other_formats_equal_pillow(decoder: Decoder, name: str, modes: list[str]) -> None:
    images = []
    for mode in modes:
        image = photograph(33, 70).convert("L" if mode == "I;16" else "RGB").convert(mode)
        images.append(encode(image, name))
    assert_equal(decode(decoder, images), images)


def transparent_images() -> list[bytes]:
    image = photograph(33, 70).convert("RGBA")
    image.putalpha(photograph(33, 70, 1).convert("L"))
    palette = photograph(33, 70).convert("P")
    return [
        encode(image, "PNG"),
        encode(image.convert("LA"), "PNG"),
        encode(image, "WEBP", lossless=True),
        encode(image, "TIFF"),
        encode(palette, "PNG", transparency=3),
        encode(palette, "GIF", transparency=3),
        encode(photograph(33, 70).convert("L"), "PNG", transparency=128),
    ]


def test_colour_equals_transformers(decoder: Decoder) -> None:
    """Transparency goes onto white, as Qwen2VLImageProcessorPil does it."""
    transforms = pytest.importorskip("transformers.image_transforms")
    images = [
        *transparent_images(),
        encode(photograph(33, 70).convert("CMYK"), "JPEG"),
        encode(photograph(33, 70).convert("P"), "PNG"),
    ]
    for result, data in zip(decode(decoder, images), images, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            expected = transforms.convert_to_rgb(image, return_numpy=True)
        np.testing.assert_array_equal(result, expected)
    # The case is not empty: dropping the alpha channel gives other pixels.
    assert (decode(decoder, images[:1])[0] != by_pillow(images[0])).any()


@pytest.mark.parametrize("policy", ["apply", "ignore"])
@pytest.mark.parametrize("name", NAMES)
def test_all_orientations_follow_the_policy(name: str, policy: str) -> None:
    need(name)
    decoder = make_decoder(name, VisionConfig(exif=policy))
    image = photograph(30, 47)
    images = [
        encode(image, kind, exif=exif(value))
        for kind in ("JPEG", "PNG", "WEBP")
        for value in range(1, 9)
    ]
    results = decode(decoder, images)
    assert_equal(results, images, upright=policy == "apply")
    shapes = {result.shape for result in results}
    both = {(30, 47, 3), (47, 30, 3)}
    assert shapes == (both if policy == "apply" else {(30, 47, 3)})
    decoder.close()


def damage() -> dict[str, bytes]:
    data = encode(photograph(64, 80), "JPEG")
    return {
        "image-truncated": data[: len(data) // 2],
        # Without its quantization tables.
        "image-corrupt": data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :],
        "image-changed": encode(photograph(65, 80), "JPEG"),
        "image-format": b"not an image at all",
        "image-empty": b"",
    }


@pytest.mark.parametrize("reason", damage())
def test_a_bad_image_fails_alone(decoder: Decoder, reason: str) -> None:
    good = [encode(photograph(64, 80, seed), "JPEG") for seed in range(6)]
    infos = [probe(data) for data in good]
    images = [*good[:2], damage()[reason], *good[3:]]
    results = decoder.decode(images, infos)
    failure = results[2]
    assert isinstance(failure, ImageFailure)
    assert failure.reason == reason
    assert failure.detail
    assert_equal(results[:2] + results[3:], images[:2] + images[3:])
    # And the decoder goes on.
    assert_equal(decode(decoder, good), good)


@pytest.mark.parametrize("name", NAMES[1:])
def test_libraries_pass_over_libjpegs_warnings_and_cpu_does_not(name: str) -> None:
    """The one difference, which BatchDecoder's docstring states; `convert` refuses such images."""
    need(name)
    data = encode(photograph(64, 80), "JPEG")
    stuffed = data[:-2] + b"\0\0\0" + data[-2:]
    (result,) = decode(CpuDecoder(), [stuffed])
    assert isinstance(result, ImageFailure)
    assert result.reason == "image-corrupt"
    with BATCHED[name]() as decoder:
        assert_equal(decode(decoder, [stuffed]), [stuffed])


def without_adobe(data: bytes) -> bytes:
    """A JPEG without Adobe's marker."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_cmyk_with_and_without_adobes_marker(decoder: Decoder) -> None:
    """Whether CMYK is inverted: Pillow always thinks so, the libraries only by Adobe's marker."""
    inks = encode(photograph(40, 50).convert("CMYK"), "JPEG", quality=95)
    images = [inks, without_adobe(inks)]
    at = inks.index(b"Adobe") + 11
    images.append(inks[:at] + b"\2" + inks[at + 1 :])  # YCCK
    assert_equal(decode(decoder, images), images)


@pytest.mark.parametrize("factors", [(0x11, 0x11, 0x12), (0x21, 0x21, 0x11), (0x22, 0x22, 0x12)])
def test_subsamplings_that_turbojpeg_does_not_know(
    decoder: Decoder, factors: tuple[int, int, int]
) -> None:
    """They are sound JPEGs, which Pillow decodes."""
    # Flat grey: all blocks are equal, so other factors only make it fewer or more of them.
    data = bytearray(encode(Image.new("RGB", (64, 64), (128, 128, 128)), "JPEG", subsampling=0))
    frame = data.index(b"\xff\xc0")
    for place, factor in enumerate(factors):
        data[frame + 11 + 3 * place] = factor
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(bytes(data), strict=True)
    images = [bytes(data), encode(photograph(9, 9), "JPEG")]
    assert_equal(decode(decoder, images), images)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_made_of_many_scans_is_refused_before_it_keeps_a_core_busy(
    decoder: Decoder, progressive: bool
) -> None:
    data = encode(photograph(16, 16), "JPEG", progressive=progressive)
    last = data.rindex(b"\xff\xda")
    few, many = (data[:last] + data[last:-2] * count + data[-2:] for count in (1, 501))
    results = decoder.decode([few, many, few], [probe(few)] * 3)
    assert_equal([results[0], results[2]], [few, few])
    assert isinstance(results[1], ImageFailure)
    assert "500 scans" in results[1].detail


def test_an_image_over_the_cap_is_a_failure_before_it_is_decoded() -> None:
    image = encode(photograph(64, 80), "JPEG")
    (result,) = CpuDecoder(max_pixels=64 * 80 - 1).decode([image], [probe(image)])
    assert isinstance(result, ImageFailure)
    assert result.reason == "image-too-large"


def test_the_plan_need_not_know_the_mode(decoder: Decoder) -> None:
    image = encode(photograph(20, 30).convert("CMYK"), "JPEG")
    assert_equal(decoder.decode([image], [ImageInfo(30, 20, "jpeg", "")]), [image])


def test_results_are_not_overwritten_by_later_calls(decoder: Decoder) -> None:
    images = [encode(photograph(64, 80, seed), "JPEG") for seed in range(4)]
    results = [decode(decoder, images[k : k + 2]) for k in (0, 2, 1, 0, 2)]
    for k, result in zip((0, 2, 1, 0, 2), results, strict=True):
        assert_equal(result, images[k : k + 2])


def test_no_images_and_more_than_a_batch(decoder: Decoder) -> None:
    assert decoder.decode([], []) == []
    images = [encode(photograph(20, 30, seed), "JPEG") for seed in range(70)]
    images[5] = encode(photograph(20, 30), "PNG")
    assert_equal(decode(decoder, images), images)


def test_threads_get_their_own_images(decoder: Decoder) -> None:
    lists = [
        [encode(photograph(20 + 3 * row, 30, seed), "JPEG") for seed in range(5)]
        for row in range(12)
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda images: decode(decoder, images), lists))
    for result, images in zip(results, lists, strict=True):
        assert_equal(result, images)


def test_decoders_survive_a_fork(decoder: Decoder) -> None:
    images = [encode(photograph(20, 30, seed), "JPEG") for seed in range(3)]
    assert_equal(decode(decoder, images), images)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: assert_equal(decode(decoder, images), images))
    child.start()
    child.join(300)
    code = child.exitcode
    child.kill()
    assert code == 0
    assert_equal(decode(decoder, images), images)


def test_lists_of_unequal_length_are_refused(decoder: Decoder) -> None:
    image = encode(photograph(20, 30), "JPEG")
    with pytest.raises(ValueError, match="zip"):
        decoder.decode([image, image], [probe(image)])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_machine_without_memory_is_no_damaged_image(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As a failure it would be blanked, or at conversion refused, though nothing is wrong with it.

    JPEG's decoder raises MemoryError by itself.
    """
    data = encode(photograph(30, 40), kind)

    def refuse(*_: object) -> None:
        raise MemoryError

    info = probe(data)
    assert decode(CpuDecoder(), [data])[0].shape == (30, 40, 3)
    monkeypatch.setattr(Image.core, "new", refuse)
    with pytest.raises(MemoryError):
        CpuDecoder().decode([data], [info])
