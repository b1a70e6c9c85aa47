"""JPEGs by nvImageCodec, on the CPU without any driver, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from omr_io.config import ExifPolicy
from omr_io.errors import ConfigError
from omr_io.images.decode.batched import BatchDecoder, BatchError, Pixels
from omr_io.images.decode.dali import check_hardware, make_landing, paddings, upright_array
from omr_io.images.sizes import MAX_PIXELS
from omr_io.types import ImageFailure, ImageInfo


class NvimgcodecDecoder(BatchDecoder):
    """JPEGs by nvImageCodec; see `BatchDecoder` for what goes elsewhere, and failures.

    It is what DALI decodes by, without a pipeline around it, and says for each image whether it was
    decoded. On the CPU its JPEGs are libjpeg-turbo's and equal Pillow's bit for bit. So are its
    8-bit PNG, WebP and BMP, but not its 16-bit ones, palettes of TIFF and transparency, and it
    does not check a PNG's checksums: all these stay with Pillow.

    Args:
        hardware: as for `DaliDecoder`.
        largest: as for `DaliDecoder`.
        exif, max_pixels, device, num_threads, cpu_threads, max_batch_size: see `BatchDecoder`.

    Raises:
        ConfigError: nvImageCodec is not installed, or an argument cannot be right.
    """

    name = "nvimgcodec"

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
        _import_nvimgcodec()  # now, rather than in the middle of an epoch
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
        self._parameters: Any = None

    def describe(self) -> str:
        """What it is, in one line."""
        version = _import_nvimgcodec().__version__
        return f"nvimgcodec: JPEG by nvImageCodec {version} {self._where(self.hardware)}"

    def options(self) -> str:
        """nvImageCodec's option string: libjpeg-turbo's kind of chroma interpolation, and sizes."""
        options = [":fancy_upsampling=1"]  # decoders that have no choice ignore it
        if self.device != "cpu":
            height, width = self.largest
            if self.hardware and height and width:
                options.append(f":preallocate_height_hint={height}")
                options.append(f":preallocate_width_hint={width}")
            options += [f":{name}={value}" for name, value in paddings(self.largest).items()]
        return " ".join(options)

    def _open(self) -> Any:
        codec = _import_nvimgcodec()
        kinds = codec.BackendKind
        if self._landing is None:
            backends = [codec.Backend(kinds.CPU_ONLY)]
            number = codec.NVIMGCODEC_DEVICE_CPU_ONLY
        else:
            # Not CPU_ONLY: what the GPU does not decode is decoded, counted and told by us.
            backends = [codec.Backend(kind) for kind in (kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)]
            if self.hardware:
                backends.insert(0, codec.Backend(kinds.HW_GPU_ONLY, load_hint=self.hardware))
            number = self._landing.device.index
        # As stored: orientation is turned by our policy.
        self._parameters = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB
        )
        return codec.Decoder(
            device_id=number,
            max_num_cpu_threads=self.num_threads,
            backends=backends,
            options=self.options(),
        )

    def _run(
        self, handle: Any, images: list[bytes], infos: list[ImageInfo]
    ) -> list[Pixels | ImageFailure | None]:
        stream = 0 if self._landing is None else self._landing.stream().cuda_stream
        try:
            decoded = handle.decode(images, params=self._parameters, cuda_stream=stream)
        except RuntimeError as error:
            raise BatchError(str(error)) from error
        if self._landing is None:
            # Each result owns its memory, and lives as long as an array looks at it.
            return [
                None if one is None else upright_array(np.asarray(one), info, self.exif)
                for one, info in zip(decoded, infos, strict=True)
            ]
        from omr_io.images.decode.landing import tensor_of

        tensors = [
            None if one is None else tensor_of(one.to_dlpack(cuda_stream=stream)) for one in decoded
        ]
        return [*self._landing.take(tensors, infos, self.exif, (decoded, images))]

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        with self._lock:
            if self._landing is not None:
                self._landing.close()
        super().close()


def _import_nvimgcodec() -> Any:
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise ConfigError(
            f'decoder="nvimgcodec" needs NVIDIA nvImageCodec: {error}',
            mend="Install it with `pip install omr_io[nvimgcodec]`, or use decoder='cpu'",
        ) from error
    return nvimgcodec
