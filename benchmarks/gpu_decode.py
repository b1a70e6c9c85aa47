"""JPEG decoders on a GPU against Pillow: pixels, speed, and whether they keep a stream's order.

    python -m benchmarks.gpu_decode

`pixel_differences` says by chroma mode and coding how far a decoder's pixels are from Pillow's,
`images_per_second` how fast each is by size, and `stream_order` looks for the race that was
reported for the hardware JPEG decoder of the H100 (pytorch/vision#9606, meta-pytorch/torchcodec
#1634): the decoder writes its output before what the caller's stream has queued is done, so memory
that queued work still reads is overwritten.

Everything that needs a GPU is imported and refused within functions, so that the module can be
imported anywhere.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_pixels import photograph, require_gpu
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images import probe
from omr_io.images.decode import Decoded, Decoder, describe, make_decoder
from omr_io.types import ImageFailure, UInt8Array

Decode = Callable[[Sequence[bytes]], Sequence[UInt8Array | None]]
"""Some JPEGs to (H, W, 3) uint8 RGB each on the host; None where one cannot be decoded."""

CHROMA = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
"""Pillow's numbers of the ways to subsample."""

SIDES = (224, 512, 1024, 2048)


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


# The race.


def stream_order(decoder: Any, *, progressive: bool) -> dict[str, Any]:
    """Decode and consume on streams, 4,096 images a way; look for pixels that are not the image's.

    Four ways to order the same work on the GPU, 16 images at a time:

    - "consumer unordered": decode on one stream, copy on another that does not wait. Wrong pixels
      are allowed here; they show that the test can see an order that is missing.
    - "consumer after event": the same, but the copying stream waits for an event of the decoding
      stream. Wrong pixels break the contract of streams.
    - "reuse on the stream": work that takes some milliseconds is queued on a stream, then a copy of
      decoded images; then other images are decoded on the same stream into the same memory. Wrong
      pixels in the copy break the contract: the decoder wrote before its turn. This is the race
      that was reported.
    - "reuse after waiting": the same with a wait of the host before the second decode: the cure.

    What is right are the decoder's own pixels of the same bytes after the host waited, and those
    are compared with the CPU's beforehand (at most 4 apart on average: another image would be far).

    Returns:
        For each way `images`, `wrong` ones, and of the reuse how many were decoded into the same
        memory (`reused`; without any, that way has shown nothing); how often the first decode
        `returned_early`, before its stream was done; and "verdict", in words.
    """
    torch = require_gpu()
    sets = list(_sets(progressive=progressive))
    wanted = [_settled(torch, decoder, data) for data in sets]
    result: dict[str, Any] = {"farthest_mean_difference_from_cpu": _check_with_cpu(sets, wanted)}
    for event, way in ((False, "consumer unordered"), (True, "consumer after event")):
        result[way] = _consume(torch, decoder, sets, wanted, event=event)
    for waits, way in ((False, "reuse on the stream"), (True, "reuse after waiting")):
        result[way] = _reuse(torch, decoder, sets, wanted, waits=waits)
    return result | {"verdict": verdict(result)}


def verdict(result: dict[str, Any]) -> str:
    """What the counts of `stream_order` say."""
    ordered = ("consumer after event", "reuse on the stream")
    wrong = [way for way in ordered if result[way]["wrong"]]
    if result["reuse after waiting"]["wrong"]:
        return "not decided: pixels are wrong even when the host waits"
    if wrong:
        return (
            f"reproduced ({' and '.join(wrong)}): let the host wait before memory is decoded into"
        )
    if not result["reuse on the stream"]["reused"]:
        return "not decided: no image was decoded into memory that was still to be read"
    seen = sum(result[way]["images"] for way in ordered)
    return f"ruled out in {seen} images on this GPU, driver and version"


ROUNDS = 32
"""How often each of the batches is decoded in each way: 32 x 8 x 16 images."""


