"""Decoders: encoded images in, upright RGB pixels out, one failure at a time.

Every decoder gives the same pixels, bit for bit, for any image that decodes cleanly: see `pixels`
for colour and strictness. They differ only in speed.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeAlias

import numpy as np

from omr_io.config import ExifPolicy, VisionConfig
from omr_io.errors import ConfigError, ImageError
from omr_io.images.pixels import decode_rgb
from omr_io.images.sizes import MAX_PIXELS, check_caps, probe
from omr_io.types import ImageFailure, ImageInfo, UInt8Array

if TYPE_CHECKING:  # it takes a second to import, and linting does without it
    import torch

DecoderName = Literal["cpu", "dali"]

Decoded: TypeAlias = "UInt8Array | torch.Tensor | ImageFailure"
"""What becomes of an image: pixels on the host or on a GPU, or why there are none."""

DALI_FORMATS: Final = ("jpeg", "jpeg-progressive")


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
        """

    def close(self) -> None:
        """Free what the decoder holds; it may be called again."""


class CpuDecoder:
    """One image at a time: simplejpeg (libjpeg-turbo) for JPEG, Pillow for everything else.

    Args:
        exif: "apply" turns images upright as `ImageOps.exif_transpose` does, "ignore" leaves them
            as stored. TIFF is always upright: Pillow turns it when it loads it.
        max_pixels: larger images are failures.
    """

    name = "cpu"
    device = "cpu"

    def __init__(self, exif: ExifPolicy = "apply", max_pixels: int = MAX_PIXELS) -> None:
        self.exif = exif
        self.max_pixels = max_pixels

    def decode(
        self, images: Sequence[bytes], infos: Sequence[ImageInfo]
    ) -> list[UInt8Array | ImageFailure]:
        """See `Decoder.decode`."""
        pairs = zip(images, infos, strict=True)
        return [self._decode_one(data, info) for data, info in pairs]

    def _decode_one(self, data: bytes, info: ImageInfo) -> UInt8Array | ImageFailure:
        try:
            found = _check_planned(data, info, self.max_pixels)
            return turn(decode_rgb(data, found), found, self.exif)
        except ImageError as error:
            return ImageFailure(error.reason, error.what)

    def close(self) -> None:
        """Nothing is held."""


