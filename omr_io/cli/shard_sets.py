"""`omr-io info` and `omr-io verify`: what a shard set holds, and whether it is as written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.info_text import info_text
from omr_io.terminal import Reporter, table
from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.shards import Description, VerifyReport

INFO_EXAMPLES = (
    "omr-io info shards/",
    "omr-io info train-shards/ test-shards/",
    "omr-io info shards/ --json",
)
VERIFY_EXAMPLES = ("omr-io verify shards/", "omr-io verify shards/ --decode --json")
VERIFY_CODES = (
    "Exit codes: 0 all is as it was written; 2 usage; 3 no shard set, or it cannot be read; 5 "
    "something is not as it was written; 130 interrupted."
)

_SHOWN_PROBLEMS = 50


def info(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Shard sets; several stand side by side.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say what shard sets hold, from their indexes; no shard is read."""
    from omr_io.index import ShardSet
    from omr_io.shards import describe

    sets: list[Description] = []
    for folder in folders:
        with ShardSet.open(folder) as shards:
            sets.append(describe(shards))
    if as_json:
        facts = [
            {"folder": str(folder), **dataclasses.asdict(about)}
            for folder, about in zip(folders, sets, strict=True)
        ]
        print(json.dumps(facts[0] if len(facts) == 1 else {"sets": facts}, indent=1))
    else:
        Console().print(info_text(folders, sets), soft_wrap=True, highlight=False)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shard set.")],
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
        ("folder", printable(str(report.folder))),
        ("samples", str(report.samples)),
        ("images", f"{report.images}, {'decoded' if report.decoded else 'headers checked'}"),
        ("shards", f"{report.shards} ({human_bytes(report.bytes)})"),
        ("problems", str(len(report.problems)) if report.problems else "none"),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)
