"""Label rows planned on the host, against the device's scan and a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omr_io.batches.labels import label_index
from omr_io.errors import DataError
from omr_io.train.model import label_rows

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
