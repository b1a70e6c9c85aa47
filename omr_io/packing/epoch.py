"""An epoch of any size, planned a window of samples at a time.

A window is planned when it is asked for, from its samples, the seed, the epoch and its number
alone, and its last step is filled up with empty packs. So memory is bounded by the window, a run
goes on at any window without planning those before it, and a position is (window, step within it).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from omr_io.errors import ConfigError
from omr_io.packing.plan import CostModel, Lengths, Plan, TooLong, plan_epoch
from omr_io.types import Int64Array

_HELD = 2  # plans kept: the window at work and the one that comes next


class EpochPlan:
    """The windows of one epoch, in a seeded order. Safe to use from several threads.

    Args:
        lengths: of all samples.
        epoch: counts from 0; every epoch is another order.
        seed: any integer.
        seq_len, packs_per_step, too_long, cost, keys: as for `plan_epoch`.
        window: samples planned together, in index order before they are shuffled; None: all.
        samples: (m,) int64, the numbers of the samples to plan; a number may stand there more than
            once, and then comes as often. None: every sample once.

    Raises:
        ConfigError: an option that cannot be right.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        epoch: int,
        seed: int,
        seq_len: int,
        packs_per_step: int,
        window: int | None = None,
        too_long: TooLong = "error",
        cost: CostModel | None = None,
        keys: Sequence[str] | None = None,
        samples: Int64Array | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise ConfigError(f"window {window} must be at least 1 sample, or None")
        self.epoch = epoch
        self.seq_len = seq_len
        self.packs_per_step = packs_per_step
        self._lengths = lengths
        self._seed = seed
        self._too_long: TooLong = too_long
        self._cost = cost
        self._keys = keys
        self._wanted = np.arange(len(lengths)) if samples is None else np.sort(samples)
        self._size = window or max(len(self._wanted), 1)
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._lock = Lock()

    @property
    def num_windows(self) -> int:
        """Windows of the epoch."""
        return -(-len(self._wanted) // self._size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the epoch: exact, so every window that is not known is planned."""
        return sum(self.window(number).num_steps for number in range(self.num_windows))

    def window(self, number: int) -> Plan:
        """The plan of a window, counted from 0 in the order of the epoch.

        Raises:
            IndexError: the epoch has no such window.
            SampleTooLongError: a sample has more tokens than seq_len (unless it is to be dropped).
        """
        if not 0 <= number < self.num_windows:
            raise IndexError(f"window {number} of an epoch of {self.num_windows}")
        with self._lock:
            if number not in self._plans:
                self._plans[number] = self._plan(number)
                if len(self._plans) > _HELD:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(number)
            return self._plans[number]

    def _plan(self, number: int) -> Plan:
        digest = hashlib.sha256(f"windows {self._seed} {self.epoch}".encode()).digest()
        words = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(self.num_windows)
        place = int(np.argsort(np.atleast_1d(words), kind="stable")[number])
        return plan_epoch(
            self._lengths,
            epoch=self.epoch,
            seed=self._seed if self.num_windows == 1 else hash((self._seed, place)),
            seq_len=self.seq_len,
            packs_per_step=self.packs_per_step,
            too_long=self._too_long,
            cost=self._cost,
            keys=self._keys,
            samples=self._wanted[place * self._size : (place + 1) * self._size],
        )
