"""`omr-io card` and `omr-io push`: shard sets for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import EXIT_CODES, AsJson, finish
from omr_io.cli.remote_options import only_folders
from omr_io.terminal import Reporter, table
from omr_io.text import counted, human_bytes, printable

if TYPE_CHECKING:
    from omr_io.publish import CardSummary, PushSummary

CARD_EXAMPLES = (
    "omr-io card shards/train --license cc-by-4.0",
    "omr-io card shards/train shards/test -o shards/README.md",
)
PUSH_EXAMPLES = (
    "omr-io push shards/train hf://datasets/LAB/CORPUS --create --private",
    "omr-io push shards/test hf://datasets/LAB/CORPUS/test --card shards/README.md",
    "omr-io push shards/train hf://datasets/LAB/CORPUS --dry-run",
)
PUSH_CODES = f"""{EXIT_CODES}

The token is that of HF_TOKEN or of `hf auth login`. A push that was stopped goes on when the same
command is run again."""

_SHOWN_FILES = 200


def card(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Shard sets, one a split.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The card's file; default: README.md in the folder of all sets."
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="The Hub's identifier of the license, as cc-by-4.0."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The card's heading.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that was written by hand.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the dataset card (README.md) of shard sets, with the YAML that the Hub reads."""
    from omr_io.publish import CardOptions, write_card

    only_folders(*folders)

    options = CardOptions(license=license_, title=title, overwrite=overwrite)
    finish(as_json, write_card(folders, out, options), _print_card)


def _print_card(summary: CardSummary, to: Console) -> None:
    splits = ", ".join(
        f"{name} ({counted(count, 'sample')})" for name, count in summary.splits.items()
    )
    rows = [("card", f"{summary.path} ({human_bytes(summary.bytes)})"), ("splits", splits)]
    to.print(table(rows), soft_wrap=True, highlight=False)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shard set.")],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="hf://datasets/OWNER/NAME, or a folder in it.")
    ],
    create: Annotated[
        bool, typer.Option("--create", help="Make the dataset, and the branch, if need be.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make it private; stop if it is there and public.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch to push to; default: main.")
    ] = None,
    card_file: Annotated[
        Path | None,
        typer.Option("--card", help="A card for the dataset's top folder; default: DIR/README.md."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another shard set, or card, that is there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte first, not sizes and index alone.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a shard set to the Hugging Face Hub; go on with a push that was stopped."""
    from omr_io.publish import PushOptions
    from omr_io.publish import push as run

    only_folders(folder)

    options = PushOptions(
        create=create, private=private, overwrite=overwrite, verify=verify, dry_run=dry_run,
        card=card_file,
    )  # fmt: skip
    with Reporter(Console(stderr=True)) as reporter:

        def progress(done: int, total: int) -> None:
            now = f"{human_bytes(done)} of {human_bytes(total)}"
            reporter.update("push", done, total, now)

        summary = run(folder, url, options, revision=revision, progress=progress)
    finish(as_json, summary, _print_push)


def _print_push(summary: PushSummary, to: Console) -> None:
    if summary.dry_run:
        shown = [file for file in summary.files if file.state != "there"]
        for file in shown[:_SHOWN_FILES]:
            doing = "would send" if file.state == "sent" else "would remove"
            line = printable(f"{doing} {file.name} ({human_bytes(file.bytes)})")
            to.print(line, soft_wrap=True, markup=False, highlight=False)
        if len(shown) > _SHOWN_FILES:
            to.print(f"... and {len(shown) - _SHOWN_FILES} more; --json prints all")
    sent = "to be sent" if summary.dry_run else "sent"
    rows = [
        (sent, f"{summary.sent} files ({human_bytes(summary.sent_bytes)})"),
        ("there already", f"{summary.there} files ({human_bytes(summary.there_bytes)})"),
        ("commits", f"{summary.commits}, the last {summary.commit}" if summary.commit else "none"),
        ("place", summary.url),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)