def _sets(*, progressive: bool) -> Iterator[list[bytes]]:
    """8 batches of 16 JPEGs; two neighbours are of one size, so one's memory fits the other."""
    for batch in range(8):
        side = (512, 640, 768, 896)[batch // 2]
        yield [
            jpeg(1000 * batch + n, side, side, "4:2:0", progressive=progressive) for n in range(16)
        ]


def _tensor(torch: Any, image: Any) -> Any:
    """A view of nvImageCodec's memory, without any waiting."""
    return torch.utils.dlpack.from_dlpack(image.to_dlpack())


def _settled(torch: Any, decoder: Any, data: list[bytes]) -> list[Any]:
    """A batch decoded while nothing else runs, as tensors of torch's own."""
    torch.cuda.synchronize()
    decoded = decoder.decode(data, params=nvimagecodec_parameters())
    torch.cuda.synchronize()
    if any(one is None for one in decoded):
        raise ConfigError(
            "this backend of nvImageCodec does not decode these JPEGs on this machine",
            mend="Use another backend: not every GPU has a hardware decoder",
        )
    copies = [_tensor(torch, one).clone() for one in decoded]
    torch.cuda.synchronize()
    return copies


def _check_with_cpu(sets: list[list[bytes]], wanted: list[list[Any]]) -> float:
    """The farthest image's mean difference from Pillow's."""
    farthest = 0.0
    for data, tensors in zip(sets, wanted, strict=True):
        for theirs, ours in zip(pillow(data), tensors, strict=True):
            assert theirs is not None
            distance = np.abs(ours.cpu().numpy().astype(np.int16) - theirs.astype(np.int16))
            farthest = max(farthest, float(distance.mean()))
    if farthest > 4:
        raise ConfigError(f"decoded alone, an image is {farthest:.1f} from the CPU's on average")
    return farthest


def _consume(
    torch: Any, decoder: Any, sets: list[list[bytes]], wanted: list[list[Any]], *, event: bool
) -> dict[str, int]:
    producer, consumer = torch.cuda.Stream(), torch.cuda.Stream()
    parameters, on = nvimagecodec_parameters(), producer.cuda_stream
    images = wrong = early = 0
    for _ in range(ROUNDS):
        for data, right in zip(sets, wanted, strict=True):
            decoded = decoder.decode(data, params=parameters, cuda_stream=on)
            early += not producer.query()
            if event:
                consumer.wait_event(producer.record_event())
            with torch.cuda.stream(consumer):
                copies = [_tensor(torch, one).clone() for one in decoded]
            torch.cuda.synchronize()
            wrong += sum(not torch.equal(a, b) for a, b in zip(copies, right, strict=True))
            images += len(data)
    return {"images": images, "wrong": wrong, "returned_early": early}


def _reuse(
    torch: Any, decoder: Any, sets: list[list[bytes]], wanted: list[list[Any]], *, waits: bool
) -> dict[str, int]:
    stream = torch.cuda.Stream()
    parameters, on = nvimagecodec_parameters(), stream.cuda_stream
    images = wrong = reused = 0
    for number in range(ROUNDS * len(sets)):
        here = number % len(sets)
        decoded = decoder.decode(sets[here], params=parameters, cuda_stream=on)
        torch.cuda.synchronize()
        views = [_tensor(torch, one) for one in decoded]
        copies = [torch.empty_like(view) for view in views]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # clock cycles: some 10 ms
            for copy, view in zip(copies, views, strict=True):
                copy.copy_(view, non_blocking=True)
        if waits:
            stream.synchronize()
        # here ^ 1: the neighbour, of the same size.
        again = decoder.decode(sets[here ^ 1], images=decoded, params=parameters, cuda_stream=on)
        torch.cuda.synchronize()
        reused += sum(
            _tensor(torch, one).data_ptr() == view.data_ptr()
            for one, view in zip(again, views, strict=True)
        )
        wrong += sum(not torch.equal(a, b) for a, b in zip(copies, wanted[here], strict=True))
        images += len(copies)
    return {"images": images, "wrong": wrong, "reused": reused}


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
