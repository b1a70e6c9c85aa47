"""The page: escaped, self-contained, balanced, readable; the terminal table; charts by numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from omr_io.errors import ConfigError, DiskError
from omr_io.markup import VOID, Markup, element, escape
from omr_io.train.evaluate import evaluate
from omr_io.train.report import (
    Example,
    Report,
    choose_items,
    print_summary,
    render_report,
    write_report,
)
from omr_io.train.report.charts import ends, interval_chart, line_chart, moving_mean, nice_ticks
from omr_io.train.report.style import STYLE
from omr_io.train.statistics import Interval
from tests.contrast import contrast, themes
from tests.train.report.fake_report import TASKS, fake_report, items

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)//",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "</pre></article></style><style>*{display:none}",
    "javascript:alert(1)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<!-- ]]> <![CDATA[",
    "&lt;script&gt;&#60;script&#62;",
    "<|im_end|>\x00\x1b[31m\ud800\u202egnp.exe",
    "https://example.org/tracker.png",
]
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "article"),
    *("h1", "h2", "h3", "p", "div", "span", "strong", "small", "pre", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"),
    *("figure", "figcaption", "img", "svg", "path", "text", "circle"),
}


class Page(HTMLParser):
    """Elements with attributes, and text; fails on what is not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_harmless(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag in ELEMENTS
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("href", "srcdoc", "action", "formaction", "xlink:href", "style")
            if name == "src":
                assert value is not None
                assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", value)


def hostile_report(payload: str) -> Report:
    made = fake_report(4)
    shown = [
        Example(
            replace(e.item, key=payload, task=payload, completion=payload, letter=payload),
            payload,
            {payload: payload, e.item.answer: payload},
            e.pixels,
        )
        for e in made.examples
    ]
    scored = [replace(one, task=payload + one.task) for one in items(1, skill=1.0)]
    return replace(
        made,
        title=payload,
        model=payload,
        config=payload,
        examples=shown,
        evaluation=evaluate(scored),
        facts={payload: payload},
        clusters=payload,
        throughput=replace(made.throughput, seconds={payload: 1.0}),
    )


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_strings_stay_text(payload: str) -> None:
    text = render_report(hostile_report(payload))
    text.encode("utf-8")  # no lone surrogate is left
    page = Page(text)
    assert_harmless(page)
    if payload.isprintable():
        assert "".join(page.text).count(payload) >= 10
    plain = {tag for tag, _ in Page(render_report(fake_report(4))).elements}
    assert {tag for tag, _ in page.elements} <= plain


def test_the_check_for_harm_can_fail() -> None:
    for bad in ("<script></script>", "<p onclick='x'></p>", "<img src='https://e.org/x.png'>"):
        with pytest.raises(AssertionError):
            assert_harmless(Page(bad))
    unescaped = render_report(replace(fake_report(1), title=Markup(PAYLOADS[0])))
    with pytest.raises(AssertionError):
        assert_harmless(Page(unescaped))


def test_escape_shows_what_would_be_hidden() -> None:
    assert escape("a\u202eb") == "a\\u202eb"
    assert escape("\x00\x1b\n\t\ud800") == "\\x00\\x1b\n\t\\ud800"
    assert element("p", "<", Markup("<br>"), None, class_='a"b', data_label=None) == (
        '<p class="a&quot;b">&lt;<br></p>'
    )


def test_policy_allows_the_style_sheet_and_nothing_else() -> None:
    page = Page(render_report(fake_report(2)))
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert len(policies) == 1
    policy = dict(part.strip().split(" ", 1) for part in str(policies[0]).split(";"))
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_page_is_accessible() -> None:
    page = Page(render_report(fake_report(12)))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("title")) > 1  # the page's, and one in each chart
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" for svg in page.all("svg"))
    words = [text for text in page.text if text.startswith(("✓ Right", "✗ Wrong"))]
    assert len(words) == 12  # the verdict is text, not colour alone


def test_text_has_contrast_aa_in_light_and_dark() -> None:
    light, dark = themes(STYLE)
    assert light.keys() - dark.keys() == {"stage"}  # behind images, dark in both

    for theme in (light, dark):
        for ink in ("text", "quiet"):
            for back in ("page", "card"):
                assert contrast(theme[ink], theme[back]) >= 4.5
        for mark in ("right", "wrong"):
            assert contrast(theme[mark], theme[f"{mark}-back"]) >= 4.5
        for mark in ("image", "blind", "majority", "shuffled"):
            assert contrast(theme[mark], theme["card"]) >= 3


def test_page_says_what_the_figures_say() -> None:
    made = fake_report(3)
    text = "".join(Page(render_report(made)).text)
    score = made.evaluation.accuracy
    assert f"answers {100 * score.mean:.1f}% correctly" in text
    assert f"{100 * score.low:.1f}% to {100 * score.high:.1f}%" in text
    assert "the intervals do not overlap" in text
    assert f"3 of {score.n}, drawn at random" in text
    weak = replace(
        made, evaluation=evaluate(items(5, skill=0.0), blind=items(6, skill=0.0), majority={0: "A"})
    )
    text = "".join(Page(render_report(weak)).text)
    assert "do not overlap" not in text
    assert "not wholly above" in text


