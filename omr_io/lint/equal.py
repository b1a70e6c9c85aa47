"""Which of many digests are equal: sorting, so that 24 million take 400 MB and a minute.

Legend: n digests, G groups of equal ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from omr_io.types import Int64Array, UInt8Array

DIGEST = 16  # bytes


@dataclass(frozen=True, slots=True)
class Equal:
    """Digests sorted into groups of equal ones.

    Attributes:
        order: (n,) int64, the digests' numbers, group by group, ascending within a group.
        starts: (G + 1,) int64; group g is order[starts[g]:starts[g + 1]].
    """

    order: Int64Array
    starts: Int64Array

    @property
    def sizes(self) -> Int64Array:
        """(G,) int64: how many digests each group has."""
        return np.diff(self.starts)

    def group_of(self) -> Int64Array:
        """(n,) int64: the group of each digest."""
        groups = np.empty(len(self.order), np.int64)
        groups[self.order] = np.repeat(np.arange(len(self.starts) - 1), self.sizes)
        return groups

    def firsts(self) -> Int64Array:
        """(n,) int64: for each digest the lowest number that has an equal one."""
        firsts = np.empty(len(self.order), np.int64)
        firsts[self.order] = np.repeat(self.order[self.starts[:-1]], self.sizes)
        return firsts


def group_equal(digests: UInt8Array) -> Equal:
    """Group (n, 16) uint8 digests."""
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: numbers ascend within a group
    ordered = halves[order]
    new = np.ones(len(ordered), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.append(np.flatnonzero(new), len(ordered))
    return Equal(order.astype(np.int64), starts.astype(np.int64))


def also_in(here: UInt8Array, there: UInt8Array) -> Int64Array:
    """For each of (n, 16) digests the number of an equal one in `there`, (m, 16), or -1."""
    if not len(there) or not len(here):
        return np.full(len(here), -1, np.int64)
    # `there` first: a group's lowest number is in `there` if any is.
    firsts = group_equal(np.concatenate([there, here])).firsts()[len(there) :]
    return np.where(firsts < len(there), firsts, -1)


def as_digests(digests: Iterable[bytes | bytearray]) -> UInt8Array:
    """(n, 16) uint8 of n byte strings of 16, or of a multiple of 16."""
    joined = bytearray()
    for digest in digests:  # not a list of them: each object would take four times its digest
        joined += digest
    return np.frombuffer(bytes(joined), np.uint8).reshape(-1, DIGEST)
