"""Which keys came before: 20 bytes a key, for the 24 million of a large set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omr_io.types import Int32Array

_Digests = tuple[NDArray[np.uint64], NDArray[np.uint64], Int32Array]


class KeysSeen:
    """Keys by the 128 bits of their digest, each with the number of its shard.

    Sorted runs of doubling length are kept, so that a key costs a few searches whatever their
    number.
    """

    def __init__(self) -> None:
        self._runs: list[_Digests] = []

    def add(self, keys: Sequence[str], shard: int) -> Int32Array:
        """Add keys, all different.

        Returns:
            (len(keys),) int32: the shard that has the key before, or -1.
        """
        joined = b"".join(hashlib.blake2b(k.encode(), digest_size=16).digest() for k in keys)
        halves = np.frombuffer(joined, np.uint64).reshape(-1, 2)
        known = np.full(len(keys), -1, np.int32)
        for high, low, shards in self._runs:
            # Two keys with equal halves only: 1 in 2^64, and then one may go unseen as a duplicate.
            at = np.minimum(np.searchsorted(high, halves[:, 0]), len(high) - 1)
            equal = (high[at] == halves[:, 0]) & (low[at] == halves[:, 1])
            known[equal] = shards[at[equal]]
        new = known < 0
        self._push(halves[new], np.full(int(new.sum()), shard, np.int32))
        return known

    def _push(self, halves: NDArray[np.uint64], shards: Int32Array) -> None:
        if not len(halves):
            return
        run = _sorted(halves[:, 0], halves[:, 1], shards)
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            high, low, before = self._runs.pop()
            run = _sorted(
                np.concatenate([high, run[0]]),
                np.concatenate([low, run[1]]),
                np.concatenate([before, run[2]]),
            )
        self._runs.append(run)


def _sorted(high: NDArray[np.uint64], low: NDArray[np.uint64], shards: Int32Array) -> _Digests:
    order = np.argsort(high, kind="stable")
    return high[order], low[order], shards[order]
