"""What `omr-io convert` shows: while it runs, and when it is done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from omr_io.terminal import Reporter, table
from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.conversion import ConvertProgress, ConvertSummary

_STAGES = {"convert": "convert", "merge": "duplicates"}
_WITHOUT_IMAGE = ("image-not-embedded", "missing-image", "image-outside-root", "unreadable-image")


class ConvertReport:
    """Shows rows and bytes a second, refused rows and the time left; called with each progress."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._start = time.monotonic()

    def __call__(self, at: ConvertProgress) -> None:
        """Show it."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rows_a_second = (at.rows - at.kept_rows) / seconds
        of = "" if at.total_rows is None else f" of {at.total_rows}"
        words = [
            f"{at.rows}{of} rows",
            f"{rows_a_second:.0f} rows/s",
            f"{(at.bytes - at.kept_bytes) / seconds / 1e6:.1f} MB/s",
            f"{at.refused} refused",
        ]
        if at.total_rows is not None and rows_a_second > 0:
            words.append(f"{_clock((at.total_rows - at.rows) / rows_a_second)} left")
        self._reporter.update(_STAGES[at.stage], at.rows, at.total_rows, ", ".join(words))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_summary(summary: ConvertSummary, to: Console) -> None:
    """The result for people."""
    refused = sum(summary.refusals.values())
    dry = summary.outcome == "dry run"
    kept = f" ({summary.kept} by earlier runs)" if summary.kept else ""
    rows = [
        ("outcome", summary.outcome),
        ("rows", str(summary.rows)),
        ("samples", str(summary.samples)),
        ("images", str(summary.images)),
        ("refused", str(refused)),
        *((f"  {reason}", str(count)) for reason, count in summary.refusals.items()),
        ("shards", f"{summary.shards} ({human_bytes(summary.bytes)})"),
        ("pieces", f"{summary.pieces}{kept}"),
        ("seconds", f"{summary.seconds:.1f}"),
        ("folder", f"{summary.folder}{' (nothing was written)' if dry else ''}"),
    ]
    to.print(table(rows), soft_wrap=True)
    if refused and summary.examples:
        to.print(f"\n{refused} rows were refused; the first of each reason:", style="bold yellow")
        for item in summary.examples:
            line = f"  {item.source} row {item.row}: {item.reason}: {item.detail}"
            _plain(to, printable(line))
    if summary.outcome == "part done":
        _plain(to, "\nWhen all parts are done, run the same command with --merge and no --part")
    elif refused and not dry:
        if summary.outcome == "already complete":
            _hint_at_image_roots(summary, to)
        _plain(to, f"All of them are in {summary.folder / 'rejects.parquet'}")


def _hint_at_image_roots(summary: ConvertSummary, to: Console) -> None:
    """Images are no part of what a set is known by, so new ones do not make it incomplete."""
    without = sum(summary.refusals.get(reason, 0) for reason in _WITHOUT_IMAGE)
    if without:
        _plain(
            to,
            f"\n{without} rows were refused for want of their image. If the images have been added "
            "or --image-root was another, convert again with --overwrite",
        )


def _plain(to: Console, text: str) -> None:
    to.print(text, soft_wrap=True, markup=False, highlight=False)
