"""An epoch of any size, planned a window of samples at a time.

A window is planned when it is asked for, from its samples, the seed, the epoch and its number
alone, and its last step is filled up with empty packs. So memory is bounded by the window, a run
goes on at any window without planning those before it, and a position is (window, step within it).

Legend: n samples, m samples that are wanted.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Protocol

import numpy as np

from omr_io.errors import DataError, IntegrityError
from omr_io.packing.cost import CostModel
from omr_io.packing.lengths import Lengths, Rows, chunks
from omr_io.packing.plan import (
    NAMED,
    Plan,
    RandomWords,
    TooLong,
    Window,
    check_numbers,
    check_options,
    outside,
    too_long_error,
)
from omr_io.types import Int64Array

_HELD = 2  # plans kept: the window at work and the one that comes next
_UNKNOWN = -1
_LONG_SECONDS = 0.5  # of counting: worth a file


class KeptCounts(Protocol):
    """Where the steps of an epoch's windows are kept from run to run."""

    def load(self, num_windows: int) -> Int64Array | None:
        """(num_windows,) int64 steps of each window, in the order of the epoch; None: not kept."""
        ...

    def store(self, counts: Int64Array) -> None:
        """Keep them."""
        ...


class EpochPlan:
    """The windows of one epoch, in a seeded order. Safe to use from several threads.

    Windows are runs of samples in index order, or in that of `samples`, of as equal sizes as can
    be, so that reading stays near-sequential. A window is shuffled, its samples are packed
    (`omr_io.packing.binning`), and its packs are put in random order: every sample exactly once an
    epoch, whole.

    With columns of `lengths` in memory, samples that are too long are refused here; with
    memory-mapped ones when their window is planned, or by `check`.

    Args:
        lengths: of all n samples.
        epoch: counts from 0; every epoch is another order.
        seed: any integer.
        seq_len: tokens a pack can hold.
        packs_per_step: G, packs an optimiser step takes over all ranks.
        window: at most so many samples are planned together; None: all.
        too_long: "error", or "drop" to leave out samples of more than seq_len tokens; each plan
            lists its own in `Plan.dropped`.
        cost: what a pack costs a rank; None: `CostModel()`.
        keys: names for samples in errors, one each.
        samples: (m,) integers, the numbers of the samples to plan, in the order from which windows
            are cut; a number may stand there more than once, and then comes as often. None: every
            sample once, in index order.
        kept: where the steps of its windows are kept, if counting them takes long. None: nowhere.

    Raises:
        ConfigError: an option that cannot be right.
        SampleTooLongError: a sample has more tokens than seq_len (unless too_long is "drop").
        DataError: no sample is wanted.
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
        kept: KeptCounts | None = None,
    ) -> None:
        check_options(epoch, seq_len, packs_per_step, window, too_long)
        self.epoch = epoch
        self.seq_len = seq_len
        self.packs_per_step = packs_per_step
        self._lengths = lengths
        self._seed = seed
        self._too_long: TooLong = too_long
        self._cost = cost or CostModel()
        self._keys = keys
        self._samples = None if samples is None else _checked(samples, len(lengths))
        self._wanted = len(lengths) if self._samples is None else len(self._samples)
        if not self._wanted:
            raise DataError("no sample to plan: none is wanted")
        self._num_windows = 1 if window is None else -(-self._wanted // window)
        self._places = RandomWords(seed, epoch, "windows").order(self._num_windows)
        self._steps = np.full(self._num_windows, _UNKNOWN, np.int64)
        self._kept = kept
        self._plans: OrderedDict[int, _Slot] = OrderedDict()
        self._lock = Lock()
        if not lengths.mapped:
            self.check()

    # Windows

    @property
    def num_windows(self) -> int:
        """Windows of the epoch, at least 1."""
        return self._num_windows

    def window(self, number: int) -> Plan:
        """The plan of a window, counted from 0 in the order of the epoch.

        Two plans are kept. While one thread plans a window, others get those that are kept at once,
        and wait for that window. A window all of whose samples are dropped has no steps.

        Raises:
            IndexError: the epoch has no such window.
            SampleTooLongError: a sample has more tokens than seq_len (unless it is to be dropped).
            DataError: lengths that cannot be right, or nothing is left of the only window.
            IntegrityError: its steps were kept, and were others.
        """
        while True:
            slot, mine = self._slot(number)
            if not mine:
                slot.done.wait()
                if slot.plan is not None:
                    return slot.plan
                continue  # it failed on another thread: try here, to raise here
            try:
                slot.plan = self._plan(number)
                return slot.plan
            finally:
                if slot.plan is None:
                    with self._lock:
                        if self._plans.get(number) is slot:
                            del self._plans[number]
                slot.done.set()

    def _slot(self, number: int) -> tuple[_Slot, bool]:
        """Where a window's plan is or will be, and whether the caller is to make it."""
        if not 0 <= number < self.num_windows:
            raise IndexError(f"window {number} of an epoch of {self.num_windows}")
        with self._lock:
            known = self._plans.get(number)
            if known is not None:
                self._plans.move_to_end(number)
                return known, False
            made = self._plans[number] = _Slot()
            while len(self._plans) > _HELD:
                self._plans.popitem(last=False)
            return made, True

    def _plan(self, number: int) -> Plan:
        window = self._window(number)
        made = window.plan()
        self._lengths.release(window.rows)
        if self._steps[number] not in (_UNKNOWN, made.num_steps):
            raise IntegrityError(
                f"window {number} of epoch {self.epoch} has {made.num_steps} steps, "
                f"{self._steps[number]} were kept of an earlier run",
                mend="Delete the folder steps in omr_io's cache, or start with cache=False",
            )
        self._steps[number] = made.num_steps
        if self.num_windows == 1 and not made.num_steps:
            raise self._nothing_left()
        return made

    def _window(self, number: int) -> Window:
        """A window's samples, checked."""
        place = int(self._places[number])
        rows = self._rows(place)
        if self._lengths.mapped:
            self._lengths.check(rows)
            self._refuse_long([rows])
        return Window(
            lengths=self._lengths,
            rows=rows,
            seed=self._seed,
            epoch=self.epoch,
            place=place,
            seq_len=self.seq_len,
            packs_per_step=self.packs_per_step,
            cost=self._cost,
        )

    def _rows(self, place: int) -> Rows:
        start, stop = (self._wanted * p // self.num_windows for p in (place, place + 1))
        return self._part(slice(start, stop))

    def _part(self, part: slice) -> Rows:
        return part if self._samples is None else self._samples[part].astype(np.int64, copy=False)

    # Steps

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the epoch, the same on every rank: exact, see `count_steps`."""
        return self.count_steps()

    def count_steps(self, threads: int = 1) -> int:
        """Optimiser steps of the epoch: windows that are not known are binned once, then forgotten.

        Args:
            threads: windows at work at a time, each a few 10 bytes a sample.

        Raises:
            SampleTooLongError, DataError: as for `window`.
        """
        steps = self._count(self.num_windows, threads)
        if not steps:
            raise self._nothing_left()
        return steps

    def steps_before(self, number: int) -> int:
        """Optimiser steps of all windows before one; `num_windows` asks for all.

        Raises:
            IndexError: the epoch has no such window.
            SampleTooLongError, DataError: as for `window`.
        """
        if not 0 <= number <= self.num_windows:
            raise IndexError(f"window {number} of an epoch of {self.num_windows}")
        return self._count(number, 1)

    def place_of_step(self, step: int) -> tuple[int, int]:
        """Where a step of the epoch is: (window, step within it). Counts the windows before it.

        Raises:
            IndexError: the epoch has no such step.
            SampleTooLongError, DataError: as for `window`.
        """
        left = step
        for number in range(self.num_windows) if step >= 0 else ():
            count = self._count_window(number)
            if left < count:
                return number, left
            left -= count
        raise IndexError(f"step {step} of an epoch of {self.num_steps}")

    def _count(self, stop: int, threads: int) -> int:
        if self._kept is not None and (self._steps[:stop] == _UNKNOWN).any():
            self._take(self._kept.load(self.num_windows))
        unknown = np.flatnonzero(self._steps[:stop] == _UNKNOWN).tolist()
        begun = time.monotonic()
        if threads > 1 and len(unknown) > 1:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self._count_window, unknown):
                    pass
        else:
            for number in unknown:
                self._count_window(number)
        is_long = bool(unknown) and time.monotonic() - begun >= _LONG_SECONDS
        if self._kept is not None and is_long and (self._steps != _UNKNOWN).all():
            self._kept.store(self._steps)
        return int(self._steps[:stop].sum())

    def _take(self, counts: Int64Array | None) -> None:
        """Take over what is not known yet."""
        if counts is not None:
            unknown = self._steps == _UNKNOWN
            self._steps[unknown] = counts[unknown]

    def _count_window(self, number: int) -> int:
        # Two threads may count the same window, and find the same.
        if self._steps[number] == _UNKNOWN:
            window = self._window(number)
            self._steps[number] = window.num_steps()
            self._lengths.release(window.rows)
        return int(self._steps[number])

    # What is refused, and what is dropped

    @property
    def num_wanted(self) -> int:
        """Samples of the epoch, dropped ones included; a repeated one counts each time."""
        return self._wanted

    @property
    def num_dropped(self) -> int:
        """Samples of the epoch that are longer than seq_len. Reads the lengths of all."""
        return sum(
            int((self._lengths.tokens_of(self._part(part)) > self.seq_len).sum())
            for part in chunks(0, self._wanted)
        )

    def check(self) -> None:
        """Look for samples that are too long (unless they are to be dropped), over the epoch.

        Raises:
            SampleTooLongError: names the first, and counts all.
        """
        self._refuse_long(self._part(part) for part in chunks(0, self._wanted))

    def _refuse_long(self, parts: Iterable[Rows]) -> None:
        if self._too_long == "drop":
            return
        count, wanted, longest = 0, 0, 0
        named: list[tuple[int, int]] = []
        for rows in parts:
            tokens = self._lengths.tokens_of(rows)
            wanted += len(tokens)
            if int(tokens.max(initial=0)) <= self.seq_len:
                continue
            places = np.flatnonzero(tokens > self.seq_len)
            count += len(places)
            longest = max(longest, int(tokens.max()))
            for place in places[: NAMED - len(named)].tolist():
                number = rows.start + place if isinstance(rows, slice) else int(rows[place])
                named.append((number, int(tokens[place])))
        if count:
            raise too_long_error(count, wanted, named, longest, self.seq_len, self._keys)

    def _nothing_left(self) -> DataError:
        return DataError(
            f"no sample to plan: {self._wanted} are wanted, all of them longer than seq_len "
            f"{self.seq_len}"
        )


class _Slot:
    """A plan that is made, or in the making."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.done = Event()


def plan_epoch(
    lengths: Lengths,
    *,
    epoch: int,
    seed: int,
    seq_len: int,
    packs_per_step: int,
    too_long: TooLong = "error",
    cost: CostModel | None = None,
    keys: Sequence[str] | None = None,
    samples: Int64Array | None = None,
) -> Plan:
    """Plan a whole epoch at once: the only window of an `EpochPlan`, which says the rest.

    Raises:
        SampleTooLongError: a sample has more tokens than seq_len (unless too_long is "drop").
        ConfigError: an option that cannot be right.
        DataError: nothing is left to plan.
    """
    return EpochPlan(
        lengths,
        epoch=epoch,
        seed=seed,
        seq_len=seq_len,
        packs_per_step=packs_per_step,
        too_long=too_long,
        cost=cost,
        keys=keys,
        samples=samples,
    ).window(0)


def _checked(samples: Int64Array, count: int) -> Int64Array:
    """The numbers as they stand, if they are those of samples."""
    check_numbers(samples)
    if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < count:
        raise outside(count)
    return samples
