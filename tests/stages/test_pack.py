"""Packing a stream: every sample once, none cut, a buffer that holds, an order that is fixed."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omr_io import stages
from omr_io.batches import Failure
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.loader import DataLoader
from omr_io.reference.pack import pack as reference_pack
from omr_io.stages.packing import _Buffer, fullest
from omr_io.types import IGNORE_INDEX, EncodedSample
from tests.stages.streams import samples

SEQ_LEN = 24
VISION = VisionConfig(patch_size=2, min_pixels=16, max_pixels=64)
FORM = stages.SampleForm(0, 7, VISION, torch.float32)


def sample(number: int, length: int, *, images: int = 0, **changes) -> stages.StreamedSample:
    """A sample of `length` tokens, of which each image takes one, with 4 patches."""
    ids = np.full(length, 10 + number, np.int32)
    ids[1 : 1 + images] = 7
    trained = np.arange(length) >= length // 2 + images
    fields = {
        "key": f"k{number}",
        "input_ids": ids,
        "trained": trained & (np.arange(length) > images),
        "pixel_values": np.full((4 * images, VISION.patch_width), number, np.float32)
        if images
        else None,
        "image_grid_thw": np.asarray([[1, 2, 2]] * images, np.int64).reshape(-1, 3),
        "form": FORM,
        "shard": "s.tar",
    }
    return stages.StreamedSample(**(fields | changes))


def numbered(lengths, images=()):
    return [
        sample(i, length, images=images[i] if i < len(images) else 0)
        for i, length in enumerate(lengths)
    ]


def pack(stream, **options):
    return list(stages.pack(**({"seq_len": SEQ_LEN} | options))(stream))


LENGTHS = st.lists(st.integers(1, SEQ_LEN), max_size=40)


@given(
    lengths=LENGTHS,
    images=st.lists(st.integers(0, 3), max_size=40),
    packs_per_batch=st.integers(1, 3),
    buffer_samples=st.integers(1, 9),
    buffer_bytes=st.sampled_from([1, 300, 5_000, 1 << 20]),
)
def test_every_sample_comes_once_and_whole(
    lengths, images, packs_per_batch, buffer_samples, buffer_bytes
):
    lengths = [max(length, 5 if i < len(images) else 1) for i, length in enumerate(lengths)]
    whole = numbered(lengths, images)
    options = {
        "packs_per_batch": packs_per_batch,
        "buffer_samples": buffer_samples,
        "buffer_bytes": buffer_bytes,
    }
    batches = pack(whole, **options)
    keys = [key for batch in batches for row in batch.keys for key in row]
    assert sorted(keys) == sorted(one.key for one in whole)
    for batch in batches:
        assert batch.input_ids.shape == (packs_per_batch, SEQ_LEN)
        rows = [[whole[int(key[1:])] for key in row] for row in batch.keys]
        assert all(sum(len(one.input_ids) for one in row) <= SEQ_LEN for row in rows)
        expected = reference_pack(
            rows, seq_len=SEQ_LEN, pad_id=0, image_token_id=7, merge_size=VISION.merge_size
        )
        for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "segment_ids"):
            np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(expected, name))
        parts = [one.pixel_values for row in rows for one in row if one.pixel_values is not None]
        if parts:
            np.testing.assert_array_equal(batch.pixel_values.numpy(), np.concatenate(parts))
        assert batch.has_dummy_image == (not parts)
        assert batch.num_label_tokens == int((batch.labels != IGNORE_INDEX).sum())
        assert batch.step_label_tokens == batch.num_label_tokens
    assert [(batch.epoch, batch.step, batch.micro_step) for batch in batches] == [
        (0, step, 0) for step in range(len(batches))
    ]
    # Only the last batch is filled up with empty packs.
    assert all(row for batch in batches[:-1] for row in batch.keys)
    # And the order is a function of the stream's.
    assert [batch.keys for batch in pack(whole, **options)] == [batch.keys for batch in batches]


@given(lengths=LENGTHS.filter(len))
def test_a_pack_is_the_fullest_there_is(lengths):
    lengths = lengths[:12]
    chosen = fullest(lengths, SEQ_LEN)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    sums = (
        lengths[0] + sum(some)
        for count in range(len(lengths))
        for some in itertools.combinations(lengths[1:], count)
    )
    assert sum(lengths[i] for i in chosen) == max(one for one in sums if one <= SEQ_LEN)


def test_older_samples_are_taken_first():
    assert fullest([10, 4, 4, 4, 4], 18) == [0, 1, 2]
    assert fullest([10, 9, 4, 4, 8], 18) == [0, 2, 3]
    assert fullest([24, 1], 24) == [0]


@given(lengths=LENGTHS, buffer_samples=st.integers(1, 9), buffer_bytes=st.integers(1, 500))
def test_the_buffer_holds_no_more_than_its_bounds(lengths, buffer_samples, buffer_bytes):
    whole = numbered(lengths)
    asked = 0

    def stream():
        nonlocal asked
        for one in whole:
            asked += 1
            yield one

    stage = stages.pack(seq_len=SEQ_LEN, buffer_samples=buffer_samples, buffer_bytes=buffer_bytes)
    packed = 0
    for batch in stage(stream()):
        packed += batch.num_samples
        # Waiting, in the buffer or the pack that is held back, and the one just asked for.
        waiting = whole[packed:asked] if asked < len(whole) else []
        assert len(waiting) <= buffer_samples + SEQ_LEN + 1
    buffer = _Buffer(SEQ_LEN, buffer_samples, buffer_bytes)
    for one in whole:
        while not buffer.takes(one):
            buffer.pop_pack()
        buffer.put(one)
        assert len(buffer) <= buffer_samples
        held = buffer._waiting
        assert len(held) == 1 or sum(each.num_bytes for each in held) <= buffer_bytes
        assert buffer._bytes == sum(each.num_bytes for each in held)


def test_a_small_buffer_fills_packs():
    """On lengths as in OpenMedReason: the figure of docs/from-webdataset.md, on fewer samples."""
    draw = np.random.default_rng(0)
    pixels = draw.lognormal(np.log(0.37e6), 0.75, 4000).clip(256 * 1024, 768 * 1024)
    text = draw.integers(45, 121, 4000) + draw.lognormal(np.log(400), 0.3, 4000)
    lengths = (text + pixels / 1024).astype(int).tolist()
    waiting, room, packs = [], [], 0
    while lengths or waiting:
        while lengths and len(waiting) < 16:
            waiting.append(lengths.pop())
        taken = set(fullest(waiting, 8192))
        room.append(8192 - sum(waiting[i] for i in taken))
        waiting = [length for i, length in enumerate(waiting) if i not in taken]
        packs += 1
    assert sum(room[:-2]) / (8192 * (packs - 2)) < 0.001


def test_no_sample_waits_forever():
    """The oldest is in every pack, however well others would fill it."""
    whole = [sample(0, 13), *(sample(i, 12) for i in range(1, 41))]
    first = pack(whole, buffer_samples=8)[0]
    assert "k0" in first.keys[0]


def test_too_long_is_an_error_or_counted():
    whole = [sample(0, 4), sample(1, SEQ_LEN + 1), sample(2, SEQ_LEN)]
    with pytest.raises(SampleTooLongError, match="k1"):
        pack(whole)
    stage = stages.pack(seq_len=SEQ_LEN, too_long="drop")
    batches = list(stage(whole))
    assert stage.dropped == 1
    assert [batch.keys for batch in batches] == [(("k0",),), (("k2",),)]
    failures = [failure for batch in batches for failure in batch.failures]
    assert failures == [Failure("s.tar", "k1", "too-long: 25 tokens, seq_len is 24")]
    with pytest.raises(DataError, match="none of the stream's 1 samples could be packed"):
        pack([whole[1]], too_long="drop")


def test_what_was_lost_is_in_a_batch_even_at_the_end():
    lost = [Failure("s.tar", f"lost{i}", "text: no") for i in range(3)]
    whole = [
        sample(0, SEQ_LEN, lost=(lost[0],)),
        sample(1, SEQ_LEN, failure="image-corrupt: half of it"),
        sample(2, SEQ_LEN, lost=(lost[1], lost[2])),
    ]
    batches = pack([*whole, sample(3, SEQ_LEN + 1)], packs_per_batch=3, too_long="drop")
    (batch,) = batches
    assert batch.failures == (
        Failure("s.tar", "k1", "image-corrupt: half of it"),
        *lost,
        Failure("s.tar", "k3", "too-long: 25 tokens, seq_len is 24"),
    )


def test_batches_hold_what_the_loaders_hold(shards, tokenizer, vision):
    """Ids, labels, positions and pixels of each sample, wherever it was packed."""
    stream = stages.encode(tokenizer=tokenizer, vision=vision)(samples(shards))
    batches = list(stages.pack(seq_len=160, packs_per_batch=3)(stream))
    loader = DataLoader(shards, tokenizer=tokenizer, vision=vision, seq_len=160, packs_per_step=4)
    with loader:
        expected = by_key(loader)
    found = by_key(batches)
    assert found.keys() == expected.keys()
    assert len(found) == 37
    for key, arrays in found.items():
        for one, other in zip(arrays, expected[key], strict=True):
            assert torch.equal(one, other), key


def by_key(batches):
    found = {}
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        ids = batch.input_ids.flatten()
        patches = [frames * rows * columns for frames, rows, columns in batch.grids]
        images = torch.split(batch.pixel_values, patches)
        segment = image = 0
        for keys in batch.keys:
            for key in keys:
                span = slice(bounds[segment], bounds[segment + 1])
                starts = int((ids[span] == ids_of_start(batch, ids[span])).sum())
                found[key] = (
                    ids[span],
                    batch.labels.flatten()[span],
                    batch.position_ids.flatten(1)[:, span],
                    batch.segment_ids.flatten()[span] - segment,
                    torch.cat(
                        [torch.empty(0), *map(torch.flatten, images[image : image + starts])]
                    ),
                )
                segment, image = segment + 1, image + starts
            # The padding, if there is any.
            segment += bounds[segment] % batch.input_ids.shape[1] != 0 or not keys
    return found


def ids_of_start(batch, ids):
    """<|vision_start|>: the token before the first image token of a sample; -1 without one."""
    places = (ids == image_id(batch)).nonzero()
    return int(ids[places[0] - 1]) if len(places) else -1


def image_id(batch):
    types = batch.mm_token_type_ids.flatten()
    ids = batch.input_ids.flatten()[types == 1]
    return int(ids[0]) if len(ids) else -1


def test_what_is_no_encoded_sample_is_told():
    plain = EncodedSample(
        "k", np.zeros(3, np.int32), np.zeros(3, bool), None, np.empty((0, 3), np.int64)
    )
    with pytest.raises(DataError, match=r"EncodedSample.*omr_io\.stages\.encode"):
        pack([plain])
    other = dataclasses.replace(FORM, image_token_id=9)
    with pytest.raises(DataError, match="more than one way"):
        pack([sample(0, 3), sample(1, 3, form=other)])
    assert pack([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"seq_len": 0},
        {"packs_per_batch": 0},
        {"too_long": "cut"},
        {"buffer_samples": 0},
        {"buffer_bytes": 0},
        {"packs_per_batch": 1 << 27},
    ],
)
def test_options_that_cannot_be_right(options):
    with pytest.raises(ConfigError):
        stages.pack(**({"seq_len": SEQ_LEN} | options))
