"""Planned integers and placeholders of the families against transformers, without pixels."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, ImageError
from omr_io.images.families import (
    Family,
    Gemma3Vision,
    Idefics3Plan,
    Idefics3Vision,
    ImagePlan,
    PixtralVision,
    Siglip2Vision,
)
from omr_io.types import ImageInfo
from tests.images.family_processors import VISIONS, image_processor

transformers = pytest.importorskip("transformers")

SIDES = st.one_of(st.integers(1, 64), st.integers(1, 3000), st.integers(1, 100_000))
SIGLIP2, IDEFICS3, GEMMA3, PIXTRAL = (
    [name for name in VISIONS if name.startswith(start)]
    for start in ("siglip2", ("idefics3", "smolvlm"), "gemma3", "pixtral")
)


def planned(vision: Family[Any], height: int, width: int) -> Any:
    """The plan, or None where it is refused."""
    try:
        return vision.plan(height, width)
    except ImageError as error:
        return None if error.reason == "image-too-narrow" else error


def seen(height: int, width: int) -> Any:
    """(3, height, width) uint8 that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.uint8), (3, height, width))


@given(st.sampled_from(SIGLIP2), SIDES, SIDES)
@example("siglip2-one", 1, 100_000)
@settings(max_examples=1000, deadline=None)
def test_siglip2_sizes_equal_transformers(name: str, height: int, width: int) -> None:
    from transformers.models.siglip2 import image_processing_pil_siglip2 as theirs

    vision = VISIONS[name]
    assert isinstance(vision, Siglip2Vision)
    plan = vision.plan(height, width)
    expected = theirs.get_image_size_for_max_num_patches(
        height, width, vision.patch_size, vision.max_num_patches
    )
    assert (plan.rows * vision.patch_size, plan.columns * vision.patch_size) == expected
    assert plan.num_patches <= vision.max_num_patches
    assert plan.pixel_shape == (plan.num_patches, 3 * vision.patch_size**2)
    assert (plan.runs, plan.text, plan.num_image_tokens) == ((), "", 0)


