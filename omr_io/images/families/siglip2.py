"""SigLIP2 NaFlex: any aspect ratio, as many patches as fit into a number.

Legend: N images; P patches of one; D patch width; M max_num_patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omr_io.errors import ConfigError
from omr_io.images.families.base import (
    Family,
    ImagePlan,
    Parts,
    check_plans,
    check_positive,
)
from omr_io.images.families.fields import Fields, present
from omr_io.types import Filter, PatchLayout, UInt8Array

if TYPE_CHECKING:
    import torch

    from omr_io.images.families.core import Core

PRECISION = 1e-5
MAX_SCALE = 100.0
"""The bisection's end and upper bound are part of the result; both are transformers'."""


@dataclass(frozen=True, slots=True)
class Siglip2Plan(ImagePlan):
    """An image in `rows` x `columns` patches: its spatial_shapes. It stands in no prompt."""

    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        """P."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Siglip2Vision(Family[Siglip2Plan]):
    """SigLIP2 with native aspect ratios (transformers' Siglip2ImageProcessorPil).

    `to_pixels` gives (P, D): patches by rows, values by row, column, channel.

    transformers' Siglip2Processor passes its own patch_size 16 and max_num_patches 256 to the image
    processor at every call, whatever the folder says; this is the image processor.

    Args:
        patch_size: side of a patch in pixels.
        max_num_patches: at most this many patches, and what a batch is padded to.
    """

    processors: ClassVar[tuple[str, ...]] = ("Siglip2Processor",)

    filter: Filter = "bilinear"
    patch_size: int = 16
    max_num_patches: int = 256

    def _check(self) -> None:
        check_positive(self, "patch_size", "max_num_patches")

    @classmethod
    def _read(cls, fields: Fields, processor: Fields) -> dict[str, Any]:
        return present(fields, "patch_size", "max_num_patches")

    def _plan(self, height: int, width: int) -> Siglip2Plan:
        low, high = PRECISION / 10, MAX_SCALE
        while high - low >= PRECISION:
            scale = (low + high) / 2
            rows, columns = self._patches(height, scale), self._patches(width, scale)
            if rows * columns <= self.max_num_patches:
                low = scale
            else:
                high = scale
        rows, columns = self._patches(height, low), self._patches(width, low)
        shape = (rows * columns, 3 * self.patch_size**2)
        return Siglip2Plan(height, width, shape, (), rows, columns)

    def _patches(self, side: int, scale: float) -> int:
        return max(1, math.ceil(side * scale / self.patch_size))

    def _parts(self, pixels_HW3: UInt8Array, plan: Siglip2Plan, core: Core) -> Parts:
        side = self.patch_size
        layout = PatchLayout(side, side, channels_last=True)
        size = (plan.rows * side, plan.columns * side)
        return [pixels_HW3], [core.target(pixels_HW3, size, layout)]

    def batch(self, images: Sequence[torch.Tensor], plans: Sequence[Siglip2Plan]) -> dict[str, Any]:
        """The images padded to max_num_patches.

        Returns:
            pixel_values (N, M, D); pixel_attention_mask (N, M) int32, 1 on patches; spatial_shapes
            (N, 2) int64, rows and columns of patches.

        Raises:
            ConfigError: an image is not as planned, or has more than max_num_patches.
        """
        import torch

        check_plans(images, plans)
        count, most = len(images), self.max_num_patches
        if max(plan.num_patches for plan in plans) > most:
            raise ConfigError(f"an image has more than max_num_patches {most}")
        values = images[0].new_zeros((count, most, images[0].shape[1]))
        mask = torch.zeros((count, most), dtype=torch.int32)
        for row, image in enumerate(images):
            values[row, : len(image)] = image
            mask[row, : len(image)] = 1
        shapes = torch.tensor([(plan.rows, plan.columns) for plan in plans], dtype=torch.int64)
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}
