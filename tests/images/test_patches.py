"""Patches against transformers' Qwen2VLImageProcessorPil, and VisionConfig against saved files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from omr_io.config import PassOrder, VisionConfig
from omr_io.errors import ConfigError, ImageError
from omr_io.images import image_grid_thw
from omr_io.images.patches import (
    Instructions,
    blank_patches,
    installed_pass_order,
    resize,
    to_patches,
    value_table,
)
from omr_io.reference import pixels as reference
from omr_io.types import Filter, ImageInfo
from tests.images.pixel_cases import FILTERS, INSTRUCTIONS, VISIONS, processor, random_pixels

transformers = pytest.importorskip("transformers")
processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")


@pytest.mark.parametrize("name", VISIONS)
def test_patches_equal_transformers(name: str) -> None:
    vision, rng = VISIONS[name], np.random.default_rng(0)
    theirs = processor(vision)
    sizes = [(1, 1), (1, 200), (vision.patch_size * 8,) * 2, (900, 700), (30, 41), (1000, 100)]
    sizes += [tuple(int(side) for side in rng.integers(20, 700, 2)) for _ in range(25)]
    for height, width in sizes:
        pixels = random_pixels(rng, height, width)
        expected = theirs(Image.fromarray(pixels), return_tensors="np")
        patches = to_patches(pixels, vision)
        assert patches.dtype == np.float32
        assert np.array_equal(patches, expected["pixel_values"]), (height, width)
        grid = image_grid_thw([ImageInfo(width, height, "png", "RGB")], vision)
        np.testing.assert_array_equal(grid, expected["image_grid_thw"])
        assert patches.shape == (int(grid.prod()), vision.patch_width)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_modes_equal_transformers_from_the_encoded_image(mode: str, tmp_path: Path) -> None:
    """The whole way: bytes, decoder, patches."""
    from omr_io.images import probe
    from omr_io.images.decode import CpuDecoder

    vision, rng = VISIONS["qwen3_vl"], np.random.default_rng(1)
    image = Image.fromarray(random_pixels(rng, 150, 211)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(random_pixels(rng, 150, 211)).convert("L"))
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    data = path.read_bytes()
    (pixels,) = CpuDecoder().decode([data], [probe(data)])
    assert isinstance(pixels, np.ndarray)
    with Image.open(path) as opened:
        expected = processor(vision)(opened, return_tensors="np")["pixel_values"]
    assert np.array_equal(to_patches(pixels, vision), expected)


def test_patches_equal_the_reference() -> None:
    rng = np.random.default_rng(2)
    for vision in VISIONS.values():
        for _ in range(3):
            pixels = random_pixels(rng, *rng.integers(30, 260, 2))
            expected = reference.to_patches(pixels, vision, installed_pass_order())
            assert np.array_equal(to_patches(pixels, vision), expected)


def test_installed_pillow_resizes_in_the_order_we_say() -> None:
    """A Pillow release that changes the order of the passes, or the filter, fails here."""
    rng, differ = np.random.default_rng(3), 0
    other = "pillow-13" if installed_pass_order() == "horizontal-first" else "horizontal-first"
    cases = rng.integers(1, 150, (200, 4)).tolist()
    # Around the boundary of the rule, H - h = 2 (W - w).
    cases += [(90, 80, 90 - 2 * k + d, 80 - k) for k in range(1, 30, 4) for d in (-1, 0, 1)]
    for height, width, to_height, to_width in cases:
        pixels = random_pixels(rng, height, width)
        result = resize(pixels, to_height, to_width, VisionConfig())
        sizes = height, width, to_height, to_width
        firsts = [
            reference.vertical_first(*sizes, order) for order in (installed_pass_order(), other)
        ]
        expected, not_so = (
            reference.resize(pixels, to_height, to_width, "bicubic", first) for first in firsts
        )
        assert np.array_equal(result, expected), (
            f"{height}x{width} to {to_height}x{to_width} on Pillow {PIL.__version__}"
        )
        differ += not np.array_equal(result, not_so)
    assert differ > 20  # the two rules can be told apart on these sizes


@pytest.mark.parametrize("order", ["pillow-13", "horizontal-first"])
def test_either_pass_order_whatever_pillow_is_installed(order: PassOrder) -> None:
    rng = np.random.default_rng(7)
    pixels = random_pixels(rng, 900, 300)
    vision = VisionConfig("qwen3_vl", min_pixels=64 * 32 * 32, max_pixels=64 * 32 * 32)
    patches = to_patches(pixels, dataclasses.replace(vision, pass_order=order))
    assert np.array_equal(patches, reference.to_patches(pixels, vision, order))
    installed = to_patches(pixels, vision)
    assert np.array_equal(patches, installed) == (order == installed_pass_order())


ODD = [(1, 1), (28, 1021), (1021, 28), (1, 255), (255, 1), (507, 3)]


@pytest.mark.parametrize("by", FILTERS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_resize_equals_pillow(instructions: Instructions, by: Filter) -> None:
    rng, vision = np.random.default_rng(6), VisionConfig()
    cases = [(*a, *b) for a in ODD for b in [(1, 1), (28, 56), (57, 3)]]
    cases += rng.integers(1, 130, (80, 4)).tolist()
    cases += [(700, 900, 28, 28), (90, 2000, 60, 112)]  # taps further apart than a register
    for height, width, to_height, to_width in cases:
        pixels = random_pixels(rng, height, width)
        result = resize(pixels, to_height, to_width, vision, by=by, instructions=instructions)
        expected = Image.fromarray(pixels).resize((to_width, to_height), FILTERS[by])
        assert np.array_equal(result, np.asarray(expected)), (height, width, to_height, to_width)


@pytest.mark.parametrize("name", VISIONS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_all_instructions_give_equal_patches(name: str, instructions: Instructions) -> None:
    vision, rng = VISIONS[name], np.random.default_rng(8)
    theirs = processor(vision)
    for height, width in [(1, 1), (28, 1021), *rng.integers(10, 400, (6, 2)).tolist()]:
        pixels = random_pixels(rng, height, width)
        expected = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        assert np.array_equal(to_patches(pixels, vision, instructions=instructions), expected)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_nothing_beyond_the_pixels_is_read(instructions: Instructions) -> None:
    """The pixels end where a page ends that may not be touched."""
    script = Path(__file__).with_name("guard_page.py")
    command = [sys.executable, str(script), instructions]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["60", "sizes"]


@pytest.mark.parametrize(
    ("version", "order"), [("12.3.0", "horizontal-first"), ("13.0.0", "pillow-13")]
)
def test_pass_order_follows_the_version(
    version: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL, "__version__", version)
    assert installed_pass_order() == order


def test_out_is_written_and_checked() -> None:
    vision = VISIONS["qwen3_vl"]
    pixels = random_pixels(np.random.default_rng(4), 300, 301)
    expected = to_patches(pixels, vision)
    buffer = np.full((expected.shape[0] + 2, expected.shape[1]), np.nan, dtype=np.float32)
    result = to_patches(pixels, vision, out=buffer[1:-1])
    assert np.shares_memory(result, buffer)
    assert np.array_equal(buffer[1:-1], expected)
    assert np.isnan(buffer[[0, -1]]).all()
    for bad in (buffer, buffer[1:-1].astype(np.float64), np.asfortranarray(buffer[1:-1])):
        with pytest.raises(ConfigError, match="out must be"):
            to_patches(pixels, vision, out=bad)


def test_pixels_are_checked() -> None:
    vision = VISIONS["qwen3_vl"]
    for bad in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))):
        with pytest.raises(ConfigError, match="pixels must be"):
            to_patches(bad, vision)
    with pytest.raises(ImageError):
        to_patches(np.zeros((1, 201, 3), np.uint8), vision)


def test_strided_pixels_are_taken() -> None:
    vision = VISIONS["qwen3_vl"]
    pixels = random_pixels(np.random.default_rng(5), 256, 256)  # needs no resize
    for view in (pixels[::-1], pixels.swapaxes(0, 1), pixels[:, ::2]):
        assert np.array_equal(to_patches(view, vision), to_patches(view.copy(), vision))


@pytest.mark.parametrize("name", VISIONS)
def test_blank_patches_are_a_grey_image(name: str) -> None:
    vision = VISIONS[name]
    grid_thw = image_grid_thw([ImageInfo(300, 200, "png", "RGB")], vision)[0]
    height, width = (int(side) * vision.patch_size for side in grid_thw[1:])
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    blank = blank_patches(grid_thw, vision)
    assert blank.dtype == np.float32
    assert blank.flags.c_contiguous
    assert np.array_equal(blank, to_patches(grey, vision))


def test_value_table_is_monotone_and_in_range() -> None:
    table = value_table(VISIONS["qwen3_vl"])
    assert table.shape == (3, 256)
    assert (np.diff(table) > 0).all()
    assert table[:, [0, 255]].tolist() == [[-1.0, 1.0]] * 3


# VisionConfig.from_pretrained, on files that transformers wrote.

CONFIGS = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def save(folder: Path, name: str) -> VisionConfig:
    getattr(transformers, CONFIGS[name] + "Config")().save_pretrained(folder)
    processor(VISIONS[name]).save_pretrained(folder)
    return VISIONS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_from_pretrained_reads_what_transformers_saves(name: str, tmp_path: Path) -> None:
    vision = save(tmp_path, name)
    assert VisionConfig.from_pretrained(tmp_path) == vision
    changed = VisionConfig.from_pretrained(tmp_path, max_pixels=10**6, exif="ignore")
    assert (changed.max_pixels, changed.exif) == (10**6, "ignore")


def test_from_pretrained_reads_a_saved_processor_first(tmp_path: Path) -> None:
    """transformers 5 nests the image processor in processor_config.json, and looks there first."""
    from tokenizers import Tokenizer, models

    vision = save(tmp_path, "qwen3_vl")
    backend = Tokenizer(models.WordLevel({"<image>": 0}, unk_token="<image>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    other = processor(VISIONS["small"])
    transformers.LlavaProcessor(image_processor=other, tokenizer=tokenizer).save_pretrained(
        tmp_path
    )
    found = VisionConfig.from_pretrained(tmp_path)
    assert found == VISIONS["small"] != vision
    (tmp_path / "preprocessor_config.json").unlink()
    assert VisionConfig.from_pretrained(tmp_path) == found


def test_from_pretrained_reads_old_pixel_bounds(tmp_path: Path) -> None:
    """Qwen2-VL's own files give min_pixels and max_pixels, which win over size."""
    save(tmp_path, "qwen2_vl")
    path = tmp_path / "preprocessor_config.json"
    fields = json.loads(path.read_text()) | {"min_pixels": 3000, "max_pixels": 90000}
    path.write_text(json.dumps(fields))
    theirs = processing.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    ours = VisionConfig.from_pretrained(tmp_path)
    assert (ours.min_pixels, ours.max_pixels) == (3000, 90000)
    assert dict(theirs.size) == {"shortest_edge": 3000, "longest_edge": 90000}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resample": 2}, "resample=2"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ({"patch_size": None, "image_mean": None}, "lacks image_mean, patch_size"),
    ],
)
def test_from_pretrained_refuses_what_it_would_get_wrong(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    save(tmp_path, "qwen3_vl")
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=words):
        VisionConfig.from_pretrained(tmp_path)


def test_from_pretrained_refuses_other_families_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        VisionConfig.from_pretrained(tmp_path)
    save(tmp_path, "qwen3_vl")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llava"}))
    with pytest.raises(ConfigError, match="'llava'"):
        VisionConfig.from_pretrained(tmp_path)
