"""Idefics3 and SmolVLM: an image in square tiles, and the whole of it once more as the last one.

Legend: S samples; I tiles of one image; M tiles of the sample that has most; s max_image_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
from omr_io.types import Filter, PatchLayout, UInt8Array

if TYPE_CHECKING:
    import torch

    from omr_io.images.families.core import Core

MAX_SIDE = 4096
"""Of an image after its first resize, whatever longest_edge says."""


@dataclass(frozen=True, slots=True)
class Idefics3Plan(ImagePlan):
    """An image in `rows` x `columns` tiles, and the whole; both 0 when it is one tile.

    Attributes:
        fitted: (height, width) after the first resize.
        tiled: (height, width) after the second, which is cut into tiles.
    """

    rows: int
    columns: int
    fitted: tuple[int, int]
    tiled: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """I, the whole image counted."""
        return self.rows * self.columns + 1


@dataclass(frozen=True, slots=True)
class Idefics3Vision(Family[Idefics3Plan]):
    """Idefics3, SmolVLM, SmolVLM2 on images (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil).

    `to_pixels` gives (I, 3, s, s): the tiles by rows, then the whole image.

    Sizes follow the image processor. `get_number_of_image_patches` of transformers 5.23 counts
    other tiles for some sizes where longest_edge is no multiple of max_image_size.

    Args:
        longest_edge: the longer side after the first resize ("size" in the files).
        max_image_size: s, the side of a tile.
        do_image_splitting: False: the image is one tile.
        image_seq_len: placeholders a tile.
    """

    processors: ClassVar[tuple[str, ...]] = ("Idefics3Processor", "SmolVLMProcessor")

    filter: Filter = "lanczos"
    longest_edge: int = 4 * 364
    max_image_size: int = 364
    do_image_splitting: bool = True
    image_seq_len: int = 169

    def _check(self) -> None:
        check_positive(self, "longest_edge", "max_image_size", "image_seq_len")

    @classmethod
    def _read(cls, fields: Fields, processor: Fields) -> dict[str, Any]:
        read = present(fields, "do_image_splitting") | present(processor, "image_seq_len")
        for name, key in (("longest_edge", "size"), ("max_image_size", "max_image_size")):
            if edge := edges(fields, key, "longest_edge"):
                read[name] = edge[0]
        return read

    def _plan(self, height: int, width: int) -> Idefics3Plan:
        fitted = self._fit(height, width)
        side, rows, columns = self.max_image_size, 0, 0
        tiled = self._tile(*fitted) if self.do_image_splitting else (side, side)
        if 0 in tiled:
            raise ImageError(
                f"the image is {width}x{height}: at {fitted[1]}x{fitted[0]} it has no tiles",
                reason=TOO_NARROW,
                mend="Crop it: transformers refuses it too",
            )
        if max(tiled) > side:
            rows, columns = tiled[0] // side, tiled[1] // side
        shape = (rows * columns + 1, 3, side, side)
        return Idefics3Plan(
            height, width, shape, self._runs(rows, columns), rows, columns, fitted, tiled
        )

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """The longer side becomes longest_edge, the other one even; then no side over MAX_SIDE."""
        ratio = width / height
        if width >= height:
            width, height = self.longest_edge, int(self.longest_edge / ratio)
            height = max(height + height % 2, 1)
        else:
            height, width = self.longest_edge, int(self.longest_edge * ratio)
            width = max(width + width % 2, 1)
        ratio = width / height
        if width >= height and width > MAX_SIDE:
            width, height = MAX_SIDE, max(int(MAX_SIDE / ratio), 1)
        elif height > MAX_SIDE:
            height, width = MAX_SIDE, max(int(MAX_SIDE * ratio), 1)
        return height, width

    def _tile(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of a tile: the longer side rounded up, the other one follows and likewise."""
        side, ratio = self.max_image_size, width / height
        if width >= height:
            width = math.ceil(width / side) * side
            return math.ceil(int(width / ratio) / side) * side, width
        height = math.ceil(height / side) * side
        return height, math.ceil(int(height * ratio) / side) * side

    def _runs(self, rows: int, columns: int) -> tuple[Run, ...]:
        around = Run("<fake_token_around_image>", kind="special")
        tile = Run("<image>", self.image_seq_len)
        runs: list[Run] = []
        for row, column in product(range(1, rows + 1), range(1, columns + 1)):
            runs += around, Run(f"<row_{row}_col_{column}>", kind="special"), tile
            if column == columns:
                runs.append(Run("\n" if row < rows else "\n\n", kind="text"))
        return (*runs, around, Run("<global-img>", kind="special"), tile, around)

    def _parts(self, pixels_HW3: UInt8Array, plan: Idefics3Plan, core: Core) -> Parts:
        whole = (self.max_image_size, self.max_image_size)
        layout = PatchLayout(*whole)
        fitted = core.resize(pixels_HW3, *plan.fitted)
        if plan.rows == 0:
            return [fitted], [core.target(fitted, plan.tiled, layout)]
        tiled = core.resize(fitted, *plan.tiled)
        sizes = (plan.tiled, whole)
        return [tiled, tiled], [core.target(tiled, size, layout) for size in sizes]

    def batch(
        self,
        images: Sequence[torch.Tensor],
        plans: Sequence[Idefics3Plan],
        images_per_sample: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """The images by samples, padded to the most tiles of a sample.

        Args:
            images_per_sample: how many of the images belong to each sample; None: one.

        Returns:
            pixel_values (S, M, 3, s, s); pixel_attention_mask (S, M, s, s) int64, 1 on tiles; rows
            and cols, for each sample a list.

        Raises:
            ConfigError: an image is not as planned, or the counts do not add up.
        """
        import torch

        check_plans(images, plans)
        counts = [1] * len(images) if images_per_sample is None else list(images_per_sample)
        if sum(counts) != len(images) or min(counts) < 0:
            raise ConfigError(f"images_per_sample {counts} does not share out {len(images)} images")
        ends = [sum(counts[: sample + 1]) for sample in range(len(counts))]
        owned = [range(end - count, end) for count, end in zip(counts, ends, strict=True)]
        most = max(sum(len(images[one]) for one in own) for own in owned)
        side = self.max_image_size
        values = images[0].new_zeros((len(counts), most, 3, side, side))
        mask = torch.zeros((len(counts), most, side, side), dtype=torch.int64)
        for sample, own in enumerate(owned):
            at = 0
            for one in own:
                values[sample, at : at + len(images[one])] = images[one]
                at += len(images[one])
            mask[sample, :at] = 1
        return {
            "pixel_values": values,
            "pixel_attention_mask": mask,
            "rows": [[plans[one].rows for one in own] for own in owned],
            "cols": [[plans[one].columns for one in own] for own in owned],
        }
