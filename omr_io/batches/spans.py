"""Packs of samples → span table → the integers of a batch, in C++ (csrc/pack).

Legend: B packs, T seq_len, N = B x T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omr_io import _C
from omr_io.batches.labels import label_rows
from omr_io.batches.transfer import Block
from omr_io.packing.refusals import check_options, mismatch, too_long, wrong
from omr_io.types import EncodedSample, IdType, PackedArrays, SpanTable


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
    try:
        tokens, spans, cu_seqlens, max_seqlen, num_tokens, num_label_tokens = _C.span_table(
            packs, seq_len=seq_len, image_token_id=image_token_id, merge_size=merge_size
        )
    except _C.PackError as error:
        kind, what, number = error.args
        sample = [sample for samples in packs for sample in samples][number]
        if kind == "too-long":
            raise too_long(sample, seq_len) from None
        raise (mismatch(sample) if kind == "mismatch" else wrong(sample, what)) from None
    return SpanTable(
        tokens=tokens,
        spans=spans,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        num_tokens=num_tokens,
        num_label_tokens=num_label_tokens,
        num_packs=len(packs),
        seq_len=seq_len,
        pad_id=pad_id,
    )


def pack_spans(
    table: SpanTable, *, dtype: IdType = "int64", block: Block | None = None
) -> PackedArrays:
    """Write the integers of a batch from its span table.

    Ids and positions are views of one array, so that a batch costs three allocations.

    Args:
        block: where the large ones are written; None: memory of their own.

    Raises:
        ValueError: the table does not cover all positions in order, or leaves its tokens; or the
            block has no room.
    """
    shape = (table.num_packs, table.seq_len)
    empty: Any = np.empty if block is None else block.array
    ids_7BT: Any = empty((7, *shape), dtype)
    segment_ids_BT = empty(shape, np.int32)
    loss_weights_BT = empty(shape, np.float32)
    _C.pack_spans(
        table.tokens,
        table.spans,
        pad_id=table.pad_id,
        ids=ids_7BT,
        segment_ids=segment_ids_BT,
        loss_weights=loss_weights_BT,
    )
    return PackedArrays(
        input_ids=ids_7BT[0],
        labels=ids_7BT[1],
        position_ids=ids_7BT[2:6],
        mm_token_type_ids=ids_7BT[6],
        segment_ids=segment_ids_BT,
        loss_weights=loss_weights_BT,
        label_rows=label_rows(table.spans),
        cu_seqlens=table.cu_seqlens,
        max_seqlen=table.max_seqlen,
        num_tokens=table.num_tokens,
        num_label_tokens=table.num_label_tokens,
    )


def pack(
    packs: Sequence[Sequence[EncodedSample]],
    *,
    seq_len: int,
    pad_id: int,
    image_token_id: int,
    merge_size: int,
    dtype: IdType = "int64",
    block: Block | None = None,
) -> PackedArrays:
    """Lay packs out; arguments, result and errors as of `omr_io.reference.pack.pack`.

    Args:
        block: where the integers are written, as far as they are large; see `pack_spans`.
    """
    check_options(len(packs), seq_len, pad_id, image_token_id, merge_size, dtype)
    table = span_table(
        packs,
        seq_len=seq_len,
        pad_id=pad_id,
        image_token_id=image_token_id,
        merge_size=merge_size,
    )
    return pack_spans(table, dtype=dtype, block=block)
