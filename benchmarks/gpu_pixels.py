"""Pixels on a GPU: both launches against the copy bandwidth, the C++ twin and Hugging Face.

    python -m benchmarks.gpu_pixels

Everything that needs a GPU is imported and refused within functions, so that the module can be
imported anywhere. Times of the GPU are medians of Triton's do_bench, which empties the L2 cache
before each run; batches take turns besides, so that no run sees the memory of the one before.
Before anything is timed, the results are compared with the C++ twin's: `torch.equal`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images import smart_resize
from omr_io.images.patches import value_table, vertical_first
from omr_io.types import PatchLayout, PatchTarget, UInt8Array

VISIONS = {
    "qwen3_vl": VisionConfig(min_pixels=256 * 32 * 32, max_pixels=768 * 32 * 32),
    "qwen2_5_vl": VisionConfig(
        "qwen2_5_vl", patch_size=14, min_pixels=256 * 28 * 28, max_pixels=1024 * 28 * 28
    ),
}
BATCH = 64
"""Images in a call."""

ROUNDS = 3
"""Batches that take turns."""


def require_gpu() -> Any:
    """torch, on a machine with a CUDA GPU and Triton that compiles for it.

    Raises:
        ConfigError: there is none, or TRITON_INTERPRET is set.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "this benchmark needs a CUDA GPU, and torch finds none",
            mend="Run it on a machine with an NVIDIA GPU and torch built for CUDA",
        )
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError(
            "TRITON_INTERPRET is set: kernels would run on the CPU",
            mend="Unset TRITON_INTERPRET",
        )
    return torch


