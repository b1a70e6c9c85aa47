"""Run by test_patches.py: pixels and values that end where a page without access begins."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import torch

from omr_io import _C
from omr_io.images.cpu_patches import patches
from omr_io.types import PatchLayout, PatchTarget

PAGE = mmap.PAGESIZE


def at_the_end(count: int) -> np.ndarray:
    """So many bytes right before a page that may not be touched."""
    pages = -(-count // PAGE) + 1
    memory = mmap.mmap(-1, pages * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(address + (pages - 1) * PAGE, PAGE, 0) == 0, ctypes.get_errno()
    return np.frombuffer(memory, np.uint8, count, (pages - 1) * PAGE - count)


def cut(pixels: np.ndarray, rng: np.random.Generator, instructions: str) -> None:
    """Patches of some layout: the last value lies before the page too."""
    height, width, merge, rows, columns = rng.integers(1, [40, 40, 3, 3, 3]).tolist()
    layout = PatchLayout(height, width, merge, channels_last=bool(rng.integers(2)))
    target = PatchTarget(height * merge * rows, width * merge * columns, layout)
    table = np.zeros((3, 256), np.float32)
    for dtype in (torch.float32, torch.bfloat16):
        count = target.num_patches * layout.patch_width
        memory = torch.from_numpy(at_the_end(count * dtype.itemsize)).view(dtype)
        out = memory.view(target.num_patches, layout.patch_width)
        patches([pixels], [target], table, dtype=dtype, out=out, instructions=instructions)


def main(instructions: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, to_height, to_width = rng.integers(1, 90, 4).tolist()
        pixels = at_the_end(height * width * 3).reshape(height, width, 3)
        for first in (False, True):
            _C.resize(pixels, to_height, to_width, vertical_first=first, instructions=instructions)
        cut(pixels, rng, instructions)
    print("60 sizes")


main(sys.argv[1])
