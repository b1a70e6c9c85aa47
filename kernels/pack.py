"""Pack assembly in one launch: from a span table to every integer tensor of a batch.

Legend: B packs, T seq_len, N = B x T positions, K spans, V tokens, S segments, L words.

The host writes the span table (`omr_io.types.SpanTable`, about 3 rows a sample) with all tokens into
one pinned buffer, which goes to the device in one transfer; one launch writes all outputs into one
allocation, each element once. There is no scan, no atomic and no synchronisation.

Each program owns BLOCK neighbouring positions, so that stores are contiguous and aligned whatever
the spans. A coarse table says in which spans a block begins and ends; within it each position finds
its span by binary search in as many steps as the block has spans, mostly two or three, in rows that
stay in L1. Everything that varies from batch to batch (the number of spans, where the parts of the
buffer begin, ids) is read from the buffer's head and no argument, so that nothing is recompiled: the
kernel has one variant for each dtype, and whether N is a multiple of 16 decides on the width of
stores. Three arguments, because Triton's launch takes the host some tenths of a microsecond for each.

Expected on an H100, and not measured: at 64k tokens 4.2 MB are written, some 1.5 us at 3 TB/s, under
a latency of four dependent loads and of a launch; so the host's part decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from omr_io.errors import ConfigError
from omr_io.types import IGNORE_INDEX, SPAN_FIELDS, IdType, PackedTensors, SpanTable

BLOCK = 512
"""Positions of a program. At 64k tokens 128 programs: one for nearly each processor of an H100, and
4 positions a thread, whose ids are two stores of 16 bytes in int64 and one in int32."""

_HEAD = 4  # words: the padding id, where spans begin, where tokens begin, one unused
_FIELDS = tl.constexpr(SPAN_FIELDS)
_IGNORE_INDEX = tl.constexpr(IGNORE_INDEX)
_BLOCKS_AT = tl.constexpr(_HEAD)


@triton.jit
def pack_kernel(buffer_L, out, num_positions, BLOCK: tl.constexpr):
    """One block of positions of every output; see `upload` and `pack_spans` for the layouts."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_positions
    padding_id = tl.load(buffer_L)
    spans_KF = buffer_L + tl.load(buffer_L + 1)
    tokens_V = buffer_L + tl.load(buffer_L + 2)

    # The last span that begins at or before `at`, from those that the block meets.
    first = tl.load(buffer_L + _BLOCKS_AT + 2 * block)
    step = tl.load(buffer_L + _BLOCKS_AT + 2 * block + 1)
    last = tl.load(buffer_L + _BLOCKS_AT + 2 * block + 2)
    span = tl.zeros((BLOCK,), dtype=tl.int32) + first
    while step > 0:
        probe = span + step
        start = tl.load(spans_KF + probe * _FIELDS, mask=probe <= last, other=0x7FFFFFFF)
        span = tl.where(start <= at, probe, span)
        step = step // 2

    row = spans_KF + span * _FIELDS
    offset = at - tl.load(row)
    source = tl.load(row + 1)
    text_position = tl.load(row + 2) + offset
    mrope_position = tl.load(row + 3)
    labelled = (tl.load(row + 4) <= at) & (at < tl.load(row + 5))
    rows = tl.load(row + 6)
    columns = tl.load(row + 7)
    segment = tl.load(row + 8)
    weight = tl.load(row + 9).to(tl.float32, bitcast=True)

    token = tl.load(tokens_V + source + offset, mask=inside & (source >= 0), other=0)
    token = tl.where(source >= 0, token, padding_id)
    label = tl.where(labelled, token, _IGNORE_INDEX)

    image = columns > 0
    line = offset // tl.maximum(columns, 1)
    frame = line // tl.maximum(rows, 1)
    t = mrope_position + tl.where(image, frame, offset)
    h = mrope_position + tl.where(image, line - frame * rows, offset)
    w = mrope_position + tl.where(image, offset - line * columns, offset)

    id_type = out.dtype.element_ty
    ids = out + at
    tl.store(ids, token.to(id_type), mask=inside)
    tl.store(ids + num_positions, label.to(id_type), mask=inside)
    tl.store(ids + 2 * num_positions, text_position.to(id_type), mask=inside)
    tl.store(ids + 3 * num_positions, t.to(id_type), mask=inside)
    tl.store(ids + 4 * num_positions, h.to(id_type), mask=inside)
    tl.store(ids + 5 * num_positions, w.to(id_type), mask=inside)
    tl.store(ids + 6 * num_positions, image.to(id_type), mask=inside)
    segments = (out + 7 * num_positions).to(tl.pointer_type(tl.int32), bitcast=True) + at
    tl.store(segments, segment, mask=inside)
    weights = (segments + num_positions).to(tl.pointer_type(tl.float32), bitcast=True)
    tl.store(weights, tl.where(labelled, weight, 0.0), mask=inside)


