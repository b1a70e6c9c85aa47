"""The parts of report.html, each a pure function from the report's data to markup."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from omr_io.markup import Markup, element, join
from omr_io.train.evaluate import Evaluation, RewardChange, TaskScore
from omr_io.train.history import curve
from omr_io.train.report.charts import ends, interval_chart, line_chart
from omr_io.train.report.data import Example, Report, Throughput
from omr_io.train.report.format import (
    duration,
    p_value,
    percent,
    percent_interval,
    percent_tick,
    plain,
    plain_interval,
    points,
)
from omr_io.train.statistics import Interval
from omr_io.types import UInt8Array

BEYOND = "With image minus this, points"

THUMBNAIL = 400
"""Longest side of an image on the page, in pixels."""


@dataclass(frozen=True, slots=True)
class CurveStyle:
    """A metric of the history that gets a chart: how it is written, and what its axis takes in."""

    phase: str
    metric: str
    title: str
    shares: bool = False
    ceiling: float | None = None


CURVES = (
    CurveStyle("sft", "loss", "SFT loss per label token"),
    CurveStyle("sft", "held_out_accuracy", "SFT held-out accuracy", True, 1.0),
    CurveStyle("rl", "reward", "RL mean reward of rollouts"),
    CurveStyle("rl", "accuracy", "RL accuracy of rollouts", True, 1.0),
    CurveStyle("rl", "held_out_accuracy", "RL held-out accuracy", True, 1.0),
    CurveStyle("sft", "tokens_per_second", "SFT real tokens per second"),
    CurveStyle("sft", "packing_efficiency", "SFT packing efficiency", True, 1.0),
    CurveStyle("sft", "data_wait_share", "SFT time waiting for data", True),
    CurveStyle("sft", "gradient_norm", "SFT gradient norm"),
    CurveStyle("rl", "completion_tokens", "RL tokens per completion"),
    CurveStyle("rl", "gradient_norm", "RL gradient norm"),
)


def lead(evaluation: Evaluation, clusters: str) -> Markup:
    """The result in two sentences, so worded that it cannot claim more than the figures."""
    score = evaluation.accuracy
    first = (
        f"On {score.n} held-out questions from {score.clusters} {clusters} the model "
        f"answers {percent(score.mean)} correctly (95% interval {percent_interval(score)})."
    )
    if evaluation.majority is None or evaluation.blind is None:
        return element("p", first, class_="lead")
    if evaluation.beats_baselines:
        second = (
            " That is above the same model without its image and above always giving the most "
            "frequent letter; the intervals do not overlap."
        )
    else:
        second = (
            " Its interval is not wholly above those of the same model without its image and of "
            "always giving the most frequent letter."
        )
    return element("p", first + second, class_="lead")


def headline(evaluation: Evaluation) -> Markup:
    """The table of the model and its baselines."""
    rows = [score_row("image", "With image", evaluation.accuracy, "")]
    if evaluation.blind is not None:
        over = evaluation.over_blind
        beyond = f"{points(over.interval)}, {p_value(over.p)}" if over else ""
        rows.append(score_row("blind", "Without image (blind)", evaluation.blind, beyond))
    if evaluation.majority is not None:
        over = evaluation.over_majority
        beyond = f"{points(over.interval)}, {p_value(over.p)}" if over else ""
        rows.append(score_row("majority", "Most frequent letter", evaluation.majority, beyond))
    head = table_head("Answered", "Accuracy", "95% interval", BEYOND)
    unparsed = (
        f"{evaluation.unparsed} of {evaluation.accuracy.n} completions with the image held no "
        "answer; they count as wrong."
    )
    caption = element("caption", "Held-out accuracy")
    table = element("table", caption, head, element("tbody", *rows))
    note = element("p", unparsed, class_="quiet after")
    return element("div", table, note, class_="card")


def by_task(evaluation: Evaluation) -> Markup:
    """The table of tasks; nothing if there is only one."""
    if len(evaluation.by_task) < 2:
        return Markup("")
    rows = [_task_row(task) for task in evaluation.by_task]
    head = table_head("Task", "Questions", "With image", "Without image")
    caption = element("caption", "Accuracy by task")
    return element("div", element("table", caption, head, element("tbody", *rows)), class_="card")


def rewards(changes: Mapping[str, RewardChange], clusters: str) -> Markup:
    """Mean reward before and after RL, on each set of prompts."""
    if not changes:
        return Markup("")
    parts = [element("h3", "Mean reward before and after RL")]
    for prompts, change in changes.items():
        tiles = [
            ("Before RL", plain_interval(change.start)),
            ("After RL", plain_interval(change.end)),
            ("Change", f"{plain_interval(change.change.interval)}, {p_value(change.change.p)}"),
        ]
        cells = [element("div", element("dt", name), element("dd", text)) for name, text in tiles]
        words = (
            f"On {change.start.n} {prompts} from {change.start.clusters} {clusters}, the same "
            "before and after, with 95% intervals."
        )
        parts += [element("p", words, class_="quiet"), element("dl", *cells, class_="row")]
    return element("div", *parts, class_="card")


def curves(report: Report) -> Markup:
    """One card a metric that the history has at least twice."""
    cards = []
    for style in CURVES:
        steps, values = curve(report.history, style.phase, style.metric)
        if len(values) < 2:
            continue
        number, tick = (percent, percent_tick) if style.shares else (plain, plain)
        start, end = ends(values)
        caption = element(
            "figcaption",
            element("h3", style.title),
            element("span", f"{number(start)} → {number(end)}", class_="numbers"),
        )
        chart = line_chart(
            steps,
            values,
            title=style.title,
            number=number,
            tick=tick,
            floor=0.0,
            ceiling=style.ceiling,
        )
        cards.append(element("figure", caption, chart, class_="card"))
    if not cards:
        return Markup("")
    words = (
        "Thin: every step. Bold: mean over a twentieth of the steps. The figures are the means "
        "of the first and the last tenth."
    )
    return join(
        element("h2", "Curves"),
        element("p", words, class_="quiet"),
        element("div", *cards, class_="curves"),
    )


def throughput(figures: Throughput) -> Markup:
    """Speed of the run as tiles."""
    tiles = [
        ("Real tokens per second (SFT)", plain(figures.tokens_per_second)),
        ("Packing efficiency", percent(figures.packing_efficiency)),
        ("Time waiting for data", percent(figures.data_wait_share)),
    ]
    tiles += [(f"Time for {name}", duration(value)) for name, value in figures.seconds.items()]
    cells = [
        element("div", element("dt", name), element("dd", value), class_="card")
        for name, value in tiles
    ]
    return join(element("h2", "Throughput"), element("dl", *cells, class_="tiles"))


def examples(shown: tuple[Example, ...], total: int) -> Markup:
    """The grid of held-out samples."""
    if not shown:
        return Markup("")
    right = sum(example.item.correct for example in shown)
    words = (
        f"{len(shown)} of {total}, drawn at random over the tasks, whether right or wrong; "
        f"{right} are right."
    )
    cards = [_example(example) for example in shown]
    return join(
        element("h2", "Held-out examples"),
        element("p", words, class_="quiet"),
        element("div", *cards, class_="examples"),
    )


def configuration(report: Report) -> Markup:
    """Folded: the run configuration, facts, and how the figures are made."""
    method = (
        f"Intervals resample whole {report.clusters} (cluster bootstrap with the correction for "
        "few clusters) and are never narrower than Wilson's; p is of a test that flips the sign "
        f"of whole {report.clusters}. The most frequent letter is that of the train split, for "
        "each number of options."
    )
    return join(
        element("h2", "Run"),
        element("div", fact_list(list(report.facts.items())), class_="card")
        if report.facts
        else None,
        element(
            "details",
            element("summary", "Configuration"),
            element("div", element("pre", report.config), class_="card"),
        ),
        element(
            "details",
            element("summary", "How these figures are made"),
            element("div", element("p", method), class_="card"),
        ),
    )


def table_head(*names: str) -> Markup:
    """Column heads, and one more for the charts, with its scale of 0 to 100%."""
    scale = element(
        "div", *(element("span", f"{tick}%") for tick in (0, 25, 50, 75, 100)), class_="scale"
    )
    cells = [element("th", name, scope="col") for name in names]
    chart = element("th", scale, scope="col", class_="wide", aria_label="Chart, 0 to 100%")
    return element("thead", element("tr", *cells, chart))


def _key(name: str) -> Markup:
    return element("span", class_=f"key {name}")


def score_row(name: str, label: str, interval: Interval, beyond: str) -> Markup:
    """A row of `table_head`'s table; `name` is the style: image, blind, majority or shuffled."""
    summary = f"{label}: {percent(interval.mean)}, 95% interval {percent_interval(interval)}"
    return element(
        "tr",
        element("th", _key(name), label, scope="row"),
        element("td", element("strong", percent(interval.mean)), class_="numbers"),
        element("td", percent_interval(interval), class_="numbers", data_label="95%"),
        element("td", beyond, data_label=BEYOND) if beyond else element("td"),
        element("td", interval_chart([(name, interval)], summary=summary), class_="wide"),
    )


