"""Which samples an epoch has: what a blend draws, the caller's own numbers, or all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omr_io.blend import Blend, Drawn, OpenBlend, Source
from omr_io.config import fingerprint
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.loader.lengths import check_image_sizes
from omr_io.packing import Lengths, check_samples
from omr_io.types import Int64Array


def as_blend(shards: str | Path | ShardSet | Blend, samples: Int64Array | None) -> Blend:
    """What a loader is given, as a blend: a single set is a blend of itself.

    Raises:
        ConfigError: a blend, and numbers of samples beside it.
    """
    if not isinstance(shards, Blend):
        return Blend([Source(shards)])
    if samples is not None:
        raise ConfigError(
            "samples beside a Blend, which says itself which samples an epoch has",
            mend="Give the sources a filter: Source(..., where=...)",
        )
    return shards


class Selection:
    """The samples of each epoch, as numbers. Safe to use from several threads.

    Args:
        opened: the blend with its sets open.
        lengths: of all its samples, before any is truncated: filters may look at them.
        samples: (m,) the caller's own selection from a single set, each once; None: what the blend
            draws.
        seed: of the loader.

    Attributes:
        fingerprint: stands for the selection: "all", or 16 hex digits.
        num_samples: different ones that any epoch may hold.

    Raises:
        ConfigError: `samples` or a filter cannot be right.
        DataError: nothing is selected.
        ImageError: the model refuses the size of an image that is selected.
    """

    def __init__(
        self, opened: OpenBlend, lengths: Lengths, samples: Int64Array | None, seed: int
    ) -> None:
        self._seed = seed
        self._drawing = opened.drawing(lengths)
        self._samples: Int64Array | None = None
        if samples is not None:  # in the index' order, in which windows are cut and read
            self._samples = np.sort(check_samples(samples, len(opened.samples)))
            self.fingerprint = fingerprint(samples.tolist())
        else:
            whole = self._drawing.is_everything
            self.fingerprint = "all" if whole else self._drawing.fingerprint
        used = self._drawing.numbers() if self._samples is None else self._samples
        self.num_samples = len(used)
        check_image_sizes(opened.samples, used)

    def of(self, epoch: int) -> Int64Array | None:
        """The numbers of an epoch's samples, as often as they come; None: all, each once."""
        if self._samples is not None or self._drawing.is_everything:
            return self._samples
        return self._drawing.draw(epoch, self._seed)

    def counts(self, epoch: int) -> tuple[Drawn, ...]:
        """What an epoch holds of each source of the blend, and of each letter that it balances."""
        return self._drawing.counts(epoch)
