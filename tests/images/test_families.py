"""Values and batches of the families against transformers' PIL image processors, bit for bit."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omr_io.errors import ConfigError, ImageError
from omr_io.images import families, probe
from omr_io.images.decode import CpuDecoder
from omr_io.images.families import Family, Gemma3Vision, Idefics3Vision, PixtralVision
from omr_io.images.patches import value_table
from omr_io.ops import patches_implementation
from omr_io.types import UInt8Array
from tests.images.family_processors import VISIONS, image_processor, random_pixels

pytest.importorskip("transformers")

LARGE = ("idefics3", "gemma3-896", "pixtral", "pixtral-mistral3", "siglip2-1024", "idefics3-whole")
HUGE = "idefics3-4096"
"""4096 x 4096 values of three channels an image: few of those."""
SIZES = [(1, 1), (1, 2), (2, 1), (3, 3), (1, 300), (300, 1), (28, 1021), (1021, 28), (47, 48)]
SIZES += [(16, 16), (224, 224), (364, 364), (600, 1000), (333, 250), (90, 60), (512, 513), (5, 64)]


def both(
    vision: Family[Any], theirs: Any, pixels: UInt8Array
) -> tuple[torch.Tensor | None, Any | None]:
    """(our values, their output), either None where it is refused."""
    values, expected = None, None
    try:
        values = vision.to_pixels(pixels)
    except ImageError as error:
        refused = error.reason
    else:
        refused = None
    assert refused in (None, "image-too-narrow")
    try:
        expected = theirs(Image.fromarray(pixels), return_tensors="pt")
    except Exception:
        assert values is None, "transformers refuses an image that we take"
    else:
        assert values is not None, "we refuse an image that transformers takes"
    return values, expected


def assert_equal(vision: Family[Any], theirs: Any, pixels: UInt8Array) -> bool:
    """Whether the image is taken; then every output has to be equal."""
    values, expected = both(vision, theirs, pixels)
    if values is None:
        return False
    plan = vision.plan(*pixels.shape[:2])
    assert tuple(values.shape) == plan.pixel_shape
    batch = vision.batch([values], [plan])
    for name in expected:
        assert batch[name].dtype == expected[name].dtype
        assert torch.equal(batch[name], expected[name]), (name, pixels.shape)
    return True


@pytest.mark.parametrize("name", VISIONS)
def test_values_equal_transformers(name: str) -> None:
    vision, rng = VISIONS[name], np.random.default_rng(0)
    theirs = image_processor(vision)
    sizes = [*SIZES, (1500, 40), (40, 1500), (1, 10), (9, 1), (7, 1)]
    sizes += [tuple(int(side) for side in rng.integers(1, 400, 2)) for _ in range(20)]
    if name in LARGE:
        sizes = [(1, 1), (1, 300), (300, 2), *sizes[9:15], (1400, 1800), (2100, 300)]
    elif name == HUGE:
        sizes = [(3, 5), (1, 2000), (600, 100)]
    else:
        sizes += [(2000, 3000)]
    taken = [assert_equal(vision, theirs, random_pixels(rng, *size)) for size in sizes]
    assert sum(taken) > len(sizes) / 2


@given(
    st.sampled_from(["siglip2-few", "idefics3-uneven", "smolvlm", "gemma3-crops", "pixtral-small"]),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_size_equals_transformers(name: str, size: tuple[int, int], seed: int) -> None:
    pixels = random_pixels(np.random.default_rng(seed), *size)
    assert_equal(VISIONS[name], image_processor(VISIONS[name]), pixels)


@pytest.mark.parametrize("name", VISIONS)
def test_every_byte_has_transformers_value(name: str) -> None:
    vision = VISIONS[name]
    theirs = image_processor(vision)
    ramp_3x256x1 = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=0)
    scaled = theirs.rescale(ramp_3x256x1, vision.rescale_factor)
    expected = theirs.normalize(scaled, list(vision.image_mean), list(vision.image_std))
    assert expected.dtype == np.float32
    assert np.array_equal(value_table(vision), expected[..., 0])


@given(
    st.tuples(*[st.floats(-2, 2, width=32)] * 3),
    st.tuples(*[st.floats(0.01, 3)] * 3),
    st.floats(1e-4, 1),
)
@settings(max_examples=100, deadline=None)
def test_any_values_equal_transformers(
    mean: tuple[float, float, float], std: tuple[float, float, float], factor: float
) -> None:
    vision = PixtralVision(image_mean=mean, image_std=std, rescale_factor=factor)
    theirs = image_processor(vision)
    ramp_3x256x1 = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=0)
    scaled = theirs.rescale(ramp_3x256x1, factor)
    expected = theirs.normalize(scaled, list(mean), list(std))[..., 0]
    assert np.array_equal(value_table(vision), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(set(VISIONS) - {HUGE}))
def test_half_precision_is_float32_rounded(name: str, dtype: torch.dtype) -> None:
    vision, rng = VISIONS[name], np.random.default_rng(1)
    for size in [(40, 61), (130, 50)]:
        pixels = random_pixels(rng, *size)
        rounded = vision.to_pixels(pixels).to(dtype)
        values = vision.to_pixels(pixels, dtype)
        assert values.dtype == dtype
        assert torch.equal(values, rounded)
        plan = vision.plan(*size)
        assert vision.batch([values], [plan])["pixel_values"].dtype == dtype


@pytest.mark.parametrize(
    "name", ["siglip2-few", "smolvlm", "idefics3-whole", "gemma3-crops", "pixtral-small"]
)
def test_batches_equal_transformers(name: str) -> None:
    """Images of several sizes in one call: padding, masks and counts."""
    vision, rng = VISIONS[name], np.random.default_rng(2)
    theirs = image_processor(vision)
    pixels = [random_pixels(rng, *size) for size in [(30, 90), (100, 40), (77, 77), (20, 150)]]
    images = [Image.fromarray(one) for one in pixels]
    plans = [vision.plan(*one.shape[:2]) for one in pixels]
    batch = vision.batch([vision.to_pixels(one) for one in pixels], plans)
    nested = [[one] for one in images] if isinstance(vision, Idefics3Vision) else images
    expected = theirs(nested, return_tensors="pt")
    assert len(expected) > 1
    for key in expected:
        assert torch.equal(batch[key], expected[key]), key


def test_samples_of_several_images_equal_transformers() -> None:
    vision, rng = VISIONS["smolvlm"], np.random.default_rng(3)
    assert isinstance(vision, Idefics3Vision)
    sizes, counts = [(30, 90), (100, 40), (77, 77), (60, 150), (9, 9), (128, 129)], [2, 1, 3]
    pixels = [random_pixels(rng, *size) for size in sizes]
    images = [Image.fromarray(one) for one in pixels]
    nested = [images[:2], images[2:3], images[3:]]
    expected = image_processor(vision)(nested, return_tensors="pt", return_row_col_info=True)
    values = [vision.to_pixels(one) for one in pixels]
    plans = [vision.plan(*size) for size in sizes]
    batch = vision.batch(values, plans, counts)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["pixel_attention_mask"], expected["pixel_attention_mask"])
    assert not batch["pixel_attention_mask"].all()
    assert (batch["rows"], batch["cols"]) == (expected["rows"], expected["cols"])
    for wrong in ([6, 1], [2, 1], [7, -1]):
        with pytest.raises(ConfigError, match="images_per_sample"):
            vision.batch(values, plans, wrong)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_modes_equal_transformers_from_the_encoded_image(mode: str, tmp_path: Any) -> None:
    """The whole way: bytes, decoder, values. SigLIP2's processor does not convert by default."""
    image = Image.fromarray(random_pixels(np.random.default_rng(4), 150, 211)).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    data = path.read_bytes()
    (pixels,) = CpuDecoder().decode([data], [probe(data)])
    for name in ("siglip2-few", "smolvlm", "gemma3-crops", "pixtral-small"):
        vision = VISIONS[name]
        with Image.open(path) as opened:
            expected = image_processor(vision)(opened, return_tensors="pt", do_convert_rgb=True)
        assert isinstance(pixels, np.ndarray)
        batch = vision.batch([vision.to_pixels(pixels)], [vision.plan(*pixels.shape[:2])])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["siglip2-few", "smolvlm", "gemma3-crops", "pixtral-small"])
