"""The oracle of pixels: resize, rescale, normalise and lay out patches, in plain loops.

`resize_bicubic` is Pillow's 8-bit resampling written down: Keys' cubic filter (a = -0.5), widened
when shrinking, coefficients rounded to 22-bit fixed point, one pass a direction with the result of
the first rounded to uint8. (R. Keys, "Cubic convolution interpolation for digital image
processing", IEEE Trans. ASSP 29(6), 1981.)

Legend: H, W pixels in; h, w pixels out; P patches; D patch width.
"""

from __future__ import annotations

import math

import numpy as np

from omr_io.config import PassOrder, VisionConfig
from omr_io.images import smart_resize
from omr_io.types import Float32Array, Int64Array, UInt8Array

PRECISION_BITS = 22
SUPPORT = 2.0


def cubic(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond 2."""
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return 0.0


def coefficients(size_in: int, size_out: int) -> Int64Array:
    """(size_out, size_in) int64: what each input contributes to each output, times 2**22."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    matrix = np.zeros((size_out, size_in), dtype=np.int64)
    for i in range(size_out):
        centre = (i + 0.5) * scale
        first = max(int(centre - SUPPORT * stretch + 0.5), 0)
        last = min(int(centre + SUPPORT * stretch + 0.5), size_in)
        weights = [cubic((j - centre + 0.5) * (1.0 / stretch)) for j in range(first, last)]
        total = 0.0
        for weight in weights:
            total += weight
        for j, weight in zip(range(first, last), weights, strict=True):
            fixed = weight / total * (1 << PRECISION_BITS)
            matrix[i, j] = math.trunc(fixed + math.copysign(0.5, fixed))
    return matrix


def _pass(pixels_XY3: UInt8Array, size: int) -> UInt8Array:
    """Resize axis 0 to `size`, rounding to uint8; an axis that has the size is left alone."""
    if pixels_XY3.shape[0] == size:
        return pixels_XY3
    matrix = coefficients(pixels_XY3.shape[0], size)
    total = np.tensordot(matrix, pixels_XY3.astype(np.int64), axes=1)
    rounded = (total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
    clipped: UInt8Array = np.clip(rounded, 0, 255).astype(np.uint8)
    return clipped


def vertical_first(height: int, width: int, to_height: int, to_width: int, rule: PassOrder) -> bool:
    """Whether the rule takes the vertical pass first for H x W -> h x w."""
    if rule == "horizontal-first":
        return False
    return to_height < height and height - to_height > 2 * (width - to_width)


def resize_bicubic(
    pixels_HW3: UInt8Array, height: int, width: int, pass_order: PassOrder
) -> UInt8Array:
    """Resize to (height, width, 3) uint8 as the Pillow of that pass order does."""
    if vertical_first(pixels_HW3.shape[0], pixels_HW3.shape[1], height, width, pass_order):
        return _pass(_pass(pixels_HW3, height).swapaxes(0, 1), width).swapaxes(0, 1)
    return _pass(_pass(pixels_HW3.swapaxes(0, 1), width).swapaxes(0, 1), height)


def normalise(pixels_HW3: UInt8Array, vision: VisionConfig) -> Float32Array:
    """Bytes to values, (H, W, 3) float32: scaled in float64, rounded, then (x - mean) / std."""
    values = (pixels_HW3.astype(np.float64) * vision.rescale_factor).astype(np.float32)
    for channel in range(3):
        mean = np.float32(vision.image_mean[channel])
        std = np.float32(vision.image_std[channel])
        values[..., channel] = (values[..., channel] - mean) / std
    return values


def patch_order(values_HW3: Float32Array, vision: VisionConfig) -> Float32Array:
    """Cut into patches, (P, D) float32, in the order of the vision tower."""
    size, merge = vision.patch_size, vision.merge_size
    rows, columns = values_HW3.shape[0] // size, values_HW3.shape[1] // size
    patches = []
    for group_row in range(0, rows, merge):
        for group_column in range(0, columns, merge):
            for row in range(group_row, group_row + merge):
                for column in range(group_column, group_column + merge):
                    top, left = row * size, column * size
                    patch = values_HW3[top : top + size, left : left + size]
                    frames = [
                        patch[..., channel].ravel()
                        for channel in range(3)
                        for _ in range(vision.temporal_patch_size)
                    ]
                    patches.append(np.concatenate(frames))
    return np.stack(patches)


def to_patches(pixels_HW3: UInt8Array, vision: VisionConfig, pass_order: PassOrder) -> Float32Array:
    """The whole way from pixels to patches, (P, D) float32."""
    height, width = smart_resize(pixels_HW3.shape[0], pixels_HW3.shape[1], vision)
    resized = resize_bicubic(pixels_HW3, height, width, pass_order)
    return patch_order(normalise(resized, vision), vision)
