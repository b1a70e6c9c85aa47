"""How far a conversion is, summed over pieces; and the limit on refused rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from omr_io.conversion.piece_record import Tally
from omr_io.errors import DataError, Where

Stage = Literal["convert", "merge"]


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """Rows read, samples written, rows refused, and bytes of images and text so far.

    Pieces that an earlier run has made count too; `kept_rows` and `kept_bytes` are theirs.
    `total_rows` is None when the source cannot tell. In the stage "merge" pieces with duplicates
    are made again, so that their rows come in again.
    """

    rows: int
    samples: int
    refused: int
    bytes: int
    total_rows: int | None
    stage: Stage = "convert"
    kept_rows: int = 0
    kept_bytes: int = 0


class Progress:
    """Sums what pieces tell, calls back, and stops when too many rows are refused.

    Args:
        callback: called with the sum, or None.
        total_rows: of this run's pieces.
        max_rejects: as in `ConvertOptions`; corpus_rows: what a share is of.
        stage: what is being done.
    """

    def __init__(
        self,
        callback: Callable[[ConvertProgress], None] | None,
        total_rows: int | None,
        max_rejects: int | float | None,
        corpus_rows: int | None,
        stage: Stage = "convert",
    ) -> None:
        self._callback = callback
        self._total_rows = total_rows
        self._limit = max_rejects
        self._corpus_rows = corpus_rows
        self._stage = stage
        self._kept = self._done = Tally()
        self._running: dict[int, Tally] = {}

    def keep(self, tallies: Iterable[Tally]) -> None:
        """Count pieces that are there already."""
        self._kept = self._done = Tally.total(tallies)
        check_rejects(self._done, self._limit, self._corpus_rows)

    def tell(self, number: int, tally: Tally, done: bool) -> None:
        """Take the counts of a piece; a `Tell`."""
        if done:
            self._running.pop(number, None)
            self._done = Tally.total((self._done, tally))
        else:
            self._running[number] = tally
        now = Tally.total((self._done, *(self._running[n] for n in sorted(self._running))))
        if self._callback is not None:
            counts = (now.rows, now.samples, now.refused, now.num_bytes, self._total_rows)
            kept = (self._kept.rows, self._kept.num_bytes)
            self._callback(ConvertProgress(*counts, self._stage, *kept))
        check_rejects(now, self._limit, self._corpus_rows)


def check_rejects(tally: Tally, limit: int | float | None, total_rows: int | None) -> None:
    """Raise DataError once more rows were refused than `limit` tolerates.

    A share needs the number of rows; without it there is nothing to check yet.
    """
    if limit is None or (isinstance(limit, float) and total_rows is None):
        return
    # A share is divided, not multiplied: 0.29 x 100 is below 29, and 29 / 100 is 0.29.
    refused = tally.refused / (total_rows or 1) if isinstance(limit, float) else tally.refused
    if refused <= limit:
        return
    listed = ", ".join(f"{reason} {count}" for reason, count in tally.refusals.items())
    first = min(tally.examples, key=lambda item: (item.source, item.row))
    raise DataError(
        f"{tally.refused} of the {tally.rows} rows read so far were refused, more than max_rejects "
        f"{limit}: {listed}; for example: {first.reason}: {first.detail}",
        where=Where(source=first.source, row=first.row),
        mend="Mend the source and pass --overwrite, or raise max_rejects and run again to go on",
    )