@pytest.fixture(scope="module")
def no_resize() -> Any:
    """transformers' resize of arrays as sizes only; like Pillow's it refuses empty ones."""

    def resize(image: Any, size: tuple[int, int], **_: object) -> Any:
        if 0 in size:
            raise ValueError("height and width must be > 0")
        return seen(*size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.image_processing_backends.np_resize", resize)
        yield


def idefics3_steps(theirs: Any, vision: Idefics3Vision, height: int, width: int) -> Any:
    """(size fitted, size tiled, shapes of tiles, rows, columns) by transformers; None: refused."""
    side = vision.max_image_size
    try:
        fitted = theirs.resize(seen(height, width), theirs.size, resample=1)
        if not vision.do_image_splitting:
            return fitted.shape[1:], (side, side), [(3, side, side)], 0, 0
        tiled = theirs.resize_for_vision_encoder(fitted, side, resample=1)
        tiles, rows, columns = theirs.split_images(tiled, theirs.max_image_size, resample=1)
    except ValueError:
        return None
    return fitted.shape[1:], tiled.shape[1:], [tile.shape for tile in tiles], rows, columns


@given(st.sampled_from(IDEFICS3), SIDES, SIDES)
@example("idefics3", 1456, 1)
@example("idefics3-uneven", 101, 1)
@example("idefics3-narrow", 4000, 3)  # 49 * (1 / 49) is below 1: refused
@settings(max_examples=1000, deadline=None)
def test_idefics3_sizes_equal_transformers(
    no_resize: None, name: str, height: int, width: int
) -> None:
    vision = VISIONS[name]
    assert isinstance(vision, Idefics3Vision)
    plan = planned(vision, height, width)
    expected = idefics3_steps(image_processor(vision), vision, height, width)
    assert (plan is None) == (expected is None)
    assert plan is None or plan.num_image_tokens == plan.num_tiles * vision.image_seq_len
    if expected is not None:
        fitted, tiled, tiles, rows, columns = expected
        assert (plan.fitted, plan.tiled) == (fitted, tiled)
        assert (plan.rows, plan.columns) == (rows, columns)
        assert plan.pixel_shape == (len(tiles), *tiles[0])
        assert set(tiles) == {tiles[0]}
        assert plan.num_tiles == len(tiles)


@given(st.sampled_from(GEMMA3), SIDES, SIDES)
@example("gemma3-tiny-crops", 1, 7)
@example("gemma3-tiny-crops", 9, 1)
@settings(max_examples=1500, deadline=None)
def test_gemma3_crops_equal_transformers(name: str, height: int, width: int) -> None:
    vision = VISIONS[name]
    assert isinstance(vision, Gemma3Vision)
    plan, crops = vision.plan(height, width), []
    if vision.do_pan_and_scan:
        theirs = image_processor(vision)
        scan = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        options = {f"pan_and_scan_{one}": getattr(vision, f"pan_and_scan_{one}") for one in scan}
        crops = theirs.pan_and_scan(seen(height, width), **options)
    assert [(box.height, box.width) for box in plan.crops] == [crop.shape[1:] for crop in crops]
    assert plan.pixel_shape == (1 + len(crops), 3, vision.size_height, vision.size_width)
    assert plan.num_image_tokens == 256 * (1 + len(crops))
    ends = [(box.top + box.height, box.left + box.width) for box in plan.crops if box.width]
    assert not plan.crops or (height, width) in ends


@given(st.sampled_from(PIXTRAL), SIDES, SIDES)
@settings(max_examples=1500, deadline=None)
def test_pixtral_sizes_equal_transformers(name: str, height: int, width: int) -> None:
    from transformers.models.pixtral import image_processing_pil_pixtral as theirs

    vision = VISIONS[name]
    assert isinstance(vision, PixtralVision)
    plan = planned(vision, height, width)
    side = vision.patch_size * vision.spatial_merge_size
    expected = theirs.get_resize_output_image_size(
        seen(height, width), vision.longest_edge, side, "channels_first"
    )
    if 0 in expected:  # then its resize raises
        assert plan is None
    else:
        assert plan.size == expected
        assert plan.pixel_shape == (3, *expected)
        assert (plan.rows * side, plan.columns * side) == expected


@given(st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 1500)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_many_sizes_are_planned_as_one(sizes: list[tuple[int, int]]) -> None:
    heights, widths = np.array(sizes * 2, dtype=np.int32).reshape(-1, 2).T
    for name in ("siglip2", "smolvlm", "gemma3-scan", "pixtral-mistral3"):
        vision = VISIONS[name]
        plans = vision.plans(heights, widths)
        assert plans == [vision.plan(*size) for size in sizes * 2]
        assert all(plans[at] is plans[at + len(sizes)] for at in range(len(sizes)))


def test_a_refusal_names_the_image_its_size_and_what_to_do() -> None:
    vision = VISIONS["pixtral"]
    with pytest.raises(ImageError, match=r"image 2: the image is 1x9000: .* Crop it") as caught:
        vision.plans(np.array([90, 80, 9000]), np.array([80, 80, 1]))
    assert caught.value.reason == "image-too-narrow"
    for size in ((0, 5), (5, 0), (-1, 5)):
        with pytest.raises(ImageError, match="has none"):
            vision.plan(*size)


def test_orientation_swaps_the_plan_by_policy() -> None:
    turned = ImageInfo(600, 200, "jpeg", "RGB", orientation=6)
    for name in ("siglip2", "idefics3", "gemma3-crops", "pixtral"):
        vision = VISIONS[name]
        assert vision.plan_image(turned) == vision.plan(600, 200)
        ignoring = type(vision)(exif="ignore")
        assert ignoring.plan_image(turned) == ignoring.plan(200, 600)


# Placeholders: the text that the Processor classes write.


def tokenizer() -> Any:
    """Of what Idefics3 writes: added tokens, and line breaks of which two are one token."""
    from tokenizers import Tokenizer, models

    added = ["<image>", "<fake_token_around_image>", "<global-img>"]
    added += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    vocabulary = {name: number for number, name in enumerate(["?", "\n", "\n\n"])}
    backend = Tokenizer(models.BPE(vocabulary, [("\n", "\n")], unk_token="?"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    made.add_special_tokens({"additional_special_tokens": added})
    return made


def num_text_tokens(plan: ImagePlan, by: Any) -> int:
    texts = [run.text * run.count for run in plan.runs if run.kind == "text"]
    return sum(len(by(text, add_special_tokens=False)["input_ids"]) for text in texts)


def test_idefics3_text_and_tokens_equal_transformers() -> None:
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    vision = Idefics3Vision(longest_edge=5 * 364)
    theirs = transformers.Idefics3Processor(image_processor(vision), tokenizer())
    shapes = set()
    for size in [(9, 9), (1000, 700), (300, 1400), (1456, 1456), (200, 201), (30, 500)]:
        plan = vision.plan(*size)
        grid = {"rows": [[plan.rows]], "cols": [[plan.columns]]}
        assert plan.text == theirs.replace_image_token(grid, 0)
        assert plan.text == get_image_prompt_string(
            plan.rows, plan.columns, 169, "<fake_token_around_image>", "<image>", "<global-img>"
        )
        expected = theirs._get_num_multimodal_tokens(image_sizes=[size])
        tokens = num_text_tokens(plan, theirs.tokenizer)
        tokens += plan.num_image_tokens + plan.num_special_tokens
        assert [tokens] == expected.num_image_tokens
        assert len(theirs.tokenizer(plan.text, add_special_tokens=False)["input_ids"]) == tokens
        shapes.add((plan.rows, plan.columns))
    assert len(shapes) > 2
    whole = Idefics3Vision(do_image_splitting=False, image_seq_len=4).plan(900, 700)
    theirs = transformers.Idefics3Processor(image_processor(vision), tokenizer(), image_seq_len=4)
    assert whole.text == theirs.replace_image_token({"rows": [[0]], "cols": [[0]]}, 0)


def test_idefics3_tiles_equal_transformers_count_where_edges_are_multiples() -> None:
    """And beyond: transformers' own count is then not of its own tiles; we follow the tiles."""
    rng, differ = np.random.default_rng(0), 0
    for name in ("idefics3", "smolvlm", "idefics3-uneven"):
        vision = VISIONS[name]
        theirs = image_processor(vision)
        for height, width in rng.integers(1, 2000, (300, 2)).tolist():
            plan = planned(vision, height, width)
            if plan is None or plan.rows == 0:
                continue
            assert isinstance(plan, Idefics3Plan)
            counted = theirs.get_number_of_image_patches(height, width)
            if name == "idefics3-uneven":
                differ += counted != (plan.num_tiles, plan.rows, plan.columns)
            else:
                assert counted == (plan.num_tiles, plan.rows, plan.columns)
    assert differ > 0


def test_gemma3_text_equals_transformers() -> None:
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    made = tokenizer()
    for name, value in {**names, "image_token": "<image_soft_token>", "boi_token_id": 3}.items():
        setattr(made, name, value)
    for length in (256, 7):
        vision = Gemma3Vision(do_pan_and_scan=True, image_seq_length=length)
        theirs = Gemma3Processor(image_processor(vision), made, image_seq_length=length)
        for size, num_crops in [((400, 400), 0), ((600, 1000), 2), ((300, 2000), 4)]:
            plan = vision.plan(*size)
            assert plan.num_crops == num_crops
            assert plan.text == theirs.replace_image_token({"num_crops": [num_crops]}, 0)
            assert plan.num_image_tokens == plan.text.count("<image_soft_token>")
            assert plan.num_special_tokens == 2 * (1 + num_crops)
        whole = theirs._get_num_multimodal_tokens(image_sizes=[(9, 9)]).num_image_tokens
        assert whole == [vision.plan(9, 9).num_image_tokens]


@pytest.fixture(scope="module")
def pixtral_processor() -> Any:
    """transformers' PixtralProcessor; its module imports torchvision for one function of sizes."""
    package = "transformers.models.pixtral"
    pil = import_module(f"{package}.image_processing_pil_pixtral")
    standin = ModuleType(f"{package}.image_processing_pixtral")
    standin.get_resize_output_image_size = pil.get_resize_output_image_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, standin.__name__, standin)
        patch.delitem(sys.modules, f"{package}.processing_pixtral", raising=False)
        yield import_module(f"{package}.processing_pixtral").PixtralProcessor
        sys.modules.pop(f"{package}.processing_pixtral")


@pytest.mark.parametrize("name", PIXTRAL)
def test_pixtral_text_and_tokens_equal_transformers(name: str, pixtral_processor: Any) -> None:
    vision = VISIONS[name]
    assert isinstance(vision, PixtralVision)
    texts = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]"}
    myself = SimpleNamespace(
        **texts,
        image_end_token="[IMG_END]",
        patch_size=vision.patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        image_processor=image_processor(vision),
        _merge_kwargs=lambda **_: {"images_kwargs": {}},
    )
    # Not of height 1 or 3: transformers 5.23 takes that for channels when it counts.
    for size in [(9, 9), (1000, 700), (300, 1400), (2, 90), (2000, 2100)]:
        plan = vision.plan(*size)
        expected = pixtral_processor.replace_image_token(myself, {"image_sizes": [plan.size]}, 0)
        assert plan.text == expected
        counted = pixtral_processor._get_num_multimodal_tokens(myself, image_sizes=[size])
        assert counted.num_image_tokens == [plan.num_image_tokens + plan.num_special_tokens]
        assert plan.num_image_tokens == plan.rows * plan.columns


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (Siglip2Vision, {"patch_size": 0}, "patch_size"),
        (Siglip2Vision, {"max_num_patches": 2.5}, "max_num_patches"),
        (Idefics3Vision, {"max_image_size": -1}, "max_image_size"),
        (Gemma3Vision, {"pan_and_scan_max_num_crops": 0}, "max_num_crops"),
        (PixtralVision, {"longest_edge": 0}, "longest_edge"),
        (PixtralVision, {"filter": "nearest"}, "'nearest' is not implemented"),
        (PixtralVision, {"image_std": (1.0, 0.0, 1.0)}, "divides by zero"),
        (PixtralVision, {"image_mean": (1.0,)}, "3 values"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    kind: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**changes)
