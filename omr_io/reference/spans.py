"""The definition of a span table; see `omr_io.types.SpanTable`.

Legend: K spans, V tokens, S segments, t tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from omr_io.packing.refusals import check_ids, check_options, check_sample, too_long
from omr_io.reference.pack import mrope_positions, sample_labels
from omr_io.types import IGNORE_INDEX, SPAN_FIELDS, EncodedSample, SpanTable

Run = tuple[int, int, int, int, int, int]
"""First token, one past its last, trained from, trained to, rows, columns."""


def span_table(
    packs: Sequence[Sequence[EncodedSample]],
    *,
    seq_len: int,
    pad_id: int,
    image_token_id: int,
    merge_size: int,
) -> SpanTable:
    """The span table of a batch; arguments and errors as of `omr_io.reference.pack.pack`."""
    check_options(len(packs), seq_len, pad_id, image_token_id, merge_size, "int32")
    for sample in (sample for samples in packs for sample in samples):
        check_sample(sample)
    spans: list[tuple[int, ...]] = []
    ends, source, num_labels = [0], 0, 0
    for number, samples in enumerate(packs):
        start, full = number * seq_len, (number + 1) * seq_len
        for sample in samples:
            check_ids(sample)
            if start + len(sample.input_ids) > full:
                raise too_long(sample, seq_len)
            positions_3t = mrope_positions(sample, image_token_id, merge_size)
            weight = int(np.float32(sample.loss_weight).view(np.int32))
            for first, _, label_from, label_to, rows, columns in runs(
                sample, image_token_id, merge_size
            ):
                place = (start + first, source + first, first, int(positions_3t[0, first]))
                labels = (start + label_from, start + label_to)
                spans.append((*place, *labels, rows, columns, len(ends) - 1, weight))
                num_labels += label_to - label_from
            start += len(sample.input_ids)
            source += len(sample.input_ids)
            ends.append(start)
        if start < full:
            spans.append((start, -1, 0, 0, start, start, 0, 0, len(ends) - 1, 0))
            ends.append(full)
    cu_seqlens = np.asarray(ends, np.int32)
    ids = [sample.input_ids for samples in packs for sample in samples]
    return SpanTable(
        tokens=np.concatenate([np.empty(0, np.int32), *ids]),
        spans=np.asarray(spans, np.int32).reshape(-1, SPAN_FIELDS),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max(initial=0)),
        num_tokens=source,
        num_label_tokens=num_labels,
        num_packs=len(packs),
        seq_len=seq_len,
        pad_id=pad_id,
    )


def runs(sample: EncodedSample, image_token_id: int, merge_size: int) -> Iterator[Run]:
    """A sample's runs in order; text is cut before each stretch of labels but a run's first."""
    is_image = (sample.input_ids == image_token_id).tolist()
    is_label = (sample_labels(sample, image_token_id) != IGNORE_INDEX).tolist()
    grids = iter(sample.image_grid_thw.tolist())
    first = 0
    while first < len(is_image):
        if is_image[first]:
            frames, height, width = next(grids)
            rows, columns = height // merge_size, width // merge_size
            stop = first + frames * rows * columns
            yield first, stop, first, first, rows, columns
        else:
            label_from = label_to = stop = first
            while stop < len(is_image) and not is_image[stop]:
                if is_label[stop] and label_from < label_to < stop:
                    break  # a second stretch begins
                if is_label[stop]:
                    label_from = stop if label_from == label_to else label_from
                    label_to = stop + 1
                stop += 1
            yield first, stop, label_from, label_to, 0, 0
        first = stop
