"""`omr-io info` and `omr-io verify`: what a shard set holds, and whether it is as written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.terminal import Reporter, human_bytes, printable, table

if TYPE_CHECKING:
    from omr_io.shards import Description, Spread, VerifyReport

_SHOWN_PROBLEMS = 50


def info(
    folder: Annotated[Path, typer.Argument(help="A shard set.")], as_json: AsJson = False
) -> None:
    """Say what a shard set holds, from its index; no shard is read."""
    from omr_io.index import ShardSet
    from omr_io.shards import describe

    with ShardSet.open(folder) as shards:
        finish(as_json, describe(shards), _print_info)


def _print_info(about: Description, to: Console) -> None:
    def spread(of: Spread) -> str:
        return f"{of.low:.0f} to {of.high:.0f}, median {of.median:.0f}"

    def counts(of: Any) -> str:
        return ", ".join(f"{name}: {count}" for name, count in of.items()) or "none"

    rows = [
        ("split", about.split),
        ("samples", str(about.samples)),
        ("shards", f"{about.shards} ({human_bytes(about.bytes)})"),
        ("images", f"{about.images} ({counts(about.formats)})"),
        ("pixels an image", spread(about.pixels)),
        ("turned by EXIF", str(about.turned)),
        ("repeated images", str(about.repeated_images)),
        ("question bytes", spread(about.question_bytes)),
        ("reasoning bytes", spread(about.reasoning_bytes)),
        ("options a question", counts(about.num_options)),
        ("answers", counts(about.answers)),
        ("rows read", str(about.rows)),
        ("rows refused", counts(about.refusals)),
        ("sources", ", ".join(map(printable, about.sources))),
        ("fingerprint", about.fingerprint),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)


def verify(
    folder: Annotated[Path, typer.Argument(help="A shard set.")],
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a shard set and name all that is not as it was written."""
    from omr_io.shards import verify as run

    with Reporter(Console(stderr=True)) as reporter:

        def progress(done: int, total: int) -> None:
            now = f"{human_bytes(done)} of {human_bytes(total)}"
            reporter.update("verify", done, total, now)

        report = run(folder, decode, progress)
    finish(as_json, report, _print_verify)
    if not report.ok:
        raise typer.Exit(5)


def _print_verify(report: VerifyReport, to: Console) -> None:
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        line = printable(f"problem: {problem}")
        to.print(line, soft_wrap=True, markup=False, highlight=False)
    hidden = len(report.problems) - _SHOWN_PROBLEMS
    if hidden > 0:
        to.print(f"... and {hidden} more; --json prints all")
    rows = [
        ("folder", str(report.folder)),
        ("samples", str(report.samples)),
        ("images", f"{report.images}, {'decoded' if report.decoded else 'headers checked'}"),
        ("shards", f"{report.shards} ({human_bytes(report.bytes)})"),
        ("problems", str(len(report.problems)) if report.problems else "none"),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)
