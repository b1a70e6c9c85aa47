"""What each input contributes to each output along one axis of a resize, in NumPy: for the GPU.

The same numbers as csrc/pixels/coefficients.cpp and `omr_io.reference.pixels.coefficients`, laid
out for kernels: weights by tap, so that neighbouring outputs are neighbours in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from omr_io.types import Filter, Int32Array

Doubles = NDArray[np.float64]

PRECISION_BITS = 22
"""Bits behind the point of a weight, as in Pillow: 255 times the sum of a row's absolute weights
(at most 1.5 for these filters) then fits an int32."""

CACHED_AXES = 512
"""Results that `axis_weights` keeps. One takes some 2 * support * size_in * 4 bytes: for sides of
at most 4,096 pixels no more than 100 KB (Lanczos), so 50 MB at the very most."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """One axis. Output i is the sum over t of weights[t, i] * input[first[i] + t], rounded.

    Attributes:
        first: (size_out,) int32; first[i] + taps <= size_in, so every tap may be read.
        weights: (taps, size_out) int32, times 2**22; 0 where an output has fewer taps.
    """

    first: Int32Array
    weights: Int32Array

    @property
    def taps(self) -> int:
        """How many inputs an output is made of, at most."""
        return int(self.weights.shape[0])


def _triangle(x: Doubles) -> Doubles:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _cubic(x: Doubles) -> Doubles:
    """Keys' with a = -0.5; ufuncs round after each operation, so nothing is fused."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _sinc(x: Doubles) -> Doubles:
    scaled = x * math.pi
    # The C library's sine, one value at a time: NumPy's own vector form may differ in the last bit.
    sines = np.fromiter(map(math.sin, scaled.flat), np.float64, scaled.size).reshape(scaled.shape)
    zero = x == 0.0
    return np.where(zero, 1.0, sines / np.where(zero, 1.0, scaled))


def _lanczos(x: Doubles) -> Doubles:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


_KERNELS: Mapping[Filter, tuple[Callable[[Doubles], Doubles], float]] = MappingProxyType(
    {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos": (_lanczos, 3.0)}
)


@lru_cache(maxsize=CACHED_AXES)
def axis_weights(size_in: int, size_out: int, by: Filter) -> AxisWeights:
    """The weights of a resize of one axis from size_in to size_out pixels, both at least 1.

    Equal sizes are Pillow's skipped pass: one tap with a weight of one, which is exact. The arrays
    are read-only, since they are kept.
    """
    if size_in == size_out:
        ones = np.full((1, size_out), 1 << PRECISION_BITS, np.int32)
        return _frozen(np.arange(size_out, dtype=np.int32), ones)
    kernel, support = _KERNELS[by]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support, step = support * stretch, 1.0 / stretch
    centre = (np.arange(size_out, dtype=np.float64) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size_in)
    taps = int((last - first).max())
    # A window of `taps` that ends within the input: what lies before `first` weighs nothing.
    start = np.minimum(first, size_in - taps)
    at = start + np.arange(taps)[:, None]
    weights = kernel((at.astype(np.float64) - centre + 0.5) * step)
    weights = np.where((at >= first) & (at < last), weights, 0.0)
    # accumulate, not sum: one addition after the other, as the definition has it.
    total = np.add.accumulate(weights, axis=0)[-1]
    fixed = weights / np.where(total == 0.0, 1.0, total) * (1 << PRECISION_BITS)
    rounded = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)
    return _frozen(start.astype(np.int32), rounded)


def _frozen(first: Int32Array, weights: Int32Array) -> AxisWeights:
    weights = cast(Int32Array, np.ascontiguousarray(weights))
    for array in (first, weights):
        array.flags.writeable = False
    return AxisWeights(first, weights)
