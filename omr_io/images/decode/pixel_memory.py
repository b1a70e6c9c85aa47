"""Memory for pixels that is used again as soon as nobody looks at it any more.

Fresh memory is not free: the system clears and maps each page of 4 KiB at its first touch. As long
as few images are held at a time, malloc gives the pages of the last ones again and there is nothing
to gain; with 64 images held (80 MB) it gives them back to the system in between, and an image of
0.4 Mpx then meets 205 to 320 new pages, 0.4 ms of the 1.5 that it takes.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Final

import numpy as np

from omr_io.types import UInt8Array

KEPT_BYTES: Final = 128 << 20
"""Blocks that a thread keeps together; more are as fresh as malloc makes them."""

_SMALLEST: Final = 1 << 16


class PixelMemory:
    """Blocks of bytes, each given out again when no array looks at it.

    The rule of ownership is Python's own: who holds an array that was made in a block, or a view of
    it, or a tensor that shares it, holds a reference to the block, and a block with references is
    left alone. So nothing has to be given back. Each thread has blocks of its own, and they go with
    the thread.

    Args:
        kept_bytes: see `KEPT_BYTES`; 0 keeps none.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._local = threading.local()

    def take(self, size: int) -> UInt8Array:
        """A block of at least `size` bytes, one-dimensional uint8, of any content."""
        if size < _SMALLEST or size > self.kept_bytes:
            return np.empty(size, np.uint8)
        blocks: _Blocks | None = getattr(self._local, "blocks", None)
        if blocks is None:
            blocks = self._local.blocks = _Blocks()
        return blocks.take(_rounded(size), self.kept_bytes)


class _Blocks:
    """One thread's blocks, by size; of a size the one that was given out first comes first.

    A request may get a block of up to twice its size, and a new block takes the place of an unseen
    one of at least half its size. So where images come one by one there are a few blocks, one for
    each doubling between the smallest image and the largest, and not one for each size.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, deque[UInt8Array]] = {}
        self._sizes: list[int] = []  # those there are, ascending
        self._held = 0
        # Counted and not assumed: how many references a call itself makes differs by Python.
        self._unseen = _references(deque([np.empty(1, np.uint8)]))

    def take(self, size: int, kept_bytes: int) -> UInt8Array:
        place = bisect_left(self._sizes, size)
        for larger in self._sizes[place : bisect_right(self._sizes, 2 * size)]:
            if self._is_free(larger):
                queue = self._by_size[larger]
                queue.rotate(-1)
                return queue[-1]
        for smaller in reversed(self._sizes[bisect_left(self._sizes, size // 2) : place]):
            if self._is_free(smaller):
                self._drop(smaller)
                break
        if self._held + size > kept_bytes:
            self._drop_unseen()
        block = np.empty(size, np.uint8)
        if self._held + size <= kept_bytes:
            self._keep(block)
        return block

    def _is_free(self, size: int) -> bool:
        # What was given out first is done with first: if that is in use, so are most others.
        return _references(self._by_size[size]) == self._unseen

    def _keep(self, block: UInt8Array) -> None:
        if len(block) not in self._by_size:
            self._by_size[len(block)] = deque()
            insort(self._sizes, len(block))
        self._by_size[len(block)].append(block)
        self._held += len(block)

    def _drop(self, size: int) -> None:
        """Let go of the first block of a size."""
        self._by_size[size].popleft()
        self._held -= size
        if not self._by_size[size]:
            del self._by_size[size]
            self._sizes.remove(size)

    def _drop_unseen(self) -> None:
        """Let go of what nobody looks at: it has sizes that are not asked for any more."""
        for size in self._sizes.copy():
            for _ in range(len(self._by_size[size])):
                if self._is_free(size):
                    self._drop(size)
                else:
                    self._by_size[size].rotate(-1)


def _references(queue: deque[UInt8Array]) -> int:
    """References to the first block of a queue, those of queue and call included."""
    return sys.getrefcount(queue[0])


def _rounded(size: int) -> int:
    """The next size of block: eight to a doubling, so at most an eighth is never used."""
    step = 1 << (size.bit_length() - 4)
    return -(-size // step) * step
