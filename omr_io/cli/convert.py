"""`omr-io convert`: sources → a shard set."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from omr_io.cli.common import EXIT_CODES, AsJson, finish
from omr_io.cli.convert_report import ConvertReport, print_summary
from omr_io.cli.image_options import (
    Check,
    KeepIcc,
    KeepMetadata,
    MaxBytes,
    MaxPixels,
    Refuse,
    Take,
    TranscodeTo,
    image_options,
)
from omr_io.cli.read_options import (
    AllowNoReasoning,
    AnswerMismatch,
    CaptionQuestion,
    ColumnMap,
    ImageRoots,
    Omit,
    OpenEnded,
    SchemaName,
    Turns,
    UnpackTo,
    read_options,
)
from omr_io.cli.stopping import stoppable
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter

CONVERT_CODES = f"""{EXIT_CODES} 143 ended by SIGTERM.

A run that was stopped or killed goes on when the same command is run again; on a set that is
complete it does nothing. The bytes depend on the sources and options alone."""

CONVERT_EXAMPLES = (
    "omr-io convert 'data/train-*.parquet' shards/train",
    "omr-io convert data shards/train --dry-run --json",
    "omr-io convert hf://datasets/LAB/CORPUS/data/train-*.parquet shards/train",
    "omr-io convert train.csv shards/train --schema pmc-vqa --image-root images.zip",
    "omr-io convert own.jsonl shards/ --map question=problem,answer=label --image-root images/",
    "omr-io convert data shards/train --transcode 1024:90 --take 16-bit --refuse alpha",
    "omr-io convert data shards/train --max-rejects 0.5% --workers 8",
    "omr-io convert data shards/train --part 3/16  # of a job array: $SLURM_ARRAY_TASK_ID/16",
    "omr-io convert data shards/train --merge",
)


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
    check: Check = "decode",
    max_pixels: MaxPixels = None,
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
    omit: Omit = None,
    answer_mismatch: AnswerMismatch = "refuse",
    allow_no_reasoning: AllowNoReasoning = False,
    max_rejects: Annotated[
        str | None,
        typer.Option(help="Stop when more rows are refused: a number (100) or a share (0.5%)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cores to use, a process each; default: all.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Within each; default: to use cores that are left.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Make only part I of N (from 1), for a job array."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="End what the parts have made: one complete set.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check all, write nothing, tell what would.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a complete set; drop another unfinished one."),
    ] = False,
    energon: Annotated[
        bool, typer.Option("--energon", help="Write .nv-meta for Megatron Energon too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a corpus into a shard set."""
    from omr_io.conversion import ConvertOptions
    from omr_io.conversion import convert as run
    from omr_io.images import MAX_PIXELS

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
        workers=workers,
        threads=threads,
    )
    which = _part(part)
    if energon and (which is not None or dry_run):
        raise ConfigError(
            "--energon describes a complete set, which --part and --dry-run do not make",
            mend="Pass it with --merge",
        )
    with stoppable("run the same command again to go on"), Reporter(Console(stderr=True)) as show:
        summary = run(
            sources, out, options, ConvertReport(show), part=which, merge=merge, dry_run=dry_run
        )
        if energon and summary.outcome in ("converted", "already complete"):
            from omr_io.energon import write_energon_metadata

            write_energon_metadata(out, overwrite=True)
    finish(as_json, summary, print_summary)


def _count_or_share(text: str | None) -> int | float | None:
    """ "100" is a count, "0.5%" a share."""
    if text is None:
        return None
    try:
        # By decimals: 0.7 / 100 is not the float 0.007.
        return float(Decimal(text[:-1]) / 100) if text.endswith("%") else int(text)
    except (ValueError, ArithmeticError):
        raise ConfigError(
            f"--max-rejects is {text!r}", mend="Use a number of rows (100) or a share (0.5%)"
        ) from None


def _part(text: str | None) -> tuple[int, int] | None:
    """ "3/16" is the third of sixteen."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise ConfigError(f"--part is {text!r}", mend="Use I/N, such as 1/16 to 16/16")
    return int(found[1]), int(found[2])
