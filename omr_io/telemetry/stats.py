"""Counts and times of a running loader."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omr_io.batches import Batch
from omr_io.storage import StorageStats

STEPS_KEPT = 1000
"""The latest optimiser steps whose waits the percentiles are of."""


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader has yielded so far in this process, on this rank.

    Attributes:
        batches, samples, images: yielded; dummy images are none.
        tokens: real tokens.
        label_tokens: tokens with a loss.
        capacity: tokens that the yielded packs could have held.
        bytes_read: of the samples' parts, as they stand in the shards.
        failures: samples yielded with a blank image, every time counted.
        seconds: from the first request for a batch, less pauses between iterations.
        waited_seconds: of these, what the consumer waited for the loader.
        steps: optimiser steps that these batches are of.
        last_wait, p50_wait, p99_wait: seconds that the consumer waited for all batches of an
            optimiser step: of the last one, and of the latest `STEPS_KEPT`.
        queue_batches, queue_bytes: made and waiting for the consumer now.
        quarantined: distinct samples that failed.
        storage: what the storage fetched and what its cache served.
        decoder: its name.
    """

    batches: int = 0
    samples: int = 0
    images: int = 0
    tokens: int = 0
    label_tokens: int = 0
    capacity: int = 0
    bytes_read: int = 0
    failures: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    steps: int = 0
    last_wait: float = 0.0
    p50_wait: float = 0.0
    p99_wait: float = 0.0
    queue_batches: int = 0
    queue_bytes: int = 0
    quarantined: int = 0
    storage: StorageStats = field(default_factory=StorageStats)
    decoder: str = ""

    @property
    def efficiency(self) -> float:
        """Packing efficiency: real tokens / capacity; 0.0 before the first batch."""
        return self.tokens / self.capacity if self.capacity else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that the consumer waited for data, 0 to 1."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0

    @property
    def mean_wait(self) -> float:
        """Seconds that the consumer waited for an optimiser step, on average."""
        return self.waited_seconds / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second, the consumer's own work included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def images_per_second(self) -> float:
        """Images a second, the consumer's own work included."""
        return self.images / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, times and rates by name, flat and as plain JSON values."""
        values: dict[str, Any] = dataclasses.asdict(self)
        storage: dict[str, int] = values.pop("storage")
        rates = ("efficiency", "wait_share", "mean_wait", "tokens_per_second", "images_per_second")
        return values | storage | {name: getattr(self, name) for name in rates}


class Meter:
    """Adds up `LoaderStats`: one thread counts, and any may ask.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stats = LoaderStats()
        self._since: float | None = None  # when the current wait or the current work began
        self._step: tuple[int, int] | None = None
        self._waits: list[float] = []  # of the latest steps, in a ring

    def start_waiting(self) -> None:
        """The consumer asks for a batch: what came before, if it had one, was its own work."""
        self._pass_time(waiting=False)

    def deliver(self, batch: Batch, bytes_read: int) -> None:
        """The consumer gets a batch."""
        waited = self._pass_time(waiting=True)
        self._wait_of_step((batch.epoch, batch.step), waited)
        old = self._stats
        self._stats = dataclasses.replace(
            old,
            batches=old.batches + 1,
            samples=old.samples + batch.num_samples,
            images=old.images + batch.num_images,
            tokens=old.tokens + batch.num_tokens,
            label_tokens=old.label_tokens + batch.num_label_tokens,
            capacity=old.capacity + batch.input_ids.numel(),
            bytes_read=old.bytes_read + bytes_read,
            failures=old.failures + len(batch.failures),
        )

    def pause(self) -> None:
        """The iteration ended; time stands still until the next."""
        self._since = None

    def snapshot(self) -> LoaderStats:
        """The counts and times up to now."""
        waits = sorted(self._waits.copy())
        if not waits:
            return self._stats
        return dataclasses.replace(
            self._stats, p50_wait=_percentile(waits, 0.5), p99_wait=_percentile(waits, 0.99)
        )

    def _wait_of_step(self, step: tuple[int, int], waited: float) -> None:
        steps, last = self._stats.steps, waited
        if step == self._step:
            last += self._stats.last_wait
        else:
            self._step, steps = step, steps + 1
            if len(self._waits) < STEPS_KEPT:
                self._waits.append(0.0)
        self._waits[(steps - 1) % STEPS_KEPT] = last
        self._stats = dataclasses.replace(self._stats, steps=steps, last_wait=last)

    def _pass_time(self, *, waiting: bool) -> float:
        """Count the time since the last call; gives it back."""
        now, passed = self._clock(), 0.0
        if self._since is not None:
            passed = now - self._since
            waited = self._stats.waited_seconds + (passed if waiting else 0.0)
            self._stats = dataclasses.replace(
                self._stats, seconds=self._stats.seconds + passed, waited_seconds=waited
            )
        self._since = now
        return passed


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
