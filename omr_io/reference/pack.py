"""The definition of a batch: EncodedSamples in, `PackedArrays` out, one sample after the other.

Legend: B packs, T seq_len, S segments, t tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omr_io.packing.refusals import check_ids, check_options, check_sample, mismatch, too_long
from omr_io.types import IGNORE_INDEX, EncodedSample, IdType, Int64Array, PackedArrays


def pack(
    packs: Sequence[Sequence[EncodedSample]],
    *,
    seq_len: int,
    pad_id: int,
    image_token_id: int,
    merge_size: int,
    dtype: IdType = "int64",
) -> PackedArrays:
    """Lay each pack's samples into one row of seq_len tokens; the rest of the row is padding.

    Args:
        packs: B packs, each a sequence of samples; a pack may be empty.
        seq_len: T.
        pad_id: the token id of padding.
        image_token_id: the id of image placeholders.
        merge_size: merge_size x merge_size patches make one image token.
        dtype: of ids, labels, positions and token types.

    Raises:
        ConfigError: seq_len or merge_size is below 1, an id is negative or over int32, or
            B x T is above MAX_PACKED_TOKENS.
        SampleTooLongError: the samples of a pack have more than seq_len tokens together.
        DataError: a sample's arrays are not what `EncodedSample` says, its loss_weight is not
            finite, or its placeholders are not what its image_grid_thw says.
    """
    check_options(len(packs), seq_len, pad_id, image_token_id, merge_size, dtype)
    for sample in (sample for samples in packs for sample in samples):
        check_sample(sample)
    shape = (len(packs), seq_len)
    input_ids_BT = np.full(shape, pad_id, dtype)
    labels_BT = np.full(shape, IGNORE_INDEX, dtype)
    position_ids_4BT = np.zeros((4, *shape), dtype)
    mm_token_type_ids_BT = np.zeros(shape, dtype)
    loss_weights_BT = np.zeros(shape, np.float32)
    ends = [0]
    for row, samples in enumerate(packs):
        start = 0
        for sample in samples:
            check_ids(sample)
            stop = start + len(sample.input_ids)
            if stop > seq_len:
                raise too_long(sample, seq_len)
            labels = sample_labels(sample, image_token_id)
            input_ids_BT[row, start:stop] = sample.input_ids
            labels_BT[row, start:stop] = labels
            loss_weights_BT[row, start:stop][labels != IGNORE_INDEX] = sample.loss_weight
            position_ids_4BT[0, row, start:stop] = np.arange(stop - start)
            position_ids_4BT[1:, row, start:stop] = mrope_positions(
                sample, image_token_id, merge_size
            )
            mm_token_type_ids_BT[row, start:stop] = sample.input_ids == image_token_id
            ends.append(row * seq_len + stop)
            start = stop
        if start < seq_len:
            position_ids_4BT[:, row, start:] = np.arange(seq_len - start)
            ends.append((row + 1) * seq_len)
    cu_seqlens = np.asarray(ends, np.int32)
    segments_S = np.arange(len(ends) - 1, dtype=np.int32)
    return PackedArrays(
        input_ids=input_ids_BT,
        labels=labels_BT,
        position_ids=position_ids_4BT,
        mm_token_type_ids=mm_token_type_ids_BT,
        segment_ids=np.repeat(segments_S, np.diff(cu_seqlens)).reshape(shape),
        loss_weights=loss_weights_BT,
        # A label at t + 1 is predicted by the hidden state at t, of the same sample.
        label_rows=np.flatnonzero(labels_BT.reshape(-1)[1:] != IGNORE_INDEX).astype(np.int64),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max(initial=0)),
        num_tokens=sum(len(sample.input_ids) for samples in packs for sample in samples),
        num_label_tokens=int((labels_BT != IGNORE_INDEX).sum()),
    )


def sample_labels(sample: EncodedSample, image_token_id: int) -> Int64Array:
    """(t,) int64: the token where it is trained, else IGNORE_INDEX; never the first, never images.

    The first token has no label because a causal model predicts token i from those before it, and
    in a pack those would belong to another sample.
    """
    trained = sample.trained & (sample.input_ids != image_token_id)
    trained[:1] = False
    return np.where(trained, sample.input_ids, IGNORE_INDEX).astype(np.int64)


def mrope_positions(sample: EncodedSample, image_token_id: int, merge_size: int) -> Int64Array:
    """(3, t) int64: M-RoPE's t, h, w of one sample, as in transformers' `get_rope_index`.

    The rule for still images is the same in Qwen2-VL, Qwen2.5-VL and Qwen3-VL: text counts on, the
    same in all three rows; an image's merged patches stand at (frame, row, column) from where the
    text stopped; the text after it goes on at the larger of its sides (arXiv 2409.12191).
    """
    is_image = (sample.input_ids == image_token_id).tolist()
    grids = iter(sample.image_grid_thw.tolist())
    positions_3t = np.zeros((3, len(is_image)), np.int64)
    place = 0  # token
    position = 0  # M-RoPE position of the next text token
    while place < len(is_image):
        if not is_image[place]:
            positions_3t[:, place] = position
            position += 1
            place += 1
            continue
        frames, height, width = next(grids, (0, 0, 0))
        rows, columns = height // merge_size, width // merge_size
        count = frames * rows * columns
        if min(frames, rows, columns) < 1 or count > len(is_image) - place:
            raise mismatch(sample)
        if not all(is_image[place : place + count]):
            raise mismatch(sample)
        grid = np.indices((frames, rows, columns)).reshape(3, count)
        positions_3t[:, place : place + count] = grid + position
        position += max(rows, columns)
        place += count
    if next(grids, None) is not None:
        raise mismatch(sample)
    return positions_3t
