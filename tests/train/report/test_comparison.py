"""The page and the table of several models: what they say, and that no name can do harm."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from omr_io.errors import DiskError
from omr_io.train.evaluation.comparison import compare
from omr_io.train.evaluation.figures import Figures
from omr_io.train.evaluation.judged import Judged, JudgedPreference, JudgedTraces
from omr_io.train.evaluation.options import EvaluationOptions, Named
from omr_io.train.report.comparison import render_comparison, write_comparison
from omr_io.train.report.comparison_text import print_comparison
from omr_io.train.statistics import Interval
from tests.train.evaluation.scripted import Scripted, always, right, write_questions
from tests.train.report.test_report import PAYLOADS, Page, assert_harmless

HALF = Interval(0.5, 0.4, 0.6, 10, 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models on three sets, and a judge's words."""
    folder = tmp_path_factory.mktemp("sets")
    sets = [
        Named(name, str(write_questions(folder / name, count)))
        for name, count in (("test", 24), ("slake", 12), ("pvqa", 8))
    ]

    def script(ask, run):
        return right(ask) if ask.variant != "blind" and ask.number % 4 else "?"

    models = [Scripted("base", always("A")), Scripted("sft", script)]
    return compare(models, sets, folder / "out", EvaluationOptions())


def with_judge(made, name: str = "judge-1"):
    traces = JudgedTraces("sft", "test", name, HALF, {"knowledge": HALF}, 24, 23, 1)
    preference = JudgedPreference("sft", "base", "test", name, HALF, 0.5, 24, 10, 8, 6, 0)
    unjudged = replace(preference, share=None, p=None, judged=0)
    difference = replace(made.figures.differences[0], set="test")
    return replace(made, judged=Judged((traces,), (difference,), (preference, unjudged), {}))


def printed(made, width: int = 80) -> str:
    out = io.StringIO()
    print_comparison(made, Console(file=out, width=width))
    return out.getvalue()


def test_the_page_says_what_the_figures_say(made) -> None:
    page = Page(render_comparison(made))
    assert_harmless(page)
    text = " ".join(page.text)
    scores = {(one.model, one.set): one for one in made.figures.scores}
    assert scores["sft", "test"].plain.accuracy.mean == 0.75
    assert "24 questions in 24 clusters; answered correctly: base 25.0%, sft 75.0%." in text
    assert "sft: without image (blind)" in text
    assert "base: options in another order" in text
    assert "Most frequent letter (its own: upper bound)" in text
    assert "sft minus base" in text
    assert "24 of 24 without an answer (wrong)" in text
    assert "Unweighted mean of slake, pvqa" in text
    assert "No judge's results lie beside the completions" in text
    assert "47.11%" in text
    assert "86.1%" in text
    assert len(page.all("svg")) == 3 * 2 * 4 + 2  # a model: plain, blind, shuffled, majority
    assert all(svg["role"] == "img" for svg in page.all("svg"))


def test_a_judges_words(made) -> None:
    text = " ".join(Page(render_comparison(with_judge(made))).text)
    assert "0.500 (0.400 to 0.600)" in text
    assert "23 of 24" in text
    assert "sft over base, test" in text
    assert "10 won, 6 tied, 8 lost of 24" in text
    assert "No judge's results" not in text
    lines = printed(with_judge(made), 200)
    assert "TraceScore of sft on test by judge-1: 0.500 (0.400 to 0.600); knowledge 0.5" in lines
    assert "traces of sft preferred over those of base on test by judge-1: 50.0%" in lines
    assert "no pair judged" in lines
    assert "TraceScore, sft minus base on test: +0.500 (" in lines
    assert "+0.500 (" in text


def test_the_table_fits_80_columns(made) -> None:
    out = printed(made)
    rows = [line.rstrip() for line in out.splitlines() if " minus " not in line[:12]]
    assert all(len(line) <= 80 for line in rows if line.startswith(("base ", "sft ", "  ")))
    sft = next(line for line in rows if line.startswith("sft "))
    assert sft.startswith("sft              75.0 (")
    assert sft.endswith(" 6")  # unparsed
    assert sum(line.startswith("  most frequent") for line in rows) == 6
    assert sum(line.startswith("  blind") for line in rows) == 6
    assert "…" not in out
    assert "\\x" not in out
    assert "sft minus base on test: +50.0" in out
    assert "mean of 2 sets (slake, pvqa), sft: 75.0%" in out
    assert "upper bound" in out
    assert "47.11 -> 78.51%" in out


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_names_stay_text(made, payload: str) -> None:
    figures = made.figures
    bad = Figures(
        models=(payload,),
        sets=tuple(replace(of, name=payload, path=payload) for of in figures.sets),
        scores=tuple(replace(one, model=payload, set=payload) for one in figures.scores),
        differences=tuple(
            replace(one, set=payload, first=payload, second=payload) for one in figures.differences
        ),
        averages=tuple(replace(one, model=payload, sets=(payload,)) for one in figures.averages),
        average_differences=(),
    )
    hostile = replace(
        with_judge(made, payload), figures=bad, notes=(payload,),
        models={payload: {"model_path": payload}}, options={payload: payload}, version=payload,
    )  # fmt: skip
    text = render_comparison(hostile)
    text.encode("utf-8")
    page = Page(text)
    assert_harmless(page)
    if payload.isprintable():
        assert "".join(page.text).count(payload) >= 10
    assert {tag for tag, _ in page.elements} <= {
        tag for tag, _ in Page(render_comparison(with_judge(made))).elements
    }
    assert "\x1b" not in printed(hostile)


def test_it_is_written_whole_or_not_at_all(made, tmp_path) -> None:
    path = write_comparison(tmp_path / "report.html", made)
    assert path.read_text(encoding="utf-8") == render_comparison(made)
    with pytest.raises(DiskError):
        write_comparison(tmp_path / "no" / "folder.html", made)
