"""The vision tower's own metadata, planned on the host from image grids.

transformers (5.23, `vision_utils`) computes these from image_grid_thw on the device, with loops and
`.tolist()` that stop the GPU. Its vision towers take them precomputed instead, under the names that
`vision_inputs` gives; every array equals what the tower would have computed itself.

Legend: N images, P patches, M merged patches, V segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omr_io.types import Float32Array, Int32Array, Int64Array

Grid = tuple[int, int, int]
"""Frames, rows and columns of patches of one image."""

VISION_BOUNDARIES = ("image_cu_seqlens", "image_cu_window_seqlens")
"""The names of boundaries among `vision_arrays`."""


def vision_arrays(
    grids: Sequence[Grid],
    *,
    merge_size: int,
    window: int | None = None,
    side: int | None = None,
) -> dict[str, Int64Array | Int32Array | Float32Array | int]:
    """All keyword arguments that a forward takes precomputed for these images; {} without images.

    Args:
        grids: of N images.
        merge_size: merge_size x merge_size patches make one image token.
        window: side of an attention window in merged patches (Qwen2.5-VL), or None.
        side: side of the square table of learned positions (Qwen3-VL), or None.

    Returns:
        image_position_ids (P, 2) int64 and image_cu_seqlens (V + 1,) int32 with image_max_seqlen;
        with `window`, image_window_index (M,) int64 and image_cu_window_seqlens int32 with
        image_max_window_seqlen; with `side`, image_interp_indices (P, 4) int64 and
        image_interp_weights (P, 4) float32.
    """
    if not grids:
        return {}
    rows_columns = [_patch_places(grid, merge_size) for grid in grids]
    cu_seqlens = _boundaries([np.full(frames, rows * columns) for frames, rows, columns in grids])
    made: dict[str, Int64Array | Int32Array | Float32Array | int] = {
        "image_position_ids": np.concatenate(rows_columns),
        "image_cu_seqlens": cu_seqlens,
        "image_max_seqlen": int(np.diff(cu_seqlens).max()),
    }
    if window is not None:
        index, cu_window_seqlens = window_index(grids, merge_size, window)
        made["image_window_index"] = index
        made["image_cu_window_seqlens"] = cu_window_seqlens
        made["image_max_window_seqlen"] = int(np.diff(cu_window_seqlens).max())
    if side is not None:
        taps = [
            _interpolation(places, grid, side)
            for places, grid in zip(rows_columns, grids, strict=True)
        ]
        made["image_interp_indices"] = np.concatenate([indices for indices, _ in taps])
        made["image_interp_weights"] = np.concatenate([weights for _, weights in taps])
    return made


def window_index(
    grids: Sequence[Grid], merge_size: int, window: int
) -> tuple[Int64Array, Int32Array]:
    """The order that puts merged patches window by window, and the windows' bounds in patches.

    Windows of window x window merged patches tile each frame from its top left corner; those at the
    right and bottom edges are smaller. Windows go row by row, and so do the patches inside.

    Returns:
        (M,) int64 and (windows + 1,) int32.
    """
    orders, sizes, start = [], [], 0
    for frames, rows, columns in grids:
        frame, row, column = np.indices((frames, rows // merge_size, columns // merge_size))
        across = -(-columns // merge_size // window)
        down = -(-rows // merge_size // window)
        number = ((frame * down + row // window) * across + column // window).ravel()
        orders.append(np.argsort(number, kind="stable") + start)
        sizes.append(np.bincount(number) * merge_size**2)
        start += len(number)
    return np.concatenate(orders).astype(np.int64), _boundaries(sizes)


def _patch_places(grid: Grid, merge_size: int) -> Int64Array:
    """(P, 2) row and column of each patch, in the model's order: merge block by merge block."""
    frames, rows, columns = grid
    shape = (rows // merge_size, columns // merge_size, merge_size, merge_size)
    block_row, block_column, inner_row, inner_column = np.indices(shape).reshape(4, -1)
    places = np.stack(
        [block_row * merge_size + inner_row, block_column * merge_size + inner_column], axis=1
    )
    return np.tile(places, (frames, 1)).astype(np.int64)


def _interpolation(places_P2: Int64Array, grid: Grid, side: int) -> tuple[Int64Array, Float32Array]:
    """Bilinear lookup of a side x side table stretched corner to corner over the image's grid.

    float32 throughout, one rounding an operation as in transformers, so that weights are equal and
    not only close.
    """
    low_high, shares = [], []
    for axis, size in enumerate(grid[1:]):
        place = places_P2[:, axis].astype(np.float32) * np.float32(side - 1)
        place = place / np.float32(max(size - 1, 1))
        low = np.floor(place)
        steps = np.asarray([0, 1], np.int64)
        low_high.append(np.minimum(low.astype(np.int64)[:, None] + steps, side - 1))
        distance = np.abs((place - low)[:, None] - steps.astype(np.float32))
        shares.append(np.maximum(np.float32(1) - distance, np.float32(0)))
    indices = low_high[0][:, :, None] * side + low_high[1][:, None, :]
    weights = shares[0][:, :, None] * shares[1][:, None, :]
    return indices.reshape(-1, 4), weights.reshape(-1, 4)


def _boundaries(sizes: Sequence[Int64Array]) -> Int32Array:
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int32)
