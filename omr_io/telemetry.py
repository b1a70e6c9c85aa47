"""Counts and times of a running loader."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from omr_io.batches import Batch


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

    @property
    def efficiency(self) -> float:
        """Packing efficiency: real tokens / capacity; 0.0 before the first batch."""
        return self.tokens / self.capacity if self.capacity else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that the consumer waited for data, 0 to 1."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second, the consumer's own work included."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Meter:
    """Adds up `LoaderStats`; used by the consumer's thread alone.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stats = LoaderStats()
        self._since: float | None = None  # when the current wait or the current work began

    def start_waiting(self) -> None:
        """The consumer asks for a batch: what came before, if it had one, was its own work."""
        self._pass_time(waiting=False)

    def deliver(self, batch: Batch, bytes_read: int) -> None:
        """The consumer gets a batch."""
        self._pass_time(waiting=True)
        old = self._stats
        self._stats = LoaderStats(
            batches=old.batches + 1,
            samples=old.samples + batch.num_samples,
            images=old.images + batch.num_images,
            tokens=old.tokens + batch.num_tokens,
            label_tokens=old.label_tokens + batch.num_label_tokens,
            capacity=old.capacity + batch.input_ids.numel(),
            bytes_read=old.bytes_read + bytes_read,
            failures=old.failures + len(batch.failures),
            seconds=old.seconds,
            waited_seconds=old.waited_seconds,
        )

    def pause(self) -> None:
        """The iteration ended; time stands still until the next."""
        self._since = None

    def snapshot(self) -> LoaderStats:
        """The counts and times up to now."""
        return self._stats

    def _pass_time(self, *, waiting: bool) -> None:
        now = self._clock()
        if self._since is not None:
            passed = now - self._since
            waited = self._stats.waited_seconds + (passed if waiting else 0.0)
            self._stats = dataclasses.replace(
                self._stats, seconds=self._stats.seconds + passed, waited_seconds=waited
            )
        self._since = now
