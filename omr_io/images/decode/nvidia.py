"""What decoders by NVIDIA's libraries share: arguments, where pixels land, how much memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from omr_io.config import ExifPolicy
from omr_io.errors import ConfigError
from omr_io.images.decode.base import turn
from omr_io.images.decode.batched import MAX_GPU_PIXELS, BatchDecoder
from omr_io.images.sizes import MAX_PIXELS
from omr_io.types import ImageFailure, ImageInfo, UInt8Array


class NvidiaDecoder(BatchDecoder):
    """A `BatchDecoder` by DALI or nvImageCodec, which have nvJPEG on a GPU.

    Args:
        hardware: the share of images, 0 to 1, that go to the GPU's JPEG engine, where it has one.
            0 by default: it is another decoder, not known to interpolate chroma as asked for, and
            which images go to it depends on the batch, so that equal images could differ.
        largest: (height, width) of the largest image to come, for which memory is taken before,
            since taking more in between may stop the GPU; (0, 0) leaves it to the library.
        exif, max_pixels, device, num_threads, cpu_threads, max_batch_size: see `BatchDecoder`.

    Raises:
        ConfigError: the library is not installed, or an argument cannot be right.
    """

    def __init__(
        self,
        exif: ExifPolicy = "apply",
        max_pixels: int = MAX_PIXELS,
        *,
        device: str = "cpu",
        num_threads: int = 2,
        cpu_threads: int | None = None,
        max_batch_size: int = 32,
        hardware: float = 0.0,
        largest: tuple[int, int] = (0, 0),
    ) -> None:
        self._library()  # now, rather than in the middle of an epoch
        if not 0 <= hardware <= 1:
            raise ConfigError(f"hardware {hardware} is no share of images", mend="Use 0 to 1")
        super().__init__(
            exif,
            max_pixels,
            device=device,
            num_threads=num_threads,
            cpu_threads=cpu_threads,
            max_batch_size=max_batch_size,
        )
        self.hardware = hardware
        self.largest = largest
        self._landing = _make_landing(self.device)

    @staticmethod
    @abstractmethod
    def _library() -> Any:
        """The library's module; ConfigError where it is not installed."""

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        with self._lock:
            if self._landing is not None:
                self._landing.close()
        super().close()


def upright_array(
    pixels_HW3: UInt8Array, info: ImageInfo, exif: ExifPolicy
) -> UInt8Array | ImageFailure:
    """Pixels turned by policy; or a failure when the size is not the planned one."""
    if pixels_HW3.shape != (info.height, info.width, 3) or pixels_HW3.dtype != np.uint8:
        what = f"decoded to {pixels_HW3.shape} {pixels_HW3.dtype}"
        return ImageFailure("image-changed", f"{what}, planned {info.width}x{info.height}")
    return turn(pixels_HW3, info, exif)


def _make_landing(device: str) -> Any:
    """A `Landing` on a GPU; None on the CPU."""
    if device == "cpu":
        return None
    from omr_io.images.decode.landing import Landing

    return Landing(device)


def paddings(largest: tuple[int, int]) -> dict[str, object]:
    """nvJPEG's working memory by the largest image of (height, width), in bytes a thread.

    NVIDIA's example of training ResNet-50 with DALI takes 211,025,920 bytes on the GPU and
    140,544,512 on the host for images of up to 5980 x 6430: 5.5 and 3.7 bytes a pixel.
    """
    pixels = min(largest[0] * largest[1], MAX_GPU_PIXELS)
    if pixels == 0:
        return {}
    return {"device_memory_padding": 6 * pixels, "host_memory_padding": 4 * pixels}
