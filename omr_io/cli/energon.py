"""`omr-io energon`: metadata by which Megatron Energon reads a shard set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.remote_options import only_folders
from omr_io.terminal import Reporter, table

if TYPE_CHECKING:
    from omr_io.energon import EnergonSummary

EXAMPLES = ("omr-io energon shards/", "omr-io energon shards/ --overwrite --json")


def energon(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shard set; it gets .nv-meta.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an .nv-meta that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write .nv-meta, so that Megatron Energon reads a shard set as it is.

    Samples become InterleavedSample (images, question, reasoning); .nv-meta/crude.yaml gives them
    whole to cookers of your own. `energon lint` then passes. The shards stay as they are.
    """
    from omr_io.energon import write_energon_metadata

    only_folders(folder)

    with Reporter(Console(stderr=True)) as reporter:

        def progress(done: int, total: int) -> None:
            reporter.update("energon", done, total, f"{done} of {total} samples")

        summary = write_energon_metadata(folder, overwrite=overwrite, progress=progress)
    finish(as_json, summary, _print_energon)


def _print_energon(summary: EnergonSummary, to: Console) -> None:
    rows = [
        ("folder", str(summary.folder)),
        ("split", summary.split),
        ("shards", str(summary.shards)),
        ("samples", str(summary.samples)),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)
