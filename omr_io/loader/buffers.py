"""Memory for the patches of batches, used again when nobody can see it any more.

The first touch of memory costs 1.3 us for 4 KiB on a virtual machine: four times what it takes to
compute the patches that go there. So a block is kept when the last tensor or array that looks into
it is gone, and serves a later batch. Blocks are in huge pages where the system gives them.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress
from typing import cast

import numpy as np
import torch
from torch import Tensor

from omr_io.types import UInt8Array

_HUGE_PAGE = 2 << 20
_SPARE = 8  # a new block has an eighth more than is asked for, so that it fits the next batch


class PixelBuffers:
    """Lends memory. Calls from several threads are safe, and so are calls in the child of a fork.

    Args:
        keep: blocks that may lie idle; beyond them, the smallest are given back to the system.
        pinned: page-locked memory of torch's own allocator, which keeps and reuses it by itself,
            and knows when a copy to a GPU is over.
    """

    def __init__(self, keep: int, *, pinned: bool = False) -> None:
        self._keep = keep
        self._pinned = pinned
        # Blocks come back in finalizers, which run in any thread and within any call of it, also
        # of `take`: so no lock, but a deque, whose append and pop are atomic.
        self._returned: deque[mmap.mmap] = deque()

    def take(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """(rows, width) of that dtype, not initialised.

        Its memory is lent again when the last tensor and array that shares it is gone.
        """
        if self._pinned:
            return torch.empty((rows, width), dtype=dtype, pin_memory=True)
        size = rows * width * dtype.itemsize
        if size < _HUGE_PAGE:  # malloc keeps such memory well by itself
            return torch.empty((rows, width), dtype=dtype)
        block = self._block(size)
        # NumPy's view of a view has this array as its base, since its own base is no array; and
        # torch's storage holds it. So it lives exactly as long as anything that sees the memory.
        lease = cast(UInt8Array, np.frombuffer(block, np.uint8, size))
        weakref.finalize(lease, _give_back, self._returned, block).atexit = False
        return torch.from_numpy(lease).view(dtype).view(rows, width)

    def _block(self, size: int) -> mmap.mmap:
        """A returned block that is large enough, the smallest such; else a new one."""
        idle = []
        while True:
            try:
                idle.append(self._returned.popleft())
            except IndexError:
                break
        idle.sort(key=len)
        place = next((place for place, block in enumerate(idle) if len(block) >= size), None)
        found = None if place is None else idle.pop(place)
        if found is None and len(idle) >= self._keep:
            del idle[0]  # it is too small, and the new one will take its place
        self._returned.extend(idle[-self._keep :] if self._keep else ())
        return _new_block(size) if found is None else found

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait to be lent again."""
        return sum(map(len, list(self._returned)))


def _give_back(returned: deque[mmap.mmap], block: mmap.mmap) -> None:
    returned.append(block)


def _new_block(size: int) -> mmap.mmap:
    room = size + size // _SPARE
    # Python's default is shared memory, which the child of a fork would write into as well.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    block = mmap.mmap(-1, -(-room // _HUGE_PAGE) * _HUGE_PAGE, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: then they are small pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
