"""JPEGs by nvImageCodec, on the CPU without any driver, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from omr_io.errors import ConfigError
from omr_io.images.decode.batched import BatchError, Pixels
from omr_io.images.decode.nvidia import NvidiaDecoder, paddings, upright_array
from omr_io.types import ImageFailure, ImageInfo


class NvimgcodecDecoder(NvidiaDecoder):
    """JPEGs by nvImageCodec; see `BatchDecoder` for what goes elsewhere, and failures.

    It is what DALI decodes by, without a pipeline around it, and says for each image whether it was
    decoded. On the CPU its JPEGs are libjpeg-turbo's and equal Pillow's bit for bit. So are its
    8-bit PNG, WebP and BMP, but not its 16-bit ones, palettes of TIFF and transparency, and it
    does not check a PNG's checksums: all these stay with Pillow.

    Arguments and errors: see `NvidiaDecoder`.
    """

    name = "nvimgcodec"

    _parameters: Any = None

    def describe(self) -> str:
        """What it is, in one line."""
        version = self._library().__version__
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
        codec = self._library()
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

    @staticmethod
    def _library() -> Any:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise ConfigError(
                f'decoder="nvimgcodec" needs NVIDIA nvImageCodec: {error}',
                mend="Install it with `pip install omr_io[nvimgcodec]`, or use decoder='cpu'",
            ) from error
        return nvimgcodec