def batch(
    seed: int, vision: VisionConfig, count: int = BATCH
) -> tuple[list[UInt8Array], list[PatchTarget]]:
    """Images of the corpus' sizes, and what they become.

    0.37 Mpx in the median, log-normal with sigma 0.75; the short side at least 224, aspect at most
    3.
    """
    random = np.random.default_rng(seed)
    layout = PatchLayout(
        vision.patch_size, vision.patch_size, vision.merge_size, vision.temporal_patch_size
    )
    images, targets = [], []
    for _ in range(count):
        area = 370_000 * np.exp(0.75 * random.standard_normal())
        aspect = np.exp(random.uniform(-np.log(3), np.log(3)))
        height = max(224, int(np.sqrt(area * aspect)))
        width = max(224, height // 3, int(np.sqrt(area / aspect)))
        height = min(height, 3 * width)
        image = photograph(random, height, width)
        size = smart_resize(height, width, vision)
        order = vertical_first((height, width), size, vision.pass_order)
        images.append(image)
        targets.append(PatchTarget(*size, layout, "bicubic", order))
    return images, targets


def photograph(random: np.random.Generator, height: int, width: int) -> UInt8Array:
    """(height, width, 3) uint8: gradients with noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        127 + 100 * np.sin(x / random.uniform(20, 200) + y / random.uniform(20, 200))
        for _ in range(3)
    ]
    noisy = np.stack(waves, axis=-1) + random.normal(0, 6, (height, width, 3))
    clipped: UInt8Array = np.clip(noisy, 0, 255).astype(np.uint8)
    return clipped


def copy_bandwidth(num_bytes: int = 1 << 30) -> float:
    """Bytes read and written a second by a copy on the GPU, the median."""
    torch = require_gpu()
    from triton.testing import do_bench

    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds = do_bench(lambda: target.copy_(source), return_mode="median")
    return float(2 * num_bytes / milliseconds * 1e3)


def gpu_case(name: str, dtype_name: str, bandwidth: float) -> dict[str, Any]:
    """Both launches and the whole call of one family and dtype.

    Returns:
        Median milliseconds of the first pass, the second pass, and the call with images on the GPU
        (plan and transfer included: what a caller waits for between calls); bytes that each launch
        has to move, each input once and each output once; the share of `bandwidth` that is;
        milliseconds of the host's plan alone.
    """
    torch = require_gpu()
    from triton.testing import do_bench

    from omr_io.images.gpu_plan import IMAGE_FIELDS, plan
    from omr_io.kernels.patches import patches, prepare
    from omr_io.ops import patches_implementation

    vision, dtype = VISIONS[name], getattr(torch, dtype_name)
    table, device = value_table(vision), torch.device("cuda", torch.cuda.current_device())
    batches = [batch(seed, vision) for seed in range(ROUNDS)]
    on_gpu = [[torch.from_numpy(image).to(device) for image in images] for images, _ in batches]
    prepared, outs = [], []
    cpu = patches_implementation("cpu")
    for (images, targets), there in zip(batches, on_gpu, strict=True):
        out = patches(there, targets, table, dtype=dtype)
        want = cpu(images, targets, table, dtype=dtype, threads=os.cpu_count() or 1)
        assert torch.equal(out.cpu(), want), "the GPU's patches differ from the CPU's"
        prepared.append(prepare(there, targets, table, dtype, device))
        outs.append(out)
    firsts, seconds, calls = (itertools.cycle(range(ROUNDS)) for _ in range(3))

    def first() -> None:
        prepared[next(firsts)].first_pass()

    def second() -> None:
        number = next(seconds)
        prepared[number].second_pass(outs[number])

    def call() -> None:
        number = next(calls)
        patches(on_gpu[number], batches[number][1], table, dtype=dtype, out=outs[number])

    for one in prepared:
        one.first_pass()
    read = _mean([sum(image.size for image in images) for images, _ in batches])
    planned_rows, planned_columns = map(IMAGE_FIELDS.index, ("rows", "columns"))
    tables = [one.plan.images for one in prepared]
    areas = [rows[:, planned_rows] * rows[:, planned_columns] for rows in tables]
    between = _mean([3 * int(area.sum()) for area in areas])
    written = _mean([out.numel() * out.element_size() for out in outs])
    times = {
        "first_pass": do_bench(first, return_mode="median"),
        "second_pass": do_bench(second, return_mode="median"),
        "call": do_bench(call, return_mode="median"),
    }
    moved = {"first_pass": read + between, "second_pass": between + written}
    sizes = [[image.shape[:2] for image in images] for images, _ in batches]
    planned = _fastest(lambda: plan(sizes[0], batches[0][1]), 20)
    return {
        "milliseconds": times,
        "bytes": moved,
        "share_of_copy_bandwidth": {
            step: moved[step] / times[step] * 1e3 / bandwidth for step in moved
        },
        "plan_milliseconds": planned * 1e3,
        "images_per_second": BATCH / times["call"] * 1e3,
        "tile": dataclasses.asdict(prepared[0].plan.tile),
    }


def cpu_case(name: str) -> dict[str, Any]:
    """Images a second of the C++ twin (one thread, and all) and of transformers' PIL processor."""
    torch = require_gpu()
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from omr_io.ops import patches_implementation

    vision = VISIONS[name]
    images, targets = batch(0, vision)
    table, cpu = value_table(vision), patches_implementation("cpu")
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        image_mean=list(vision.image_mean),
        image_std=list(vision.image_std),
    )
    opened = [Image.fromarray(image) for image in images]
    ours = cpu(images, targets, table)
    theirs = processor(opened, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs), "the C++ twin's patches differ from transformers'"
    threads = os.cpu_count() or 1
    sides: dict[str, Callable[[], object]] = {
        "cpp_one_thread": lambda: cpu(images, targets, table, out=ours),
        "cpp_all_threads": lambda: cpu(images, targets, table, out=ours, threads=threads),
        "transformers_pil": lambda: processor(opened, return_tensors="pt"),
    }
    return {"threads": threads} | {side: BATCH / _fastest(run, 3) for side, run in sides.items()}


def _mean(counts: Sequence[int]) -> float:
    return sum(counts) / len(counts)


def _fastest(run: Callable[[], object], repetitions: int) -> float:
    """Seconds."""
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure() -> dict[str, Any]:
    """All of it, as JSON values.

    Raises:
        ConfigError: there is no GPU.
    """
    torch = require_gpu()
    import triton

    bandwidth = copy_bandwidth()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        },
        "copy_bytes_per_second": bandwidth,
        "images_per_call": BATCH,
        "cases": {},
    }
    for name in VISIONS:
        on_cpu = cpu_case(name)
        for dtype in ("bfloat16", "float16", "float32"):
            case = gpu_case(name, dtype, bandwidth)
            case["times_cpu"] = {
                side: case["images_per_second"] / rate
                for side, rate in on_cpu.items()
                if side != "threads"
            }
            result["cases"][f"{name}, {dtype}"] = case
        result["cases"][f"{name}, cpu"] = on_cpu
    return result


if __name__ == "__main__":
    print(json.dumps(measure()))
