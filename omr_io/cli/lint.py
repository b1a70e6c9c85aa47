"""`omr-io lint`: what is wrong with a set's content though no hash shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.cli.remote_options import SET_HELP, RemoteCache, RemoteCacheBytes, remote_options
from omr_io.terminal import Reporter, table
from omr_io.text import counted, printable

if TYPE_CHECKING:
    from omr_io.lint import LintReport

CODES = (
    "Exit codes: 0 no errors; 1 errors were found (with --strict: anything); 2 usage; 3 no shard "
    "set; 5 bytes on disk are not what was written."
)
EXAMPLES = (
    "omr-io lint shards/train --against shards/test",
    "omr-io lint shards/train --against shards/test --pixels --json > lint.json",
    "omr-io lint shards/train --strict --ignore answer-bias",
    "omr-io lint s3://bucket/train --against s3://bucket/test",
)


def lint(
    folder: Annotated[str, typer.Argument(metavar="SET", help=SET_HELP)],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET", help="Another split, likewise: nothing may be in both; repeatable."
        ),
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
    remote_cache: RemoteCache = None,
    remote_cache_bytes: RemoteCacheBytes = None,
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

        remote = remote_options(remote_cache, remote_cache_bytes)
        report = run(folder, against or (), options, progress, remote)
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
