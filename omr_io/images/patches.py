"""Pixels to patches: what transformers' Qwen2VLImageProcessorPil gives, bit for bit.

Here is what follows from a `VisionConfig`: the target of an image and the table of values, which
the operation `omr_io.ops.Patches` takes. `reference/pixels.py` is the definition.

Legend: H, W pixels; P patches; D patch width (3 x temporal_patch_size x patch_size squared).
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch

from omr_io import _C
from omr_io.config import PassOrder, VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.cpu_patches import Instructions, patches
from omr_io.images.patch_arguments import MAX_SIDE, check_image
from omr_io.images.pixel_values import as_array
from omr_io.images.pixels import installed_pass_order as installed_pass_order
from omr_io.images.sizes import smart_resize
from omr_io.types import (
    Filter,
    Float32Array,
    Int64Array,
    PatchLayout,
    PatchTarget,
    PixelValues,
    UInt8Array,
)

BLANK_VALUE = 128
"""The byte of a blank image: mid-grey."""


def blank_pixels() -> UInt8Array:
    """(1, 1, 3) uint8: one mid-grey pixel, which a resize makes a blank image of any size."""
    return np.full((1, 1, 3), BLANK_VALUE, np.uint8)


def patch_layout(vision: VisionConfig) -> PatchLayout:
    """How Qwen's patches are cut: by groups; within one by channel, frame, row, column."""
    size = vision.patch_size
    return PatchLayout(size, size, vision.merge_size, vision.temporal_patch_size)


def patch_target(
    size_in: tuple[int, ...], size_out: tuple[int, int], vision: VisionConfig
) -> PatchTarget:
    """What an image of (H, W) pixels becomes when it is resized to `size_out` (h, w)."""
    first = vertical_first(size_in, size_out, vision.pass_order)
    return PatchTarget(*size_out, patch_layout(vision), "bicubic", first)


def to_patches(
    pixels_HW3: UInt8Array,
    vision: VisionConfig,
    out: Float32Array | None = None,
    *,
    instructions: Instructions = "best",
) -> Float32Array:
    """One image as the vision tower's input, in float32. For batches see `omr_io.ops.Patches`.

    Args:
        pixels_HW3: (H, W, 3) uint8 RGB, of any size; copied if its rows are not in order.
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
    pixels_HW3 = _checked(pixels_HW3)
    height, width, _ = pixels_HW3.shape
    target = patch_target((height, width), smart_resize(height, width, vision), vision)
    shape = (target.num_patches, vision.patch_width)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ConfigError(f"out must be {shape} float32 and C-contiguous, not {out.shape}")
    patches(
        [pixels_HW3],
        [target],
        value_table(vision),
        out=torch.from_numpy(out),
        instructions=instructions,
    )
    return out


def _checked(pixels_HW3: UInt8Array) -> UInt8Array:
    """`in_order`, and refused if there are none."""
    pixels_HW3 = in_order(pixels_HW3)
    check_image(pixels_HW3)
    return pixels_HW3


def in_order(pixels_HW3: UInt8Array) -> UInt8Array:
    """The pixels, copied where the bytes of a row do not lie side by side, or rows not in order.

    Raises:
        ConfigError: they are not (H, W, 3) uint8.
    """
    if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
        raise ConfigError(
            f"pixels must be (H, W, 3) uint8, not {pixels_HW3.shape} {pixels_HW3.dtype}"
        )
    try:
        check_image(pixels_HW3)
    except ConfigError:
        pixels_HW3 = np.ascontiguousarray(pixels_HW3)
    return pixels_HW3


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
        ConfigError: the array has another shape or dtype, or the size is not 1 to MAX_SIDE.
    """
    pixels_HW3 = _checked(pixels_HW3)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ConfigError(f"no size to resize to: {width}x{height}; sides are 1 to {MAX_SIDE}")
    first = vertical_first(pixels_HW3.shape[:2], (height, width), vision.pass_order)
    resized: UInt8Array = _C.resize(
        pixels_HW3, height, width, filter=by, vertical_first=first, instructions=instructions
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


class Normalisation(Protocol):
    """What makes values of bytes: `VisionConfig`, or one of `omr_io.images.families`."""

    @property
    def rescale_factor(self) -> float:
        """What a byte is multiplied by."""

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Then subtracted, per RGB channel."""

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Then divided by."""


def value_table(vision: Normalisation) -> Float32Array:
    """The value of each byte in each channel: transformers' rescale and normalize, run on a ramp.

    Returns:
        (3, 256) float32. The product is taken in float64 and rounded, the rest is in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * vision.rescale_factor).astype(np.float32)
    mean = np.array(vision.image_mean, dtype=np.float32)[:, None]
    std = np.array(vision.image_std, dtype=np.float32)[:, None]
    return cast(Float32Array, (scaled - mean) / std)


def blank_patches(
    grid_thw_3: Int64Array, vision: VisionConfig, dtype: torch.dtype = torch.float32
) -> PixelValues:
    """The patches of a mid-grey image, to stand in for one that failed to decode.

    Args:
        grid_thw_3: (3,) int64, the planned size in patches.
        dtype: of the values.

    Returns:
        (P, D), P the product of the grid.
    """
    num_patches = int(np.prod(grid_thw_3))
    row_D = np.repeat(value_table(vision)[:, BLANK_VALUE], vision.patch_width // 3)
    return as_array(torch.from_numpy(np.tile(row_D, (num_patches, 1))).to(dtype))
