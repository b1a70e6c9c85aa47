"""Which hidden states predict a label, planned on the host: no mask or scan runs on the device.

Legend: B packs, T seq_len, R labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omr_io.errors import DataError, Where
from omr_io.types import IGNORE_INDEX, EncodedSample, Float32Array, Int64Array


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


def plan_label_index(
    packs: Sequence[Sequence[EncodedSample]], *, seq_len: int, image_token_id: int
) -> tuple[Int64Array, Int64Array, Float32Array]:
    """`label_index` of packs from their samples, where the labels themselves are on a device.

    Args:
        packs: B packs of samples, as they were assembled.
        seq_len: T.
        image_token_id: the id of image placeholders, which are never labels.

    Returns:
        rows, targets, weights: (R,) int64, (R,) int64, and (R,) float32: each label's loss_weight.

    Raises:
        DataError: a sample's `trained` is not as long as its `input_ids`.
    """
    rows, targets, weights = [], [], []
    for number, samples in enumerate(packs):
        start = number * seq_len
        for sample in samples:
            if len(sample.trained) != len(sample.input_ids):
                raise DataError(
                    f"trained has {len(sample.trained)} entries for {len(sample.input_ids)} tokens",
                    where=Where(key=sample.key),
                )
            labels = sample.trained[1:] & (sample.input_ids[1:] != image_token_id)
            places = np.flatnonzero(labels)  # of the tokens before the labels
            rows.append(start + places)
            targets.append(sample.input_ids[places + 1])
            weights.append(np.full(len(places), sample.loss_weight, np.float32))
            start += len(sample.input_ids)
    return (
        np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64, copy=False),
        np.concatenate([np.empty(0, np.int64), *targets]).astype(np.int64, copy=False),
        np.concatenate([np.empty(0, np.float32), *weights]),
    )
