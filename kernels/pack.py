"""Pack assembly in one launch: from a span table to every integer tensor of a batch.

Legend: B packs, T seq_len, K spans, V tokens in the source buffer.

A span is a run of tokens of one sample that share a rule (text with a loss, text without, one
image, padding). The host writes some five rows a sample and the padding of each pack; the kernel
needs no scan and no synchronisation, and writes each output element exactly once.

Each program owns BLOCK neighbouring positions of the flattened (B, T) outputs, so that stores are
contiguous and aligned whatever the spans; it finds each position's span by binary search in the
table, which stays in cache (K is a few hundred).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from omr_io.types import EncodedSample, Int32Array

SPAN_FIELDS = 9
"""Columns of a span, int32: destination (first flat position), source (first token in the buffer),
text_position, mrope_position (both of its first token), kind, trained (0 or 1), merged grid height,
merged grid width, segment."""

_TEXT, _IMAGE, _PADDING = 0, 1, 2


@triton.jit
def pack_kernel(
    tokens_V,
    spans_KF,
    input_ids_BT,
    labels_BT,
    position_ids_4BT,
    mm_token_type_ids_BT,
    segment_ids_BT,
    num_positions,
    num_spans,
    padding_id,
    FIELDS: tl.constexpr,
    SEARCH_STEPS: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of positions of every output; see `pack` for shapes and dtypes."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_positions

    # The last span that starts at or before `at`: 2^SEARCH_STEPS >= num_spans.
    span = tl.zeros((BLOCK,), dtype=tl.int32)
    for step in tl.static_range(SEARCH_STEPS):
        probe = span + (1 << (SEARCH_STEPS - 1 - step))
        start = tl.load(spans_KF + probe * FIELDS, mask=probe < num_spans, other=num_positions)
        span = tl.where(start <= at, probe, span)

    row = spans_KF + span * FIELDS
    offset = at - tl.load(row, mask=inside, other=0)
    source = tl.load(row + 1, mask=inside, other=0)
    text_position = tl.load(row + 2, mask=inside, other=0) + offset
    mrope_position = tl.load(row + 3, mask=inside, other=0)
    kind = tl.load(row + 4, mask=inside, other=0)
    trained = tl.load(row + 5, mask=inside, other=0)
    height = tl.load(row + 6, mask=inside, other=1)
    width = tl.load(row + 7, mask=inside, other=1)
    segment = tl.load(row + 8, mask=inside, other=0)

    real = inside & (kind != 2)
    token = tl.load(tokens_V + source + offset, mask=real, other=0)
    token = tl.where(real, token, padding_id)
    # The first token of a sample has no predecessor to be predicted from.
    labelled = (trained != 0) & (kind == 0) & (text_position > 0)

    image = kind == 1
    frame = offset // (height * width)
    down = (offset // width) % height
    right = offset % width

    id_type = input_ids_BT.dtype.element_ty
    tl.store(input_ids_BT + at, token.to(id_type), mask=inside)
    tl.store(labels_BT + at, tl.where(labelled, token, IGNORE_INDEX).to(id_type), mask=inside)
    tl.store(mm_token_type_ids_BT + at, image.to(id_type), mask=inside)
    tl.store(segment_ids_BT + at, segment, mask=inside)
    rows = position_ids_4BT + at
    tl.store(rows, text_position.to(id_type), mask=inside)
    t = mrope_position + tl.where(image, frame, offset)
    h = mrope_position + tl.where(image, down, offset)
    w = mrope_position + tl.where(image, right, offset)
    tl.store(rows + num_positions, t.to(id_type), mask=inside)
    tl.store(rows + 2 * num_positions, h.to(id_type), mask=inside)
    tl.store(rows + 3 * num_positions, w.to(id_type), mask=inside)


def span_table(
    packs: Sequence[Sequence[EncodedSample]], *, seq_len: int, image_token_id: int, merge_size: int
) -> tuple[Int32Array, Int32Array]:
    """The host's part: all samples' tokens one after another, and the spans that place them.

    Args:
        packs: B packs of samples that fit into seq_len tokens.

    Returns:
        tokens_V (V,) int32 and spans_KF (K, SPAN_FIELDS) int32, ordered by destination.
    """
    spans: list[tuple[int, ...]] = []
    tokens: list[Int32Array] = [np.empty(0, np.int32)]
    source = segment = 0
    for number, samples in enumerate(packs):
        at = number * seq_len
        for sample in samples:
            for first, mrope, kind, trained, height, width in _runs(
                sample, image_token_id, merge_size
            ):
                place = (at + first, source + first, first, mrope)
                spans.append((*place, kind, trained, height, width, segment))
            tokens.append(sample.input_ids)
            at += len(sample.input_ids)
            source += len(sample.input_ids)
            segment += 1
        if at < (number + 1) * seq_len:
            spans.append((at, 0, 0, 0, _PADDING, 0, 1, 1, segment))
            segment += 1
    return np.concatenate(tokens), np.asarray(spans, np.int32).reshape(-1, SPAN_FIELDS)


def _runs(
    sample: EncodedSample, image_token_id: int, merge_size: int
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(first token, M-RoPE position, kind, trained, height, width) of a sample's runs, in order."""
    image = sample.input_ids == image_token_id
    rule = np.where(image, 2, sample.trained.astype(np.int8))
    starts = [0, *(np.flatnonzero(np.diff(rule)) + 1).tolist()]
    grids = iter(sample.image_grid_thw.tolist())
    mrope = 0
    for first, stop in zip(starts, [*starts[1:], len(rule)], strict=True):
        if not image[first]:
            yield first, mrope, _TEXT, int(sample.trained[first]), 1, 1
            mrope += stop - first
            continue
        while first < stop:  # images may follow one another without a token between them
            frames, height, width = next(grids)
            height, width = height // merge_size, width // merge_size
            yield first, mrope, _IMAGE, 0, height, width
            first += frames * height * width
            mrope += max(height, width)


