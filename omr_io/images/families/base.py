"""What the families have in common: planned integers, values of bytes, reading a folder.

Legend: H, W pixels of the image; N images.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from numpy.typing import NDArray

from omr_io.config import ExifPolicy, PassOrder
from omr_io.errors import ConfigError, ImageError
from omr_io.images.families.fields import RESAMPLE, Fields, common
from omr_io.types import Filter, Float32Array, ImageInfo, PatchTarget, UInt8Array

if TYPE_CHECKING:
    import torch

    from omr_io.images.families.core import Core

Parts = tuple[list[UInt8Array], list[PatchTarget]]
"""Images and what each becomes: the first two arguments of `omr_io.ops.Patches`."""

TOO_NARROW = "image-too-narrow"


@dataclass(frozen=True, slots=True)
class Run:
    """One text, `count` times in a row, of what stands for an image in the prompt.

    Attributes:
        text: as the family's Processor writes it.
        count: how often.
        kind: "image": a placeholder, one token whose embedding is replaced; "special": one added
            token; "text": plain text, which Hugging Face tokenizes together with what is around.
    """

    text: str
    count: int = 1
    kind: Literal["image", "special", "text"] = "image"


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What an image becomes, in integers.

    Attributes:
        height, width: of the image, in pixels, oriented.
        pixel_shape: of `Family.to_pixels`' result.
        runs: what stands for the image in the prompt, in order; () where there is no prompt.
    """

    height: int
    width: int
    pixel_shape: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def num_image_tokens(self) -> int:
        """Placeholders whose embeddings are replaced by the image's features."""
        return sum(run.count for run in self.runs if run.kind == "image")

    @property
    def num_special_tokens(self) -> int:
        """Added tokens around and between the placeholders."""
        return sum(run.count for run in self.runs if run.kind == "special")

    @property
    def text(self) -> str:
        """What the family's Processor writes in the place of the image."""
        return "".join(run.text * run.count for run in self.runs)


Plan = TypeVar("Plan", bound=ImagePlan)


