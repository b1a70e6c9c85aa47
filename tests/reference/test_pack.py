"""The reference assembly against transformers' own get_rope_index, and against the contract."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.ops import PACK, pack_implementation
from omr_io.types import IGNORE_INDEX, EncodedSample

IMAGE, START, END, PAD = 7, 8, 9, 6
WIDTH = 12  # D


def make_sample(key, grids, texts, merge_size=2, seed=0) -> EncodedSample:
    """texts[0], image 0, texts[1], image 1, ..., texts[-1]; the last text is trained."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for number, (_, height, width) in enumerate(grids):
        ids += rng.integers(10, 90, texts[number]).tolist()
        ids += [START, *[IMAGE] * (height * width // merge_size**2), END]
    ids += rng.integers(10, 90, texts[-1]).tolist()
    trained = np.zeros(len(ids), bool)
    trained[len(ids) - texts[-1] :] = True
    patches = sum(height * width for _, height, width in grids)
    return EncodedSample(
        key=key,
        input_ids=np.asarray(ids, np.int32),
        trained=trained,
        pixel_values=rng.standard_normal((patches, WIDTH)).astype(np.float32) if grids else None,
        image_grid_thw=np.asarray(grids, np.int64).reshape(-1, 3),
    )


@st.composite
def samples(draw, merge_size=2):
    sides = st.integers(1, 4).map(lambda side: side * merge_size)
    grids = draw(st.lists(st.tuples(st.just(1), sides, sides), max_size=3))
    texts = [draw(st.integers(0, 4)) for _ in grids] + [draw(st.integers(1, 6))]
    key = f"key-{draw(st.integers(0, 10**6))}"
    return make_sample(key, grids, texts, merge_size, draw(st.integers(0, 99)))


@pytest.fixture(params=sorted(PACK))
def assemble(request):
    implementation = pack_implementation(request.param)

    def run(packs, seq_len=128, merge_size=2):
        return implementation(
            packs, seq_len=seq_len, pad_id=PAD, image_token_id=IMAGE, merge_size=merge_size
        )

    return run


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_mrope_equals_get_rope_index(tiny_models, family, assemble):
    model = tiny_models[family].model

    @settings(max_examples=60, deadline=None)
    @given(samples())
    def check(sample):
        made = assemble([[sample]], seq_len=max(1, len(sample.input_ids)))
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        grids = torch.from_numpy(sample.image_grid_thw) if len(sample.image_grid_thw) else None
        expected, _ = model.get_rope_index(
            ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=grids
        )
        np.testing.assert_array_equal(made.position_ids[1:], expected.numpy())

    check()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(samples(), max_size=3), min_size=1, max_size=3))
def test_every_row_is_its_samples_then_padding(packs):
    seq_len = max([1, *(sum(len(s.input_ids) for s in pack) for pack in packs)])
    for name in PACK:
        made = pack_implementation(name)(
            packs, seq_len=seq_len, pad_id=PAD, image_token_id=IMAGE, merge_size=2
        )
        segments = []
        for pack in packs:
            for sample in pack:
                segments.append((sample.input_ids, sample))
            tail = seq_len - sum(len(s.input_ids) for s in pack)
            if tail:
                segments.append((np.full(tail, PAD), None))
        bounds = made.cu_seqlens
        assert bounds.dtype == np.int32
        assert len(bounds) == len(segments) + 1
        assert (bounds[0], bounds[-1]) == (0, len(packs) * seq_len)
        assert made.max_seqlen == max(len(ids) for ids, _ in segments)
        positions_4 = made.position_ids.reshape(4, -1)
        flat = {
            "ids": made.input_ids.ravel(),
            "labels": made.labels.ravel(),
            "types": made.mm_token_type_ids.ravel(),
        }
        for (ids, sample), start, stop in zip(segments, bounds[:-1], bounds[1:], strict=True):
            np.testing.assert_array_equal(flat["ids"][start:stop], ids)
            np.testing.assert_array_equal(positions_4[0, start:stop], np.arange(len(ids)))
            labels, types = flat["labels"][start:stop], flat["types"][start:stop]
            if sample is None:
                np.testing.assert_array_equal(positions_4[3, start:stop], np.arange(len(ids)))
                assert not types.any()
                assert (labels == IGNORE_INDEX).all()
            else:
                np.testing.assert_array_equal(types, ids == IMAGE)
                for place, label in enumerate(labels):
                    loss = place > 0 and sample.trained[place] and ids[place] != IMAGE
                    assert label == (ids[place] if loss else IGNORE_INDEX)
        assert made.num_label_tokens == (flat["labels"] != IGNORE_INDEX).sum()
        for array in (flat["ids"], flat["labels"], flat["types"], positions_4):
            assert array.dtype == np.int64


def test_a_worked_example(assemble):
    """By hand: two words, a 4 x 8 image (8 tokens in 2 rows of 4), one word; then padding."""
    made = assemble([[make_sample("a", [(1, 4, 8)], [1, 1])]], seq_len=14)
    assert made.position_ids[:, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1],
        [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 6, 7, 0, 1],
        [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 6, 7, 0, 1],
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 0, 1],
    ]
    assert made.cu_seqlens.tolist() == [0, 12, 14]
    assert made.num_label_tokens == 1


def test_no_packs_and_empty_packs(assemble):
    made = assemble([[], []], seq_len=5)
    assert made.input_ids.tolist() == [[PAD] * 5] * 2
    assert made.cu_seqlens.tolist() == [0, 5, 10]
    assert made.max_seqlen == 5
    none = assemble([], seq_len=5)
    assert none.input_ids.shape == (0, 5)
    assert none.cu_seqlens.tolist() == [0]


def broken(**changes) -> EncodedSample:
    return dataclasses.replace(make_sample("bad", [(1, 4, 4)], [2, 3]), **changes)


@pytest.mark.parametrize(
    "sample",
    [
        broken(image_grid_thw=np.asarray([[1, 4, 2]], np.int64)),
        broken(image_grid_thw=np.asarray([[1, 4, 8]], np.int64)),
        broken(image_grid_thw=np.asarray([[1, 4, 4], [1, 2, 2]], np.int64)),
        broken(image_grid_thw=np.empty((0, 3), np.int64), pixel_values=None),
    ],
    ids=["short grid", "long grid", "two grids", "no grid"],
)
def test_placeholders_and_grid_must_agree(assemble, sample):
    with pytest.raises(DataError, match="bad"):
        assemble([[sample]])


def test_a_pack_that_is_too_full(assemble):
    sample = make_sample("long", [], [9])
    with pytest.raises(SampleTooLongError, match="long"):
        assemble([[sample, sample]], seq_len=17)


def test_an_implementation_that_does_not_exist():
    with pytest.raises(ConfigError, match="reference"):
        pack_implementation("abacus")
