"""What each input contributes to each output along one axis of a resize, for kernels on a GPU.

csrc/pixels computes them (in float64, without fused multiply-add; an axis of 512 outputs takes some
15 us, NumPy took 65), `omr_io.reference.pixels.coefficients` defines them. Weights lie by tap, so
that neighbouring outputs are neighbours in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from omr_io import _C
from omr_io.types import Filter, Int32Array

CACHED_AXES = 512
"""Results that `axis_weights` keeps. One takes some 2 * support * size_in * 4 bytes: for sides of
at most 4,096 pixels no more than 100 KB (Lanczos), so 50 MB at the very most."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """One axis. Output i is the sum over t of weights[t, i] * input[first[i] + t], rounded.

    Attributes:
        first: (size_out,) int32; first[i] + taps <= size_in, so every tap may be read.
        weights: (taps, size_out) int32, times 2**22; 0 where an output has fewer taps. 255 times
            the sum of an output's absolute weights fits an int32.
    """

    first: Int32Array
    weights: Int32Array

    @property
    def taps(self) -> int:
        """How many inputs an output is made of, at most."""
        return int(self.weights.shape[0])


@lru_cache(maxsize=CACHED_AXES)
def axis_weights(size_in: int, size_out: int, by: Filter) -> AxisWeights:
    """The weights of a resize of one axis from size_in to size_out pixels, both 1 to 2**20.

    Equal sizes are Pillow's skipped pass: one tap with a weight of one, which is exact. The arrays
    are read-only, since they are kept.
    """
    first, weights = _C.axis_weights(size_in, size_out, by)
    first.flags.writeable = weights.flags.writeable = False
    return AxisWeights(first, weights)
