"""Ranks as threads of one process: what `omr_io.train.ranks.Ranks` promises, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadRanks:
    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank = rank
        self.world_size = barrier.parties
        self._barrier = barrier
        self._board = board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        values = list(self._board)
        self._barrier.wait()
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        return [float(sum(column)) for column in zip(*self.gather(list(values)), strict=True)]

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))


def on_ranks(world_size: int, work: Callable[[Any], T]) -> list[T]:
    """`work` on each rank; a rank that fails or hangs fails the test instead of stopping it."""
    barrier = threading.Barrier(world_size, timeout=300)
    board: list[Any] = [None] * world_size

    def one(rank: int) -> T:
        try:
            return work(ThreadRanks(rank, barrier, board))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        return [done.result() for done in [pool.submit(one, rank) for rank in range(world_size)]]
