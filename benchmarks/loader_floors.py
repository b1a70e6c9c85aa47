"""The floors of the loader: what no loader can leave out, and nothing else; JSON out.

    python -m benchmarks.loader_floors FOLDER --samples 600 [--clock cpu]

Of the same samples in the same order as every side: read both parts, decode the JPEG (simplejpeg),
resize, normalise and cut (our kernel). Decoded pixels go into memory that is used again; patches
into memory of a batch's size that is used again, one place after the other, since a batch does not
stay in the cache. Decode and kernel run once image by image and once nine images at a time; the
faster way counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # where only this file was named

from benchmarks import loader_peers as peers
from benchmarks.loader_sides import Side, index
from omr_io.images.patches import patch_target, value_table
from omr_io.images.sizes import smart_resize
from omr_io.ops import patches_implementation

PACK = 9
"""Samples of a pack of 8,192 tokens, about."""

BUFFER_BYTES = 3 * 8_000_000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Work:
    """The three steps, each timed apart.

    Attributes:
        seconds: by step, since it was last reset.
    """

    def __init__(self, side: Side, dtype: torch.dtype, clock: Callable[[], float]) -> None:
        import simplejpeg

        self._jpeg: Any = simplejpeg.decode_jpeg
        self._vision, self._dtype, self._clock = side.vision(), dtype, clock
        self._kernel, self._table = patches_implementation("cpu"), value_table(self._vision)
        rows = side.about["seq_len"] * self._vision.merge_size**2
        self._out = torch.empty((rows, self._vision.patch_width), dtype=dtype).fill_(0)
        self._row = 0
        self._buffers = [bytearray(b"\1") * BUFFER_BYTES for _ in range(PACK)]
        self._descriptors: dict[str, int] = {}
        self.seconds = {"pread": 0.0, "decode": 0.0, "kernel": 0.0}

    def read(self, places: Sequence[Any]) -> list[bytes]:
        """The images' files; the JSON is read too."""
        files = []
        for tar, _, parts in places:
            if tar not in self._descriptors:
                self._descriptors[tar] = os.open(tar, os.O_RDONLY)
            started = self._clock()
            image, _ = [os.pread(self._descriptors[tar], size, at) for at, size in parts]
            self.seconds["pread"] += self._clock() - started
            files.append(image)
        return files

    def images(self, files: Sequence[bytes]) -> None:
        """Decode all, then run the kernel on all."""
        started = self._clock()
        decoded = [
            self._jpeg(file, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
            for file, buffer in zip(files, self._buffers, strict=False)
        ]
        self.seconds["decode"] += self._clock() - started
        shapes = [image.shape[:2] for image in decoded]
        sizes = [smart_resize(shape[0], shape[1], self._vision) for shape in shapes]
        targets = [
            patch_target(shape, size, self._vision)
            for shape, size in zip(shapes, sizes, strict=True)
        ]
        count = sum(high * wide for high, wide in sizes) // self._vision.patch_size**2
        if self._row + count > len(self._out):
            self._row = 0
        out = self._out[self._row : self._row + count]
        self._row += count
        started = self._clock()
        self._kernel(decoded, targets, self._table, dtype=self._dtype, out=out)
        self.seconds["kernel"] += self._clock() - started


def floors(side: Side, clock: str = "wall") -> dict[str, Any]:
    """For each dtype of pixels the seconds of each step, and their sum."""
    places = list(peers.groups(index(side.folder, side.samples), PACK))
    found: dict[str, Any] = {"samples": sum(map(len, places))}
    for name in ("float32", "bfloat16"):
        ways = {}
        for way in ("by image", "by pack"):
            work = Work(side, getattr(torch, name), CLOCKS[clock])
            for group in places:
                files = work.read(group)
                for part in peers.groups(files, 1 if way == "by image" else PACK):
                    work.images(part)
            ways[way] = work.seconds
        best = min(ways, key=lambda way: sum(ways[way].values()))
        found[name] = {"way": best, "seconds": sum(ways[best].values()), "parts": ways[best]}
    return found


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(floors(Side("floors", given.folder, given.samples), given.clock)))


if __name__ == "__main__":
    main()
