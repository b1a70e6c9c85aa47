"""`omr-io lint` and `omr-io index`: content that no hash shows; foreign shards made readable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter, counted, human_bytes, printable, table

if TYPE_CHECKING:
    from omr_io.foreign_shards.build import IndexSummary
    from omr_io.lint import LintReport

LINT_CODES = (
    "Exit codes: 0 no errors; 1 errors were found (with --strict: anything); 2 usage; 3 no shard "
    "set; 5 bytes on disk are not what was written."
)
LINT_EXAMPLES = (
    "omr-io lint shards/train --against shards/test",
    "omr-io lint shards/train --against shards/test --pixels --json > lint.json",
    "omr-io lint shards/train --strict --ignore answer-bias",
)


def lint(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shard set.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A shard set of another split: nothing may be in both; repeatable."),
    ] = None,
    pixels: Annotated[
        bool,
        typer.Option("--pixels", help="Decode all images and compare pixels too; slow."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="A rule to leave out.")] = None,
    max_question_bytes: Annotated[int, typer.Option(min=1, help="Name longer ones.")] = 8 << 10,
    max_reasoning_bytes: Annotated[int, typer.Option(min=1, help="Name longer ones.")] = 64 << 10,
    min_side: Annotated[int, typer.Option(min=1, help="Name images with a shorter side.")] = 28,
    max_aspect: Annotated[float, typer.Option(min=1, help="Refuse narrower images.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with the content: leaks, duplicates, biased answers, broken traces.

    Errors are leaks into another split, wrong or missing answers, and images that no model takes.
    Equal images are found, by bytes or (--pixels) by pixels; near-duplicates such as crops or
    other JPEG qualities are not.
    """
    from omr_io.lint import LintOptions
    from omr_io.lint import lint as run

    options = LintOptions(
        pixels=pixels,
        ignore=tuple(ignore or ()),
        strict=strict,
        max_question_bytes=max_question_bytes,
        max_reasoning_bytes=max_reasoning_bytes,
        max_aspect=max_aspect,
        min_side=min_side,
    )
    with Reporter(Console(stderr=True)) as reporter:

        def progress(stage: str, done: int, total: int) -> None:
            reporter.update(stage, done, total, f"{done} of {total} samples")

        report = run(folder, against or (), options, progress)
    finish(as_json, report, _print_lint)
    if not report.ok:
        raise typer.Exit(1)


def _print_lint(report: LintReport, to: Console) -> None:
    for item in report.findings:
        style = "bold red" if item.severity == "error" else "bold yellow"
        to.print(f"{item.severity}: {item.rule}", style=style, highlight=False)
        line = f"  {item.count} of {item.of}: {item.what}"
        line = printable(line + (f" ({item.detail})" if item.detail else ""))
        to.print(line, soft_wrap=True, highlight=False, markup=False)
        for example in item.examples:
            place = f"    {example.shard}, key {example.key}"
            line = printable(f"{place}: {example.detail}" if example.detail else place)
            to.print(line, soft_wrap=True, highlight=False, markup=False)
        to.print(f"  {item.mend}", soft_wrap=True, highlight=False, markup=False)
    for bias in report.letters:
        shares = ", ".join(f"{letter} {count}" for letter, count in bias.counts.items())
        line = f"answers to {bias.num_options} options: {shares} (p {bias.p_value:.2g})"
        to.print(line, soft_wrap=True, highlight=False)
    errors = sum(item.severity == "error" for item in report.findings)
    warnings = len(report.findings) - errors
    traces, naming = report.traces, report.traces_naming_letters
    rate = report.samples / max(report.seconds, 1e-9)
    rows = [
        ("samples", f"{report.samples} ({rate:.0f} a second)"),
        ("images", f"{report.images}, {'pixels' if report.pixels else 'bytes'} compared"),
        ("traces naming letters", f"{naming} of {traces} ({naming / max(traces, 1):.1%})"),
        ("errors", counted(errors, "rule") if errors else "none"),
        ("warnings", counted(warnings, "rule") if warnings else "none"),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)


INDEX_CODES = (
    "Exit codes: 0 done (groups of members that are no sample are named, counted and written to "
    "rejects.parquet); 1 no sample at all; 2 usage; 3 a source cannot be read, or its samples fit "
    "no schema; 4 writing failed; 5 a tar is malformed."
)
INDEX_EXAMPLES = (
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
    schema: Annotated[
        str | None, typer.Option(help="The samples' schema; default: recognised.")
    ] = None,
    column_map: Annotated[
        list[str] | None,
        typer.Option("--map", help="MEANING=COLUMN, such as question=problem; repeatable."),
    ] = None,
    omit: Annotated[
        list[str] | None, typer.Option(help="A column to leave out; repeatable.")
    ] = None,
    answer_mismatch: Annotated[
        str, typer.Option(help="A trace that ends in another letter than the answer: refuse, keep.")
    ] = "refuse",
    allow_no_reasoning: Annotated[
        bool, typer.Option("--allow-no-reasoning", help="Take samples without reasoning.")
    ] = False,
    check: Annotated[
        str, typer.Option(help="decode: decode every image in full; header: read headers only.")
    ] = "decode",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse images of more pixels.")
    ] = None,
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
    from omr_io.corpus import ReadOptions
    from omr_io.foreign_shards.build import IndexOptions, index_foreign
    from omr_io.images import MAX_PIXELS

    if check not in ("decode", "header"):
        raise ConfigError(f"check {check!r} is unknown", mend="Use decode or header")
    options = IndexOptions(
        split=split,
        decode=check == "decode",
        max_image_pixels=max_pixels or MAX_PIXELS,
        read=ReadOptions(
            omit=tuple(omit or ()),
            answer_mismatch=answer_mismatch,  # type: ignore[arg-type]  # ReadOptions checks it
            need_reasoning=not allow_no_reasoning,
            schema=schema,
            column_map=tuple(map(_pair, column_map or ())),
        ),
        qualify_keys=qualify_keys,
        overwrite=overwrite,
    )
    with Reporter(Console(stderr=True)) as reporter:

        def progress(done: int, total: int, samples: int) -> None:
            reporter.update("index", done, total, f"{done} of {total} shards, {samples} samples")

        summary = index_foreign(sources, out, options, progress)
    finish(as_json, summary, _print_index)


def _pair(text: str) -> tuple[str, str]:
    meaning, equals, column = text.partition("=")
    if not (meaning and equals and column):
        raise ConfigError(f"--map {text!r} is no pair", mend="Write --map question=problem")
    return meaning, column


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