def test_parts_of_many_images_are_one_call_of_the_operation(name: str, implementation: str) -> None:
    vision, rng = VISIONS[name], np.random.default_rng(8)
    pixels = [random_pixels(rng, *size) for size in [(30, 90), (100, 40), (77, 70)]]
    parts = [vision.parts(one) for one in pixels]
    expected = torch.cat([vision.to_pixels(one).flatten() for one in pixels])
    operation, table = patches_implementation(implementation), vision.value_table()
    if isinstance(vision, PixtralVision):
        values = [operation(*one, table) for one in parts]
    else:
        images, targets = ([one for part in parts for one in part[at]] for at in (0, 1))
        values = [operation(images, targets, table, threads=2)]
    assert torch.equal(torch.cat([one.flatten() for one in values]), expected)
    if isinstance(vision, Gemma3Vision):
        assert len(parts[0][0]) > 2
        assert all(np.shares_memory(crop, pixels[0]) for crop in parts[0][0])


def test_pass_order_is_an_option() -> None:
    pixels = random_pixels(np.random.default_rng(5), 700, 300)
    for name in ("siglip2", "smolvlm", "gemma3", "pixtral-small"):
        installed, *forced = (
            dataclasses.replace(VISIONS[name], pass_order=order).to_pixels(pixels)
            for order in (None, "horizontal-first", "pillow-13")
        )
        assert not torch.equal(*forced), name
        assert any(torch.equal(installed, one) for one in forced)