def pack(
    tokens_V: torch.Tensor,
    spans_KF: torch.Tensor,
    *,
    packs: int,
    seq_len: int,
    padding_id: int,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.int64,
    block: int = 1024,
) -> dict[str, torch.Tensor]:
    """Launch `pack_kernel` over a whole batch.

    Args:
        tokens_V: (V,) int32, all samples' ids one after another, image placeholders expanded.
        spans_KF: (K, SPAN_FIELDS) int32, ordered by destination, covering all packs * seq_len
            positions without gaps; on the same device as `tokens_V`.
        packs, seq_len: B and T.
        padding_id: the id of padding.
        ignore_index: the label where no loss is wanted.
        dtype: of ids, labels and positions, int32 or int64.
        block: positions a program.

    Returns:
        input_ids, labels, mm_token_type_ids (B, T) and position_ids (4, B, T) of `dtype`, and
        segment_ids (B, T) int32.
    """
    num_positions, num_spans = packs * seq_len, spans_KF.shape[0]
    if 4 * num_positions >= 2**31:
        raise ValueError("offsets are int32: packs * seq_len must stay under 2**29")
    device = tokens_V.device
    out = {
        "input_ids": torch.empty((packs, seq_len), dtype=dtype, device=device),
        "labels": torch.empty((packs, seq_len), dtype=dtype, device=device),
        "position_ids": torch.empty((4, packs, seq_len), dtype=dtype, device=device),
        "mm_token_type_ids": torch.empty((packs, seq_len), dtype=dtype, device=device),
        "segment_ids": torch.empty((packs, seq_len), dtype=torch.int32, device=device),
    }
    pack_kernel[(triton.cdiv(num_positions, block),)](
        tokens_V,
        spans_KF,
        out["input_ids"],
        out["labels"],
        out["position_ids"],
        out["mm_token_type_ids"],
        out["segment_ids"],
        num_positions,
        num_spans,
        padding_id,
        FIELDS=SPAN_FIELDS,
        SEARCH_STEPS=max(1, (num_spans - 1).bit_length()),
        IGNORE_INDEX=ignore_index,
        BLOCK=block,
    )
    return out
