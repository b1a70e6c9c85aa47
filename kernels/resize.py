"""The first pass of a resize for a whole batch: images of any sizes to an intermediate of bytes.

Pillow's 8-bit resampling to the bit: int32 sums of bytes times 22-bit weights, half added, shifted
and clamped to a byte. Weights come from the host (`omr_io.images.axis_weights`), so there is no
floating-point instruction here at all. `omr_io.images.gpu_plan` says what lies where.

Images are separate tensors, and are found through a table of addresses with a pitch each: decoders
give a tensor an image, and gathering them into one buffer first would read and write every pixel
once more than the first pass itself does.

What limits it, an ESTIMATE for an H100 that no measurement backs: shrinking by 1.5 an output byte
takes 7 taps, so 7 multiply-adds (at 64 a clock and multiprocessor some 14e12 a second: 2e12 bytes)
and 7 loads of a byte (32 a clock: 1e12 bytes a second, if a warp's load stays within one line of
128 bytes). Memory at 3 TB/s would allow 3e12 / (1 + 1.5) = 1.2e12. So the first pass is bound by
loads from L1, a little before memory. Weights stay in registers over a program's rows.

Legend: N images, F fields, G programs, Y rows and X columns of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omr_io.images.gpu_plan import FIRST_TILE, IMAGE_FIELDS, Plan

NUM_WARPS = 4

_FIELDS = tl.constexpr(len(IMAGE_FIELDS))
_SOURCE = tl.constexpr(IMAGE_FIELDS.index("source"))
_PITCH = tl.constexpr(IMAGE_FIELDS.index("pitch"))
_VERTICAL_FIRST = tl.constexpr(IMAGE_FIELDS.index("vertical_first"))
_ROWS = tl.constexpr(IMAGE_FIELDS.index("rows"))
_COLUMNS = tl.constexpr(IMAGE_FIELDS.index("columns"))
_BLOCK = tl.constexpr(IMAGE_FIELDS.index("block"))
_ROW_BYTES = tl.constexpr(IMAGE_FIELDS.index("row_bytes"))
_BETWEEN = tl.constexpr(IMAGE_FIELDS.index("between"))
_START = tl.constexpr(IMAGE_FIELDS.index("first_start"))
_WEIGHTS = tl.constexpr(IMAGE_FIELDS.index("first_weights"))
_TAPS = tl.constexpr(IMAGE_FIELDS.index("first_taps"))
_PROGRAM = tl.constexpr(IMAGE_FIELDS.index("first_program"))

_BITS = tl.constexpr(22)
_HALF = tl.constexpr(1 << 21)


@triton.jit
def _bytes(sums_YX):
    """Sums to bytes."""
    return tl.minimum(tl.maximum(sums_YX >> _BITS, 0), 255).to(tl.uint8)


@triton.jit
def _resample(
    from_YX,
    step,
    weights,
    weight_step,
    used,
    taps,
    inside_YX,
    Y: tl.constexpr,
    X: tl.constexpr,
):
    """Three channels of a tile, each from `taps` inputs `step` bytes apart."""
    red = tl.full((Y, X), _HALF, tl.int32)
    green = tl.full((Y, X), _HALF, tl.int32)
    blue = tl.full((Y, X), _HALF, tl.int32)
    for tap in range(taps):
        weight = tl.load(weights + tap * weight_step, mask=used, other=0)
        at = from_YX + tap * step
        red += weight * tl.load(at, mask=inside_YX, other=0).to(tl.int32)
        green += weight * tl.load(at + 1, mask=inside_YX, other=0).to(tl.int32)
        blue += weight * tl.load(at + 2, mask=inside_YX, other=0).to(tl.int32)
    return _bytes(red), _bytes(green), _bytes(blue)


@triton.jit
def resize_kernel(
    images_NF,
    first_G,
    weights,
    between,
    CHANNELS_LAST: tl.constexpr,
    VERTICAL: tl.constexpr,
    Y: tl.constexpr,
    X: tl.constexpr,
):
    """A tile of one image's intermediate. VERTICAL: whether any image's first pass is."""
    program = tl.program_id(0)
    image = images_NF + tl.load(first_G + program) * _FIELDS
    source = tl.load(image + _SOURCE).to(tl.pointer_type(tl.uint8))
    pitch = tl.load(image + _PITCH).to(tl.int32)
    rows = tl.load(image + _ROWS).to(tl.int32)
    columns = tl.load(image + _COLUMNS).to(tl.int32)
    block = tl.load(image + _BLOCK).to(tl.int32)
    row_bytes = tl.load(image + _ROW_BYTES).to(tl.int32)
    start = weights + tl.load(image + _START)
    weight = weights + tl.load(image + _WEIGHTS)
    taps = tl.load(image + _TAPS).to(tl.int32)

    tile = program - tl.load(image + _PROGRAM).to(tl.int32)
    across = tl.cdiv(columns, X)
    top = tile // across * Y
    y_Y = top + tl.arange(0, Y)[:, None]
    x_X = tile % across * X + tl.arange(0, X)[None, :]
    inside_Y, inside_X = y_Y < rows, x_X < columns
    inside_YX = inside_Y & inside_X

    to = between + tl.load(image + _BETWEEN) * 16
    vertical = False
    if VERTICAL:
        vertical = tl.load(image + _VERTICAL_FIRST) != 0
    if vertical:
        first_Y = tl.load(start + y_Y, mask=inside_Y, other=0)
        from_YX = source + (first_Y * pitch + x_X * 3)
        red, green, blue = _resample(
            from_YX, pitch, weight + y_Y, rows, inside_Y, taps, inside_YX, Y, X
        )
        # Turned by 90 degrees: what was a column is contiguous.
        y_1Y = top + tl.arange(0, Y)[None, :]
        x_X1 = tile % across * X + tl.arange(0, X)[:, None]
        inside_XY = (x_X1 < columns) & (y_1Y < rows)
        plane = columns * row_bytes
        to_XY = to + (y_1Y // block * (3 * plane) + y_1Y % block + x_X1 * row_bytes)
        tl.store(to_XY, tl.trans(red), mask=inside_XY)
        tl.store(to_XY + plane, tl.trans(green), mask=inside_XY)
        tl.store(to_XY + 2 * plane, tl.trans(blue), mask=inside_XY)
    else:
        first_X = tl.load(start + x_X, mask=inside_X, other=0)
        from_YX = source + (y_Y * pitch + first_X * 3)
        red, green, blue = _resample(
            from_YX, 3, weight + x_X, columns, inside_X, taps, inside_YX, Y, X
        )
        if CHANNELS_LAST:
            apart = 1  # bytes from channel to channel
            to_X = x_X // block * (rows * row_bytes) + x_X % block * 3
        else:
            apart = rows * row_bytes
            to_X = x_X // block * (3 * rows * row_bytes) + x_X % block
        to_YX = to + (y_Y * row_bytes + to_X)
        tl.store(to_YX, red, mask=inside_YX)
        tl.store(to_YX + apart, green, mask=inside_YX)
        tl.store(to_YX + 2 * apart, blue, mask=inside_YX)


def resize(
    plan: Plan,
    images_NF: torch.Tensor,
    first_G: torch.Tensor,
    weights: torch.Tensor,
    between: torch.Tensor,
) -> None:
    """Launch the first pass of a batch on the current stream.

    Args:
        plan: of the batch.
        images_NF: (N, F) int64, `source` and `pitch` filled in.
        first_G: (G,) int32.
        weights: int32.
        between: (plan.between_bytes,) uint8, written to.
    """
    rows, columns = FIRST_TILE
    resize_kernel[(first_G.numel(),)](
        images_NF,
        first_G,
        weights,
        between,
        CHANNELS_LAST=plan.layout.channels_last,
        VERTICAL=plan.any_vertical_first,
        Y=rows,
        X=columns,
        num_warps=NUM_WARPS,
    )