def _task_row(task: TaskScore) -> Markup:
    marks = [("image", task.accuracy)] + ([("blind", task.blind)] if task.blind else [])
    names = {"image": "with image", "blind": "without image"}
    words = [
        f"{names[name]} {percent(one.mean)}, 95% interval {percent_interval(one)}"
        for name, one in marks
    ]
    count = f"{task.accuracy.n}"
    return element(
        "tr",
        element("th", task.task or "(no task)", scope="row"),
        element("td", count, class_="numbers count", data_label="Questions"),
        _score_cell("image", "With image", task.accuracy),
        _score_cell("blind", "Without image", task.blind) if task.blind else element("td"),
        element("td", interval_chart(marks, summary="; ".join(words)), class_="wide"),
    )


def _score_cell(name: str, label: str, interval: Interval) -> Markup:
    return element(
        "td",
        _key(name),
        percent(interval.mean),
        " ",
        element("small", f"({percent_interval(interval)})"),
        class_="numbers score",
        data_label=label,
    )


def fact_list(rows: list[tuple[str, str]], kind: str = "facts") -> Markup:
    """Names and values, one pair under the other."""
    cells = [join(element("dt", name), element("dd", value)) for name, value in rows]
    return element("dl", *cells, class_=kind)


def _example(example: Example) -> Markup:
    item = example.item
    verdict = "Right" if item.correct else "Wrong"
    if item.letter is None:
        verdict = "Wrong: no answer found"
    mark = "✓ " if item.correct else "✗ "
    facts = [
        ("Answer", _option(example, item.answer)),
        ("Model", _option(example, item.letter) if item.letter else "none"),
    ]
    inner = element(
        "div",
        element(
            "div",
            element("span", mark, verdict, class_=f"badge {'right' if item.correct else 'wrong'}"),
            element("span", item.task, class_="quiet"),
            class_="head",
        ),
        element("p", example.question, class_="question"),
        fact_list(facts, "facts short"),
        element(
            "pre", item.completion or "(empty)", class_="completion", tabindex="0",
            role="region", aria_label="Completion",
        ),
        class_="inner",
    )  # fmt: skip
    return element("article", _picture(example), inner, class_="card example")


def _option(example: Example, letter: str) -> str:
    words = example.option_texts.get(letter)
    return f"{letter}. {words}" if words else letter


def _picture(example: Example) -> Markup:
    if example.pixels is None:
        return element("div", "No image", class_="no-image")
    lines = example.question.strip().splitlines()
    about = f"Image of sample {example.item.key}"
    alt = f"{about}, question: {lines[0]}" if lines else about
    return element("img", src=_data_uri(example.pixels), alt=alt, loading="lazy")


def _data_uri(pixels_HW3: UInt8Array) -> str:
    # Encoded anew from pixels: every browser shows it, and no metadata of the source comes along.
    from PIL import Image

    picture = Image.fromarray(pixels_HW3)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
