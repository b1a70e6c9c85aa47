"""Boundaries of segments on the host, for attention that works segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class HostBoundaries:
    """Boundaries as Python integers, so that no attention asks the GPU for them.

    Attention without a variable-length kernel (float32) needs them. One object, since sharded
    training walks through lists of a forward's arguments, item by item and layer by layer.

    Attributes:
        kinds: S + 1 bounds over the flattened rows for each kind of layer: in text one, in
            Qwen2.5-VL's vision tower frames and windows. Windows divide frames, so two kinds with
            as many segments are equal.
    """

    kinds: tuple[tuple[int, ...], ...]

    def of(self, count: int) -> tuple[int, ...] | None:
        """The bounds of the layers that have `count` of them; None if there is no such kind."""
        return next((bounds for bounds in self.kinds if len(bounds) == count), None)


def pack_boundaries(lengths: Sequence[Sequence[int]], seq_len: int) -> HostBoundaries:
    """Those of packs: each sample is a segment, and so is a pack's padding.

    Args:
        lengths: tokens of the samples in each pack, at most seq_len together.
    """
    padded = [[*pack, seq_len - sum(pack)] for pack in lengths]
    segments = [length for pack in padded for length in pack if length]
    return HostBoundaries(((0, *accumulate(segments)),))
