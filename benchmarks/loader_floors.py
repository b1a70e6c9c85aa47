"""The floors of the loader: what no loader can leave out, and nothing else; JSON out.

    python -m benchmarks.loader_floors FOLDER --samples 600 [--clock cpu] [--pairs 3]

Of the same samples in the same order as every side: read both parts, decode the JPEG (simplejpeg),
resize, normalise and cut (our kernel). Decoded pixels go into memory that is used again; patches
into memory of a batch's size that is used again, one place after the other, since a batch does not
stay in the cache. Decode and kernel run once image by image and once nine images at a time; the
faster way counts.

The loader's share of them is taken in one process, an epoch of the loader and a pass of the floors
in turn: between processes of a shared machine both drift by 30 %, by whoever else uses its cache
and memory, and the quotient of two such times says little. The loader has had an epoch before.
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
from benchmarks.loader_sides import Side, index, own_loader
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


def floors(side: Side, dtype: str, clock: str = "wall") -> dict[str, Any]:
    """The seconds of each step for pixels of that dtype, and their sum; the faster of two ways."""
    places = list(peers.groups(index(side.folder, side.samples), PACK))
    ways = {}
    for way in ("by image", "by pack"):
        work = Work(side, getattr(torch, dtype), CLOCKS[clock])
        for group in places:
            files = work.read(group)
            for part in peers.groups(files, 1 if way == "by image" else PACK):
                work.images(part)
        ways[way] = work.seconds
    best = min(ways, key=lambda way: sum(ways[way].values()))
    seconds = sum(ways[best].values())
    return {"samples": sum(map(len, places)), "way": best, "seconds": seconds, "parts": ways[best]}


def share(side: Side, pairs: int, clock: str = "wall") -> list[dict[str, Any]]:
    """Pairs of an epoch of our loader and a pass of the floors; the floors' part of its time."""
    tick, found = CLOCKS[clock], []
    with own_loader(side) as loader:
        for number in range(pairs + 1):
            began, samples = tick(), 0
            for batch in loader:
                samples += sum(map(len, batch.keys))
            seconds = tick() - began
            if number == 0:  # memory is touched, caches are filled
                continue
            floor = floors(side, side.dtype, clock)
            assert samples == floor["samples"], "not the same samples"
            found.append({"seconds": seconds, "floors": floor, "share": floor["seconds"] / seconds})
    return found


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = {
        dtype: Side(f"omr_io-{dtype}", given.folder, given.samples)
        for dtype in ("float32", "bfloat16")
    }
    found = {dtype: share(side, given.pairs, given.clock) for dtype, side in sides.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
