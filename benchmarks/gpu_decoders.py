"""JPEGs, and what decodes them: Pillow, nvImageCodec, DALI, and the loader's own decoders.

Everything that needs a GPU or a package is imported and refused within functions, so that the
module can be imported anywhere.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_pixels import photograph
from omr_io.errors import ConfigError
from omr_io.images import probe
from omr_io.images.decode import Decoded, Decoder
from omr_io.types import ImageFailure, UInt8Array

Decode = Callable[[Sequence[bytes]], Sequence[UInt8Array | None]]
"""Some JPEGs to (H, W, 3) uint8 RGB each on the host; None where one cannot be decoded."""

CHROMA = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
"""Pillow's numbers of the ways to subsample."""


def jpeg(seed: int, height: int, width: int, chroma: str, *, progressive: bool) -> bytes:
    """A JPEG of quality 90; chroma "grey" or a key of CHROMA."""
    from PIL import Image

    image = Image.fromarray(photograph(np.random.default_rng(seed), height, width))
    file = io.BytesIO()
    if chroma == "grey":
        image.convert("L").save(file, "JPEG", quality=90, progressive=progressive)
    else:
        image.save(file, "JPEG", quality=90, progressive=progressive, subsampling=CHROMA[chroma])
    return file.getvalue()


def pillow(images: Sequence[bytes]) -> list[UInt8Array | None]:
    """The oracle."""
    from PIL import Image

    return [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]


def nvimagecodec(backend: str) -> Any:
    """A decoder of nvImageCodec with one kind of backend: "hardware", "cuda", "any" or "cpu".

    Raises:
        ConfigError: it is not installed, or there is no such backend.
    """
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise ConfigError(
            f"nvImageCodec cannot be imported: {error}",
            mend="Install it with `pip install nvidia-nvimgcodec-cu13`",
        ) from None
    kinds = nvimgcodec.BackendKind
    backends = {
        "hardware": [kinds.HW_GPU_ONLY],
        "cuda": [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU],
        "any": [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU, kinds.CPU_ONLY],
        "cpu": [kinds.CPU_ONLY],
    }
    if backend not in backends:
        raise ConfigError(f"no backend {backend!r}", mend=f"Use one of {', '.join(backends)}")
    device = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if backend == "cpu" else -1
    return nvimgcodec.Decoder(
        device_id=device,
        backends=[nvimgcodec.Backend(kind) for kind in backends[backend]],
        # Pillow's way to enlarge chroma; decoders that have no choice ignore it.
        options=":fancy_upsampling=1",
    )


def nvimagecodec_parameters() -> Any:
    """RGB bytes as stored: no turning by EXIF, whose policy is the loader's."""
    from nvidia import nvimgcodec

    return nvimgcodec.DecodeParams(
        apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
    )


def nvimagecodec_pixels(decoder: Any) -> Decode:
    """Its pixels on the host."""

    def decode(images: Sequence[bytes]) -> list[UInt8Array | None]:
        decoded = decoder.decode(list(images), params=nvimagecodec_parameters())
        return [None if one is None else np.asarray(one.cpu()) for one in decoded]

    return decode


def dali_pipeline(device: str) -> Any:
    """A DALI pipeline that takes a list of JPEGs; device "mixed" or "cpu".

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import nvidia.dali as dali
        from nvidia.dali import fn, types
    except ImportError as error:
        raise ConfigError(
            f"DALI cannot be imported: {error}", mend="Install it with `pip install omr_io[dali]`"
        ) from None
    pipeline = dali.Pipeline(
        batch_size=256,
        num_threads=os.cpu_count() or 1,
        device_id=None if device == "cpu" else 0,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        rgb = fn.decoders.image(
            encoded,
            device=device,
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,
            adjust_orientation=False,
        )
        pipeline.set_outputs(rgb)
    pipeline.build()
    return pipeline


def dali_run(pipeline: Any) -> Callable[[Sequence[bytes]], Any]:
    """One run; DALI's own output."""

    def run(images: Sequence[bytes]) -> Any:
        pipeline.feed_input("encoded", [np.frombuffer(image, np.uint8) for image in images])
        return pipeline.run()[0]

    return run


def dali_pixels(pipeline: Any) -> Decode:
    """Its pixels on the host."""
    run = dali_run(pipeline)

    def decode(images: Sequence[bytes]) -> list[UInt8Array | None]:
        output = run(images)
        host = output.as_cpu() if hasattr(output, "as_cpu") else output
        return [np.array(host.at(number)) for number in range(len(images))]

    return decode


def decoder_pixels(decoder: Decoder) -> Decode:
    """Pixels of one of the loader's decoders on the host; None where it left an image to the CPU.

    So `not_decoded` of `pixel_differences` counts what did not come from the GPU.
    """

    def decode(images: Sequence[bytes]) -> list[UInt8Array | None]:
        decoded = decoder.decode(images, [probe(image) for image in images])
        return [_on_host(one, decoder.device) for one in decoded]

    return decode


def _on_host(decoded: Decoded, device: str) -> UInt8Array | None:
    if isinstance(decoded, ImageFailure):
        return None
    if isinstance(decoded, np.ndarray):
        return decoded if device == "cpu" else None
    pixels: UInt8Array = decoded.cpu().numpy()
    return pixels
