"""Batches that cost nothing, so that the data stall can be measured: 1 - t_synthetic / t_real.

    --fake-data       one real batch, put on the device once and given again and again
    --replay          the batches of the first steps, kept in memory and given again in a cycle
    --measure-stall   stretches of steps, each first from the loader and then replayed, in turn

A model that is given these learns nothing useful: such a run writes no checkpoints.

The stall is of the loop alone: with synthetic batches the loader makes none, so that its threads
take nothing from the model's. What they take in a real run is part of the stall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.errors import ConfigError

MOST_BYTES = 2 << 30
"""Of the batches that are kept."""

STRETCH = 20
"""Steps of half a pair that count."""


def fake_data(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The first batch, on the device, without an end."""
    batch = next(batches).to(device)
    while True:
        yield batch


def replay(
    batches: Iterator[Batch], micro_steps: int, *, steps: int, max_bytes: int = MOST_BYTES
) -> Iterator[Batch]:
    """The batches of the first steps, and then the same again in a cycle.

    Args:
        batches: the loader's.
        micro_steps: batches of a step.
        steps: how many to keep at most; fewer where they would take more than `max_bytes`.

    Raises:
        ConfigError: not even one step fits.
    """
    kept: list[list[Batch]] = []
    budget = _Budget(max_bytes)
    while len(kept) < steps and budget.has_room:
        step = []
        for _ in range(micro_steps):
            step.append(next(batches))
            yield step[-1]
        budget.take(step)
        kept.append(step)
    while True:
        for step in kept:
            yield from step


class _Budget:
    """Bytes for batches that are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = self._largest = 0

    @property
    def has_room(self) -> bool:
        """Whether one more step would fit, were it as large as the largest yet."""
        return self._held + self._largest <= self._most

    def take(self, step: Sequence[Batch]) -> None:
        """Keep a step's batches; the first must fit."""
        size = sum(tensor.nbytes for batch in step for tensor in batch.tensors())
        if size > self._most:
            raise ConfigError(
                f"the batches of one step take {size:,} bytes, more than the {self._most:,} that "
                "may be kept",
                mend="Use smaller steps (packs_per_step), or --fake-data, which keeps one batch",
            )
        self._held += size
        self._largest = max(self._largest, size)


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of the same steps, from the loader and replayed; those at the start left out."""

    steps: int
    real_seconds: float
    synthetic_seconds: float
    waited_seconds: float

    @property
    def stall(self) -> float:
        """1 - t_synthetic / t_real."""
        return 1 - self.synthetic_seconds / self.real_seconds


class StallMeter:
    """Batches of stretches of steps: each from the loader, and then the very same ones again.

    Both halves of a pair do the same work, minutes apart at most, so that neither the batches nor
    a machine's drift come between them. While steps are replayed the loader fills its queue;
    therefore the first steps of each half are left out: those that the queue could serve, and as
    many more.

    Args:
        batches: the loader's.
        micro_steps: batches of a step.
        queued: batches that the loader may have ready.
        stretch: steps of a half that count.
        max_bytes: of the batches that are kept.
        synchronize: waits until the device is done; called where a half begins or ends.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        micro_steps: int,
        *,
        queued: int,
        stretch: int = STRETCH,
        max_bytes: int = MOST_BYTES,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._batches = batches
        self._micro_steps = micro_steps
        self.skipped = 2 * -(-queued // micro_steps)
        self.stretch = stretch
        self._max_bytes = max_bytes
        self._synchronize = synchronize
        self._clock = clock
        self.pairs: list[Pair] = []

    @property
    def steps_of_a_pair(self) -> int:
        """Steps that a whole pair takes."""
        return 2 * (self.skipped + self.stretch)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without an end; `pairs` grows by one when the batch after a pair is asked for."""
        self._iteration = self._run()
        return self._iteration

    def finish(self) -> None:
        """The last step is over: count the pair that it ended."""
        next(self._iteration, None)

    def _run(self) -> Iterator[Batch]:
        while True:
            kept: list[list[Batch]] = []
            budget = _Budget(self._max_bytes)
            waited = started = 0.0
            while len(kept) < self.skipped + self.stretch and budget.has_room:
                if len(kept) == self.skipped:
                    waited, started = 0.0, self._now()
                step = []
                for _ in range(self._micro_steps):
                    asked = self._clock()
                    step.append(next(self._batches))
                    waited += self._clock() - asked
                    yield step[-1]
                budget.take(step)
                kept.append(step)
            if len(kept) <= self.skipped:
                raise ConfigError(
                    f"only {len(kept)} steps fit into {self._max_bytes:,} bytes, but the first "
                    f"{self.skipped} come from the loader's queue",
                    mend="Use smaller steps (packs_per_step)",
                )
            real = self._now() - started
            for number, step in enumerate(kept):
                if number == self.skipped:
                    started = self._now()
                yield from step
            synthetic = self._now() - started
            self.pairs.append(Pair(len(kept) - self.skipped, real, synthetic, waited))

    def _now(self) -> float:
        self._synchronize()
        return self._clock()


@dataclass(frozen=True, slots=True)
class Stall:
    """What pairs say together; shares of 1.

    Attributes:
        stall: the median pair's 1 - t_synthetic / t_real; below 0 by chance alone.
        least, most: of all pairs.
        wait_share: of the time of real steps, what the loop stood waiting for a batch.
        real_seconds, synthetic_seconds: of a step, medians over pairs.
    """

    pairs: int
    steps: int
    stall: float
    least: float
    most: float
    wait_share: float
    real_seconds: float
    synthetic_seconds: float

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Stall:
        """Raises:
        ConfigError: there is no pair.
        """
        if not pairs:
            raise ConfigError("no pair of stretches was finished", mend="Ask for more steps")
        stalls = [pair.stall for pair in pairs]
        return cls(
            pairs=len(pairs),
            steps=sum(pair.steps for pair in pairs),
            stall=float(np.median(stalls)),
            least=min(stalls),
            most=max(stalls),
            wait_share=sum(p.waited_seconds for p in pairs) / sum(p.real_seconds for p in pairs),
            real_seconds=float(np.median([p.real_seconds / p.steps for p in pairs])),
            synthetic_seconds=float(np.median([p.synthetic_seconds / p.steps for p in pairs])),
        )

    def __str__(self) -> str:
        return (
            f"data stall {self.stall:.2%} (1 - t_synthetic / t_real; median of {self.pairs} pairs "
            f"of stretches, {self.least:.2%} to {self.most:.2%}): a step takes "
            f"{self.real_seconds:.4g} s from the loader and {self.synthetic_seconds:.4g} s "
            f"replayed; {self.wait_share:.2%} of it was waiting for a batch"
        )
