"""Which hidden states predict a label, planned on the host: no mask or scan runs on a device.

Legend: B packs, T seq_len, K spans, R labels.
"""

from __future__ import annotations

import numpy as np

from omr_io.types import Int32Array, Int64Array


def label_rows(spans_KF: Int32Array) -> Int64Array:
    """The rows of the flattened hidden states that meet the language-model head.

    Row t predicts the label of t + 1. That is safe over flattened packs, since the first token of
    every sample is never a label. Some hundred spans are looked at, not all B x T labels.

    Args:
        spans_KF: (K, SPAN_FIELDS) int32, see `SpanTable`.

    Returns:
        (R,) int64, ascending places in the flattened B x T.
    """
    starts, ends = spans_KF[:, 4].astype(np.int64), spans_KF[:, 5].astype(np.int64)
    counts = np.maximum(ends - starts, 0)
    before = np.cumsum(counts) - counts  # rows of the spans before each
    rows: Int64Array = np.repeat(starts - 1 - before, counts) + np.arange(counts.sum())
    return rows
