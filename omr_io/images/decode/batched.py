"""What decoders of whole batches share: what they are given, and what becomes of failures.

A library that decodes many JPEGs in one call may fail them all for one of them, knows fewer kinds
than Pillow, and has threads that no fork carries over. Here each image is checked and sent its way
before it can fail, and what fails all the same fails alone.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from omr_io.config import ExifPolicy
from omr_io.errors import ConfigError, ImageError, OmrWarning
from omr_io.images.decode.base import Decoded, check_planned
from omr_io.images.decode.cpu import CpuDecoder
from omr_io.images.decode.jpeg_kinds import is_for_gpu
from omr_io.images.pixels import has_too_many_scans
from omr_io.images.sizes import MAX_PIXELS
from omr_io.types import ImageFailure, ImageInfo, UInt8Array

if TYPE_CHECKING:
    import torch

Pixels: TypeAlias = "UInt8Array | torch.Tensor"

MAX_GPU_PIXELS: Final = 16_000_000
"""Larger images go to the CPU: on a GPU nvJPEG takes several times an image's pixels as it works,
and one X-ray film of 64 Mpx would hold up, or run out of memory for, the batch that it is in."""

_JPEG: Final = ("jpeg", "jpeg-progressive")


class BatchError(Exception):
    """A batch failed as a whole; which image it was the library does not say."""


@dataclass(frozen=True, slots=True)
class DecodeCounts:
    """What a decoder did so far.

    Attributes:
        native: images that the library decoded, on the GPU where that is its device.
        cpu: images that went to simplejpeg and Pillow at once, by what they are, and decoded.
        rescued: images that the library failed to decode and simplejpeg or Pillow did.
        failed: images that nobody could decode, or that are not the planned ones.
        retried_batches: that failed as a whole, so that their images were decoded one by one.
    """

    native: int = 0
    cpu: int = 0
    rescued: int = 0
    failed: int = 0
    retried_batches: int = 0


class BatchDecoder(ABC):
    """JPEGs in batches by a library's own code; all else by simplejpeg and Pillow.

    Before anything is decoded each header is compared with the plan, and by it an image goes to the
    library, or to the CPU: other formats, and JPEGs in CMYK, which Pillow always takes for inverted
    and NVIDIA's libraries only with Adobe's marker; on a GPU also RGB, arithmetic-coded and 12-bit
    JPEGs, unusual subsamplings, and images over `MAX_GPU_PIXELS`. On a GPU both work at the same
    time. Results keep the order of the images.

    A batch that fails as a whole is decoded again image by image, by the same library on the same
    device, after its handle was made anew. An image that fails alone goes to `CpuDecoder`, which
    says what is wrong with it, or decodes it; `counts` tells how many that were.

    libjpeg-turbo's warnings are not seen here, so of the corrupt JPEGs some that are failures to
    `CpuDecoder` are decoded. `convert` refuses them, so a shard set it wrote holds none.

    Args:
        exif, max_pixels: as for `CpuDecoder`.
        device: "cpu", or a CUDA device.
        num_threads: of the library, on the host.
        cpu_threads: for what goes to simplejpeg and Pillow; 0: the caller's. None: 0 on the CPU,
            where more would take the cores of others, and num_threads on a GPU.
        max_batch_size: images in one call of the library; longer lists take several.

    Raises:
        ConfigError: the library is not installed, or there is no such device.
    """

    name: str

    def __init__(
        self,
        exif: ExifPolicy = "apply",
        max_pixels: int = MAX_PIXELS,
        *,
        device: str = "cpu",
        num_threads: int = 2,
        cpu_threads: int | None = None,
        max_batch_size: int = 32,
    ) -> None:
        if num_threads < 1 or max_batch_size < 1 or (cpu_threads is not None and cpu_threads < 0):
            raise ConfigError(
                f"num_threads {num_threads} and max_batch_size {max_batch_size} must be at least 1,"
                f" cpu_threads {cpu_threads} at least 0"
            )
        self.device = checked_device(device)
        self.exif = exif
        self.num_threads = num_threads
        self.max_batch_size = max_batch_size
        on_gpu = self.device != "cpu"
        self.cpu_threads = cpu_threads if cpu_threads is not None else num_threads * on_gpu
        self._cpu = CpuDecoder(exif, max_pixels)
        self._lock = threading.Lock()
        self._handle: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._lost: list[Any] = []
        self._counts = DecodeCounts()
        self._told = False
        decoder = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(decoder()))

    @abstractmethod
    def _open(self) -> Any:
        """The library's handle."""

    @abstractmethod
    def _run(
        self, handle: Any, images: list[bytes], infos: list[ImageInfo]
    ) -> list[Pixels | ImageFailure | None]:
        """At most `max_batch_size` JPEGs as upright pixels, ready as `Decoder` says.

        None where one does not decode, `BatchError` where some one does not. One thread at a time.
        """

    @abstractmethod
    def describe(self) -> str:
        """What it is, in one line."""

    def _where(self, hardware: float) -> str:
        """The end of `describe`."""
        if self.device == "cpu":
            return "on the CPU, the rest as decoder 'cpu'; equal to Pillow"
        engine = f", {hardware:.0%} of it by the JPEG engine" if hardware else ""
        return (
            f"on {self.device}{engine}, near Pillow's pixels and not equal to them; "
            f"the rest by {self.cpu_threads} threads as decoder 'cpu'"
        )

    @property
    def counts(self) -> DecodeCounts:
        """What it did so far."""
        return self._counts

    def decode(self, images: Sequence[bytes], infos: Sequence[ImageInfo]) -> list[Decoded]:
        """See `Decoder.decode`."""
        results: dict[int, Decoded] = {}
        native: list[int] = []
        later: dict[int, Future[UInt8Array | ImageFailure]] = {}
        for place, (data, info) in enumerate(zip(images, infos, strict=True)):
            try:
                found = check_planned(data, info, self._cpu.max_pixels)
            except ImageError as error:
                results[place] = ImageFailure(error.reason, error.what)
                continue
            if self._is_native(data, found):
                native.append(place)
            elif self.cpu_threads:
                later[place] = self._threads().submit(self._cpu.decode_one, data, info)
            else:
                results[place] = self._cpu.decode_one(data, info)
        for start in range(0, len(native), self.max_batch_size):
            places = native[start : start + self.max_batch_size]
            batch = [images[n] for n in places], [infos[n] for n in places]
            results.update(zip(places, self._decode_batch(*batch), strict=True))
        results.update({place: future.result() for place, future in later.items()})
        bad = {place for place, result in results.items() if isinstance(result, ImageFailure)}
        self._count(cpu=len(results.keys() - bad - set(native)), failed=len(bad))
        return [results[place] for place in range(len(images))]

    def _is_native(self, data: bytes, found: ImageInfo) -> bool:
        """Whether an image goes to the library; `found` is what its header says."""
        if found.format not in _JPEG or found.mode == "CMYK" or has_too_many_scans(data):
            return False
        if self.device == "cpu":  # there it is libjpeg-turbo, which knows what simplejpeg's knows
            return True
        return found.width * found.height <= MAX_GPU_PIXELS and is_for_gpu(data)

    def _decode_batch(self, images: list[bytes], infos: list[ImageInfo]) -> list[Decoded]:
        """JPEGs whose headers are right, at most max_batch_size."""
        why = ""
        decoded: list[Pixels | ImageFailure | None]
        try:
            decoded = self._guarded(images, infos)
        except BatchError:
            self._count(retried_batches=1)
            decoded = []
            for data, info in zip(images, infos, strict=True):
                try:
                    decoded += self._guarded([data], [info])
                except BatchError as error:
                    decoded.append(None)
                    why = str(error)
        results: list[Decoded] = [
            self._cpu.decode_one(data, info) if pixels is None else pixels
            for data, info, pixels in zip(images, infos, decoded, strict=True)
        ]
        good = [not isinstance(result, ImageFailure) for result in results]
        rescued = sum(good[n] for n, pixels in enumerate(decoded) if pixels is None)
        self._count(native=sum(good) - rescued, rescued=rescued)
        if rescued and not self._told:
            self._told = True
            self._warn(rescued, len(images), why)
        return results

    def _warn(self, rescued: int, of: int, why: str) -> None:
        """Say once that the library does not do its work: it may be out of memory, or broken."""
        last = f" It last said: {why[-300:]}" if why else ""
        warnings.warn(
            f"decoder {self.name!r} on {self.device} did not decode {rescued} of {of} images that "
            f"the CPU decodes; they are taken from there, and counted as rescued.{last}",
            OmrWarning,
            stacklevel=4,
        )

    def _guarded(
        self, images: list[bytes], infos: list[ImageInfo]
    ) -> list[Pixels | ImageFailure | None]:
        with self._lock, self._on_device():
            if self._handle is None:
                self._handle = self._open()
            try:
                return self._run(self._handle, images, infos)
            except BaseException:
                self._handle = None  # of no certain use any more
                raise

    def _on_device(self) -> AbstractContextManager[object]:
        """The decoder's GPU as the current one: the calling thread may work on another."""
        if self.device == "cpu":
            return nullcontext()
        import torch

        return torch.cuda.device(self.device)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.cpu_threads, "omr-io-decode")
            return self._pool

    def _count(self, **more: int) -> None:
        with self._lock:
            now = self._counts
            self._counts = replace(now, **{k: getattr(now, k) + n for k, n in more.items()})

    def close(self) -> None:
        """Free the handle and all threads; a later call makes them again."""
        with self._lock:
            self._handle = None
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _forget(decoder: BatchDecoder | None) -> None:
    """In a forked child: threads do not survive a fork, so the parent's handle is of no use.

    Nor can it be freed, which would wait for those threads forever.
    """
    if decoder is not None:
        decoder._lost += [decoder._handle, decoder._pool]
        decoder._handle = decoder._pool = None
        decoder._lock = threading.Lock()  # another thread may have held the old one


def checked_device(device: str) -> str:
    """A device's name with its number, "cuda:0"; or "cpu".

    Raises:
        ConfigError: it is neither the CPU nor a CUDA device of this machine.
    """
    if device == "cpu":
        return device
    import torch

    asked: torch.device | None = None
    with suppress(RuntimeError):
        asked = torch.device(device)
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"no decoder gives pixels on {device!r}", mend='Use "cpu", "cuda" or "cuda:NUMBER"'
        )
    if asked.type == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    current = torch.cuda.current_device() if count else 0
    number = asked.index if ":" in device else current
    if number >= count:
        raise ConfigError(
            f"there is no device {device!r}: torch sees {count} CUDA devices",
            mend='Use device="cpu", or install a torch with CUDA and check nvidia-smi',
        )
    return f"cuda:{number}"
