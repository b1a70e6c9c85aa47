"""Gemma 3: an image as one square, and by pan and scan its crops, each as one square more.

Legend: N images; C crops of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omr_io.images.families.base import (
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

SCAN = (
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an image, in pixels.

    Of images with fewer pixels than crops ask for (10 pixels in 7 crops of 2) the last ones are
    empty: black squares, as in transformers.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Gemma3Plan(ImagePlan):
    """An image, and its crops in the order of reading; without pan and scan there are none."""

    crops: tuple[Box, ...]

    @property
    def num_crops(self) -> int:
        """C."""
        return len(self.crops)


@dataclass(frozen=True, slots=True)
class Gemma3Vision(Family[Gemma3Plan]):
    """Gemma 3 (transformers' Gemma3ImageProcessorPil).

    `to_pixels` gives (1 + C, 3, size_height, size_width): the image, then its crops.

    transformers' Gemma3Processor passes its own pan-and-scan options (off, unless the call says
    otherwise) to the image processor, whatever the folder says; this is the image processor, with
    the Processor's numbers where the folder's are null.

    Args:
        size_height, size_width: of the image and each crop after the resize.
        do_pan_and_scan: crop images whose sides differ enough.
        pan_and_scan_min_crop_size: no crop has a side below this.
        pan_and_scan_max_num_crops: at most this many crops.
        pan_and_scan_min_ratio_to_activate: of the longer to the shorter side.
        image_seq_length: placeholders for the image and for each crop.
    """

    processors: ClassVar[tuple[str, ...]] = ("Gemma3Processor",)

    filter: Filter = "bilinear"
    size_height: int = 224
    size_width: int = 224
    do_pan_and_scan: bool = False
    pan_and_scan_min_crop_size: int = 256
    pan_and_scan_max_num_crops: int = 4
    pan_and_scan_min_ratio_to_activate: float = 1.2
    image_seq_length: int = 256

    def _check(self) -> None:
        check_positive(self, "size_height", "size_width", *SCAN[:2], "image_seq_length")

    @classmethod
    def _read(cls, fields: Fields, processor: Fields) -> dict[str, Any]:
        read = present(fields, "do_pan_and_scan", *SCAN) | present(processor, "image_seq_length")
        if size := edges(fields, "size", "height", "width"):
            read["size_height"], read["size_width"] = size
        return read

    def _plan(self, height: int, width: int) -> Gemma3Plan:
        crops = self._crops(height, width) if self.do_pan_and_scan else ()
        shape = (1 + len(crops), 3, self.size_height, self.size_width)
        return Gemma3Plan(height, width, shape, self._runs(len(crops)), crops)

    def _crops(self, height: int, width: int) -> tuple[Box, ...]:
        """The longer side in as many parts as the shorter one goes into it, within the bounds."""
        longer, shorter = max(height, width), min(height, width)
        ratio = longer / shorter
        if ratio < self.pan_and_scan_min_ratio_to_activate:
            return ()
        count = min(longer // self.pan_and_scan_min_crop_size, math.floor(ratio + 0.5))
        count = min(self.pan_and_scan_max_num_crops, max(2, count))
        part = math.ceil(longer / count)
        if min(part, shorter) < self.pan_and_scan_min_crop_size:
            return ()
        parts = [(i * part, min(part, max(0, longer - i * part))) for i in range(count)]
        if width >= height:
            return tuple(Box(0, start, height, length) for start, length in parts)
        return tuple(Box(start, 0, length, width) for start, length in parts)

    def _runs(self, num_crops: int) -> tuple[Run, ...]:
        square: tuple[Run, ...] = (
            Run("\n\n", kind="text"),
            Run("<start_of_image>", kind="special"),
            Run("<image_soft_token>", self.image_seq_length),
            Run("<end_of_image>", kind="special"),
            Run("\n\n", kind="text"),
        )
        if not num_crops:
            return square
        runs = (Run("Here is the original image ", kind="text"), *square)
        between = " and here are some crops to help you see better "
        for _ in range(num_crops):
            runs = (*runs, Run(between, kind="text"), *square)
            between = " "
        return runs

    def _parts(self, pixels_HW3: UInt8Array, plan: Gemma3Plan, core: Core) -> Parts:
        size = (self.size_height, self.size_width)
        boxes = (Box(0, 0, plan.height, plan.width), *plan.crops)
        crops = [
            pixels_HW3[box.top : box.top + box.height, box.left : box.left + box.width]
            for box in boxes
        ]
        black = np.zeros((1, 1, 3), dtype=np.uint8)  # what Pillow makes of no pixels
        crops = [crop if crop.size else black for crop in crops]
        return crops, [core.target(crop, size, PatchLayout(*size)) for crop in crops]

    def batch(self, images: Sequence[torch.Tensor], plans: Sequence[Gemma3Plan]) -> dict[str, Any]:
        """The images and crops, one after the other.

        Returns:
            pixel_values (N + all crops, 3, size_height, size_width); num_crops (N,) int64.

        Raises:
            ConfigError: an image is not as planned.
        """
        import torch

        check_plans(images, plans)
        num_crops = torch.tensor([plan.num_crops for plan in plans], dtype=torch.int64)
        return {"pixel_values": torch.cat(list(images)), "num_crops": num_crops}
