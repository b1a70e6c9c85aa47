"""Images re-encoded as smaller JPEGs, for users who want small shards. Lossy, and never implied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

import numpy as np

from omr_io.errors import ConfigError
from omr_io.images.sizes import MAX_ASPECT
from omr_io.types import ImageInfo, UInt8Array

_MAX_JPEG_SIDE: Final = 65_500  # libjpeg's limit


@dataclass(frozen=True, slots=True)
class Transcode:
    """How images are re-encoded.

    Args:
        max_side: the longer side is shrunk to this, in pixels; None: no bound.
        max_pixels: and width x height to this.
        quality: libjpeg's, 1 to 100.
        format: JPEG is the only one.
        subsampling: of the colours: "444" keeps their full resolution (stains, skin and retina
            are read by it), "420" is some 20% smaller.

    Raises:
        ConfigError: a bound or quality out of range.
    """

    max_side: int | None = None
    max_pixels: int | None = None
    quality: int = 90
    format: Literal["jpeg"] = "jpeg"
    subsampling: Literal["444", "420"] = "444"

    def __post_init__(self) -> None:
        for name in ("max_side", "max_pixels"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ConfigError(f"transcode: {name} {bound} must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"transcode: quality {self.quality} must lie between 1 and 100")
        if self.format != "jpeg":
            raise ConfigError(f"transcode: format {self.format!r} is not jpeg")
        if self.subsampling not in ("444", "420"):
            raise ConfigError(f"transcode: subsampling {self.subsampling!r} is neither 444 nor 420")

    @classmethod
    def parse(cls, text: str) -> Transcode:
        """Of "SIDE" or "SIDE:QUALITY": "1024", "1024:90".

        Raises:
            ConfigError: anything else.
        """
        side, colon, quality = text.partition(":")
        if not (side.isascii() and side.isdigit()) or (colon and not quality.isdecimal()):
            raise ConfigError(
                f"transcode is {text!r}", mend="Use SIDE or SIDE:QUALITY, such as 1024 or 1024:90"
            )
        return cls(max_side=int(side), quality=int(quality) if colon else 90)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size an image is shrunk to, (width, height): within the bounds, its aspect kept.

        Never larger than it was. Sides are rounded, so the aspect may change by less than a pixel.
        """
        long, short = max(width, height), min(width, height)
        side = min(self.max_side or _MAX_JPEG_SIDE, _MAX_JPEG_SIDE)
        new_long, new_short = long, short
        if long > side:
            new_long, new_short = side, max(1, round(short * side / long))
        if self.max_pixels is not None and new_long * new_short > self.max_pixels:
            scale = math.sqrt(self.max_pixels / (long * short))
            new_short = max(1, math.floor(short * scale))
            new_long = min(max(1, math.floor(long * scale)), self.max_pixels // new_short)
        if long <= MAX_ASPECT * short:  # rounding must not make it too narrow for the models
            new_long = min(new_long, MAX_ASPECT * new_short)
        return (new_long, new_short) if width >= height else (new_short, new_long)

    def apply(self, data: bytes, info: ImageInfo) -> bytes:
        """Re-encode an image, or leave it as it is when that is smaller and within the bounds.

        Pixels are decoded as `decode_rgb` does (transparency over white), turned upright by EXIF,
        shrunk by Pillow's bicubic filter, and encoded as grey if they are grey. The same bytes come
        out as long as Pillow and libjpeg-turbo are the same.

        Args:
            info: what `probe` said of `data`.

        Returns:
            A baseline JPEG without metadata, or `data`.

        Raises:
            ImageError: `data` does not decode.
        """
        # Here, not above: options name this class, and few conversions need Pillow (20 ms).
        from PIL import Image

        from omr_io.images.decode import turn
        from omr_io.images.pixels import decode_rgb

        pixels_HW3 = turn(decode_rgb(data, info), info, "apply")
        height, width = pixels_HW3.shape[:2]
        size = self.size(width, height)
        if size != (width, height):
            shrunk = Image.fromarray(pixels_HW3).resize(size, Image.Resampling.BICUBIC)
            pixels_HW3 = np.asarray(shrunk)
        encoded = self._encode(pixels_HW3)
        if size == (width, height) and len(encoded) >= len(data):
            return data
        return encoded

    def _encode(self, pixels_HW3: UInt8Array) -> bytes:
        from PIL import Image

        is_grey = (pixels_HW3 == pixels_HW3[..., :1]).all()
        image = Image.fromarray(pixels_HW3[..., 0] if is_grey else pixels_HW3)
        subsampling = {"444": 0, "420": 2}[self.subsampling]
        file = BytesIO()
        # Pillow, not simplejpeg, whose encoder has only the fast, inexact DCT.
        image.save(file, "JPEG", quality=self.quality, subsampling=subsampling)
        return file.getvalue()


def library_versions() -> dict[str, str]:
    """The libraries that the bytes of a transcoded image depend on, with their versions."""
    from importlib.metadata import version

    from PIL import features

    found = {name: version(name) for name in ("pillow", "simplejpeg")}
    return {**found, "libjpeg of pillow": str(features.version("jpg"))}
