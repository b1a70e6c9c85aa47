"""One side of the pixels benchmark: JPEGs or pixels through one implementation, timed; JSON out.

    python benchmarks/pixel_sides.py SIDE FOLDER [--rounds 40]

Run by bench_pixels.py, in a process of its own, in our environment or another that lacks omr_io:
it imports what a side needs when it runs. FOLDER holds images.json and the files it names. Of each
image the least time of all rounds counts, since others use the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], Any]


BATCH = 4
RING = 4


def omr_io(image: dict[str, Any], data: bytes, dtype: str, count: int = 1) -> Work:
    """Decode, resize and patches of `count` images at once.

    One image goes into the same memory each time. Several, as in a loader's batch, go into memory
    that is no longer in the cache: RING buffers take turns.
    """
    import torch

    from benchmarks.bench_pixels import VISION
    from omr_io.images.decode import CpuDecoder
    from omr_io.images.patches import patch_target, value_table
    from omr_io.images.sizes import probe, smart_resize
    from omr_io.ops import patches_implementation

    decoder, info, table = CpuDecoder(), probe(data), value_table(VISION)
    patches, kind = patches_implementation("cpu"), getattr(torch, dtype)
    size = smart_resize(info.height, info.width, VISION)
    rows = size[0] * size[1] // VISION.patch_size**2
    shape = (rows * count, VISION.patch_width)
    outs = [torch.empty(shape, dtype=kind) for _ in range(RING if count > 1 else 1)]

    def work() -> Any:
        outs.append(outs.pop(0))
        pixels: Any = decoder.decode([data] * count, [info] * count)
        targets = [patch_target(one.shape[:2], size, VISION) for one in pixels]
        return patches(pixels, targets, table, dtype=kind, out=outs[0])[:rows]

    return work


def transformers(image: dict[str, Any], data: bytes) -> Work:
    """Qwen2VLImageProcessorPil on what Pillow opens."""
    from io import BytesIO

    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    processor: Any = Qwen2VLImageProcessorPil(**image["processor"])
    return lambda: processor(Image.open(BytesIO(data)), return_tensors="np")["pixel_values"]


def pillow_resize(image: dict[str, Any], data: bytes) -> Work:
    """Image.resize alone: Pillow's, or pillow-simd's where that is what is installed."""
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(data)).convert("RGB")
    picture.load()
    height, width = image["resized"]
    return lambda: picture.resize((width, height), Image.Resampling.BICUBIC)


def omr_io_resize(image: dict[str, Any], data: bytes, instructions: str = "best") -> Work:
    """Our resize alone."""
    from omr_io import _C
    from omr_io.images.decode import CpuDecoder
    from omr_io.images.patches import vertical_first
    from omr_io.images.sizes import probe

    (pixels,) = CpuDecoder().decode([data], [probe(data)])
    height, width = image["resized"]
    first = vertical_first(pixels.shape[:2], (height, width), None)  # type: ignore[union-attr]
    options = {"vertical_first": first, "instructions": instructions}
    return lambda: _C.resize(pixels, height, width, **options)  # type: ignore[arg-type]


def decode(image: dict[str, Any], data: bytes) -> Work:
    """simplejpeg alone: what no decoder of the same library is faster than."""
    import simplejpeg

    return lambda: simplejpeg.decode_jpeg(data, "RGB")


SIDES: dict[str, Callable[[dict[str, Any], bytes], Work]] = {
    "omr_io": lambda image, data: omr_io(image, data, "float32"),
    "omr_io-bfloat16": lambda image, data: omr_io(image, data, "bfloat16"),
    "omr_io-batch": lambda image, data: omr_io(image, data, "float32", BATCH),
    "omr_io-bfloat16-batch": lambda image, data: omr_io(image, data, "bfloat16", BATCH),
    "transformers": transformers,
    "decode": decode,
    "omr_io-resize": omr_io_resize,
    "omr_io-resize-avx2": lambda image, data: omr_io_resize(image, data, "avx2"),
    "pillow-resize": pillow_resize,
    # The same code in an environment that has pillow-simd:
    "transformers-simd": transformers,
    "simd-resize": pillow_resize,
}


def measure(work: Work, rounds: int) -> tuple[float, float]:
    """The least wall and processor time of a call, in seconds."""
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return min(walls), min(cpus)


def digest(result: Any) -> str:
    """Of the pixels or values themselves, so that sides can be compared."""
    import numpy as np

    if type(result).__module__.startswith("torch"):
        result = result.view(getattr(__import__("torch"), f"int{result.itemsize * 8}")).numpy()
    return hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()[:16]


def main() -> None:
    """Measure every image of a folder and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    images = json.loads((given.folder / "images.json").read_text(encoding="utf-8"))
    works = {
        image["name"]: SIDES[given.side](image, (given.folder / image["file"]).read_bytes())
        for image in images
    }
    found = {name: {"digest": digest(work())} for name, work in works.items()}
    for name, work in works.items():
        wall, cpu = measure(work, given.rounds)
        each = 1e3 / (BATCH if given.side.endswith("-batch") else 1)  # milliseconds an image
        found[name] |= {"wall": wall * each, "cpu": cpu * each}  # type: ignore[dict-item]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
