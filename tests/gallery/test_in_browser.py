"""The page in a real browser: nothing hostile runs, and the filters work."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from omr_io.gallery import GalleryOptions, cards, write_gallery
from omr_io.markup import Markup
from omr_io.types import AXES, EncodedImage, Option, Record, RubricUnit
from tests.gallery.browser import Dom, dump_dom, file_url, listener, session
from tests.gallery.payloads import RAW, REFRESH, payloads, shown
from tests.shard_sets import encoded, record, write


def hostile(number: int, payload: str) -> Record:
    """A record with the payload in every field."""
    units = tuple(RubricUnit(axis, *[payload] * 7) for axis in AXES[:1])
    letters = (payload, "B") if number % 3 == 0 else ("A", "B")
    return Record(
        id=f"{payload}{number}",
        question=f"{payload}\n{payload}",
        options=() if number % 5 == 4 else tuple(Option(x, payload) for x in letters),
        answer=letters[0] if number % 5 != 4 else payload,
        reasoning=f"{payload}<think>{payload}</think>{payload}<answer>{payload}</answer>{payload}",
        rubric=units,
        images=(EncodedImage(encoded(number), payload),),
        source=payload,
        extra={payload: payload, "nested": {payload: [payload]}},
    )


def fired(dom: str, hits: list[str]) -> set[int]:
    """Numbers of payloads that ran or made a request."""
    [root] = re.findall(r"<html[^>]*>", dom)[:1]
    return {int(number) for number in re.findall(r"pwned-(\d+)=", root)} | {
        int(found[1]) for path in hits if (found := re.match(r"/hit-(\d+)", path))
    }


def test_no_payload_runs_or_loads_and_all_are_shown_as_text(tmp_path: Path) -> None:
    with listener() as (port, hits):
        texts = payloads(port)
        assert len(texts) == 60
        assert len(set(texts)) == 60
        write(tmp_path / "set", [hostile(n, text) for n, text in enumerate(texts)])
        write_gallery(tmp_path / "set", tmp_path / "page.html")
        dom = dump_dom(file_url(tmp_path / "page.html"))
    assert fired(dom, hits) == set()
    assert hits == []
    parsed = Dom(dom)
    assert len(parsed.articles) == 60
    assert parsed.all("title") == [{}]
    for number, (attributes, text) in enumerate(parsed.articles):
        assert "hidden" not in attributes
        assert text.count(shown(texts[number])) >= 20, texts[number]
    # The script ran, and offers the hostile letters as plain choices.
    assert "all 60" in parsed.text
    assert texts[0] in [option.get("value") for option in parsed.all("option")]
    harmless = {"html", "head", "meta", "title", "style", "body", "main", "footer", "script"}
    own = {tag for tag, _ in parsed.elements} - harmless
    assert own <= {
        "div", "p", "h1", "h2", "h3", "small", "span", "form", "label", "input", "select", "option",
        "button", "output", "article", "figure", "img", "figcaption", "ol", "ul", "li", "details",
        "summary", "code", "strong", "dl", "dt", "dd",
    }  # fmt: skip
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not {"href", "srcdoc", "style", "action", "srcset"} & attributes.keys(), tag
        source = attributes.get("src")
        assert source is None or re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", source)


def test_the_payloads_do_run_where_nothing_stops_them(tmp_path: Path) -> None:
    with listener() as (port, hits):
        frames = []
        for text in payloads(port):
            raw = f"<!DOCTYPE html><body><p>{text}</p><p title='{text}'></p><!-- {text} -->"
            frames.append(f'<iframe srcdoc="{html.escape(raw)}"></iframe>')
        path = tmp_path / "control.html"
        path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{''.join(frames)}", encoding="utf-8")
        dom = dump_dom(file_url(path))
    found = fired(dom, hits)
    assert len(found) >= 48, sorted(set(range(60)) - found)
    assert {int(path[5:]) for path in hits if path.startswith("/hit-")}  # requests are seen too


@pytest.mark.slow
def test_without_escaping_the_policy_still_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line of defence, and a proof that the first test looks at the right thing."""
    monkeypatch.setattr(cards, "text", lambda value, limit=0: Markup(value))
    swallowing = [n for n, raw in enumerate(RAW) if re.search(r"<!-|<style|<nosc|</art|<\?", raw)]
    with listener() as (port, hits):
        texts = payloads(port)
        chosen = [n for n in range(60) if n not in swallowing and n != REFRESH]
        write(tmp_path / "set", [hostile(n, texts[n]) for n in chosen])
        write_gallery(tmp_path / "set", tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert fired(dump_dom(file_url(tmp_path / "page.html")), hits) == set()
        bare = re.sub(r"<meta http-equiv=[^>]*>", "", text)
        (tmp_path / "bare.html").write_text(bare, encoding="utf-8")
        dom = dump_dom(file_url(tmp_path / "bare.html"))
        assert len(fired(dom, hits)) >= 20


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    three = tuple(Option(letter, f"choice {letter}") for letter in "ABC")
    rows = [
        record(0, [encoded(0)], question="Is there a fracture?", rubric=()),
        record(1, [encoded(1, "PNG")], reasoning="<think>The FRACTURE line.</think>"),
        record(2, [encoded(2)], options=three, answer="C"),
        record(3, [], options=(), answer="some words"),
        record(5, [encoded(5), encoded(6, "PNG")]),
    ]
    write(folder / "set", rows)
    write_gallery(folder / "set", folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize(
    ("fragment", "expected", "words"),
    [
        ("q=fracture", [0, 1], "2 of 5"),
        ("q=line+fracture", [1], "1 of 5"),
        ("q=case.0002", [2], "1 of 5"),
        ("options=3&answer=C", [2], "1 of 5"),
        ("options=0", [3], "1 of 5"),
        ("format=png", [1, 4], "2 of 5"),
        ("rubric=1&q=no.+5", [4], "1 of 5"),
        ("q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", [], "0 of 5"),
        ("options=99&__proto__=1", [0, 1, 2, 3, 4], "all 5"),
    ],
)
def test_filters_by_a_link(
    small_page: Path, fragment: str, expected: list[int], words: str
) -> None:
    dom = Dom(dump_dom(file_url(small_page, fragment)))
    visible = [n for n, (attributes, _) in enumerate(dom.articles) if "hidden" not in attributes]
    assert visible == expected
    assert words in dom.text
    [empty] = [attributes for attributes in dom.all("p") if attributes.get("id") == "empty"]
    assert ("hidden" in empty) == bool(expected)


VISIBLE = "[...document.querySelectorAll('article')].flatMap((c, i) => c.hidden ? [] : [i])"
FOCUSED = "[...document.querySelectorAll('article')].indexOf(document.activeElement)"


def test_it_is_used_by_keys_and_hands(small_page: Path) -> None:
    with session(file_url(small_page)) as page:
        page.until(VISIBLE, [0, 1, 2, 3, 4])
        page.key("/")  # to the search field, and no slash in it
        page.until("document.activeElement.name", "q")
        for char in "fracture":
            page.key(char)
        page.until("document.activeElement.value", "fracture")
        page.until(VISIBLE, [0, 1])
        page.until("location.hash", "#q=fracture")
        page.key("j")  # typed, as any letter in a field
        page.until(VISIBLE, [])
        page.until("document.getElementById('empty').hidden", False)
        page.key("Escape")
        page.until(VISIBLE, [0, 1, 2, 3, 4])
        page.until("location.hash", "")
        page.js("document.activeElement.blur()")
        for key, place in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
            page.key(key)
            page.until(FOCUSED, place)
        page.js("document.querySelectorAll('article')[4].focus()")
        page.key("j")
        page.until(FOCUSED, 4)
        change = "{ bubbles: true }"
        page.js(
            "const f = document.getElementById('filters').elements; f.answer.value = 'C';"
            f"f.answer.dispatchEvent(new Event('input', {change}))"
        )
        page.until(VISIBLE, [2])
        page.until("document.getElementById('count').textContent", "1 of 5")
        page.js("document.querySelector('button[type=reset]').click()")
        page.until(VISIBLE, [0, 1, 2, 3, 4])
        page.js("location.hash = '#format=png'")
        page.until(VISIBLE, [1, 4])
        page.until("document.getElementById('filters').elements.format.value", "png")


def test_without_scripts_all_is_readable_and_no_filter_shown(small_page: Path) -> None:
    # --dump-dom needs scripts, so the page's policy is made to refuse its own.
    text, count = re.subn(
        "script-src &#x27;[^;]*&#x27;", "script-src 'none'", small_page.read_text()
    )
    assert count == 1
    path = small_page.with_name("no-script.html")
    path.write_text(text, encoding="utf-8")
    dom = Dom(dump_dom(file_url(path)))
    [bar] = [attributes for attributes in dom.all("div") if attributes.get("id") == "bar"]
    assert "hidden" in bar
    assert len(dom.articles) == 5
    assert not any("hidden" in attributes for attributes, _ in dom.articles)
    assert "The FRACTURE line." in dom.articles[1][1]


def test_a_page_is_the_same_each_time(tmp_path: Path, small_page: Path) -> None:
    write_gallery(small_page.parent / "set", tmp_path / "again.html", GalleryOptions())
    assert (tmp_path / "again.html").read_bytes() == small_page.read_bytes()