def test_page_without_rl_images_baselines_or_history() -> None:
    made = fake_report(0, rewards={}, history=[], facts={}, evaluation=evaluate(items(1, skill=1)))
    page = Page(render_report(made))
    assert page.all("img") == []
    assert page.all("figure") == []
    assert "overlap" not in "".join(page.text)


def test_images_are_encoded_anew_and_small() -> None:
    pixels = np.zeros((900, 1800, 3), np.uint8)
    pixels[:, 900:] = 255
    made = fake_report(1)
    shown = [replace(made.examples[0], pixels=pixels)]
    source = Page(render_report(replace(made, examples=shown))).all("img")[0]["src"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.size == (400, 200)
        assert image.getpixel((10, 100)) == (0, 0, 0)
        assert image.getpixel((390, 100)) == (255, 255, 255)


def test_long_runs_stay_small() -> None:
    rows = [{"phase": "sft", "step": k, "loss": 1 / k} for k in range(1, 50_001)]
    assert len(render_report(fake_report(0, history=rows))) < 100_000


def test_write_is_atomic_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "report.html"
    assert write_report(path, fake_report(1)) == path
    first = path.read_bytes()

    def fail(written: Path, final: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(DiskError, match="No space left"):
        write_report(path, fake_report(2))
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_choose_items_is_even_over_tasks_and_not_over_right_and_wrong() -> None:
    scored = items(1, skill=1.0)
    chosen = choose_items(scored, 8, seed=1)
    assert sorted({item.task for item in chosen}) == sorted(TASKS)
    assert all(sum(item.task == task for item in chosen) == 2 for task in TASKS)
    assert len({item.key for item in chosen}) == 8
    assert choose_items(scored, 8, seed=1) == chosen
    assert choose_items(scored, 8, seed=2) != chosen
    assert len(choose_items(scored, 1000)) == 300
    assert choose_items([], 5) == []
    share = np.mean([i.correct for s in range(40) for i in choose_items(scored, 8, seed=s)])
    assert share == pytest.approx(np.mean([item.correct for item in scored]), abs=0.1)
    with pytest.raises(ConfigError):
        choose_items(scored, -1)


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    print_summary(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_summary_holds_the_figures() -> None:
    made = fake_report(0)
    text = printed(made)
    for interval in (made.evaluation.accuracy, made.evaluation.blind, made.evaluation.majority):
        assert interval is not None
        assert f"{100 * interval.mean:.1f}%" in text
    assert "11 studies" in text
    assert "SFT 3 min 25 s" in text


def test_summary_does_not_read_markup_in_names() -> None:
    text = printed(fake_report(0, title="[red]run[/red] [/b]"))
    assert "[red]run[/red] [/b]" in text


def plot(values: list[float], **options: Any) -> list[tuple[float, float]]:
    shown: Callable[[float], str] = "{:.2f}".format
    steps = [float(k + 1) for k in range(len(values))]
    svg = line_chart(steps, values, title="t", number=shown, tick=shown, **options)
    path = re.findall(r'd="M([^"]*)" class="curve"', svg)[0]
    return [tuple(map(float, point.split())) for point in path.split("L")]  # type: ignore[misc]


def test_line_chart_places_points_to_scale() -> None:
    points = plot([0.0, 0.5, 1.0], floor=0.0, ceiling=1.0)
    assert points == [(46.0, 174.0), (198.0, 92.0), (350.0, 10.0)]


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [-2.0, 5.0], [1e9, 1e-9], [1e-7, 2e-7]])
def test_line_chart_stays_in_its_frame(values: list[float]) -> None:
    for x, y in plot(values):
        assert 46 <= x <= 350
        assert 10 <= y <= 174


def test_interval_chart_clips_to_its_scale() -> None:
    svg = interval_chart([("image", Interval(0.5, -np.inf, np.inf, 3, 1))], summary="s")
    assert 'd="M0.00 8H100.00"' in svg
    assert 'd="M50.00 8h0"' in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 7.4, [0, 2, 4, 6, 8]),
        (3.0, 3.0, [1, 2, 3, 4, 5]),
        (0, 5200, [0, 2000, 4000, 6000]),
    ],
)
def test_nice_ticks(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high, 5) == expected


def test_moving_mean_equals_its_definition() -> None:
    values = np.random.default_rng(0).random(130)
    expected = [values[max(0, k - 3) : k + 4].mean() for k in range(130)]
    np.testing.assert_allclose(moving_mean(values), expected, atol=1e-12)
    assert moving_mean(values[:39]) is not None
    np.testing.assert_array_equal(moving_mean(values[:39]), values[:39])


def test_ends_are_means_of_tenths() -> None:
    assert ends([1.0, 3.0] + [9.0] * 16 + [4.0, 6.0]) == (2.0, 5.0)
    assert ends([1.0, 2.0]) == (1.0, 2.0)
