"""JPEGs by a DALI pipeline, on the CPU without any driver, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from omr_io.errors import ConfigError
from omr_io.images.decode.batched import BatchError, Pixels
from omr_io.images.decode.nvidia import NvidiaDecoder, paddings, upright_array
from omr_io.types import ImageFailure, ImageInfo


class DaliDecoder(NvidiaDecoder):
    """JPEGs by DALI; see `BatchDecoder` for what goes elsewhere and what becomes of failures.

    DALI fails a whole batch for one bad image and does not say which, so such a batch is decoded
    again one by one, in a pipeline that is built anew (0.1 s on a CPU).

    On a GPU it decodes with nvJPEG ("mixed"), with libjpeg-turbo's kind of chroma interpolation;
    whole images, turned by us, since its own orientation knows only one policy.

    Arguments and errors: see `NvidiaDecoder`.
    """

    name = "dali"

    def describe(self) -> str:
        """What it is, in one line."""
        version = self._library().__version__
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
        dali = self._library()
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

    @staticmethod
    def _library() -> Any:
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
