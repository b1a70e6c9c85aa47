"""How many steps each window of an epoch has, kept between runs.

A plan's length is exact, so it is only known when all windows are binned: 8 seconds for 100 million
samples, at every start that asks for `len(loader)` or `num_steps`. The counts are kept
(`omr_io.cache`, kind "steps") under a key of all that the plan follows from: what a state names
(`omr_io.loader.state.fingerprints`), the epoch, and the release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from omr_io import __version__
from omr_io.blend.drawing import DRAWING_FORMAT
from omr_io.cache import Cache
from omr_io.config import fingerprint
from omr_io.loader.state import FORMAT
from omr_io.types import Int64Array

STEPS_FORMAT = "steps/1"
"""Raise it when the same options give another number of steps, or these are kept otherwise."""


class StepCounts:
    """The counts of one epoch; see `omr_io.packing.epoch.KeptCounts`.

    Args:
        cache: where they are kept.
        names: all that the plan of any epoch follows from.
        epoch: whose counts they are.
    """

    def __init__(self, cache: Cache, names: Mapping[str, Any], epoch: int) -> None:
        self._cache, self._names, self._epoch = cache, names, epoch

    def load(self, num_windows: int) -> Int64Array | None:
        """(num_windows,) int64 as they were kept; None where there are no sound ones."""
        body = self._cache.load(self._key())
        if body is None:
            return None
        if len(body) == 8 * num_windows:
            counts = np.frombuffer(body, "<i8").astype(np.int64)
            if (counts >= 0).all():
                return counts
        self._cache.discard(self._key())
        return None

    def store(self, counts: Int64Array) -> None:
        """Keep them; a cache that cannot be written is told by an `OmrWarning`."""
        self._cache.store(self._key(), counts.astype("<i8").tobytes())

    def _key(self) -> str:
        names = dict(self._names)
        return fingerprint(STEPS_FORMAT, __version__, FORMAT, DRAWING_FORMAT, names, self._epoch)
