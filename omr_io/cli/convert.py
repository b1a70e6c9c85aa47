"""`omr-io convert`: sources → a shard set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.image_options import (
    KeepIcc,
    KeepMetadata,
    MaxBytes,
    Refuse,
    Take,
    TranscodeTo,
    image_options,
)
from omr_io.cli.read_options import (
    CaptionQuestion,
    ColumnMap,
    ImageRoots,
    OpenEnded,
    SchemaName,
    Turns,
    UnpackTo,
    read_options,
)
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter, human_bytes, printable, table

if TYPE_CHECKING:
    from omr_io.shards import ConvertProgress, ConvertSummary


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC", help="Files (Parquet, JSON, CSV, tar), folders, globs, URLs."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The shard set's folder: new or empty.")],
    split: Annotated[str, typer.Option(help="The split's name; shards are SPLIT-000000.tar.")] = (
        "train"
    ),
    max_shard_mib: Annotated[int, typer.Option(min=1, help="Cut a shard at this size.")] = 256,
    max_shard_samples: Annotated[int, typer.Option(min=1, help="And at this many.")] = 10_000,
    check: Annotated[
        str, typer.Option(help="decode: decode every image in full; header: read headers only.")
    ] = "decode",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse images of more pixels.")
    ] = None,
    max_bytes: MaxBytes = None,
    keep_metadata: KeepMetadata = False,
    keep_icc: KeepIcc = False,
    transcode: TranscodeTo = None,
    take: Take = None,
    refuse: Refuse = None,
    image_root: ImageRoots = None,
    unpack_to: UnpackTo = None,
    schema: SchemaName = None,
    column_map: ColumnMap = None,
    open_ended: OpenEnded = False,
    turns: Turns = "refuse",
    question: CaptionQuestion = None,
    omit: Annotated[
        list[str] | None, typer.Option(help="A column to leave out; repeatable.")
    ] = None,
    answer_mismatch: Annotated[
        str, typer.Option(help="A trace that ends in another letter than the answer: refuse, keep.")
    ] = "refuse",
    allow_no_reasoning: Annotated[
        bool, typer.Option("--allow-no-reasoning", help="Take a source without a reasoning column.")
    ] = False,
    max_rejects: Annotated[
        str | None,
        typer.Option(help="Stop when more rows are refused: a number (100) or a share (0.5%)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="That check images; default: one a core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a complete set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert the corpus' Parquet into a shard set."""
    from omr_io.images import MAX_PIXELS
    from omr_io.shards import ConvertOptions
    from omr_io.shards import convert as run

    options = ConvertOptions(
        split=split,
        max_shard_bytes=max_shard_mib << 20,
        max_shard_samples=max_shard_samples,
        check=check,  # type: ignore[arg-type]  # ConvertOptions refuses what it does not know
        max_image_pixels=max_pixels or MAX_PIXELS,
        **image_options(max_bytes, keep_metadata, keep_icc, transcode, take, refuse),
        read=read_options(
            image_root=image_root,
            unpack_to=unpack_to,
            omit=omit,
            answer_mismatch=answer_mismatch,
            allow_no_reasoning=allow_no_reasoning,
            schema=schema,
            column_map=column_map,
            open_ended=open_ended,
            turns=turns,
            question=question,
        ),
        max_rejects=_count_or_share(max_rejects),
        overwrite=overwrite,
        threads=threads or len(os.sched_getaffinity(0)),
    )
    with Reporter(Console(stderr=True)) as reporter:

        def progress(at: ConvertProgress) -> None:
            of = "" if at.total_rows is None else f" of {at.total_rows}"
            now = f"{at.rows}{of} rows, {at.refused} refused, {human_bytes(at.bytes)}"
            reporter.update("convert", at.rows, at.total_rows, now)

        summary = run(sources, out, options, progress)
    finish(as_json, summary, _print_convert)


def _count_or_share(text: str | None) -> int | float | None:
    """ "100" is a count, "0.5%" a share."""
    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        raise ConfigError(
            f"--max-rejects is {text!r}", mend="Use a number of rows (100) or a share (0.5%)"
        ) from None


def _print_convert(summary: ConvertSummary, to: Console) -> None:
    refused = summary.rows - summary.samples
    rows = [
        ("rows", str(summary.rows)),
        ("samples", str(summary.samples)),
        ("images", str(summary.images)),
        ("refused", str(refused)),
        *((f"  {reason}", str(count)) for reason, count in summary.refusals.items()),
        ("shards", f"{summary.shards} ({human_bytes(summary.bytes)})"),
        ("seconds", f"{summary.seconds:.1f}"),
        ("folder", str(summary.folder)),
    ]
    to.print(table(rows), soft_wrap=True)
    if refused:
        to.print(f"\n{refused} rows were refused; the first of each reason:", style="bold yellow")
        for item in summary.examples:
            line = f"  {item.source} row {item.row}: {item.reason}: {item.detail}"
            to.print(printable(line), soft_wrap=True, markup=False, highlight=False)
        where = f"All of them are in {summary.folder / 'rejects.parquet'}"
        to.print(where, soft_wrap=True, markup=False, highlight=False)
