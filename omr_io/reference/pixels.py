"""The oracle of pixels: resize, look up or normalise, cut into patches, in plain loops.

`resize` is Pillow's 8-bit resampling written down: a filter widened when shrinking, coefficients
rounded to 22-bit fixed point, one pass a direction with the result of the first rounded to uint8.
Keys' cubic filter has a = -0.5. (R. Keys, "Cubic convolution interpolation for digital image
processing", IEEE Trans. ASSP 29(6), 1981.)

Legend: H, W pixels in; h, w pixels out; P patches; D patch width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from omr_io.config import PassOrder, VisionConfig
from omr_io.images import smart_resize
from omr_io.images.patch_arguments import checked_output
from omr_io.types import (
    Filter,
    Float32Array,
    Int64Array,
    PatchLayout,
    PatchTarget,
    UInt8Array,
)

PRECISION_BITS = 22


def triangle(x: float) -> float:
    """Linear interpolation's kernel, zero beyond 1."""
    return max(1.0 - abs(x), 0.0)


def cubic(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond 2."""
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return 0.0


def lanczos(x: float) -> float:
    """Lanczos' windowed sinc of three lobes, zero beyond 3."""

    def sinc(x: float) -> float:
        return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)

    return sinc(x) * sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


KERNELS: Mapping[Filter, tuple[Callable[[float], float], float]] = MappingProxyType(
    {"bilinear": (triangle, 1.0), "bicubic": (cubic, 2.0), "lanczos": (lanczos, 3.0)}
)
"""Of each filter its kernel, and beyond what distance that is zero."""


def coefficients(size_in: int, size_out: int, by: Filter = "bicubic") -> Int64Array:
    """(size_out, size_in) int64: what each input contributes to each output, times 2**22."""
    kernel, support = KERNELS[by]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    matrix = np.zeros((size_out, size_in), dtype=np.int64)
    for i in range(size_out):
        centre = (i + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), size_in)
        weights = [kernel((j - centre + 0.5) * (1.0 / stretch)) for j in range(first, last)]
        total = 0.0
        for weight in weights:
            total += weight
        for j, weight in zip(range(first, last), weights, strict=True):
            fixed = weight / total * (1 << PRECISION_BITS)
            matrix[i, j] = math.trunc(fixed + math.copysign(0.5, fixed))
    return matrix


def _pass(pixels_XY3: UInt8Array, size: int, by: Filter) -> UInt8Array:
    """Resize axis 0 to `size`, rounding to uint8; an axis that has the size is left alone."""
    if pixels_XY3.shape[0] == size:
        return pixels_XY3
    matrix = coefficients(pixels_XY3.shape[0], size, by)
    total = np.tensordot(matrix, pixels_XY3.astype(np.int64), axes=1)
    rounded = (total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
    clipped: UInt8Array = np.clip(rounded, 0, 255).astype(np.uint8)
    return clipped


def vertical_first(height: int, width: int, to_height: int, to_width: int, rule: PassOrder) -> bool:
    """Whether the rule takes the vertical pass first for H x W -> h x w."""
    if rule == "horizontal-first":
        return False
    return to_height < height and height - to_height > 2 * (width - to_width)


def resize(
    pixels_HW3: UInt8Array, height: int, width: int, by: Filter, vertical_first: bool
) -> UInt8Array:
    """Resize to (height, width, 3) uint8 as the Pillow of that pass order does."""
    if vertical_first:
        return _pass(_pass(pixels_HW3, height, by).swapaxes(0, 1), width, by).swapaxes(0, 1)
    return _pass(_pass(pixels_HW3.swapaxes(0, 1), width, by).swapaxes(0, 1), height, by)


def normalise(pixels_HW3: UInt8Array, vision: VisionConfig) -> Float32Array:
    """Bytes to values, (H, W, 3) float32: scaled in float64, rounded, then (x - mean) / std."""
    values = (pixels_HW3.astype(np.float64) * vision.rescale_factor).astype(np.float32)
    for channel in range(3):
        mean = np.float32(vision.image_mean[channel])
        std = np.float32(vision.image_std[channel])
        values[..., channel] = (values[..., channel] - mean) / std
    return values


def look_up(pixels_HW3: UInt8Array, table_3x256: Float32Array) -> Float32Array:
    """Bytes to values, (H, W, 3) float32: channel c's byte b is table[c, b]."""
    return np.stack([table_3x256[c][pixels_HW3[..., c]] for c in range(3)], axis=-1)


def cut(values_HW3: Float32Array, layout: PatchLayout) -> Float32Array:
    """Cut into patches, (P, D) float32."""
    rows = values_HW3.shape[0] // layout.height
    columns = values_HW3.shape[1] // layout.width
    merge, patches = layout.merge_size, []
    for group_row in range(0, rows, merge):
        for group_column in range(0, columns, merge):
            for row in range(group_row, group_row + merge):
                for column in range(group_column, group_column + merge):
                    top, left = row * layout.height, column * layout.width
                    patch = values_HW3[top : top + layout.height, left : left + layout.width]
                    patches.append(_values(patch, layout))
    return np.stack(patches)


def _values(patch_hw3: Float32Array, layout: PatchLayout) -> Float32Array:
    """(D,) float32: the values of one patch in order."""
    if layout.channels_last:
        return np.concatenate([patch_hw3.ravel()] * layout.frames)
    return np.concatenate(
        [patch_hw3[..., channel].ravel() for channel in range(3) for _ in range(layout.frames)]
    )


def to_patches(pixels_HW3: UInt8Array, vision: VisionConfig, pass_order: PassOrder) -> Float32Array:
    """Qwen's whole way from pixels to patches, (P, D) float32."""
    rows, columns, _ = pixels_HW3.shape
    height, width = smart_resize(rows, columns, vision)
    first = vertical_first(rows, columns, height, width, pass_order)
    resized = resize(pixels_HW3, height, width, "bicubic", first)
    size = vision.patch_size
    layout = PatchLayout(size, size, vision.merge_size, vision.temporal_patch_size)
    return cut(normalise(resized, vision), layout)


def patches(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """The definition of `omr_io.ops.Patches`; `threads` is not used."""
    out_PD = checked_output(images, targets, table_3x256, dtype=dtype, out=out)
    start = 0
    for image, target in zip(images, targets, strict=True):
        size = target.height, target.width
        resized = resize(np.asarray(image), *size, target.filter, target.vertical_first)
        values = torch.from_numpy(cut(look_up(resized, table_3x256), target.layout))
        out_PD[start : start + len(values)] = values.to(dtype)
        start += len(values)
    return out_PD