@dataclass(frozen=True, slots=True, eq=False)
class Uploaded:
    """A span table on a device.

    Attributes:
        buffer: (L,) int32: the head; for each block and one past the last, its first span and the
            first step of the search; the spans; cu_seqlens; the tokens. All begin at 16 bytes.
        cu_seqlens: (S + 1,) int32, a view of it.
        table: where it comes from.
    """

    buffer: torch.Tensor
    cu_seqlens: torch.Tensor
    table: SpanTable


def upload(table: SpanTable, device: torch.device) -> Uploaded:
    """Bring a span table to a device in one transfer, which the host does not wait for.

    The buffer is pinned where the device is a GPU; torch's allocator keeps it until the transfer on
    the current stream is over.

    Raises:
        ConfigError: the buffer would be over the range of int32.
    """
    num_positions = table.num_packs * table.seq_len
    blocks = _blocks(table.spans[:, 0], num_positions)
    head = np.zeros(_HEAD, np.int32)
    parts = (head, blocks, table.spans.reshape(-1), table.cu_seqlens, table.tokens)
    starts = np.cumsum([0, *(-(-part.size // 4) * 4 for part in parts)])
    if starts[-1] >= 2**31:
        raise ConfigError(f"{num_positions} positions are too many for one batch")
    head[:3] = table.pad_id, starts[2], starts[4]
    pinned = device.type == "cuda"
    staging = torch.empty(int(starts[-1]), dtype=torch.int32, pin_memory=pinned)
    words = staging.numpy()
    for part, start in zip(parts, starts, strict=False):
        words[start : start + part.size] = part
    buffer = staging.to(device, non_blocking=True)
    cu_seqlens = buffer[int(starts[3]) : int(starts[3]) + table.cu_seqlens.size]
    return Uploaded(buffer, cu_seqlens, table)


def _blocks(destinations_K: np.ndarray, num_positions: int) -> np.ndarray:
    """(2 x (blocks + 1),) int32: first span and first step of the search, for each block."""
    bounds = np.append(np.arange(0, num_positions, BLOCK), max(num_positions - 1, 0))
    first = np.searchsorted(destinations_K, bounds, side="right") - 1
    # `last` of a block is the first span of the next: one more than it may need, and harmless.
    most = np.append(first[1:], first[-1]) - first
    step = np.where(most > 0, 2 ** np.frexp(np.maximum(most, 1))[1] // 2, 0)
    return np.stack([first, step], axis=1).astype(np.int32).reshape(-1)


def pack_spans(uploaded: Uploaded, *, dtype: IdType = "int64") -> PackedTensors:
    """Launch `pack_kernel` over a whole batch, on the current stream; the host does not wait.

    All tensors are views of one allocation on the buffer's device: 7 x N ids, then N segment ids
    and N weights.

    Raises:
        ConfigError: neither a CUDA device nor Triton's interpreter is there to run it.
    """
    table, device = uploaded.table, uploaded.buffer.device
    if device.type != "cuda" and isinstance(pack_kernel, triton.JITFunction):
        raise ConfigError(
            f'"triton" cannot pack on {device}',
            mend='Use a CUDA device, or implementation="cpu"; tests set TRITON_INTERPRET=1',
        )
    shape = (table.num_packs, table.seq_len)
    num_positions = table.num_packs * table.seq_len
    element = torch.int64 if dtype == "int64" else torch.int32
    words = 7 * num_positions + 8 * num_positions // element.itemsize
    out = torch.empty(words, dtype=element, device=device)
    if num_positions:
        grid = (triton.cdiv(num_positions, BLOCK),)
        with torch.cuda.device(device if device.type == "cuda" else -1):
            pack_kernel[grid](uploaded.buffer, out, num_positions, BLOCK=BLOCK)
    ids_7BT = out[: 7 * num_positions].view(7, *shape)
    rest_2BT = out[7 * num_positions :].view(torch.int32).view(2, *shape)
    return PackedTensors(
        input_ids=ids_7BT[0],
        labels=ids_7BT[1],
        position_ids=ids_7BT[2:6],
        mm_token_type_ids=ids_7BT[6],
        segment_ids=rest_2BT[0],
        loss_weights=rest_2BT[1].view(torch.float32),
        cu_seqlens=uploaded.cu_seqlens,
        max_seqlen=table.max_seqlen,
        num_tokens=table.num_tokens,
        num_label_tokens=table.num_label_tokens,
    )
