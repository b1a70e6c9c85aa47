"""The CPU decoder: simplejpeg and Pillow, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence

from omr_io.config import ExifPolicy
from omr_io.errors import ImageError
from omr_io.images.decode.base import check_planned, turn
from omr_io.images.decode.pixel_memory import PixelMemory
from omr_io.images.pixels import decode_rgb
from omr_io.images.sizes import MAX_PIXELS
from omr_io.types import ImageFailure, ImageInfo, UInt8Array


class CpuDecoder:
    """One image at a time: simplejpeg (libjpeg-turbo) for JPEG, Pillow for everything else.

    Where pillow-simd is installed in Pillow's place it is what decodes; the pixels are the same.

    Args:
        exif: "apply" turns images upright as `ImageOps.exif_transpose` does, "ignore" leaves them
            as stored. TIFF is always upright: Pillow turns it when it loads it.
        max_pixels: larger images are failures.
        memory: where JPEGs are decoded to; None: a `PixelMemory` of its own.
    """

    name = "cpu"
    device = "cpu"

    def __init__(
        self,
        exif: ExifPolicy = "apply",
        max_pixels: int = MAX_PIXELS,
        memory: PixelMemory | None = None,
    ) -> None:
        self.exif = exif
        self.max_pixels = max_pixels
        self._memory = PixelMemory() if memory is None else memory

    def decode(
        self, images: Sequence[bytes], infos: Sequence[ImageInfo]
    ) -> list[UInt8Array | ImageFailure]:
        """See `Decoder.decode`."""
        pairs = zip(images, infos, strict=True)
        return [self.decode_one(data, info) for data, info in pairs]

    def decode_one(self, data: bytes, info: ImageInfo) -> UInt8Array | ImageFailure:
        """One image; see `Decoder.decode`."""
        try:
            found = check_planned(data, info, self.max_pixels)
            return turn(decode_rgb(data, found, self._memory.take), found, self.exif)
        except ImageError as error:
            return ImageFailure(error.reason, error.what)

    def describe(self) -> str:
        """What it is, in one line."""
        from importlib.metadata import version

        import PIL

        jpeg = f"JPEG by simplejpeg {version('simplejpeg')}"
        simd = "-simd" if "post" in PIL.__version__ else ""
        return f"cpu: {jpeg}, the rest by Pillow{simd} {PIL.__version__}"

    def close(self) -> None:
        """Nothing is held but memory for pixels, which goes with the decoder."""
