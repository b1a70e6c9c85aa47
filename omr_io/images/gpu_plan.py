"""The host's part of `patches` on a GPU: which program does what, with which weights, and where.

    sizes, targets ─▶ Plan: a row of integers an image, the image of every program, all weights
    Plan, table, images on the host ─▶ upload: one buffer, so one transfer

Two launches do a whole batch. The first pass of the resize goes from the images to an intermediate
of bytes, the second from there to patches; a pass whose size stays is one tap of weight one. The
intermediate is laid out for the second launch, whose taps then lie a row of 16-byte units apart:
of a horizontal first pass, patch column by patch column, in each channel by channel (or with the
channels last), rows as wide as a patch; of a vertical one the same turned by 90 degrees, patch row
by patch row, always channel by channel, rows as long as a patch is high.

Within an image offsets are 32 bits, so an image of 2 GiB is refused; where images begin is 64 bits.

Legend: H, W pixels in; h, w pixels out; P patches; D patch width; N images; G programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import ConfigError
from omr_io.images.axis_weights import AxisWeights, axis_weights
from omr_io.types import Filter, Int32Array, Int64Array, PatchLayout, PatchTarget, UInt8Array

IMAGE_FIELDS = (
    "source",  # address of the first byte
    "pitch",  # bytes from row to row
    "vertical_first",  # 0 or 1
    "rows",  # of the intermediate, in pixels
    "columns",
    "block",  # pixels of a row of the intermediate as it is laid out: a patch's width, or height
    "row_bytes",  # from row to row
    "between",  # where its intermediate begins, in units of 16 bytes
    "first_start",  # of the first pass: offsets in the weights, and taps
    "first_weights",
    "first_taps",
    "first_program",
    "second_start",  # of the second pass
    "second_weights",
    "second_taps",
    "second_program",
    "height",  # after the resize, in pixels
    "width",
    "out",  # where its patches begin, in units of `Plan.aligned` values
)
"""Columns of the table of images, int64; the kernels read them by these numbers."""

FIRST_TILE = (16, 64)
"""Rows and columns of the intermediate that a program of the first pass makes, all channels."""

SECOND_TILE = 4096
"""Values that a program of the second pass makes, before frames are repeated."""

LIMIT = 2**31 - 1
"""Bytes of an image and of its intermediate, and values of its patches: offsets are int32."""

_ALIGN = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of the second pass makes: powers of two.

    Attributes:
        lines: planes of neighbouring patch columns. A plane is one channel of a patch; all of it
            with the channels last.
        rows, columns: of a plane; with the channels last a column is one value.
    """

    lines: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A batch's two launches.

    Attributes:
        layout: of all images.
        images: (N, F) int64, see IMAGE_FIELDS; `source` and `pitch` are 0 until `upload`.
        first_programs, second_programs: (G,) int32, the image of each program of a launch.
        weights: int32, of all axes: for each where its outputs' taps begin, then (taps, size_out).
        between_bytes: of the intermediates of all images.
        tile: of the second launch.
        aligned: a power of two to 16 that divides a patch's rows and so all that begins there.
        any_vertical_first: whether any image's first pass is vertical.
    """

    layout: PatchLayout
    images: Int64Array
    first_programs: Int32Array
    second_programs: Int32Array
    weights: Int32Array
    between_bytes: int
    tile: Tile
    aligned: int
    any_vertical_first: bool


def plan(sizes: Sequence[tuple[int, int]], targets: Sequence[PatchTarget]) -> Plan:
    """Plan a batch.

    Args:
        sizes: (H, W) of each image, at least one image.
        targets: what they become, checked by `omr_io.images.patch_arguments`.

    Raises:
        ConfigError: an image, its intermediate or its patches are too large for 32-bit offsets.
    """
    layout = targets[0].layout
    given = np.array(sizes, np.int64).reshape(-1, 2)
    wanted = np.array([(target.height, target.width) for target in targets], np.int64)
    vertical = np.array([target.vertical_first for target in targets], np.bool_)
    rows = np.where(vertical, wanted[:, 0], given[:, 0])
    columns = np.where(vertical, given[:, 1], wanted[:, 1])
    channels = 3 if layout.channels_last else 1
    block = np.where(vertical, layout.height, layout.width)
    # Rows begin at multiples of 16 bytes, whatever a patch's sides are: wide loads for all taps.
    row_bytes = np.where(vertical, _up(layout.height, _ALIGN), _up(channels * layout.width, _ALIGN))
    across = 3 // channels * (columns // layout.width) * rows * row_bytes
    between = np.where(vertical, 3 * (rows // layout.height) * columns * row_bytes, across)
    values = 3 * wanted.prod(axis=1) * layout.frames
    _check_limits(3 * given.prod(axis=1), between, values)

    row_values = layout.width * channels
    aligned = min(_ALIGN, row_values & -row_values)
    tile = _tile(layout, wanted)
    fields: dict[str, NDArray[Any]] = dict.fromkeys(IMAGE_FIELDS, np.zeros(len(sizes), np.int64))
    fields |= {"vertical_first": vertical, "rows": rows, "columns": columns}
    fields |= {"block": block, "row_bytes": row_bytes}
    fields |= {"height": wanted[:, 0], "width": wanted[:, 1]}
    weights = _weights(given, targets, fields)

    units = -(-between // _ALIGN)
    fields["between"] = _starts(units)
    fields["out"] = _starts(values) // aligned
    first = -(-rows // FIRST_TILE[0]) * -(-columns // FIRST_TILE[1])
    second = _second_programs(layout, wanted, tile)
    if max(first.sum(), second.sum()) > LIMIT:
        raise ConfigError("more programs than one launch takes", mend="Use smaller batches")
    fields["first_program"], fields["second_program"] = _starts(first), _starts(second)
    numbers = np.arange(len(sizes), dtype=np.int32)
    return Plan(
        layout=layout,
        images=np.stack([fields[name] for name in IMAGE_FIELDS], axis=1).astype(np.int64),
        first_programs=np.repeat(numbers, first),
        second_programs=np.repeat(numbers, second),
        weights=weights,
        between_bytes=int(units.sum()) * _ALIGN,
        tile=tile,
        aligned=aligned,
        any_vertical_first=bool(vertical.any()),
    )


def _up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def _starts(counts: Int64Array) -> Int64Array:
    """Where each begins when they lie one after the other."""
    return np.cumsum(counts) - counts


def _check_limits(pixels: Int64Array, between: Int64Array, values: Int64Array) -> None:
    kinds = {"bytes of pixels": pixels, "bytes after its first pass": between}
    for what, counts in (kinds | {"values in patches": values}).items():
        if counts.max() > LIMIT:
            number = int(counts.argmax())
            raise ConfigError(
                f"image {number} has {int(counts[number])} {what}, more than the {LIMIT} that "
                "32-bit offsets reach",
                mend="Use the implementation 'cpu' for images of this size, or a smaller target",
            )


def _tile(layout: PatchLayout, wanted: Int64Array) -> Tile:
    """Sides that waste least on the layout's planes, and as many planes as fill a program."""
    columns = _side(layout.width * (3 if layout.channels_last else 1), 16, 128)
    rows = _side(layout.height, 1, 32)
    lines = int((wanted[:, 1] // layout.width).min()) * (1 if layout.channels_last else 3)
    fill = SECOND_TILE // (rows * columns)
    return Tile(lines=min(max(1, fill), 1 << (lines.bit_length() - 1)), rows=rows, columns=columns)


def _side(size: int, least: int, most: int) -> int:
    """The largest power of two from `least` to `most` that wastes little.

    Little: its multiples cover `size` with at most a sixth more than those of the best one do.
    """
    sides = [1 << n for n in range(least.bit_length() - 1, most.bit_length())]
    covers = {side: -(-size // side) * side for side in sides}
    return max(side for side in sides if 6 * covers[side] <= 7 * min(covers.values()))


def _second_programs(layout: PatchLayout, wanted: Int64Array, tile: Tile) -> Int64Array:
    """Programs of the second launch for each image."""
    last = layout.channels_last
    lines = wanted[:, 1] // layout.width * (1 if last else 3)
    across = -(-layout.width * (3 if last else 1) // tile.columns)
    down = wanted[:, 0] // layout.height * -(-layout.height // tile.rows)
    programs: Int64Array = down * across * -(-lines // tile.lines)
    return programs


def _weights(
    given: Int64Array, targets: Sequence[PatchTarget], fields: dict[str, NDArray[Any]]
) -> Int32Array:
    """All axes' weights, each once, and for each image where its own are."""
    known: dict[tuple[int, int, Filter], tuple[int, int, int]] = {}
    parts: list[Int32Array] = []
    end = 0
    found = np.empty((len(targets), 2, 3), np.int64)
    for number, ((height, width), target) in enumerate(zip(given.tolist(), targets, strict=True)):
        across = (width, target.width, target.filter)
        down = (height, target.height, target.filter)
        for order, key in enumerate((down, across) if target.vertical_first else (across, down)):
            if key not in known:
                axis: AxisWeights = axis_weights(*key)
                known[key] = (end, end + axis.first.size, axis.taps)
                parts += [axis.first, axis.weights.ravel()]
                end += axis.first.size + axis.weights.size
            found[number, order] = known[key]
    for order, name in enumerate(("first", "second")):
        for column, field in enumerate(("start", "weights", "taps")):
            fields[f"{name}_{field}"] = found[:, order, column]
    if end > LIMIT:
        raise ConfigError("the weights of a batch pass 32-bit offsets", mend="Use smaller batches")
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """What one transfer takes to the GPU: parts of a buffer, each at a multiple of 16 bytes.

    Attributes:
        size: bytes of the buffer.
        images, first_programs, second_programs, weights, table: where they lie, in bytes.
        pixels: for each image that is still on the host, its number and where its rows lie without
            gaps.
    """

    size: int
    images: slice
    first_programs: slice
    second_programs: slice
    weights: slice
    table: slice
    pixels: tuple[tuple[int, slice], ...]


def upload(of: Plan, table_bytes: int, host_images: Sequence[tuple[int, int]]) -> Upload:
    """Lay out the transfer.

    Args:
        table_bytes: of the table of values.
        host_images: number and bytes of each image that is not on the GPU.
    """
    sizes = [
        of.images.nbytes,
        of.first_programs.nbytes,
        of.second_programs.nbytes,
        of.weights.nbytes,
    ]
    sizes += [table_bytes, *(count for _, count in host_images)]
    starts = np.cumsum([0, *(_up(size, _ALIGN) for size in sizes)]).tolist()
    slices = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    numbers = (number for number, _ in host_images)
    pixels = tuple(zip(numbers, slices[5:], strict=True))
    images, first, second, weights, table = slices[:5]
    return Upload(starts[-1], images, first, second, weights, table, pixels)


def fill(
    buffer: UInt8Array,
    at: Upload,
    of: Plan,
    table: NDArray[Any],
    sources: Sequence[tuple[int, int]],
) -> None:
    """Write all but the pixels into the buffer that is to be uploaded.

    Args:
        buffer: (at.size,) uint8.
        table: (3, 256) of the values' bits.
        sources: address on the GPU and bytes from row to row of each image.
    """
    images_NF = of.images.copy()
    images_NF[:, :2] = sources
    parts = (
        (at.images, images_NF),
        (at.first_programs, of.first_programs),
        (at.second_programs, of.second_programs),
    )
    for where, array in (*parts, (at.weights, of.weights), (at.table, table)):
        buffer[where] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
