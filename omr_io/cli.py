"""The command line. Each command: parse, call the library, report."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from omr_io import __version__
from omr_io.errors import ConfigError, OmrError
from omr_io.terminal import Reporter, human_bytes, printable, table

if TYPE_CHECKING:
    from omr_io.shards import ConvertProgress, ConvertSummary, Description, Spread, VerifyReport

EXIT_CODES = (
    "Exit codes: 0 done (rows that were refused are named, counted and written to "
    "rejects.parquet); 1 the data is wrong as a whole; 2 usage; 3 a source cannot be read; "
    "4 writing failed; 5 bytes on disk are not what was written; 130 interrupted."
)

app = typer.Typer(
    name="omr-io",
    help="Shards of OpenMedReason for training: convert, look at, verify.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug of ours: print it whole
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SHOWN_PROBLEMS = 50

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """Run the command line; an `OmrError` becomes one line and its exit code."""
    try:
        app(prog_name="omr-io")
    except OmrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omr-io {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command(epilog=EXIT_CODES)
def convert(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC", help="Parquet files, folders, glob patterns.")
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
    image_root: Annotated[
        Path | None,
        typer.Option(help="Where images lie whose row has a file name and no bytes."),
    ] = None,
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
    from omr_io.corpus import ReadOptions
    from omr_io.images import MAX_PIXELS
    from omr_io.shards import ConvertOptions
    from omr_io.shards import convert as run

    options = ConvertOptions(
        split=split,
        max_shard_bytes=max_shard_mib << 20,
        max_shard_samples=max_shard_samples,
        check=check,  # type: ignore[arg-type]  # ConvertOptions refuses what it does not know
        max_image_pixels=max_pixels or MAX_PIXELS,
        read=ReadOptions(
            image_root=image_root,
            omit=tuple(omit or ()),
            answer_mismatch=answer_mismatch,  # type: ignore[arg-type]  # as for check
            need_reasoning=not allow_no_reasoning,
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
    _finish(as_json, summary, _print_convert)


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


@app.command(epilog=EXIT_CODES)
def info(
    folder: Annotated[Path, typer.Argument(help="A shard set.")], as_json: AsJson = False
) -> None:
    """Say what a shard set holds, from its index; no shard is read."""
    from omr_io.index import ShardSet
    from omr_io.shards import describe

    with ShardSet.open(folder) as shards:
        _finish(as_json, describe(shards), _print_info)


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


@app.command(epilog=EXIT_CODES)
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
    _finish(as_json, report, _print_verify)
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


@app.command("demo-corpus")
def demo_corpus(
    out: Annotated[Path, typer.Argument(help="OUT.parquet; OUT-test.parquet is written too.")],
    extra: Annotated[
        list[Path] | None,
        typer.Option(help="One more file or folder of DICOM, NIfTI or images; repeatable."),
    ] = None,
    train_rows: Annotated[int, typer.Option(min=1, help="Rows of the train split.")] = 1500,
    test_rows: Annotated[int, typer.Option(min=1, help="Rows of the test split.")] = 300,
    seed: Annotated[int, typer.Option(help="Decides the split and every draw.")] = 0,
    answer_bias: Annotated[
        float | None,
        typer.Option(help="Share of answer A in 4-option train rows; the real corpus has 0.77."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a small corpus of real medical images that PyPI packages ship."""
    from omr_io.demo_corpus import build

    with Reporter(Console(stderr=True)) as reporter:

        def progress(stage: str, done: int, total: int) -> None:
            reporter.update(stage, done, total, f"{done} of {total}")

        summary = build(
            out, train_rows=train_rows, test_rows=test_rows, seed=seed, extra=extra or (),
            answer_bias=answer_bias, progress=progress,
        )  # fmt: skip
    _finish(as_json, summary, _print_demo)


def _print_demo(summary: Any, to: Console) -> None:
    rows = []
    for split, path in summary.paths.items():
        letters = ", ".join(f"{name} {share:.0%}" for name, share in summary.letters[split].items())
        tasks = ", ".join(f"{name} {count}" for name, count in summary.tasks[split].items())
        studies = len(summary.studies[split])
        rows += [
            (split, f"{path}: {summary.rows[split]} rows from {studies} studies"),
            ("  questions", tasks),
            ("  answers", letters),
        ]
    rows.append(("left out", f"{len(summary.left_out)} pictures"))
    rows.append(("seconds", f"{summary.seconds:.1f}"))
    to.print(table(rows), soft_wrap=True, highlight=False)


def _finish(as_json: bool, result: Any, show: Any) -> None:
    """Print a result, a dataclass, for people or for programs."""
    if as_json:
        print(json.dumps(dataclasses.asdict(result), indent=1, default=str))
    else:
        show(result, Console())
