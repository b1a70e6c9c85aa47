"""What a decoder is, and what all of them share: the check against the plan, and turning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from omr_io.config import ExifPolicy
from omr_io.errors import ImageError
from omr_io.images.sizes import check_caps, probe
from omr_io.types import ImageFailure, ImageInfo, UInt8Array

if TYPE_CHECKING:  # it takes a second to import, and linting does without it
    import torch

DecoderName = Literal["auto", "cpu", "dali", "nvimgcodec"]

Decoded: TypeAlias = "UInt8Array | torch.Tensor | ImageFailure"
"""What becomes of an image: pixels on the host or on a GPU, or why there are none."""


class Decoder(Protocol):
    """What the loader needs of a decoder. Calls from several threads are safe."""

    @property
    def name(self) -> str:
        """What `make_decoder` calls it."""

    @property
    def device(self) -> str:
        """Where the tensors are that it gives, such as "cuda:0"; with "cpu" all are arrays."""

    def decode(self, images: Sequence[bytes], infos: Sequence[ImageInfo]) -> Sequence[Decoded]:
        """Decode images; a bad one gives an `ImageFailure` in its place and never raises.

        Args:
            images: the encoded files.
            infos: what the plan knows of each; an image that differs from it is a failure.

        Returns:
            For each image (H, W, 3) uint8 RGB, C-contiguous, turned as the EXIF policy says: an
            array, or, from a decoder on a GPU, a tensor there, which is ready on the stream that is
            current in the calling thread. What such a decoder leaves to the CPU comes as arrays.
            Pixels are the caller's for as long as it holds them.

        Raises:
            ConfigError: what is installed cannot decode a format at all: no image is to blame.
        """

    def close(self) -> None:
        """Free what the decoder holds; it may be called again."""


def turn(pixels_HW3: UInt8Array, info: ImageInfo, exif: ExifPolicy) -> UInt8Array:
    """Apply an image's EXIF orientation as `PIL.ImageOps.exif_transpose` does, or not by policy.

    Returns:
        (H, W, 3) or (W, H, 3) uint8, C-contiguous; the same array when there is nothing to do.
    """
    if exif == "ignore" or info.orientation == 1:
        return pixels_HW3
    # EXIF 2.32, 4.6.4: where row 0 and column 0 of the stored image belong.
    flipped = {
        2: pixels_HW3[:, ::-1],
        3: pixels_HW3[::-1, ::-1],
        4: pixels_HW3[::-1],
        5: pixels_HW3.swapaxes(0, 1),
        6: pixels_HW3[::-1].swapaxes(0, 1),
        7: pixels_HW3[::-1, ::-1].swapaxes(0, 1),
        8: pixels_HW3[:, ::-1].swapaxes(0, 1),
    }
    return np.ascontiguousarray(flipped[info.orientation])


def check_planned(data: bytes, info: ImageInfo, max_pixels: int) -> ImageInfo:
    """Check that bytes are the image of the plan, before memory is taken by their say-so.

    The mode does not enter into any plan, and an index need not hold it: it is found again here.

    Returns:
        What `probe` says of the bytes.

    Raises:
        ImageError: "image-changed" if they are another image, and what `probe` and `check_caps`
            raise.
    """
    found = probe(data)
    if (  # field by field: `dataclasses.replace` and == took 2 us of the 8
        found.width != info.width
        or found.height != info.height
        or found.format != info.format
        or found.orientation != info.orientation
    ):
        raise ImageError(
            f"the bytes are not the image that was planned: {found}, "
            f"planned {dataclasses.replace(info, mode=info.mode or 'any mode')}",
            reason="image-changed",
        )
    check_caps(found, len(data), max_pixels=max_pixels)
    return found
