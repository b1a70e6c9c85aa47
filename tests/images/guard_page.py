"""Run by test_patches.py: resizes pixels that end where a page without access begins."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

from omr_io import _C

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


def main(instructions: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, to_height, to_width = rng.integers(1, 90, 4).tolist()
        pixels = at_the_end(height * width * 3).reshape(height, width, 3)
        for first in (False, True):
            _C.resize(pixels, to_height, to_width, vertical_first=first, instructions=instructions)
    print("60 sizes")


main(sys.argv[1])
