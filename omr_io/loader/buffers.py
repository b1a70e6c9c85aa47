"""Memory for batches, used again when nobody can see it any more.

The first touch of memory costs 1.3 us for 4 KiB on a virtual machine: four times what it takes to
compute the patches that go there. So a block is kept when the last tensor or array that looks into
it is gone, and serves a later batch. Blocks are in huge pages where the system gives them, and the
one that came back last is lent first: its pages have been touched.
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


class BatchBuffers:
    """Lends memory. Calls from several threads are safe, and so are calls in the child of a fork.

    Args:
        keep: blocks that may lie idle; what is over goes back to the system.
        most_bytes: of the largest buffer that will be asked for. Every block has room for it, so
            that any block fits any batch; room that is never touched takes no memory.
        pinned: page-locked memory of torch's own allocator, which keeps and reuses it by itself,
            and knows when a copy to a GPU is over.
    """

    def __init__(self, keep: int, most_bytes: int = 0, *, pinned: bool = False) -> None:
        self._keep = keep
        self._most_bytes = most_bytes
        self._pinned = pinned
        # Blocks come back in finalizers, which run in any thread and within any call of it, also
        # of `take`: so no lock, but a deque, whose append and pop are atomic.
        self._returned: deque[mmap.mmap] = deque()

    def take(self, size: int) -> Tensor:
        """(size,) uint8, not initialised, from a multiple of 64 bytes on.

        Its memory is lent again when the last tensor and array that shares it is gone.
        """
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        if size < _HUGE_PAGE:  # malloc keeps such memory well by itself
            return torch.empty(size, dtype=torch.uint8)
        block = self._block(size)
        # NumPy's view of a view has this array as its base, since its own base is no array; and
        # torch's storage holds it. So it lives exactly as long as anything that sees the memory.
        start = -np.frombuffer(block, np.uint8, 1).ctypes.data % _HUGE_PAGE
        lease = cast(UInt8Array, np.frombuffer(block, np.uint8, size, start))
        weakref.finalize(lease, _give_back, self._returned, block).atexit = False
        return torch.from_numpy(lease)

    def _block(self, size: int) -> mmap.mmap:
        """The block that came back last, if there is one that is large enough; else a new one."""
        while True:
            try:
                block = self._returned.pop()
            except IndexError:
                return _new_block(max(size, self._most_bytes))
            while len(self._returned) >= self._keep > 0:
                with suppress(IndexError):
                    self._returned.popleft()
            if len(block) >= size + _HUGE_PAGE:
                return block

    def clear(self) -> None:
        """Give what lies idle back to the system."""
        self._returned.clear()

    @property
    def num_idle(self) -> int:
        """Blocks that wait to be lent again."""
        return len(self._returned)


def _give_back(returned: deque[mmap.mmap], block: mmap.mmap) -> None:
    returned.append(block)


def _new_block(size: int) -> mmap.mmap:
    """Room for `size` bytes from the first multiple of a huge page on."""
    # Python's default is shared memory, which the child of a fork would write into as well.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = -(-size // _HUGE_PAGE) + 1
    block = mmap.mmap(-1, pages * _HUGE_PAGE, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: then they are small pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
