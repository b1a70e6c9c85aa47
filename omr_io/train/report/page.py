"""report.html, one file that loads nothing else, and the table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omr_io.markup import Markup, document, element
from omr_io.storage import write_atomically, writing
from omr_io.train.report import sections
from omr_io.train.report.data import Report
from omr_io.train.report.format import (
    duration,
    p_value,
    percent,
    percent_interval,
    plain,
    plain_interval,
    points,
)
from omr_io.train.report.style import STYLE
from omr_io.train.statistics import Interval, PairedDifference

if TYPE_CHECKING:
    from rich.console import Console


def render_report(report: Report) -> str:
    """The page as text: a pure function of the report.

    Every string is escaped, nothing is loaded from anywhere, and a content security policy allows
    only the page's own style sheet (by its hash) and images in data: URIs: no script can run.
    """
    return document(
        f"{report.title}: training report", Markup(STYLE), element("body", *_body(report))
    )


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page, atomically.

    Returns:
        The path written.

    Raises:
        DiskError: the file cannot be written.
    """
    target = Path(path)
    data = render_report(report).encode("utf-8")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)
    return target


def print_summary(report: Report, console: Console | None = None) -> None:
    """Print the result table to the terminal (or to a given rich console)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = console if console is not None else Console()
    evaluation = report.evaluation
    score = evaluation.accuracy
    size = f"{score.n} held-out questions, {score.clusters} {report.clusters}"
    title = escape(f"{report.title}: {size}")
    table = Table(title=title, title_justify="left")
    for name in ("", "accuracy", "95% interval", "with image minus this"):
        table.add_column(name, justify="left" if name == "" else "right")
    _add_score(table, "with image", score, None)
    _add_score(table, "without image (blind)", evaluation.blind, evaluation.over_blind)
    _add_score(table, "most frequent letter", evaluation.majority, evaluation.over_majority)
    table.add_section()
    for task in evaluation.by_task if len(evaluation.by_task) > 1 else ():
        _add_score(table, escape(task.task) or "(no task)", task.accuracy, None)
    out.print(table)
    for line in _summary_lines(report):
        out.print(line, highlight=False, markup=False)


def _body(report: Report) -> tuple[Markup, Markup, Markup]:
    header = element(
        "header",
        element("p", "omr_io training report", class_="eyebrow"),
        element("h1", report.title),
        element("p", report.model, class_="quiet"),
    )
    main = element(
        "main",
        sections.lead(report.evaluation, report.clusters),
        element(
            "div",
            sections.headline(report.evaluation),
            sections.by_task(report.evaluation),
            sections.rewards(report.rewards, report.clusters),
            class_="tables",
        ),
        sections.curves(report),
        sections.throughput(report.throughput),
        sections.examples(tuple(report.examples), report.evaluation.accuracy.n),
        sections.configuration(report),
    )
    note = "Made by omr_io. For research on models; not for clinical use."
    return header, main, element("footer", element("p", note, class_="after"))


def _add_score(
    table: object, name: str, interval: Interval | None, over: PairedDifference | None
) -> None:
    from rich.table import Table

    assert isinstance(table, Table)
    if interval is None:
        return
    beyond = f"{points(over.interval)}, {p_value(over.p)}" if over else ""
    table.add_row(name, percent(interval.mean), percent_interval(interval), beyond)


def _summary_lines(report: Report) -> list[str]:
    figures = report.throughput
    lines = [f"unparsed: {report.evaluation.unparsed} of {report.evaluation.accuracy.n}"]
    for prompts, change in report.rewards.items():
        lines.append(
            f"reward on {change.start.n} {prompts}: {plain_interval(change.start)} before RL, "
            f"{plain_interval(change.end)} after, {p_value(change.change.p)}"
        )
    lines.append(
        f"SFT: {plain(figures.tokens_per_second)} real tokens/s, packing efficiency "
        f"{percent(figures.packing_efficiency)}, waiting for data "
        f"{percent(figures.data_wait_share)} of the time"
    )
    times = (f"{name} {duration(value)}" for name, value in figures.seconds.items())
    lines.append("time: " + ", ".join(times))
    return lines
