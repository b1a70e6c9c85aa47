"""One line that says how the loader does: live on a terminal, now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from omr_io.telemetry.stats import LoaderStats

if TYPE_CHECKING:
    from rich.console import Console

_MB = 1e6


class Watched(Protocol):
    """What the line needs of a loader."""

    @property
    def epoch(self) -> int:
        """The epoch of the batch that comes next."""

    def stats(self) -> LoaderStats:
        """Counts and times so far."""


class LiveLine:
    """Shows a loader's statistics in one line of standard error.

    On a terminal the line is drawn over, elsewhere a new one is written every ten seconds. It moves
    when `update` is called, so it costs no thread; `DataLoader.live()` calls it for every batch.

    Args:
        loader: whose statistics.
        console: where to; None: standard error.
    """

    def __init__(self, loader: Watched, console: Console | None = None) -> None:
        from omr_io.terminal import StatusLine

        self._loader = loader
        self._line = StatusLine(console)

    def update(self) -> None:
        """Draw the line again if it is due; cheap enough for every batch."""
        if self._line.is_due():
            self._line.show(f"epoch {self._loader.epoch}: {describe(self._loader.stats())}")

    def close(self) -> None:
        """Leave a last line; may be repeated."""
        self._line.close(f"epoch {self._loader.epoch}: {describe(self._loader.stats())}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def describe(stats: LoaderStats) -> str:
    """The statistics in a line of words."""
    words = [
        f"{stats.steps:,} steps",
        f"{stats.tokens_per_second:,.0f} tokens/s",
        f"{stats.images_per_second:,.1f} images/s",
        f"wait {stats.last_wait * 1e3:,.1f} ms (p50 {stats.p50_wait * 1e3:,.1f}, "
        f"p99 {stats.p99_wait * 1e3:,.1f})",
        f"queue {stats.queue_batches} ({stats.queue_bytes / _MB:,.0f} MB)",
        f"packing {stats.efficiency:.1%}",
    ]
    asked = stats.storage.cache_hits + stats.storage.cache_misses
    if asked:
        words.append(f"cache {stats.storage.cache_hits / asked:.1%}")
    if stats.quarantined:
        words.append(f"{stats.quarantined} quarantined")
    return ", ".join(words)
