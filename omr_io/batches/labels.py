"""Which hidden states predict a label, planned on the host: no mask or scan runs on the device.

Legend: B packs, T seq_len, R labels.
"""

from __future__ import annotations

import numpy as np

from omr_io.errors import DataError
from omr_io.types import IGNORE_INDEX, Int64Array


def label_index(labels_BT: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The rows of the flattened hidden states that meet the language-model head, and their targets.

    Row t predicts the label of t + 1. That is safe over flattened packs, since the first token of
    every sample is never a label.

    Args:
        labels_BT: (B, T) int64, unshifted, IGNORE_INDEX where there is no loss.

    Returns:
        rows, targets: (R,) int64 ascending places in the flattened B * T, and (R,) int64 token ids.

    Raises:
        DataError: the first token of a pack is a label, so nothing of its own sample predicts it.
    """
    first = np.flatnonzero(labels_BT[:, :1] != IGNORE_INDEX)
    if len(first):
        raise DataError(
            f"the first token of pack {first[0]} is a label, and no hidden state predicts it",
            mend="Set the first token of every sample to IGNORE_INDEX",
        )
    flat = labels_BT.reshape(-1)[1:]
    rows = np.flatnonzero(flat != IGNORE_INDEX)
    return rows.astype(np.int64, copy=False), flat[rows].astype(np.int64, copy=False)
