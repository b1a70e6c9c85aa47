"""Pixtral, also the image side of Mistral Small 3.1: native aspect ratios, rows of patches.

Legend: N images; H, W pixels after the resize, and of the largest of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omr_io.errors import ConfigError, ImageError
from omr_io.images.families.base import (
    TOO_NARROW,
    Family,
    ImagePlan,
    Parts,
    Run,
    check_plans,
    check_positive,
)
from omr_io.images.families.fields import Fields, edges, present
from omr_io.types import PatchLayout, UInt8Array

if TYPE_CHECKING:
    import torch

    from omr_io.images.families.core import Core


@dataclass(frozen=True, slots=True)
class PixtralPlan(ImagePlan):
    """An image in `rows` x `columns` placeholders; `size` (height, width) is its image_sizes."""

    rows: int
    columns: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PixtralVision(Family[PixtralPlan]):
    """Pixtral and Mistral 3 (transformers' PixtralImageProcessorPil).

    `to_pixels` gives (3, H, W), both multiples of patch_size x spatial_merge_size.

    Args:
        longest_edge: no side is longer before it is rounded up ("size" in the files).
        patch_size: side of a patch in pixels.
        spatial_merge_size: spatial_merge_size x spatial_merge_size patches are one placeholder; the
            image processor by itself knows of none, the PixtralProcessor does.
        image_token, image_break_token, image_end_token: the placeholder, what ends a row, and what
            ends the last row.
    """

    processors: ClassVar[tuple[str, ...]] = ("PixtralProcessor",)

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    longest_edge: int = 1024
    patch_size: int = 16
    spatial_merge_size: int = 1
    image_token: str = "[IMG]"  # noqa: S105  a text, no secret
    image_break_token: str = "[IMG_BREAK]"  # noqa: S105
    image_end_token: str = "[IMG_END]"  # noqa: S105

    def _check(self) -> None:
        check_positive(self, "longest_edge", "patch_size", "spatial_merge_size")

    @classmethod
    def _read(cls, fields: Fields, processor: Fields) -> dict[str, Any]:
        """A PixtralProcessor's patch_size wins: it passes its own to the image processor."""
        read = {}
        if edge := edges(fields, "size", "longest_edge"):
            read["longest_edge"] = edge[0]
        patch = fields.get("patch_size")
        if isinstance(patch, dict):
            height, width = edges(fields, "patch_size", "height", "width") or (0, 0)
            if height != width:
                raise ConfigError(f"patch_size={patch!r} is not implemented: it is no square")
            patch = height
        if processor:
            tokens = ("image_token", "image_break_token", "image_end_token")
            read |= present(processor, "spatial_merge_size", *tokens)
            patch = processor.get("patch_size", 16)
        return read | ({} if patch is None else {"patch_size": patch})

    def _plan(self, height: int, width: int) -> PixtralPlan:
        side = self.patch_size * self.spatial_merge_size
        ratio = max(height / self.longest_edge, width / self.longest_edge)
        to_height, to_width = height, width
        if ratio > 1:
            to_height, to_width = math.floor(height / ratio), math.floor(width / ratio)
        rows, columns = -(-to_height // side), -(-to_width // side)
        if rows < 1 or columns < 1:
            raise ImageError(
                f"the image is {width}x{height}: with the longer side at {self.longest_edge} "
                "nothing is left of the other",
                reason=TOO_NARROW,
                mend="Crop it: transformers refuses it too",
            )
        size = (rows * side, columns * side)
        return PixtralPlan(
            height, width, (3, *size), self._runs(rows, columns), rows, columns, size
        )

    def _runs(self, rows: int, columns: int) -> tuple[Run, ...]:
        line = Run(self.image_token, columns)
        ends = [Run(self.image_break_token, kind="special")] * (rows - 1)
        ends.append(Run(self.image_end_token, kind="special"))
        return tuple(run for end in ends for run in (line, end))

    def _parts(self, pixels_HW3: UInt8Array, plan: PixtralPlan, core: Core) -> Parts:
        return [pixels_HW3], [core.target(pixels_HW3, plan.size, PatchLayout(*plan.size))]

    def batch(self, images: Sequence[torch.Tensor], plans: Sequence[PixtralPlan]) -> dict[str, Any]:
        """The images padded below and on the right to the largest sides.

        Returns:
            pixel_values (N, 3, H, W); image_sizes (N, 2) int64, height and width without padding.

        Raises:
            ConfigError: an image is not as planned.
        """
        import torch

        check_plans(images, plans)
        sizes = torch.tensor([plan.size for plan in plans], dtype=torch.int64)
        values = images[0].new_zeros((len(images), 3, *sizes.amax(dim=0).tolist()))
        for padded, image in zip(values, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]] = image
        return {"pixel_values": values, "image_sizes": sizes}
