"""The batch against real (tiny, random) transformers models: packed equals alone, and metadata."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.batches import Batch, join_patches, make_batch
from omr_io.batches.vision_tower import vision_arrays
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError
from omr_io.ops import pack_implementation
from omr_io.types import IGNORE_INDEX, EncodedSample

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
VISION = VisionConfig(patch_size=2, merge_size=2, min_pixels=16, max_pixels=1024)


def make_sample(tokens, key, grids, words, seed=0) -> EncodedSample:
    rng = np.random.default_rng(seed)
    ids = [] if not grids else rng.integers(10, 90, 2).tolist()
    for _, height, width in grids:
        ids += [tokens.vision_start, *[tokens.image] * (height * width // 4), tokens.vision_end]
    ids += rng.integers(10, 90, words).tolist()
    trained = np.zeros(len(ids), bool)
    trained[-words:] = True
    pixels = rng.standard_normal((sum(h * w for _, h, w in grids), VISION.patch_width))
    return EncodedSample(
        key=key,
        input_ids=np.asarray(ids, np.int32),
        trained=trained,
        pixel_values=pixels.astype(np.float32) if grids else None,
        image_grid_thw=np.asarray(grids, np.int64).reshape(-1, 3),
    )


def assemble(packs, tokens, seq_len) -> Batch:
    arrays = pack_implementation()(
        packs, seq_len=seq_len, pad_id=tokens.pad, image_token_id=tokens.image, merge_size=2
    )
    return make_batch(
        arrays,
        packs,
        vision=VISION,
        step_label_tokens=arrays.num_label_tokens,
        epoch=0,
        step=3,
        micro_step=1,
    )


@pytest.fixture(scope="module")
def batch(tiny_tokens) -> Batch:
    first = make_sample(tiny_tokens, "a", [(1, 4, 8)], 5, seed=1)
    second = make_sample(tiny_tokens, "b", [], 7, seed=2)
    third = make_sample(tiny_tokens, "c", [(1, 8, 4), (1, 12, 20)], 3, seed=3)
    return assemble([[first, second], [third], []], tiny_tokens, seq_len=90)


def alone(batch: Batch, tokens):
    """Each sample as a batch of its own, with (row, start, stop) of its place in `batch`."""
    bounds = batch.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(bounds):
        ids = batch.input_ids.view(-1)[start:stop]
        if not (ids == tokens.pad).all():
            yield ids, start, stop


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("varlen", [True, False])
def test_packed_logits_equal_those_of_each_sample_alone(
    tiny_models, tiny_tokens, batch, family, varlen
):
    model = tiny_models[family]
    with torch.no_grad():
        packed = model(**batch.model_inputs(varlen=varlen)).logits.flatten(0, 1)
        used = patches = 0
        for ids, start, stop in alone(batch, tiny_tokens):
            inputs = {"input_ids": ids[None], "mm_token_type_ids": (ids == 7).long()[None]}
            images = int((ids == tiny_tokens.vision_start).sum())
            if images:
                grids = batch.image_grid_thw[used : used + images]
                count = int(grids.prod(1).sum())
                inputs["image_grid_thw"] = grids
                inputs["pixel_values"] = batch.pixel_values[patches : patches + count]
                used, patches = used + images, patches + count
            expected = model(**inputs, use_cache=False).logits[0]
            torch.testing.assert_close(packed[start:stop], expected, atol=1e-5, rtol=0)
    assert used == batch.num_images == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_inputs_are_what_the_model_computes(tiny_models, batch, family):
    vision = tiny_models[family].config.vision_config
    extra = batch.vision_inputs(
        window_size=getattr(vision, "window_size", None),
        num_position_embeddings=getattr(vision, "num_position_embeddings", None),
    )
    with torch.no_grad():
        plain = tiny_models[family](**batch.model_inputs()).logits
        planned = tiny_models[family](**batch.model_inputs(), **extra).logits
        wrong = dict(extra, image_position_ids=extra["image_position_ids"].flip(0))
        misled = tiny_models[family](**batch.model_inputs(), **wrong).logits
    assert torch.equal(plain, planned)
    assert not torch.allclose(plain, misled)  # so they are used


sides = st.integers(1, 30).map(lambda side: 2 * side)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), sides, sides), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 50),
)
def test_vision_arrays_equal_transformers(grids, window, side):
    from transformers import vision_utils

    grid_thw = torch.tensor(grids)
    made = {
        name: value if isinstance(value, int) else torch.from_numpy(value)
        for name, value in vision_arrays(grids, merge_size=2, window=window, side=side).items()
    }
    cu_seqlens = vision_utils.get_vision_cu_seqlens(grid_thw)
    index, cu_windows = vision_utils.get_vision_window_index(grid_thw, 2, window * 4, 2)
    taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        grid_thw, side, "bilinear", True, 2
    )
    expected = {
        "image_cu_seqlens": cu_seqlens,
        "image_position_ids": vision_utils.get_vision_position_ids(grid_thw, 2),
        "image_window_index": index,
        "image_cu_window_seqlens": cu_windows,
        "image_interp_indices": taps,
        "image_interp_weights": weights,
    }
    for name, value in expected.items():
        assert torch.equal(made.pop(name), value), name
    assert made == {
        "image_max_seqlen": int(cu_seqlens.diff().max()),
        "image_max_window_seqlen": int(cu_windows.diff().max()),
    }


def test_dtypes_shapes_and_counts(batch):
    assert batch.input_ids.shape == batch.labels.shape == (3, 90)
    assert batch.position_ids.shape == (4, 3, 90)
    for name in ("input_ids", "labels", "position_ids", "mm_token_type_ids", "image_grid_thw"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.cu_seqlens.dtype == batch.segment_ids.dtype == torch.int32
    assert batch.segment_ids.shape == batch.loss_weights.shape == (3, 90)
    assert batch.loss_weights.dtype == torch.float32
    assert torch.equal(batch.loss_weights != 0, batch.labels != IGNORE_INDEX)
    labelled = (batch.labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
    assert batch.label_rows.dtype == batch.label_targets.dtype == torch.int64
    assert torch.equal(batch.label_rows, labelled - 1)
    assert torch.equal(batch.label_targets, batch.labels.flatten()[labelled])
    assert torch.equal(batch.label_weights, batch.loss_weights.flatten()[labelled])
    lengths = batch.cu_seqlens.diff().long()
    segments = torch.arange(len(lengths)).repeat_interleave(lengths)
    assert torch.equal(batch.segment_ids.flatten().long(), segments)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.pixel_values.shape == (32 + 32 + 240, VISION.patch_width)
    assert batch.keys == (("a", "b"), ("c",), ())
    assert (batch.num_samples, batch.num_images) == (3, 3)
    assert batch.num_tokens == (batch.input_ids != 6).sum()
    assert batch.num_label_tokens == (batch.labels != IGNORE_INDEX).sum() == 5 + 6 + 3
    assert isinstance(batch.max_seqlen, int)
    assert "labels" not in batch.model_inputs()
    assert "attention_mask" not in batch.model_inputs()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_has_a_dummy_that_trains_the_tower_by_zero(
    tiny_models, tiny_tokens, family
):
    model = tiny_models[family]
    text = assemble([[make_sample(tiny_tokens, "a", [], 8)], []], tiny_tokens, seq_len=12)
    assert text.has_dummy_image
    assert text.num_images == 0
    assert text.image_grid_thw.tolist() == [[1, 4, 4]]
    inputs = text.model_inputs()
    assert "pixel_values" not in inputs
    assert "image_grid_thw" not in inputs
    assert text.vision_inputs(window_size=8, num_position_embeddings=25) == {}
    vision = model.model.visual(text.pixel_values, text.image_grid_thw, return_dict=True)
    zero = vision.pooler_output.sum() + sum(
        feature.sum() for feature in getattr(vision, "deepstack_features", None) or ()
    )
    plain = model(**inputs).logits.sum()
    (plain + 0 * zero).backward()
    gradients = [parameter.grad for parameter in model.model.visual.parameters()]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_patches_are_joined_and_copied_only_if_they_must(tiny_tokens):
    samples = [
        make_sample(tiny_tokens, "a", [(1, 4, 8)], 5, seed=1),
        make_sample(tiny_tokens, "b", [], 7, seed=2),
        make_sample(tiny_tokens, "c", [(1, 8, 4), (1, 12, 20)], 3, seed=3),
    ]
    expected = np.concatenate([s.pixel_values for s in samples if s.pixel_values is not None])
    joined = join_patches(samples)
    np.testing.assert_array_equal(joined, expected)
    whole = np.concatenate([np.zeros((3, VISION.patch_width), np.float32), expected])
    views = [
        dataclasses.replace(samples[0], pixel_values=whole[3:35]),
        dataclasses.replace(samples[1], pixel_values=whole[35:35]),
        dataclasses.replace(samples[2], pixel_values=whole[35:]),
    ]
    np.testing.assert_array_equal(join_patches(views), expected)
    assert np.shares_memory(join_patches(views), whole)
    swapped = join_patches(views[::-1])
    np.testing.assert_array_equal(swapped, np.concatenate([expected[32:], expected[:32]]))
    assert join_patches([samples[1]]).shape == (0, 0)


@pytest.mark.parametrize("pixels", [None, np.zeros((15, VISION.patch_width), np.float32)])
def test_patches_that_are_not_as_many_as_the_grid_says(tiny_tokens, pixels):
    sample = make_sample(tiny_tokens, "bad", [(1, 4, 4)], 3)
    with pytest.raises(DataError, match="bad"):
        join_patches([dataclasses.replace(sample, pixel_values=pixels)])


def test_patches_of_two_dtypes_are_refused(tiny_tokens):
    samples = [make_sample(tiny_tokens, key, [(1, 4, 4)], 3) for key in "ab"]
    halves = samples[1].pixel_values.astype(np.float16)
    with pytest.raises(DataError, match=r"float16, the first sample's float32.*key b"):
        join_patches([samples[0], dataclasses.replace(samples[1], pixel_values=halves)])


def test_to_moves_every_tensor(batch):
    moved = batch.to("meta")
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            assert getattr(moved, field.name).device.type == "meta"
        else:
            assert getattr(moved, field.name) is value


def test_loss_weights_follow_their_samples(tiny_tokens):
    samples = [
        dataclasses.replace(make_sample(tiny_tokens, key, [(1, 4, 4)], 5), loss_weight=weight)
        for key, weight in (("a", 0.25), ("b", 3.0))
    ]
    made = assemble([samples], tiny_tokens, seq_len=40)
    assert made.loss_weights.sum() == 5 * 0.25 + 5 * 3.0
    assert made.loss_weights[made.labels != IGNORE_INDEX].tolist() == [0.25] * 5 + [3.0] * 5


def test_patches_follow_the_integers_to_their_device(tiny_tokens):
    packs = [[make_sample(tiny_tokens, "a", [(1, 4, 4)], 5)]]
    arrays = pack_implementation("cpu", "meta")(
        packs, seq_len=20, pad_id=6, image_token_id=tiny_tokens.image, merge_size=2
    )
    counts = {"step_label_tokens": 5, "epoch": 0, "step": 0, "micro_step": 0}
    made = make_batch(arrays, packs, vision=VISION, **counts)
    tensors = [getattr(made, field.name) for field in dataclasses.fields(Batch)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert made.num_label_tokens == 5


def test_metadata_options_that_cannot_be_right(batch):
    with pytest.raises(ConfigError, match="square"):
        batch.vision_inputs(num_position_embeddings=24)
    with pytest.raises(ConfigError, match="window_size"):
        batch.vision_inputs(window_size=3)


@pytest.mark.gpu
def test_pinned_batches_go_to_the_device(batch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moved = batch.pin_memory().to("cuda")
    torch.cuda.synchronize()
    assert torch.equal(moved.pin_memory().input_ids, moved.input_ids)  # stays where it is
    for name in ("input_ids", "position_ids", "segment_ids", "pixel_values", "cu_seqlens"):
        assert getattr(moved, name).is_cuda
        assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name))
