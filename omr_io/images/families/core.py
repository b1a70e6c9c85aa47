"""What `families` asks of the C++ core, in one place.

Legend: H, W pixels in; h, w pixels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omr_io import _C
from omr_io.config import PassOrder
from omr_io.errors import ConfigError
from omr_io.images.cpu_patches import patches
from omr_io.images.patches import vertical_first
from omr_io.types import Filter, Float32Array, PatchLayout, PatchTarget, UInt8Array


@dataclass(frozen=True, slots=True)
class Core:
    """A family's resizes."""

    filter: Filter
    pass_order: PassOrder | None

    def resize(self, pixels_HW3: UInt8Array, height: int, width: int) -> UInt8Array:
        """(height, width, 3) uint8, as Pillow makes it; the same pixels where the size stays."""
        size_in, size = pixels_HW3.shape[:2], (height, width)
        if size_in == size:
            return pixels_HW3
        first = vertical_first(size_in, size, self.pass_order)
        resized: UInt8Array = _C.resize(
            np.ascontiguousarray(pixels_HW3), *size, filter=self.filter, vertical_first=first
        )
        return resized

    def target(
        self, pixels_HW3: UInt8Array, size: tuple[int, int], layout: PatchLayout
    ) -> PatchTarget:
        """Pixels resized to `size` (h, w) and cut."""
        first = vertical_first(pixels_HW3.shape[:2], size, self.pass_order)
        return PatchTarget(*size, layout, self.filter, first)


def write(
    parts: tuple[Sequence[UInt8Array], Sequence[PatchTarget]],
    table_3x256: Float32Array,
    shape: tuple[int, ...],
    dtype: torch.dtype | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """The values of one image's parts, (P, D) seen as `shape`.

    Raises:
        ConfigError: `out` or `dtype` is none that values can be written to, or they differ.
    """
    wanted = dtype or (torch.float32 if out is None else out.dtype)
    if out is not None:
        if tuple(out.shape) != shape or not out.is_contiguous():
            raise ConfigError(f"out must be {shape} and contiguous, not {tuple(out.shape)}")
        num_patches = sum(target.num_patches for target in parts[1])
        out = out.view(num_patches, -1)
    return patches(*parts, table_3x256, dtype=wanted, out=out).view(shape)
