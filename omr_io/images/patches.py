"""Pixels to patches: what transformers' Qwen2VLImageProcessorPil gives, bit for bit.

csrc/pixels does the work, for a strip of rows at a time: Pillow's resize, a table of each byte's
value made by the processor's own arithmetic, and the order that the vision tower wants.
`reference/pixels.py` is the definition. The GIL is released, so threads run side by side.

Legend: H, W pixels; P patches; D patch width (3 x temporal_patch_size x patch_size squared).
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import PIL

from omr_io import _C
from omr_io.config import PassOrder, VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.sizes import smart_resize
from omr_io.types import Filter, Float32Array, Int64Array, UInt8Array

BLANK_VALUE = 128
"""The byte of a blank image: mid-grey."""

Instructions = Literal["best", "scalar", "avx2", "avx512"]
"""The form of the C++ core to use; "best" is the fastest that the processor has. All are equal."""


def to_patches(
    pixels_HW3: UInt8Array,
    vision: VisionConfig,
    out: Float32Array | None = None,
    *,
    instructions: Instructions = "best",
) -> Float32Array:
    """One image as the vision tower's input.

    Args:
        pixels_HW3: (H, W, 3) uint8 RGB, of any size.
        out: (P, D) float32, C-contiguous, written to when given: P and D follow from
            `image_grid_thw` and `vision.patch_width`.
        instructions: for tests and measurements.

    Returns:
        (P, D) float32. Patches go by groups of merge_size x merge_size, groups by rows; within a
        patch the order is channel, frame, row, column.

    Raises:
        ImageError: "image-too-narrow".
        ConfigError: an array has another shape or dtype.
    """
    _check(pixels_HW3)
    height, width = smart_resize(pixels_HW3.shape[0], pixels_HW3.shape[1], vision)
    out_PD = _output(height * width // vision.patch_size**2, vision, out)
    _C.to_patches(
        np.ascontiguousarray(pixels_HW3),
        height,
        width,
        value_table(vision),
        out_PD,
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        frames=vision.temporal_patch_size,
        vertical_first=vertical_first(pixels_HW3.shape[:2], (height, width), vision.pass_order),
        instructions=instructions,
    )
    return out_PD


def _check(pixels_HW3: UInt8Array) -> None:
    if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
        raise ConfigError(
            f"pixels must be (H, W, 3) uint8, not {pixels_HW3.shape} {pixels_HW3.dtype}"
        )


def _output(num_patches: int, vision: VisionConfig, out: Float32Array | None) -> Float32Array:
    shape = (num_patches, vision.patch_width)
    if out is None:
        return np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ConfigError(f"out must be {shape} float32 and C-contiguous, not {out.shape}")
    return out


def resize(
    pixels_HW3: UInt8Array,
    height: int,
    width: int,
    vision: VisionConfig,
    *,
    by: Filter = "bicubic",
    instructions: Instructions = "best",
) -> UInt8Array:
    """Resize as Pillow does, by one of its filters.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ConfigError: the array has another shape or dtype.
    """
    _check(pixels_HW3)
    first = vertical_first(pixels_HW3.shape[:2], (height, width), vision.pass_order)
    resized: UInt8Array = _C.resize(
        np.ascontiguousarray(pixels_HW3),
        height,
        width,
        filter=by,
        vertical_first=first,
        instructions=instructions,
    )
    return resized


def vertical_first(
    size_in: tuple[int, ...], size_out: tuple[int, ...], pass_order: PassOrder | None
) -> bool:
    """Whether a resize from (H, W) to (h, w) takes the vertical pass first; None: as installed.

    Pillow 13 does when that leaves less to do; Pillow 12 never does (found by trial, and tested
    against the installed Pillow).
    """
    (rows, columns), (to_rows, to_columns) = size_in, size_out
    if (pass_order or installed_pass_order()) == "horizontal-first":
        return False
    return to_rows < rows and rows - to_rows > 2 * (columns - to_columns)


def installed_pass_order() -> PassOrder:
    """The order of the two passes of the installed Pillow's resize, by its version.

    tests/images/test_patches.py compares the installed Pillow with the oracle of that order.
    """
    return "pillow-13" if int(PIL.__version__.split(".")[0]) >= 13 else "horizontal-first"


def value_table(vision: VisionConfig) -> Float32Array:
    """The value of each byte in each channel: transformers' rescale and normalize, run on a ramp.

    Returns:
        (3, 256) float32. The product is taken in float64 and rounded, the rest is in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * vision.rescale_factor).astype(np.float32)
    mean = np.array(vision.image_mean, dtype=np.float32)[:, None]
    std = np.array(vision.image_std, dtype=np.float32)[:, None]
    return cast(Float32Array, (scaled - mean) / std)


def blank_patches(grid_thw_3: Int64Array, vision: VisionConfig) -> Float32Array:
    """The patches of a mid-grey image, to stand in for one that failed to decode.

    Args:
        grid_thw_3: (3,) int64, the planned size in patches.

    Returns:
        (P, D) float32, P the product of the grid.
    """
    num_patches = int(np.prod(grid_thw_3))
    per_channel = vision.patch_width // 3
    row_D = np.repeat(value_table(vision)[:, BLANK_VALUE], per_channel)
    return np.tile(row_D, (num_patches, 1))
