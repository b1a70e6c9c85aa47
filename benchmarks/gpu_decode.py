"""JPEG decoders on a GPU against Pillow: pixels, speed, and whether they keep a stream's order.

    python -m benchmarks.gpu_decode

`pixel_differences` says by chroma mode and coding how far a decoder's pixels are from Pillow's,
`images_per_second` how fast each is by size, and `gpu_stream_order` whether it keeps the order of
the stream it is given.

Everything that needs a GPU is imported and refused within functions, so that the module can be
imported anywhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_decoders import (
    CHROMA,
    Decode,
    dali_pipeline,
    dali_pixels,
    dali_run,
    decoder_pixels,
    jpeg,
    nvimagecodec,
    nvimagecodec_parameters,
    nvimagecodec_pixels,
    pillow,
)
from benchmarks.gpu_pixels import require_gpu
from benchmarks.gpu_stream_order import stream_order
from omr_io.config import VisionConfig
from omr_io.images import probe
from omr_io.images.decode import describe, make_decoder
from omr_io.types import UInt8Array

SIDES = (224, 512, 1024, 2048)


def pixel_differences(decode: Decode, count: int = 16) -> dict[str, Any]:
    """How far a decoder is from Pillow, by chroma mode and coding, over odd sizes.

    Returns:
        For each mode: images, images that were not decoded, equal images, the share of bytes that
        differ, the largest difference and the mean one (of all bytes, in steps of 1 in 255).
    """
    result: dict[str, Any] = {}
    for chroma in (*CHROMA, "grey"):
        for progressive in (False, True):
            random = np.random.default_rng(len(result))
            sizes = random.integers(17, 700, (count, 2)).tolist()
            images = [
                jpeg(seed, height, width, chroma, progressive=progressive)
                for seed, (height, width) in enumerate(sizes)
            ]
            name = f"{chroma}, {'progressive' if progressive else 'baseline'}"
            result[name] = _compare(decode(images), pillow(images))
    return result


def _compare(got: Sequence[UInt8Array | None], want: Sequence[UInt8Array | None]) -> dict[str, Any]:
    equal = missing = differing = total = largest = 0
    summed = 0
    for ours, theirs in zip(got, want, strict=True):
        assert theirs is not None
        if ours is None or ours.shape != theirs.shape:
            missing += 1
            continue
        distance = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
        equal += not distance.any()
        differing += int(np.count_nonzero(distance))
        largest = max(largest, int(distance.max()))
        summed += int(distance.sum(dtype=np.int64))
        total += distance.size
    return {
        "images": len(want),
        "not_decoded": missing,
        "equal": equal,
        "share_of_bytes_differing": differing / max(total, 1),
        "largest_difference": largest,
        "mean_difference": summed / max(total, 1),
    }


def images_per_second(
    decode: Callable[[Sequence[bytes]], object], wait: Callable[[], object], count: int = 64
) -> dict[str, Any]:
    """Images a second by side and coding (4:2:0), the best of 5 rounds of `count` different images.

    Args:
        decode: leaves pixels where the decoder puts them.
        wait: until all of it is done.
    """
    result: dict[str, Any] = {}
    for side in SIDES:
        few = max(8, min(count, count * 512 * 512 // side**2))
        for progressive in (False, True):
            images = [
                jpeg(seed, side, side, "4:2:0", progressive=progressive) for seed in range(few)
            ]
            decode(images)
            wait()
            best = float("inf")
            for _ in range(5):
                started = time.perf_counter()
                decode(images)
                wait()
                best = min(best, time.perf_counter() - started)
            name = f"{side}x{side}, {'progressive' if progressive else 'baseline'}"
            result[name] = few / best
    return result


def _attempt(run: Callable[[], Any]) -> Any:
    """A result, or why there is none: one decoder's failure does not lose the others' results."""
    try:
        return run()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def measure_nvimagecodec(backend: str) -> dict[str, Any]:
    """Pixels, speed and order of one backend; see `nvimagecodec`."""
    torch = require_gpu()
    decoder, parameters = nvimagecodec(backend), nvimagecodec_parameters()

    def decode(images: Sequence[bytes]) -> object:
        return decoder.decode(list(images), params=parameters)

    pixels = nvimagecodec_pixels(decoder)
    result = {
        "pixels": _attempt(partial(pixel_differences, pixels)),
        "images_per_second": _attempt(partial(images_per_second, decode, torch.cuda.synchronize)),
    }
    for progressive in (False, True):
        kind = "progressive" if progressive else "baseline"
        order = partial(stream_order, decoder, progressive=progressive)
        result[f"stream order, {kind}"] = _attempt(order)
    return result


def measure_dali(device: str) -> dict[str, Any]:
    """Pixels and speed of DALI; see `dali_pipeline`."""
    torch = require_gpu()
    pipeline = dali_pipeline(device)
    return {
        "pixels": _attempt(partial(pixel_differences, dali_pixels(pipeline))),
        "images_per_second": _attempt(
            partial(images_per_second, dali_run(pipeline), torch.cuda.synchronize)
        ),
    }


def measure_decoder(name: str, hardware: float = 0.0) -> dict[str, Any]:
    """Pixels and speed of a decoder of `omr_io.images.decode` as the loader uses it."""
    torch = require_gpu()
    largest = (max(SIDES), max(SIDES))
    threads = os.cpu_count() or 1
    decoder = make_decoder(
        name, VisionConfig(), "cuda", num_threads=threads, hardware=hardware, largest=largest
    )

    def decode(images: Sequence[bytes]) -> object:
        return decoder.decode(images, [probe(image) for image in images])

    result = {
        "what": describe(decoder),
        "pixels": _attempt(partial(pixel_differences, decoder_pixels(decoder))),
        "images_per_second": _attempt(partial(images_per_second, decode, torch.cuda.synchronize)),
    }
    decoder.close()
    return result


def measure() -> dict[str, Any]:
    """All of it, as JSON values; what failed is said where its result would be.

    Raises:
        ConfigError: there is no GPU.
    """
    torch = require_gpu()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    result["versions"] = _attempt(_versions)
    for backend in ("hardware", "cuda", "any"):
        result[f"nvimagecodec, {backend}"] = _attempt(partial(measure_nvimagecodec, backend))
    for name in ("nvimgcodec", "dali"):
        for hardware in (0.0, 1.0):
            title = f"omr_io {name}, hardware {hardware:g}"
            result[title] = _attempt(partial(measure_decoder, name, hardware))
    for device in ("mixed", "cpu"):
        result[f"dali, {device}"] = _attempt(partial(measure_dali, device))
    result["pillow"] = {"images_per_second": images_per_second(pillow, lambda: None)}
    return result


def _versions() -> dict[str, str]:
    import subprocess
    from importlib.metadata import version

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    packages = ("nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "nvidia-dali-cuda130", "torch", "pillow")
    return {"driver": driver} | {name: version(name) for name in packages}


if __name__ == "__main__":
    print(json.dumps(measure()))
