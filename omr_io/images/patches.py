"""Pixels to patches: what transformers' Qwen2VLImageProcessorPil gives, bit for bit.

Resize with Pillow's bicubic, look each byte up in a table made by the processor's own arithmetic,
and lay the result out as the vision tower wants it. `reference/pixels.py` is the definition.

Legend: H, W pixels; P patches; D patch width (3 x temporal_patch_size x patch_size squared).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import PIL
from PIL import Image

from omr_io.config import PassOrder, VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.sizes import smart_resize
from omr_io.types import Float32Array, Int64Array, UInt8Array

BLANK_VALUE = 128
"""The byte of a blank image: mid-grey."""


def to_patches(
    pixels_HW3: UInt8Array, vision: VisionConfig, out: Float32Array | None = None
) -> Float32Array:
    """One image as the vision tower's input.

    Args:
        pixels_HW3: (H, W, 3) uint8 RGB, of any size.
        out: (P, D) float32, C-contiguous, written to when given: P and D follow from
            `image_grid_thw` and `vision.patch_width`.

    Returns:
        (P, D) float32. Patches go by groups of merge_size x merge_size, groups by rows; within a
        patch the order is channel, frame, row, column.

    Raises:
        ImageError: "image-too-narrow".
        ConfigError: `vision.pass_order` is not that of the installed Pillow, or an array has
            another shape or dtype.
    """
    if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
        raise ConfigError(
            f"pixels must be (H, W, 3) uint8, not {pixels_HW3.shape} {pixels_HW3.dtype}"
        )
    target = smart_resize(pixels_HW3.shape[0], pixels_HW3.shape[1], vision)
    resized_HW3 = resize(pixels_HW3, *target, vision)
    merge, size = vision.merge_size, vision.patch_size
    rows, columns = resized_HW3.shape[0] // size, resized_HW3.shape[1] // size
    out_PD = _output(rows * columns, vision, out)
    # (row group, row in it, pixel row, column group, column in it, pixel column, channel)
    split = resized_HW3.reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
    codes = split.transpose(6, 0, 3, 1, 4, 2, 5)
    values = out_PD.reshape(rows * columns, 3, vision.temporal_patch_size, size * size)
    for channel, table in enumerate(value_table(vision)):
        # A channel at a time: take wants 8-byte indices, and a third of them stays in cache.
        index = codes[channel].reshape(rows * columns, size * size).astype(np.intp)
        values[:, channel] = table.take(index)[:, None, :]
    return out_PD


def _output(num_patches: int, vision: VisionConfig, out: Float32Array | None) -> Float32Array:
    shape = (num_patches, vision.patch_width)
    if out is None:
        return np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ConfigError(f"out must be {shape} float32 and C-contiguous, not {out.shape}")
    return out


def resize(pixels_HW3: UInt8Array, height: int, width: int, vision: VisionConfig) -> UInt8Array:
    """Resize by Pillow's bicubic filter; an image that has the size already is given back.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ConfigError: `vision.pass_order` is not that of the installed Pillow.
    """
    installed = installed_pass_order()
    if vision.pass_order not in (None, installed):
        raise ConfigError(
            f"pass_order {vision.pass_order!r} is asked for, but the installed Pillow "
            f"{PIL.__version__} resizes by {installed!r}",
            mend="Install Pillow 12 for 'horizontal-first' or 13 for 'pillow-13', or leave "
            "pass_order out to follow the installed one",
        )
    if pixels_HW3.shape[:2] == (height, width):
        return pixels_HW3
    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


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
