"""`omr-io view`: a page to look at a shard set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, choices, finish
from omr_io.cli.remote_options import SET_HELP, RemoteCache, RemoteCacheBytes, remote_options
from omr_io.terminal import Reporter, table
from omr_io.text import human_bytes

if TYPE_CHECKING:
    from omr_io.gallery import GallerySummary

FILTER_NAMES = (
    "options", "answer", "images", "format", "turned", "shard", "key", "rubric", "text",
)  # fmt: skip
"""Those of omr_io.gallery.FILTERS: importing that takes too long for a shell that completes."""

EXAMPLES = (
    "omr-io view shards/ -o page.html",
    "omr-io view shards/ -o page.html --limit 50 --seed 7 --overwrite",
    "omr-io view shards/ -o odd.html --filter options=5,6 --filter answer=E,F",
    "omr-io view shards/ -o png.html --filter format=png --filter text=fracture",
    "omr-io view hf://datasets/OWNER/NAME/test -o page.html --limit 20",
)


def view(
    folder: Annotated[str, typer.Argument(metavar="SET", help=SET_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many samples.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides which, when there are more.")] = 0,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            autocompletion=choices(*(f"{name}=" for name in FILTER_NAMES)),
            help="Show only samples that fit; repeatable. Names: options, answer, images, format, "
            "turned, shard, key, rubric, text. Values with commas: any of them.",
        ),
    ] = None,
    max_mib: Annotated[int, typer.Option(min=1, help="The page's largest size.")] = 20,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    remote_cache: RemoteCache = None,
    remote_cache_bytes: RemoteCacheBytes = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page that shows samples: images, question, options, reasoning, rubric.

    The page is one file and loads nothing. It can be searched and filtered in the browser, and a
    view of it be linked to: page.html#q=fracture&answer=B
    """
    from omr_io.gallery import GalleryOptions, write_gallery

    options = GalleryOptions(limit, seed, tuple(filters or ()), max_mib << 20, overwrite)
    with Reporter(Console(stderr=True)) as reporter:

        def progress(stage: str, done: int, total: int) -> None:
            reporter.update(stage, done, total, f"{done} of {total} samples")

        remote = remote_options(remote_cache, remote_cache_bytes)
        summary = write_gallery(folder, out, options, progress, remote)
    finish(as_json, summary, _print_view)


def _print_view(summary: GallerySummary, to: Console) -> None:
    failures = ", ".join(f"{reason}: {count}" for reason, count in summary.failures.items())
    of = f"{summary.shown} of {summary.samples}"
    if summary.matching != summary.samples:
        of += f" ({summary.matching} pass the filters)"
    rows = [
        ("samples shown", of),
        ("images shown", str(summary.images)),
        *([("images that failed", failures)] if failures else []),
        ("page", f"{summary.path} ({human_bytes(summary.bytes)})"),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)
