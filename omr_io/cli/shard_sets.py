"""`omr-io info` and `omr-io verify`: what a shard set holds, and whether it is as written."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.info_text import info_text
from omr_io.cli.remote_options import SET_HELP, RemoteCache, RemoteCacheBytes, remote_options
from omr_io.terminal import Reporter, table
from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.shards import Description, VerifyReport

INFO_EXAMPLES = (
    "omr-io info shards/",
    "omr-io info train-shards/ test-shards/",
    "omr-io info s3://bucket/train hf://datasets/OWNER/NAME/test",
    "omr-io info shards/ --json",
)
VERIFY_EXAMPLES = (
    "omr-io verify shards/",
    "omr-io verify shards/ --decode --json",
    "omr-io verify s3://bucket/train",
)
VERIFY_CODES = (
    "Exit codes: 0 all is as it was written; 2 usage; 3 no shard set, or it cannot be read; 5 "
    "something is not as it was written; 130 interrupted."
)

_SHOWN_PROBLEMS = 50


def info(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="SET", help=f"{SET_HELP} Several stand side by side."),
    ],
    remote_cache: RemoteCache = None,
    remote_cache_bytes: RemoteCacheBytes = None,
    as_json: AsJson = False,
) -> None:
    """Say what shard sets hold, from their indexes; no shard is read."""
    from omr_io.index import ShardSet
    from omr_io.remote.urls import last_part, place_of
    from omr_io.shards import describe

    remote = remote_options(remote_cache, remote_cache_bytes)
    sets: list[Description] = []
    for folder in folders:
        with ShardSet.open(folder, remote) as shards:
            sets.append(describe(shards))
    if as_json:
        facts = [
            {"folder": str(place_of(folder)), **dataclasses.asdict(about)}
            for folder, about in zip(folders, sets, strict=True)
        ]
        print(json.dumps(facts[0] if len(facts) == 1 else {"sets": facts}, indent=1))
    else:
        names = [last_part(folder) for folder in folders]
        Console().print(info_text(names, sets), soft_wrap=True, highlight=False)


def verify(
    folder: Annotated[str, typer.Argument(metavar="SET", help=SET_HELP)],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image too; of a folder only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a shard set and name all that is not as it was written.

    Behind a URL every file is fetched once, past the cache, and compared with the manifest by size
    and SHA-256; of a shard that differs, the samples are named.
    """
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
