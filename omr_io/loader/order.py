"""The order of a run: which samples an epoch has, its windows, and what each batch holds.

Plans are integers and take time for large windows, so the window that comes next, and the next
epoch's first one, are planned on a thread while the current one is read.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from omr_io.errors import ResumeError
from omr_io.loader.options import Layout
from omr_io.loader.state import Position
from omr_io.packing import CostModel, Lengths, Plan, TooLong
from omr_io.packing.epoch import EpochPlan, KeptCounts
from omr_io.types import Int64Array

SamplesOf: TypeAlias = Callable[[int], Int64Array | None]
"""The numbers of an epoch's samples, (m,) int64, one of them as often as it comes; None: all."""

_EPOCHS_HELD = 2  # the one that is read and the one that comes next


@dataclass(frozen=True, slots=True)
class Place:
    """A batch as planned.

    Attributes:
        position: of the batch.
        after: of the one that follows.
        packs: the numbers of the samples in each of its packs.
        step_label_tokens: labels of the whole optimiser step over all ranks.
    """

    position: Position
    after: Position
    packs: tuple[tuple[int, ...], ...]
    step_label_tokens: int


class Order:
    """The order of all epochs. Safe to use from several threads, and after a fork.

    Args:
        lengths: of all samples.
        samples_of: which samples an epoch has.
        seed, seq_len, packs_per_step, window, too_long, cost: as for `DataLoader`.
        keys: names for samples in errors, one each.
        kept: where the steps of an epoch's windows are kept between runs; None: nowhere.

    Raises:
        SampleTooLongError: a sample of the first epoch has more tokens than seq_len.
        DataError: the first epoch has no sample.
        ConfigError: an option that cannot be right.
    """

    def __init__(
        self,
        lengths: Lengths,
        samples_of: SamplesOf,
        *,
        seed: int,
        seq_len: int,
        packs_per_step: int,
        window: int | None,
        too_long: TooLong,
        keys: Sequence[str],
        cost: CostModel | None = None,
        kept: Callable[[int], KeptCounts] | None = None,
    ) -> None:
        self._lengths = lengths
        self._samples_of = samples_of
        self._seed = seed
        self._seq_len = seq_len
        self._packs_per_step = packs_per_step
        self._window = window
        self._too_long: TooLong = too_long
        self._keys = keys
        self._cost = cost
        self._kept = kept
        self._start_process()
        self.epoch(0)

    def _start_process(self) -> None:
        """What is not to be taken over from the parent of a fork: locks may be held there."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()
        self._ahead: threading.Thread | None = None

    # Plans

    def dropped(self, epoch: int) -> int:
        """How many of an epoch's samples are left out because they are longer than seq_len."""
        return 0 if self._too_long == "error" else self.epoch(epoch).num_dropped

    def epoch(self, number: int) -> EpochPlan:
        """The plan of an epoch; its windows are planned when they are asked for.

        Raises:
            SampleTooLongError, DataError: as for `Order`, of this epoch.
        """
        if os.getpid() != self._pid:
            self._start_process()
        with self._lock:
            plan = self._epochs.get(number)
            if plan is None:
                plan = self._epochs[number] = self._plan(number)
                if len(self._epochs) > _EPOCHS_HELD:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(number)
            return plan

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            self._lengths,
            epoch=epoch,
            seed=self._seed,
            seq_len=self._seq_len,
            packs_per_step=self._packs_per_step,
            window=self._window,
            too_long=self._too_long,
            keys=self._keys,
            cost=self._cost,
            samples=self._samples_of(epoch),
            kept=None if self._kept is None else self._kept(epoch),
        )

    def plan_ahead(self, epoch: int, window: int) -> None:
        """Plan what comes after this window on a thread, unless one is at it; returns at once."""

        def plan() -> None:
            try:
                if window + 1 < self.epoch(epoch).num_windows:
                    self.epoch(epoch).window(window + 1)
                else:
                    self.epoch(epoch + 1).window(0)
            except Exception:  # noqa: S110
                pass  # whoever needs the window will meet the error

        if self._ahead is None or not self._ahead.is_alive():
            # No daemon: C++ that is at work when the interpreter goes ends the process by an abort.
            # So a process waits at its end, some 0.2 s for a million samples.
            self._ahead = threading.Thread(target=plan, name="omr-io-plan", daemon=False)
            self._ahead.start()

    # Batches

    def places(self, start: Position, layout: Layout, *, ahead: bool) -> Iterator[Place]:
        """The batches of a rank from a position to the end of its epoch; maybe none are left.

        Args:
            ahead: plan what comes next on a thread.
        """
        epoch, is_empty = self.epoch(start.epoch), start == Position(start.epoch)
        while True:
            window = epoch.window(start.window)
            if ahead:
                self.plan_ahead(start.epoch, start.window)
            end = Position(start.epoch + 1)
            if start.window + 1 < epoch.num_windows:
                before = start.steps_before + window.num_steps
                end = Position(start.epoch, start.window + 1, 0, 0, before)
            is_empty = is_empty and not window.num_steps
            yield from _window_places(window, start, end, layout)
            if end.epoch != start.epoch:
                if is_empty:
                    _ = epoch.num_steps  # raises: whoever loops over epochs would never end
                return
            start = end

    def check(self, position: Position, micro_steps: int) -> None:
        """Refuse a position that its epoch does not have; plans the window it stands in.

        The start of a window always exists, even if all of its samples are dropped.

        Raises:
            ResumeError: as said.
        """
        epoch = self.epoch(position.epoch)
        if position.window >= epoch.num_windows:
            raise ResumeError(
                f"{position} does not exist: the epoch has {epoch.num_windows} windows"
            )
        num_steps = epoch.window(position.window).num_steps
        is_inside = position.step > 0 or position.micro_step > 0
        if is_inside and (position.step >= num_steps or position.micro_step >= micro_steps):
            raise ResumeError(
                f"{position} does not exist: its window has {num_steps} steps of {micro_steps} "
                "batches"
            )


def _window_places(window: Plan, start: Position, end: Position, layout: Layout) -> Iterator[Place]:
    """The batches of a window from `start` on; the last one is followed by `end`."""
    for step in range(start.step, window.num_steps):
        packs = window.rank_packs(step, layout.rank, layout.world_size)
        first = start.micro_step if step == start.step else 0
        for micro_step in range(first, layout.micro_steps):
            begin = micro_step * layout.packs_per_batch
            after = end
            if micro_step + 1 < layout.micro_steps:
                after = dataclasses.replace(start, step=step, micro_step=micro_step + 1)
            elif step + 1 < window.num_steps:
                after = dataclasses.replace(start, step=step + 1, micro_step=0)
            yield Place(
                position=dataclasses.replace(start, step=step, micro_step=micro_step),
                after=after,
                packs=tuple(
                    window.pack(pack) for pack in packs[begin : begin + layout.packs_per_batch]
                ),
                step_label_tokens=int(window.step_label_tokens[step]),
            )