@dataclass(frozen=True, slots=True)
class Family(ABC, Generic[Plan]):
    """How a family's image processor makes values of pixels; the fields that all have.

    Args:
        image_mean, image_std: of the values scaled to 0..1, per RGB channel.
        rescale_factor: what uint8 values are multiplied by first.
        filter: of every resize.
        exif: "apply" plans for images turned upright, "ignore" for pixels as stored; see
            `VisionConfig`.
        pass_order: the resize's rule; None follows the installed Pillow.
    """

    processors: ClassVar[tuple[str, ...]]
    """The Processor classes whose placeholders are those of `runs`."""

    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    filter: Filter = "bicubic"
    exif: ExifPolicy = "apply"
    pass_order: PassOrder | None = None

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"{name} must have 3 values, not {getattr(self, name)}")
        if 0 in self.image_std:
            raise ConfigError(f"image_std {self.image_std} divides by zero")
        if self.filter not in RESAMPLE.values():
            raise ConfigError(
                f"filter {self.filter!r} is not implemented",
                mend=f"Use {', '.join(RESAMPLE.values())}",
            )
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Refuse the family's own fields where they make no sense."""

    @classmethod
    @abstractmethod
    def _read(cls, fields: Fields, processor: Fields) -> dict[str, Any]:
        """The family's own arguments, from its image processor's fields and its Processor's."""

    @abstractmethod
    def _plan(self, height: int, width: int) -> Plan:
        """`plan` of a size of at least 1 x 1."""

    @abstractmethod
    def _parts(self, pixels_HW3: UInt8Array, plan: Plan, core: Core) -> Parts:
        """`parts` of pixels that are in order."""

    @abstractmethod
    def batch(self, images: Sequence[torch.Tensor], plans: Sequence[Plan]) -> dict[str, Any]:
        """Several images as the image processor returns them: stacked, and padded with zeros."""

    @classmethod
    def from_fields(cls, fields: Fields, processor: Fields, **changes: Any) -> Self:
        """From the fields of a folder's files; see `families.from_pretrained`.

        Raises:
            ConfigError: a field changes pixels or placeholders in a way that is not implemented, or
                `changes` names none.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(changes) - set(known)):
            raise ConfigError(
                f"{cls.__name__} has no {', '.join(unknown)}", mend=f"Use {', '.join(known)}"
            )
        return cls(**(common(fields) | cls._read(fields, processor) | changes))

    def plan(self, height: int, width: int) -> Plan:
        """What an image of this size becomes; no pixel is needed.

        Args:
            height, width: in pixels, oriented.

        Raises:
            ImageError: "image-too-narrow": a side would be left without a pixel, which is where
                transformers raises too.
        """
        if height < 1 or width < 1:
            raise ImageError(f"an image of {width}x{height} pixels has none", reason="image-empty")
        return self._plan(height, width)

    def plan_image(self, info: ImageInfo) -> Plan:
        """`plan` of an image's header, turned as `exif` says.

        Raises:
            ImageError: as `plan`.
        """
        turned = self.exif == "apply"
        width, height = info.oriented if turned else (info.width, info.height)
        return self.plan(height, width)

    def plans(self, heights_N: NDArray[Any], widths_N: NDArray[Any]) -> list[Plan]:
        """`plan` of many images: each size is planned once, and equal sizes share a plan.

        Args:
            heights_N, widths_N: (N,) integers, oriented; see `omr_io.images.oriented_sizes`.

        Raises:
            ImageError: as `plan`, naming the first image of such a size.
        """
        known: dict[tuple[int, int], Plan] = {}
        plans = []
        for row, size in enumerate(zip(heights_N.tolist(), widths_N.tolist(), strict=True)):
            if size not in known:
                try:
                    known[size] = self.plan(*size)
                except ImageError as error:
                    raise ImageError(
                        f"image {row}: {error.what}", mend=error.mend, reason=error.reason
                    ) from None
            plans.append(known[size])
        return plans

    def to_pixels(
        self,
        pixels_HW3: UInt8Array,
        dtype: torch.dtype | None = None,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One image as the model's input, without padding.

        Args:
            pixels_HW3: (H, W, 3) uint8 RGB, upright or as stored: as it was planned.
            dtype: float32 (also None), bfloat16 or float16, rounded from float32.
            out: a contiguous CPU tensor of the plan's `pixel_shape`, written to when given; its
                dtype is the result's.

        Returns:
            Values of the plan's `pixel_shape`, in float32 equal to the bit to transformers' PIL
            image processor's.

        Raises:
            ImageError: as `plan`.
            ConfigError: an array has another shape or dtype.
        """
        from omr_io.images.families import core  # torch: planning needs none of it

        images, targets = self.parts(pixels_HW3)
        plan = self.plan(pixels_HW3.shape[0], pixels_HW3.shape[1])
        return core.write((images, targets), self.value_table(), plan.pixel_shape, dtype, out)

    def parts(self, pixels_HW3: UInt8Array) -> Parts:
        """What one call of the operation `omr_io.ops.Patches` makes `to_pixels` of.

        For batches in one call, several threads, or a GPU: join the parts of images (all with one
        layout, but for Pixtral, whose images are a call each) and view the rows as `pixel_shape`.

        Args:
            pixels_HW3: as for `to_pixels`.

        Returns:
            (images, targets). Images are views of `pixels_HW3`, or of what a first resize made of
            it (Idefics3, on the CPU).

        Raises:
            ImageError, ConfigError: as `to_pixels`.
        """
        from omr_io.images.families import core
        from omr_io.images.patches import in_order

        pixels_HW3 = in_order(pixels_HW3)
        plan = self.plan(pixels_HW3.shape[0], pixels_HW3.shape[1])
        return self._parts(pixels_HW3, plan, core.Core(self.filter, self.pass_order))

    def value_table(self) -> Float32Array:
        """(3, 256) float32: the value of each byte in each channel."""
        from omr_io.images.patches import value_table

        return value_table(self)


def check_positive(vision: Family[Any], *names: str) -> None:
    """Refuse fields that are not whole numbers of at least 1."""
    for name in names:
        value = getattr(vision, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_plans(images: Sequence[torch.Tensor], plans: Sequence[ImagePlan]) -> None:
    """Refuse a batch whose images are not those of the plans.

    Raises:
        ConfigError: none, or a shape or dtype differs.
    """
    if not images or len(images) != len(plans):
        raise ConfigError(
            f"a batch needs images and a plan of each, not {len(images)} and {len(plans)}"
        )
    for row, (image, plan) in enumerate(zip(images, plans, strict=True)):
        if tuple(image.shape) != plan.pixel_shape or image.dtype != images[0].dtype:
            raise ConfigError(
                f"image {row} is {tuple(image.shape)} {image.dtype}, the plan is "
                f"{plan.pixel_shape} {images[0].dtype}"
            )
