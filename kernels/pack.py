"""Pack assembly in one launch: from a span table to every integer tensor of a batch.

Legend: B packs, T seq_len, N = B x T positions, K spans, V tokens, S segments, L words, R stride.

The host writes the span table (`omr_io.types.SpanTable`, about 3 rows a sample) with all tokens
into one pinned buffer, which goes to the device in one transfer; one launch writes all outputs into
one allocation, each element once. There is no scan, no atomic and no synchronisation.

Each program owns BLOCK neighbouring positions, so that stores are contiguous and aligned whatever
the spans. A coarse table says in which spans a block begins and ends; within it each position finds
its span by binary search in as many steps as the block has spans, mostly two or three, in rows that
stay in L1. Everything that varies from batch to batch (the number of spans, where the parts of the
buffer begin, the padding's id) is read from the buffer's head and is no argument, and rows of the
outputs begin at multiples of 16 positions (R, the stride): so nothing is ever recompiled, and there
is one variant of the kernel for each dtype. Three arguments, because each costs the host some
tenths of a microsecond in Triton's launch.

Expected on an H100, and not measured: at 64k tokens 4.2 MB are written, some 1.5 us at 3 TB/s, on
top of four dependent loads (2 us) and the launch; so the host's part decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from omr_io.batches.labels import label_rows
from omr_io.batches.transfer import Block
from omr_io.errors import ConfigError
from omr_io.types import IGNORE_INDEX, SPAN_FIELDS, IdType, Int32Array, PackedTensors, SpanTable

BLOCK = 512
"""Positions of a program: at 64k tokens 128 programs, one for nearly each processor of an H100."""

NUM_WARPS = {"int64": 8, "int32": 4}
"""So that a thread has as many positions as 16 bytes hold ids. With more, Triton gives the int32
outputs beside int64 ids a layout of their own, and changes layouts through shared memory."""

_HEAD = 4  # words: the padding id, where spans begin, where tokens begin, one unused
_ALIGNMENT = 16  # positions
_FIELDS = tl.constexpr(SPAN_FIELDS)
_IGNORE_INDEX = tl.constexpr(IGNORE_INDEX)
_BLOCKS_AT = tl.constexpr(_HEAD)


@triton.jit
def pack_kernel(buffer_L, out, stride, BLOCK: tl.constexpr):
    """One block of positions of every output; see `upload` and `pack_spans` for the layouts."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < stride
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
    tl.store(ids + stride, label.to(id_type), mask=inside)
    tl.store(ids + 2 * stride, text_position.to(id_type), mask=inside)
    tl.store(ids + 3 * stride, t.to(id_type), mask=inside)
    tl.store(ids + 4 * stride, h.to(id_type), mask=inside)
    tl.store(ids + 5 * stride, w.to(id_type), mask=inside)
    tl.store(ids + 6 * stride, image.to(id_type), mask=inside)

    segments = (out + 7 * stride).to(tl.pointer_type(tl.int32), bitcast=True) + at
    tl.store(segments, segment, mask=inside)
    weights = (segments + stride).to(tl.pointer_type(tl.float32), bitcast=True)
    tl.store(weights, tl.where(labelled, weight, 0.0), mask=inside)


@dataclass(frozen=True, slots=True, eq=False)
class Uploaded:
    """A span table on a device.

    Attributes:
        buffer: (L,) int32: the head; for each block and one past the last, its first span and the
            first step of the search; the spans; cu_seqlens; the tokens; label_rows as int64. It
            begins at a multiple of 64 bytes, all of them at one of 16.
        cu_seqlens: (S + 1,) int32, a view of it.
        label_rows: (R,) int64, a view of it.
        table: where it comes from.
    """

    buffer: torch.Tensor
    cu_seqlens: torch.Tensor
    label_rows: torch.Tensor
    table: SpanTable


