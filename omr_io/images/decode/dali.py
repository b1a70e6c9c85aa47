"""JPEGs by a DALI pipeline, on the CPU without any driver, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from omr_io.config import ExifPolicy
from omr_io.errors import ConfigError
from omr_io.images.decode.base import turn
from omr_io.images.decode.batched import MAX_GPU_PIXELS, BatchDecoder, BatchError, Pixels
from omr_io.images.sizes import MAX_PIXELS
from omr_io.types import ImageFailure, ImageInfo, UInt8Array


class DaliDecoder(BatchDecoder):
    """JPEGs by DALI; see `BatchDecoder` for what goes elsewhere and what becomes of failures.

    DALI fails a whole batch for one bad image and does not say which, so such a batch is decoded
    again one by one, in a pipeline that is built anew (0.1 s on a CPU).

    On a GPU it decodes with nvJPEG ("mixed"), with libjpeg-turbo's kind of chroma interpolation;
    whole images, turned by us, since its own orientation knows only one policy.

    Args:
        hardware: the share of images, 0 to 1, that go to the GPU's JPEG engine, where it has one.
            0 by default: it is another decoder, not known to interpolate chroma as asked for, and
            which images go to it depends on the batch, so that equal images could differ.
        largest: (height, width) of the largest image to come, for which memory is taken before,
            since taking more in between may stop the GPU; (0, 0) leaves it to DALI.
        exif, max_pixels, device, num_threads, cpu_threads, max_batch_size: see `BatchDecoder`.

    Raises:
        ConfigError: DALI is not installed, or an argument cannot be right.
    """

    name = "dali"

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
        _import_dali()  # now, rather than in the middle of an epoch
        check_hardware(hardware)
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
        self._landing = make_landing(self.device)

    def describe(self) -> str:
        """What it is, in one line."""
        version = _import_dali().__version__
        return f"dali: JPEG by DALI {version} {self._where(self.hardware)}"

    def options(self) -> dict[str, object]:
        """Arguments of DALI's image decoder that depend on the device."""
        if self.device == "cpu":
            return {"device": "cpu"}
        # affine would tie each thread to one core, the same ones in every rank of a machine.
        options = {"device": "mixed", "hw_decoder_load": self.hardware, "affine": False}
        height, width = self.largest
        if self.hardware and height and width:
            options |= {"preallocate_height_hint": height, "preallocate_width_hint": width}
        return options | paddings(self.largest)

    def _open(self) -> Any:
        dali = _import_dali()
        on_gpu = self._landing is not None
        pipeline = dali.Pipeline(
            batch_size=self.max_batch_size,
            num_threads=self.num_threads,
            device_id=self._landing.device.index if self._landing is not None else None,
            prefetch_queue_depth=1,  # what is fed is what the next run gives
            # On a GPU results come on a stream, and their memory is ours while we hold them: what
            # DALI's dynamic executor promises. On the CPU `at` copies.
            exec_dynamic=on_gpu,
            exec_async=on_gpu,
            exec_pipelined=on_gpu,
        )
        with pipeline:
            encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
            rgb = dali.fn.decoders.image(
                encoded,
                output_type=dali.types.RGB,
                jpeg_fancy_upsampling=True,
                adjust_orientation=False,
                **self.options(),
            )
            pipeline.set_outputs(rgb)
        pipeline.build()
        return pipeline

    def _run(
        self, handle: Any, images: list[bytes], infos: list[ImageInfo]
    ) -> list[Pixels | ImageFailure | None]:
        views = [np.frombuffer(data, dtype=np.uint8) for data in images]
        try:
            handle.feed_input("encoded", views)  # copies them
            if self._landing is None:
                (output,) = handle.run()
                arrays = [output.at(n) for n in range(len(images))]  # at() copies
                return [
                    upright_array(pixels, info, self.exif)
                    for pixels, info in zip(arrays, infos, strict=True)
                ]
            (output,) = handle.run(self._landing.stream())  # results are ordered on it
        except RuntimeError as error:
            raise BatchError(str(error)) from error
        from omr_io.images.decode.landing import tensor_of

        tensors = [tensor_of(output[n]) for n in range(len(images))]
        return [*self._landing.take(tensors, infos, self.exif, (output, views))]

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


def make_landing(device: str) -> Any:
    """A `Landing` on a GPU; None on the CPU."""
    if device == "cpu":
        return None
    from omr_io.images.decode.landing import Landing

    return Landing(device)


def check_hardware(share: float) -> None:
    """Refuse a share of the hardware engine that is none."""
    if not 0 <= share <= 1:
        raise ConfigError(f"hardware {share} is no share of images", mend="Use 0 to 1")


def paddings(largest: tuple[int, int]) -> dict[str, object]:
    """nvJPEG's working memory by the largest image of (height, width), in bytes a thread.

    NVIDIA's example of training ResNet-50 with DALI takes 211,025,920 bytes on the GPU and
    140,544,512 on the host for images of up to 5980 x 6430: 5.5 and 3.7 bytes a pixel.
    """
    pixels = min(largest[0] * largest[1], MAX_GPU_PIXELS)
    if pixels == 0:
        return {}
    return {"device_memory_padding": 6 * pixels, "host_memory_padding": 4 * pixels}


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
