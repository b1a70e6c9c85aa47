"""Label rows planned on the host, against the device's scan and a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omr_io.batches.labels import label_index, plan_label_index
from omr_io.errors import DataError
from omr_io.reference.pack import pack
from omr_io.train.model import label_rows
from omr_io.types import EncodedSample

LABELS = st.tuples(st.integers(1, 4), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.sampled_from([-100, -100, 0, 3, 151_642]))
)


@given(LABELS)
@settings(max_examples=100, deadline=None)
def test_it_is_the_scan_of_the_device(labels: np.ndarray) -> None:
    labels[:, 0] = -100
    rows, targets = label_index(labels)
    assert rows.dtype == targets.dtype == np.int64
    assert rows.flags.c_contiguous
    assert targets.flags.c_contiguous
    scanned = label_rows(torch.from_numpy(labels), int((labels != -100).sum()))
    np.testing.assert_array_equal(rows, scanned[0].numpy())
    np.testing.assert_array_equal(targets, scanned[1].numpy())
    expected = [
        (b * labels.shape[1] + t - 1, labels[b, t])
        for b in range(len(labels))
        for t in range(labels.shape[1])
        if labels[b, t] != -100
    ]
    assert list(zip(rows.tolist(), targets.tolist(), strict=True)) == expected


def test_nothing_to_train_on() -> None:
    for shape in ((0, 5), (2, 1), (3, 4)):
        rows, targets = label_index(np.full(shape, -100, np.int64))
        assert rows.shape == targets.shape == (0,)


def test_a_label_on_a_first_token_is_an_error() -> None:
    labels = np.full((3, 4), -100, np.int64)
    labels[1, 0] = 7  # it would be predicted by the last token of another sample
    with pytest.raises(DataError, match="first token of pack 1 is a label"):
        label_index(labels)
    labels[1, 0], labels[0, 0] = -100, 7  # it would silently be lost
    with pytest.raises(DataError, match="first token of pack 0 is a label"):
        label_index(labels)


SEQ_LEN, IMAGE = 24, 7


@st.composite
def packs_of_samples(draw: st.DrawFn) -> list[list[EncodedSample]]:
    packs = []
    for number in range(draw(st.integers(0, 3))):
        samples, space = [], SEQ_LEN
        for place in range(draw(st.integers(0, 4))):
            length = draw(st.integers(1, 8))
            space -= length
            if space < 0:
                break
            trained = np.asarray(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
            ids = draw(st.lists(st.integers(8, 99), min_size=length, max_size=length))
            grids = np.empty((0, 3), np.int64)
            if draw(st.booleans()):  # an image token, trained or not
                ids[draw(st.integers(0, length - 1))] = IMAGE
                grids = np.asarray([[1, 2, 2]])
            samples.append(
                EncodedSample(
                    f"{number}-{place}", np.asarray(ids, np.int32), trained, None, grids,
                    loss_weight=draw(st.sampled_from([1.0, 0.25, 3.0])),
                )
            )  # fmt: skip
        packs.append(samples)
    return packs


@given(packs_of_samples())
@settings(max_examples=100, deadline=None)
def test_planned_from_samples_it_is_that_of_the_labels(packs: list[list[EncodedSample]]) -> None:
    rows, targets, weights = plan_label_index(packs, seq_len=SEQ_LEN, image_token_id=IMAGE)
    assert (rows.dtype, targets.dtype, weights.dtype) == (np.int64, np.int64, np.float32)
    packed = pack(packs, seq_len=SEQ_LEN, pad_id=0, image_token_id=IMAGE, merge_size=2)
    of_labels = label_index(packed.labels)
    np.testing.assert_array_equal(rows, of_labels[0])
    np.testing.assert_array_equal(targets, of_labels[1])
    assert len(rows) == packed.num_label_tokens
    expected = np.zeros((len(packs), SEQ_LEN), np.float32)
    for row, samples in enumerate(packs):
        start = 0
        for sample in samples:
            expected[row, start : start + len(sample.input_ids)] = sample.loss_weight
            start += len(sample.input_ids)
    np.testing.assert_array_equal(weights, expected.reshape(-1)[1:][rows])


def test_a_mask_of_another_length_is_an_error() -> None:
    sample = EncodedSample(
        "k", np.arange(8, 12, dtype=np.int32), np.ones(3, bool), None, np.empty((0, 3), np.int64)
    )
    with pytest.raises(DataError, match=r"trained has 3 entries for 4 tokens \(key k\)"):
        plan_label_index([[sample]], seq_len=8, image_token_id=IMAGE)