def upload(table: SpanTable, device: torch.device, block: Block | None = None) -> Uploaded:
    """Bring a span table to a device in one transfer, which the host does not wait for.

    Args:
        block: what the buffer is laid into, to be sent with all else that lies there; None: one of
            its own, pinned where the device is a GPU. torch's allocator keeps it until the transfer
            on the current stream is over.

    Raises:
        ValueError: the block has no room, or is sent already.
    """
    num_positions = table.num_packs * table.seq_len
    blocks = _blocks(table.spans[:, 0], num_positions, _stride(num_positions))
    head = np.zeros(_HEAD, np.int32)
    rows = label_rows(table.spans)
    spans = table.spans.reshape(-1)
    parts = (head, blocks, spans, table.cu_seqlens, table.tokens, rows.view(np.int32))
    # Under 2^31 words, since there are at most as many spans as MAX_PACKED_TOKENS.
    starts = np.cumsum([0, *(-(-part.size // 4) * 4 for part in parts)])
    head[:3] = table.pad_id, starts[2], starts[4]
    # The kernel also fills what stands between N and R, from what follows the tokens.
    words = int(starts[-1]) + _ALIGNMENT
    block = block or Block.of_size(4 * words, device)
    staging = block.empty((words,), torch.int32)
    host_L = staging.numpy()
    host_L[-_ALIGNMENT:] = 0
    for part, start in zip(parts, starts, strict=False):
        host_L[start : start + part.size] = part
    block.send(device)
    buffer = block.sent(staging)
    cu_seqlens = buffer[int(starts[3]) : int(starts[3]) + table.cu_seqlens.size]
    rows_R = buffer[int(starts[5]) : int(starts[5]) + 2 * rows.size].view(torch.int64)
    return Uploaded(buffer, cu_seqlens, rows_R, table)


def _stride(num_positions: int) -> int:
    """R: from one row of the outputs to the next, in positions."""
    return -(-num_positions // _ALIGNMENT) * _ALIGNMENT


def _blocks(destinations_K: Int32Array, num_positions: int, stride: int) -> Int32Array:
    """(2 x (blocks + 1),) int32: first span and first step of the search, for each block."""
    bounds = np.minimum(np.arange(0, stride + BLOCK, BLOCK), max(num_positions - 1, 0))
    first = np.searchsorted(destinations_K, bounds, side="right") - 1
    # A block's last span is taken to be the first of the next: one more than it may need.
    more = np.append(np.diff(first), 0)
    step = np.where(more > 0, 2 ** np.frexp(more)[1] // 2, 0)  # the largest power of 2 up to it
    return np.stack([first, step], axis=1).astype(np.int32).reshape(-1)


def pack_spans(uploaded: Uploaded, *, dtype: IdType = "int64") -> PackedTensors:
    """Launch `pack_kernel` over a whole batch, on the current stream; the host does not wait.

    All tensors are views of one allocation on the buffer's device: 7 rows of ids, then one of
    segment ids and one of weights. Where N is no multiple of 16, position_ids is not contiguous.

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
    stride = _stride(num_positions)
    element = torch.int64 if dtype == "int64" else torch.int32
    size = 7 * stride + 8 * stride // element.itemsize
    out = torch.empty(size, dtype=element, device=device)
    if num_positions:
        grid = (triton.cdiv(stride, BLOCK),)
        with torch.cuda.device(device if device.type == "cuda" else -1):
            pack_kernel[grid](uploaded.buffer, out, stride, BLOCK=BLOCK, num_warps=NUM_WARPS[dtype])
    ids_7BT = out[: 7 * stride].view(7, stride)[:, :num_positions].view(7, *shape)
    rest_2R = out[7 * stride :].view(torch.int32).view(2, stride)
    segment_ids_BT, weight_bits_BT = rest_2R[:, :num_positions].view(2, *shape)
    return PackedTensors(
        input_ids=ids_7BT[0],
        labels=ids_7BT[1],
        position_ids=ids_7BT[2:6],
        mm_token_type_ids=ids_7BT[6],
        segment_ids=segment_ids_BT,
        loss_weights=weight_bits_BT.view(torch.float32),
        label_rows=uploaded.label_rows,
        cu_seqlens=uploaded.cu_seqlens,
        max_seqlen=table.max_seqlen,
        num_tokens=table.num_tokens,
        num_label_tokens=table.num_label_tokens,
    )
