"""`omr-io index`: shards of another program made readable where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.image_options import Check, MaxPixels
from omr_io.cli.read_options import (
    AllowNoReasoning,
    AnswerMismatch,
    ColumnMap,
    Omit,
    SchemaName,
    read_options,
)
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter, table
from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.foreign_shards.build import IndexSummary

CODES = (
    "Exit codes: 0 done (groups of members that are no sample are named, counted and written to "
    "rejects.parquet); 1 no sample at all; 2 usage; 3 a source cannot be read, or its samples fit "
    "no schema; 4 writing failed; 5 a tar is malformed."
)
EXAMPLES = (
    "omr-io index wds/                              # index and manifest beside the tars",
    "omr-io index 'wds/shard-{000..127}.tar' -o index/",
    "omr-io index hf://datasets/OWNER/NAME/data -o index/ --map question=caption",
    "omr-io index wds/ --qualify-keys               # keys that start again in each shard",
)


def index(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC", help="Tars: files, folders, globs, {000..012}, URLs."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to; default: the folder of the tars."),
    ] = None,
    split: Annotated[str, typer.Option(help="The split's name.")] = "train",
    schema: SchemaName = None,
    column_map: ColumnMap = None,
    omit: Omit = None,
    answer_mismatch: AnswerMismatch = "refuse",
    allow_no_reasoning: AllowNoReasoning = False,
    check: Check = "decode",
    max_pixels: MaxPixels = None,
    qualify_keys: Annotated[
        bool,
        typer.Option("--qualify-keys", help="Put the shard's name before each key."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what this command wrote before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make WebDataset shards of another program a shard set: index and manifest, no copy."""
    from omr_io.foreign_shards.build import IndexOptions, index_foreign
    from omr_io.images import MAX_PIXELS

    if check not in ("decode", "header"):
        raise ConfigError(f"check {check!r} is unknown", mend="Use decode or header")
    options = IndexOptions(
        split=split,
        decode=check == "decode",
        max_image_pixels=max_pixels or MAX_PIXELS,
        read=read_options(
            omit=omit,
            answer_mismatch=answer_mismatch,
            allow_no_reasoning=allow_no_reasoning,
            schema=schema,
            column_map=column_map,
        ),
        qualify_keys=qualify_keys,
        overwrite=overwrite,
    )
    with Reporter(Console(stderr=True)) as reporter:

        def progress(done: int, total: int, samples: int) -> None:
            reporter.update("index", done, total, f"{done} of {total} shards, {samples} samples")

        summary = index_foreign(sources, out, options, progress)
    finish(as_json, summary, _print_index)


def _print_index(summary: IndexSummary, to: Console) -> None:
    refused = sum(summary.refusals.values())
    rows = [
        ("samples", str(summary.samples)),
        ("images", str(summary.images)),
        ("read as", f"{summary.schema} ({summary.layout})"),
        ("refused", str(refused)),
        *((f"  {reason}", str(count)) for reason, count in summary.refusals.items()),
        ("left out", str(sum(summary.left_out.values()))),
        *((f"  {extension}", str(count)) for extension, count in summary.left_out.items()),
        ("shards", f"{summary.shards} ({human_bytes(summary.bytes)})"),
        ("tars", summary.tars),
        ("seconds", f"{summary.seconds:.1f}"),
        ("folder", str(summary.folder)),
    ]
    to.print(table([(name, printable(value)) for name, value in rows]), soft_wrap=True)
    if refused:
        to.print("\nrefused; the first of each reason:", style="bold yellow")
        for item in summary.examples:
            line = f"  {item.source}, key {item.id}: {item.reason}: {item.detail}"
            to.print(printable(line), soft_wrap=True, markup=False, highlight=False)
        where = f"All of them are in {summary.folder / 'rejects.parquet'}"
        to.print(where, soft_wrap=True, markup=False, highlight=False)
    if summary.left_out_examples:
        to.print("\nleft out of its sample; the first of each extension:", style="bold yellow")
        for left in summary.left_out_examples:
            line = f"  {left.shard}, part {left.part}, offset {left.offset}"
            to.print(printable(line), soft_wrap=True, markup=False, highlight=False)