class DaliDecoder:
    """JPEGs in batches by a DALI CPU pipeline, which needs no driver; the rest by `CpuDecoder`.

    DALI fails a whole batch for one bad image and does not say which, and its pipeline is then of
    no further use. So headers are checked first, and a batch that fails is decoded again by
    `CpuDecoder`, which gives the same pixels and names the bad one; the pipeline is rebuilt on the
    next call (0.1 s).

    DALI ignores libjpeg-turbo's warnings, so of the corrupt JPEGs some that are failures to
    `CpuDecoder` are decoded here. `convert` refuses them, so a shard set it wrote holds none.

    Args:
        exif, max_pixels: as for `CpuDecoder`.
        num_threads: of the pipeline.
        max_batch_size: images in one run of the pipeline; longer lists take several.

    Raises:
        ConfigError: DALI is not installed.
    """

    name = "dali"
    device = "cpu"

    def __init__(
        self,
        exif: ExifPolicy = "apply",
        max_pixels: int = MAX_PIXELS,
        *,
        num_threads: int = 2,
        max_batch_size: int = 32,
    ) -> None:
        _import_dali()  # now, rather than in the middle of an epoch
        self.exif = exif
        self.num_threads = num_threads
        self.max_batch_size = max_batch_size
        self._cpu = CpuDecoder(exif, max_pixels)
        self._lock = threading.Lock()
        self._pipeline: Any = None
        self._lost: list[Any] = []
        decoder = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(decoder()))

    def decode(
        self, images: Sequence[bytes], infos: Sequence[ImageInfo]
    ) -> list[UInt8Array | ImageFailure]:
        """See `Decoder.decode`."""
        results: list[UInt8Array | ImageFailure | None] = []
        for data, info in zip(images, infos, strict=True):
            results.append(self._precheck(data, info))
        waiting = [i for i, result in enumerate(results) if result is None]
        for start in range(0, len(waiting), self.max_batch_size):
            rows = waiting[start : start + self.max_batch_size]
            batch = [images[i] for i in rows], [infos[i] for i in rows]
            for i, result in zip(rows, self._decode_batch(*batch), strict=True):
                results[i] = result
        return [result for result in results if result is not None]

    def _precheck(self, data: bytes, info: ImageInfo) -> UInt8Array | ImageFailure | None:
        """The result of an image that is not for DALI, else None."""
        if info.format not in DALI_FORMATS:
            return self._cpu._decode_one(data, info)
        try:
            _check_planned(data, info, self._cpu.max_pixels)
        except ImageError as error:
            return ImageFailure(error.reason, error.what)
        return None

    def _decode_batch(
        self, images: list[bytes], infos: list[ImageInfo]
    ) -> list[UInt8Array | ImageFailure]:
        """JPEGs whose headers are right, at most max_batch_size."""
        try:
            decoded = self._run(images)
        except RuntimeError:  # some image of the batch is bad
            return self._cpu.decode(images, infos)
        return [
            turn(pixels, info, self.exif)
            if pixels.shape == (info.height, info.width, 3)
            else ImageFailure("image-changed", f"decoded to an array of shape {pixels.shape}")
            for pixels, info in zip(decoded, infos, strict=True)
        ]

    def _run(self, images: list[bytes]) -> list[UInt8Array]:
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._build()
            try:
                views = [np.frombuffer(data, dtype=np.uint8) for data in images]
                self._pipeline.feed_input("encoded", views)
                (output,) = self._pipeline.run()
                return [output.at(i) for i in range(len(images))]  # at() copies
            except BaseException:
                self._pipeline = None
                raise

    def _build(self) -> Any:
        dali = _import_dali()
        pipeline = dali.Pipeline(
            batch_size=self.max_batch_size,
            num_threads=self.num_threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with pipeline:
            encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
            rgb = dali.fn.decoders.image(
                encoded,
                device="cpu",
                output_type=dali.types.RGB,
                jpeg_fancy_upsampling=True,
                adjust_orientation=False,
            )
            pipeline.set_outputs(rgb)
        pipeline.build()
        return pipeline

    def close(self) -> None:
        """Free the pipeline and its threads; a later call builds it again."""
        with self._lock:
            self._pipeline = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _forget(decoder: DaliDecoder | None) -> None:
    """In a forked child: threads do not survive a fork, so the parent's pipeline is of no use.

    Nor can it be freed, which would wait for those threads forever.
    """
    if decoder is not None:
        decoder._lost.append(decoder._pipeline)
        decoder._pipeline = None
        decoder._lock = threading.Lock()  # another thread may have held the old one


def make_decoder(name: DecoderName | str, vision: VisionConfig) -> Decoder:
    """The decoder of that name, with the EXIF policy of `vision`.

    Raises:
        ConfigError: there is no such decoder, or its package is not installed.
    """
    if name == "cpu":
        return CpuDecoder(vision.exif)
    if name == "dali":
        return DaliDecoder(vision.exif)
    raise ConfigError(f"there is no decoder {name!r}", mend='Use "cpu" or "dali"')


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


def _check_planned(data: bytes, info: ImageInfo, max_pixels: int) -> ImageInfo:
    """Check that bytes are the image of the plan, before memory is taken by their say-so.

    The mode does not enter into any plan, and an index need not hold it: it is found again here.
    """
    found = probe(data)
    if dataclasses.replace(found, mode=info.mode) != info:
        raise ImageError(
            f"the bytes are not the image that was planned: {found}, planned {info}",
            reason="image-changed",
        )
    check_caps(found, len(data), max_pixels=max_pixels)
    return found


def _import_dali() -> Any:
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise ConfigError(
            f'decoder="dali" needs NVIDIA DALI: {error}',
            mend="Install it with `pip install omr_io[dali]`, or use decoder='cpu'",
        ) from error
    return nvidia.dali
