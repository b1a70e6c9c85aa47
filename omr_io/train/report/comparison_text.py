"""Base, SFT and RL side by side in a terminal; rows and words that the page shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omr_io.text import printable
from omr_io.train.evaluation.comparison import Comparison
from omr_io.train.evaluation.figures import ModelDifference, ModelOnSet, SetFacts
from omr_io.train.evaluation.judged import JudgedPreference
from omr_io.train.report.format import p_value, percent, percent_interval, points
from omr_io.train.statistics import Interval, PairedDifference

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A model, or one of its baselines. `style` is the page's name for its colour."""

    style: str
    label: str
    accuracy: Interval
    unparsed: int | None
    over: PairedDifference | None


def print_comparison(made: Comparison, to: Console) -> None:
    """Print a table for each set, then differences, averages, judges' scores and notes."""
    for of in made.figures.sets:
        to.print(_table(of, scores_on(made.figures.scores, of.name)))
        _print_differences(pairs_on(made.figures.differences, of.name), to)
    for average in made.figures.averages:
        line = f"mean of {len(average.sets)} sets ({', '.join(average.sets)}), {average.model}: "
        line += f"{percent(average.accuracy.mean)} ({percent_interval(average.accuracy)})"
        _say(to, line)
    _print_differences(made.figures.average_differences, to)
    _print_judged(made, to)
    lines = [
        f"the paper reports, for orientation: {one.what} "
        f"{'' if one.before is None else f'{one.before} -> '}{one.after}%"
        for one in made.paper
    ]
    for line in (*lines, *made.notes):
        _say(to, line)


def _table(of: SetFacts, scores: Sequence[ModelOnSet]) -> Table:
    """A set's table, narrow enough for 80 columns."""
    from rich.markup import escape
    from rich.table import Table

    size = f"{of.items:,} items, {of.clusters:,} clusters"
    source = "its own: upper bound" if of.majority_is_upper_bound else "of the train set"
    table = Table(
        title=escape(printable(f"{of.name}: {size}; most frequent letter {source}")),
        title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    for name in ("", "accuracy, %", "unparsed", "plain minus this", "p"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=name != "")
    for score in scores:
        for row in rows_of(score, of):
            indent = "" if row.style == "image" else "  "
            table.add_row(
                escape(printable(indent + row.label)),
                _numbers(row.accuracy),
                "" if row.unparsed is None else f"{row.unparsed}",
                points(row.over.interval) if row.over else "",
                p_value(row.over.p).removeprefix("p").strip(" =\xa0") if row.over else "",
            )
    return table


def _say(to: Console, line: str) -> None:
    plain = line.replace("\N{NO-BREAK SPACE}", " ")  # of `p_value`, for pages
    to.print(printable(plain), highlight=False, markup=False, soft_wrap=True)


def _print_differences(differences: Sequence[ModelDifference], to: Console) -> None:
    for one in differences:
        _say(to, _difference_words(one))


def _print_judged(made: Comparison, to: Console) -> None:
    judged = made.judged
    for traces in judged.traces:
        axes = ", ".join(f"{axis} {mean_words(value)}" for axis, value in traces.axes.items())
        line = (
            f"TraceScore of {traces.model} on {traces.set} by {traces.judge_model}: "
            f"{mean_words(traces.score)}; {axes or 'no axis'}; {traces.scored} of {traces.traces} "
            f"traces scored, {traces.errors} judge errors"
        )
        _say(to, line)
    for one in judged.differences:
        _say(to, f"TraceScore, {_difference_words(one, signed)}")
    for other in judged.preferences:
        share = "no pair judged" if other.share is None else _share(other.share)
        p = "" if other.p is None else f", {p_value(other.p)}"
        line = (
            f"traces of {other.a} preferred over those of {other.b} on {other.set} by "
            f"{other.judge_model}: {share}{p}; {other.wins_a} won, {other.ties} tied, "
            f"{other.wins_b} lost, {other.errors} judge errors"
        )
        _say(to, line)


# Rows and words


def rows_of(score: ModelOnSet, of: SetFacts) -> list[Row]:
    """A model on a set, then its baselines that were measured."""
    plain = score.plain
    rows = [Row("image", score.model, plain.accuracy, plain.unparsed, None)]
    for style, part, over in (
        ("blind", score.blind, score.over_blind),
        ("shuffled", score.shuffled, score.over_shuffled),
    ):
        if part is not None:
            rows.append(Row(style, style, part.accuracy, part.unparsed, over))
    rows.append(Row("majority", "most frequent", of.majority, None, score.over_majority))
    return rows


def _numbers(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:.1f} ({low:.1f} to {high:.1f})"


def scores_on(scores: Sequence[ModelOnSet], name: str) -> list[ModelOnSet]:
    """Those of the set of that name."""
    return [score for score in scores if score.set == name]


def pairs_on(differences: Sequence[ModelDifference], name: str) -> list[ModelDifference]:
    """Those of the set of that name."""
    return [one for one in differences if one.set == name]


def majority_label(of: SetFacts) -> str:
    """What the baseline is called, with where its letters are from."""
    source = "its own: upper bound" if of.majority_is_upper_bound else "of the train set"
    return f"Most frequent letter ({source})"


def _difference_words(one: ModelDifference, number: Callable[[Interval], str] = points) -> str:
    value = one.difference
    unit = " points" if number is points else ""
    return (
        f"{one.second} minus {one.first} on {one.set}: {number(value.interval)}{unit}, "
        f"{p_value(value.p)}; {one.better} items better, {one.worse} worse"
    )


def mean_words(interval: Interval | None) -> str:
    """A mean with its interval; "none" where nothing was scored."""
    if interval is None:
        return "none"
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _share(interval: Interval) -> str:
    return f"{percent(interval.mean)} ({percent_interval(interval)})"


def signed(interval: Interval) -> str:
    """A difference of TraceScores: "+0.120 (+0.050 to +0.190)"."""
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def tally(one: JudgedPreference) -> str:
    """A preference's counts in words."""
    return (
        f"{one.a} over {one.b} on {one.set} by {one.judge_model}: {one.wins_a} won, {one.ties} "
        f"tied, {one.wins_b} lost of {one.judged}, {one.errors} judge errors"
    )
