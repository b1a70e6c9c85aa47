"""Base, SFT and RL side by side: the page of `omr-io eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from omr_io.markup import Markup, document, element, join
from omr_io.storage import write_atomically
from omr_io.train.evaluation.comparison import Comparison
from omr_io.train.evaluation.figures import ModelDifference, ModelOnSet, SetFacts
from omr_io.train.report.comparison_text import (
    majority_label,
    mean_words,
    pairs_on,
    rows_of,
    scores_on,
    signed,
    tally,
)
from omr_io.train.report.format import p_value, percent, points
from omr_io.train.report.sections import fact_list, score_row, table_head
from omr_io.train.report.style import STYLE
from omr_io.types import AXES

BEYOND = "Plain minus this, points"
_LONG = {"blind": "without image (blind)", "shuffled": "options in another order"}


def render_comparison(made: Comparison) -> str:
    """The page as text, a pure function; safe as `render_report` is."""
    title = f"{', '.join(made.figures.models)}: evaluation"
    return document(title, Markup(STYLE), element("body", *_body(made)))


def write_comparison(path: str | Path, made: Comparison) -> Path:
    """Write the page, atomically.

    Raises:
        DiskError: the file cannot be written.
    """
    target = Path(path)
    write_atomically(target, render_comparison(made).encode("utf-8"))
    return target


def _body(made: Comparison) -> tuple[Markup, Markup, Markup]:
    names = ", ".join(made.figures.models)
    header = element(
        "header",
        element("p", "omr_io evaluation", class_="eyebrow"),
        element("h1", names),
        element("p", f"On {', '.join(of.name for of in made.figures.sets)}", class_="quiet"),
    )
    main = element(
        "main",
        *(_set_section(made, of) for of in made.figures.sets),
        _averages(made),
        _judged(made),
        _paper(made),
        _notes(made),
        _run(made),
    )
    note = "Made by omr_io. For research on models; not for clinical use."
    return header, main, element("footer", element("p", note, class_="after"))


def _set_section(made: Comparison, of: SetFacts) -> Markup:
    scores = scores_on(made.figures.scores, of.name)
    said = ", ".join(f"{score.model} {percent(score.plain.accuracy.mean)}" for score in scores)
    words = f"{of.items:,} questions in {of.clusters:,} clusters; answered correctly: {said}."
    rows = []
    for score in scores:
        for row in rows_of(score, of):
            name = row.label
            if row.style == "majority":
                name = majority_label(of)
            elif row.style != "image":
                name = f"{score.model}: {_LONG[row.style]}"
            beyond = f"{points(row.over.interval)}, {p_value(row.over.p)}" if row.over else ""
            rows.append(score_row(row.style, name, row.accuracy, beyond))
    head = table_head("Answered", "Accuracy", "95% interval", BEYOND)
    table = element(
        "table", element("caption", "Accuracy and baselines"), head, element("tbody", *rows)
    )
    counts = element("div", *(_counts(score) for score in scores))
    cards = [element("div", table, counts, class_="card")]
    pairs = pairs_on(made.figures.differences, of.name)
    cards.append(_difference_card("Differences on the same questions", pairs))
    return join(
        element("h2", of.name),
        element("p", words, class_="quiet"),
        element("div", *cards, class_="tables"),
    )


def _counts(score: ModelOnSet) -> Markup:
    parts = []
    for name, part in (
        ("plain", score.plain),
        ("blind", score.blind),
        ("shuffled", score.shuffled),
    ):
        if part is not None:
            letters = ", ".join(
                f"{letter or 'none'} {count}" for letter, count in part.letters.items()
            )
            parts.append(
                f"{name}: {part.unparsed} of {part.completions} without an answer (wrong), "
                f"{part.cut} cut, {part.failed_images} with a broken image; letters {letters}"
            )
    return element("p", f"{score.model}. ", "; ".join(parts), ".", class_="quiet after")


def _difference_card(
    caption: str, differences: Sequence[ModelDifference], *, of_traces: bool = False
) -> Markup:
    if not differences:
        return Markup("")
    number, unit = (signed, "TraceScore") if of_traces else (points, "Points")
    titles = ("", f"{unit} (95% interval)", "p", "Better", "Worse")
    rows = []
    for one in differences:
        name = f"{one.second} minus {one.first}{f', {one.set}' if of_traces else ''}"
        value = one.difference
        cells = (number(value.interval), p_value(value.p), f"{one.better}", f"{one.worse}")
        labelled = zip(titles[1:], cells, strict=True)
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                *(element("td", cell, class_="numbers", data_label=t) for t, cell in labelled),
            )
        )
    names = [element("th", title, scope="col") for title in titles]
    head = element("thead", element("tr", *names))
    table = element("table", element("caption", caption), head, element("tbody", *rows))
    return element("div", table, class_="card")


def _averages(made: Comparison) -> Markup:
    averages = made.figures.averages
    if not averages:
        return Markup("")
    rows = [score_row("image", one.model, one.accuracy, "") for one in averages]
    head = table_head("Answered", "Accuracy", "95% interval", "")
    caption = element("caption", f"Unweighted mean of {', '.join(averages[0].sets)}")
    table = element("div", element("table", caption, head, element("tbody", *rows)), class_="card")
    pairs = made.figures.average_differences
    return join(
        element("h2", "Mean of sets"),
        element("div", table, _difference_card("Differences", pairs), class_="tables"),
    )


def _judged(made: Comparison) -> Markup:
    judged = made.judged
    title = element("h2", "Traces, by a judge")
    if not (judged.traces or judged.preferences):
        words = "No judge's results lie beside the completions; omr-io judge makes them."
        return join(title, element("p", words, class_="quiet"))
    cards = [_trace_card(made)] if judged.traces else []
    cards.append(
        _difference_card("TraceScore on the same questions", judged.differences, of_traces=True)
    )
    if judged.preferences:
        rows = [
            score_row(
                "image", f"{one.a} over {one.b}, {one.set}", one.share,
                "" if one.p is None else p_value(one.p),
            )
            for one in judged.preferences if one.share is not None
        ]  # fmt: skip
        head = table_head("Preferred", "Share", "95% interval", "No preference")
        caption = element("caption", "Traces preferred, ties counting half")
        told = element(
            "p", "; ".join(tally(one) for one in judged.preferences), class_="quiet after"
        )
        table = element("table", caption, head, element("tbody", *rows))
        cards.append(element("div", table, told, class_="card"))
    return join(title, element("div", *cards, class_="tables"))


def _trace_card(made: Comparison) -> Markup:
    names = ("Model", "Set", "TraceScore", *AXES, "Scored", "Judge errors", "Judge")
    rows = []
    for one in made.judged.traces:
        values = [mean_words(one.score), *(mean_words(one.axes.get(axis)) for axis in AXES)]
        cells = [
            one.set,
            *values,
            f"{one.scored} of {one.traces}",
            f"{one.errors}",
            one.judge_model,
        ]
        labelled = zip(names[1:], cells, strict=True)
        rows.append(
            element(
                "tr",
                element("th", one.model, scope="row"),
                *(element("td", cell, data_label=name) for name, cell in labelled),
            )
        )
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    caption = element("caption", "TraceScore, 0 to 1, with 95% intervals")
    return element("div", element("table", caption, head, element("tbody", *rows)), class_="card")


def _paper(made: Comparison) -> Markup:
    names = ("", "Base", "Trained")
    rows = [
        element(
            "tr",
            element("th", one.what, scope="row"),
            element("td", "" if one.before is None else f"{one.before}%", class_="numbers"),
            element("td", f"{one.after}%", class_="numbers"),
        )
        for one in made.paper
    ]
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    words = (
        "For orientation: the authors' figures of their own Qwen2.5-VL-7B on their own sets. Other "
        "models, prompts, pixel budgets or sets give other figures."
    )
    return join(
        element("h2", "What the paper reports"),
        element("p", words, class_="quiet"),
        element("div", element("table", head, element("tbody", *rows)), class_="card"),
    )


def _notes(made: Comparison) -> Markup:
    if not made.notes:
        return Markup("")
    return join(element("h2", "Notes"), *(element("p", note) for note in made.notes))


def _run(made: Comparison) -> Markup:
    method = (
        "An item counts once: its value is the share of its runs that are right; a completion "
        "without an answer is wrong. Intervals are cluster bootstraps (items that share an image "
        "are resampled together), never narrower than Wilson's; p is of a test that flips the sign "
        "of whole clusters, and is not corrected for the number of comparisons. Blind: each image "
        "is replaced by a blank of its size. Options in another order: one random order an item, "
        "the letters mapped back; its difference is over the items that can be reordered."
    )
    facts = [
        (name, f"{about.get('model_path', '')}, weights {about.get('weights', '')}, "
               f"{about.get('dtype', '')} on {about.get('device', '')}")
        for name, about in made.models.items()
    ]  # fmt: skip
    facts += [(of.name, f"{of.path}, fingerprint {of.fingerprint}") for of in made.figures.sets]
    facts.append(("omr_io", made.version))
    config = json.dumps({"options": made.options, "models": made.models}, indent=1, default=str)
    return join(
        element("h2", "Run"),
        element("div", fact_list(facts), class_="card"),
        element(
            "details",
            element("summary", "Configuration"),
            element("div", element("pre", config), class_="card"),
        ),
        element(
            "details",
            element("summary", "How these figures are made"),
            element("div", element("p", method), class_="card"),
        ),
    )