def test_out_is_written_and_checked() -> None:
    pixels = random_pixels(np.random.default_rng(6), 120, 90)
    for name in ("siglip2-few", "smolvlm", "gemma3-crops", "pixtral-small"):
        vision = VISIONS[name]
        for dtype in (torch.float32, torch.bfloat16):
            expected = vision.to_pixels(pixels, dtype)
            buffer = torch.full((3, *expected.shape), torch.nan, dtype=dtype)
            result = vision.to_pixels(pixels, out=buffer[1])
            assert result.data_ptr() == buffer[1].data_ptr()
            assert torch.equal(buffer[1], expected)
            assert buffer[[0, 2]].isnan().all()
        for bad in (buffer, buffer[1].transpose(0, 1), buffer[1].double(), buffer[1].to("meta")):
            with pytest.raises(ConfigError):
                vision.to_pixels(pixels, out=bad)
        with pytest.raises(ConfigError, match="bfloat16"):
            vision.to_pixels(pixels, torch.float32, out=buffer[1])


def test_strided_pixels_are_taken() -> None:
    pixels = random_pixels(np.random.default_rng(7), 128, 96)
    before = pixels.copy()
    for name in ("siglip2-few", "smolvlm", "gemma3-crops", "pixtral-small"):
        vision = VISIONS[name]
        turned = pixels.swapaxes(0, 1)
        for view in (pixels[::-1], turned, pixels[:, ::2], pixels[3:99, 5:90], pixels[..., ::-1]):
            assert torch.equal(vision.to_pixels(view), vision.to_pixels(view.copy()))
    assert np.array_equal(pixels, before)


def test_bad_pixels_dtypes_and_batches_are_refused() -> None:
    vision = Gemma3Vision(size_height=8, size_width=8)
    for bad in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))):
        with pytest.raises(ConfigError, match="pixels must be"):
            vision.to_pixels(bad)
    with pytest.raises(ImageError) as caught:
        vision.to_pixels(np.zeros((0, 9, 3), np.uint8))
    assert caught.value.reason == "image-empty"
    for dtype in (torch.float64, torch.uint8):
        with pytest.raises(ConfigError, match=str(dtype)):
            vision.to_pixels(np.zeros((9, 9, 3), np.uint8), dtype)
    values, plan = vision.to_pixels(np.zeros((9, 9, 3), np.uint8)), vision.plan(9, 9)
    with pytest.raises(ConfigError, match="a batch needs"):
        vision.batch([], [])
    with pytest.raises(ConfigError, match="a batch needs"):
        vision.batch([values], [plan, plan])
    with pytest.raises(ConfigError, match="image 1 is"):
        vision.batch([values, values.bfloat16()], [plan, plan])
    with pytest.raises(ConfigError, match="image 0 is"):
        vision.batch([values[:, 1:]], [plan])


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(families)
    assert (result.attempted, result.failed) == (8, 0)
