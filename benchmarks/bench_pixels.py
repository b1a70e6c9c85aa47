"""JPEG to patches, and resize alone, against transformers' processor, Pillow and pillow-simd.

    python -m benchmarks.bench_pixels [--simd-python PATH] [--rounds 5]

--simd-python is of an environment that has pillow-simd (which replaces Pillow, so it cannot be
ours) and transformers of our version, torch not needed; without it those sides are left out.

Each measurement is a fresh process (pixel_sides.py) pinned to one core. Sides take turns, so that
all see the machine's drift. Within a process the least of many repetitions of each image counts; a
time is the median over rounds of the mean over images, a ratio the median of the ratios within a
round. Results of sides that should be equal are compared by digest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omr_io.config import VisionConfig
from omr_io.images.sizes import smart_resize

VISION = VisionConfig(
    "qwen2_5_vl",
    patch_size=14,
    min_pixels=4 * 28 * 28,
    max_pixels=256 * 28 * 28,  # at most 256 visual tokens
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
# (height, width), Pillow's subsampling (0: 4:4:4, 2: 4:2:0), quality: about 0.55 Mpx each.
IMAGES = (
    ((742, 742), 2, 80), ((640, 860), 2, 85), ((1000, 550), 2, 75),
    ((860, 640), 0, 80), ((480, 1146), 0, 75), ((742, 742), 0, 85),
)  # fmt: skip
OWN = (
    "omr_io", "omr_io-batch", "omr_io-bfloat16", "omr_io-bfloat16-batch", "transformers", "decode",
)  # fmt: skip
RESIZES = ("omr_io-resize", "omr_io-resize-avx2", "pillow-resize")
SIMD = ("transformers-simd", "simd-resize")


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Seeded: soft blobs on black as of a scan, texture, a scale bar; some tinted as stains."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    light = np.zeros((height, width))
    for _ in range(14):
        cy, cx = rng.uniform(0.1, 0.9, 2) * (height, width)
        ry, rx = rng.uniform(0.04, 0.3, 2) * (height, width)
        light += rng.uniform(20, 110) * np.exp(-(((y - cy) / ry) ** 2) - ((x - cx) / rx) ** 2)
    grain = rng.standard_normal((height // 2 + 1, width // 2 + 1)).repeat(2, 0).repeat(2, 1)
    light += 4 * grain[:height, :width] * (light > 15)
    tint = np.array([1.0, 1.0, 1.0] if seed % 2 else [1.0, 0.72, 0.86])
    pixels = light[..., None] * tint
    pixels[-24:-16, 20 : width // 4] = 255
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder: Path) -> list[dict[str, Any]]:
    """The JPEGs, and images.json with what the sides must know of each."""
    processor = {
        "patch_size": VISION.patch_size,
        "merge_size": VISION.merge_size,
        "temporal_patch_size": VISION.temporal_patch_size,
        "size": {"shortest_edge": VISION.min_pixels, "longest_edge": VISION.max_pixels},
        "image_mean": list(VISION.image_mean),
        "image_std": list(VISION.image_std),
    }
    images = []
    for seed, ((height, width), subsampling, quality) in enumerate(IMAGES):
        encoded = BytesIO()
        picture(height, width, seed).save(encoded, "JPEG", quality=quality, subsampling=subsampling)
        name = f"{width}x{height} {'4:4:4' if subsampling == 0 else '4:2:0'}"
        (folder / f"{seed}.jpg").write_bytes(encoded.getvalue())
        about = {"name": f"{seed}: {name}", "file": f"{seed}.jpg", "bytes": encoded.tell()}
        size = smart_resize(height, width, VISION)
        images.append(about | {"resized": size, "processor": processor})
    (folder / "images.json").write_text(json.dumps(images), encoding="utf-8")
    return images


def measure(side: str, folder: Path, simd_python: str, repetitions: int) -> dict[str, Any]:
    """One process on one core; its last line is its result."""
    script = Path(__file__).with_name("pixel_sides.py").resolve()
    command = [simd_python if side in SIMD else sys.executable, str(script), side, str(folder)]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = {} if side in SIMD else {"PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run(
        [*command, "--rounds", str(repetitions)],
        env=os.environ | environment | root,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bench(folder: Path, simd_python: str, rounds: int, clock: str) -> dict[str, Any]:
    """All sides, and the table of the rows that the project promises."""
    images = write_images(folder)
    sides = (*OWN, *RESIZES, *(SIMD if simd_python else ()))
    runs = [
        {
            side: measure(side, folder, simd_python, 12 if "transformers" in side else 60)
            for side in sides
        }
        for _ in range(rounds)
    ]
    pairs = [("transformers", "omr_io"), ("transformers", "omr_io-batch")]
    pairs += [("omr_io-bfloat16", "omr_io-bfloat16-batch"), ("pillow-resize", "omr_io-resize")]
    for other, own in pairs:
        for image, found in runs[0][own].items():
            assert found["digest"] == runs[0][other][image]["digest"], f"{own} differs: {image}"

    def mean(run: dict[str, Any], side: str) -> float:
        return float(statistics.mean(image[clock] for image in run[side].values()))

    def ratio(side: str, own: str) -> float:
        return statistics.median(mean(run, side) / mean(run, own) for run in runs)

    times = {side: statistics.median(mean(run, side) for run in runs) for side in sides}
    rows = [
        ("decode + resize + patches, ms", times["omr_io-batch"], -2.2),
        ("times transformers' processor, an image a call", ratio("transformers", "omr_io"), 9.0),
        ("the same, ours 4 a call", ratio("transformers", "omr_io-batch"), 9.0),
        ("resize, times Pillow", ratio("pillow-resize", "omr_io-resize"), 7.0),
    ]
    differing = None
    if simd_python:
        rows.append(("resize, times pillow-simd", ratio("simd-resize", "omr_io-resize"), 1.0))
        rows.append(
            ("times transformers on pillow-simd", ratio("transformers-simd", "omr_io-batch"), 6.0)
        )
        differing = sum(
            runs[0]["simd-resize"][image]["digest"] != found["digest"]
            for image, found in runs[0]["pillow-resize"].items()
        )
    return {
        "settings": {"clock": clock, "max_pixels": VISION.max_pixels, "patch_size": 14},
        "images": [{k: i[k] for k in ("name", "bytes", "resized")} for i in images],
        "milliseconds": times,
        "images_that_pillow_simd_resizes_otherwise": differing,
        "table": [
            {
                "row": name,
                "measured": value,
                "least": abs(least),
                "met": value >= least if least > 0 else value <= -least,
            }
            for name, value, least in rows
        ],
        "rounds": runs,
    }


def report(simd_python: str, rounds: int, clock: str) -> None:
    """Measure, write benchmarks/results/pixels.json, print."""
    from benchmarks.run import write  # it imports this module

    with tempfile.TemporaryDirectory() as folder:
        result = bench(Path(folder), simd_python, rounds, clock)
    write("pixels", result)
    for side, time in result["milliseconds"].items():
        print(f"pixels, {side}: {time:.3f} ms an image")
    if result["images_that_pillow_simd_resizes_otherwise"] is not None:
        count = result["images_that_pillow_simd_resizes_otherwise"]
        print(f"pixels: pillow-simd resizes {count} of {len(IMAGES)} images unlike Pillow")
    for row in result["table"]:
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['row']}: {row['measured']:.3g} (aim {row['least']:g}): {verdict}")


def main() -> None:
    """Run this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simd-python", default="", help="of an environment with pillow-simd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    given = parser.parse_args()
    report(given.simd_python, given.rounds, given.clock)


if __name__ == "__main__":
    main()
