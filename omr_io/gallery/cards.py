"""One sample as a card of the page. Every string from the data goes through `text` or `escape`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omr_io.gallery.pictures import Picture
from omr_io.markup import Markup, element, escape, is_hidden, join
from omr_io.text import counted
from omr_io.types import AXES, ImageFailure, ImageInfo, Option, Record, RubricUnit

MOST_CHARS = 20_000
"""A longer text is cut on the page, and the page says by how much."""

SMALL = 240
"""Thumbnails narrower than this many pixels are drawn larger, up to it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample and what was found out about it.

    Attributes:
        number: its place in the set, from 0.
        shard, key: where it lies.
        record: the sample; `images` is empty when they cannot be read.
        names: of its image parts, in order.
        infos: of all its images.
        pictures: of the first of them, or why there is none.
    """

    number: int
    shard: str
    key: str
    record: Record
    names: Sequence[str]
    infos: Sequence[ImageInfo]
    pictures: Sequence[Picture | ImageFailure]


def text(value: str, limit: int = MOST_CHARS) -> Markup:
    """A string of the data: escaped, hidden characters as marked U+202E, too long ones cut."""
    value = value.replace("\r\n", "\n")
    parts = []
    for is_odd, run in _runs(value[:limit]):
        if is_odd:
            codes = [element("span", f"U+{ord(char):04X}", class_="hid") for char in run]
            parts.append(join(*codes))
        else:
            parts.append(escape(run))
    if len(value) > limit:
        note = f" [cut here: {len(value) - limit:,} more characters]"
        parts.append(element("span", note, class_="cut"))
    return Markup("".join(parts))


def _runs(value: str) -> list[tuple[bool, str]]:
    if value.isascii() and value.replace("\n", "").replace("\t", "").isprintable():
        return [(False, value)]
    runs: list[tuple[bool, list[str]]] = []
    for char in value:
        odd = is_hidden(char)
        if not runs or runs[-1][0] != odd:
            runs.append((odd, []))
        runs[-1][1].append(char)
    return [(odd, "".join(run)) for odd, run in runs]


def card(shown: Shown) -> Markup:
    """The card of a sample."""
    record = shown.record
    name = f"sample-{shown.number}"
    body = element(
        "div",
        element(
            "div",
            element("h2", text(record.id, 300), id=name, data_search=""),
            _warning(record),
            element("span", f"sample {shown.number:,}", class_="place"),
            class_="head",
        ),
        *_question(record),
        _trace(record.reasoning),
        _rubric(record.rubric),
        _provenance(shown),
        class_="body",
    )
    return element(
        "article",
        element("div", *_pictures(shown), class_="mat" if shown.infos else "mat bare"),
        body,
        class_="sample",
        tabindex="-1",
        aria_labelledby=name,
        data_options=str(len(record.options)),
        data_answer=record.answer if record.options else "",
        data_formats=" ".join(sorted({info.format for info in shown.infos})),
        data_rubric=str(int(bool(record.rubric))),
    )


def _pictures(shown: Shown) -> list[Markup]:
    if not shown.infos:
        return [element("p", "No image", class_="none")]
    total = len(shown.infos)
    figures = []
    for place, (info, picture) in enumerate(zip(shown.infos, shown.pictures, strict=False), 1):
        which = f"Image {place} of {total}" if total > 1 else "Image"
        width, height = info.oriented
        size = f"{info.format} · {width} \N{MULTIPLICATION SIGN} {height} · {info.mode}"
        turned = f" · turned (EXIF {info.orientation})" if info.orientation != 1 else ""
        words = f"{f'{place} of {total} · ' if total > 1 else ''}{size}{turned}"
        if isinstance(picture, ImageFailure):
            why = f"{which} cannot be shown: {picture.reason}. "
            inner = element("div", why, text(picture.detail, 500), class_="failed", role="note")
        else:
            about = f"{which} of sample {shown.record.id[:200]}"
            question = shown.record.question.strip().split("\n", 1)[0][:200]
            inner = element(
                "img", src=picture.uri, width=str(picture.width), height=str(picture.height),
                alt=f"{about}: {question}", class_="small" if picture.width < SMALL else None,
            )  # fmt: skip
        figures.append(element("figure", inner, element("figcaption", words)))
    hidden = total - len(shown.pictures)
    if hidden > 0:
        figures.append(element("p", f"{counted(hidden, 'more image')} not shown", class_="none"))
    return figures


def _question(record: Record) -> list[Markup]:
    stem, labels = split_options(record.question, record.options)
    out = [element("div", text(stem), class_="t question", data_search="", dir="auto")]
    if record.options:
        rows = [
            _option(option, label, option.letter == record.answer)
            for option, label in zip(record.options, labels, strict=True)
        ]
        out.append(element("ol", *rows, class_="options", data_search="", aria_label="Options"))
    else:
        out.append(
            element(
                "div",
                element("span", "Answer (open-ended)", class_="mark"),
                element("div", text(record.answer), class_="t", dir="auto", data_search=""),
                class_="answer",
            )
        )
    return out


def _option(option: Option, label: str, right: bool) -> Markup:
    return element(
        "li",
        element("span", text(label, 20), class_="letter"),
        element("span", text(option.text), class_="t", dir="auto"),
        element("span", "✓ answer", class_="mark") if right else None,
        class_="right" if right else None,
    )


def split_options(question: str, options: Sequence[Option]) -> tuple[str, list[str]]:
    """Leave out options that stand in the question's last lines: the list shows the same.

    Returns:
        The question without them, and each option's label as it is written ("A.", "A)"). Where the
        last lines are anything else, the whole question, and "A.".
    """
    plain = [f"{option.letter}." for option in options]
    lines = question.rstrip().split("\n")
    if not options or len(lines) <= len(options):
        return question, plain
    labels = []
    for line, option in zip(lines[-len(options) :], options, strict=True):
        label = line.strip()[: len(option.letter) + 1]
        if label not in {option.letter + sign for sign in ".):"}:
            return question, plain
        if line.strip()[len(label) :].strip() != option.text.strip():
            return question, plain
        labels.append(label)
    return "\n".join(lines[: -len(options)]).rstrip(), labels


def split_trace(reasoning: str) -> list[tuple[str, str]]:
    """A trace as ("think" | "answer" | "text", its text), by the first pair of each tag.

    A tag without its end, and any later one, is plain text.
    """
    parts = []
    rest = reasoning
    for tag in ("think", "answer"):
        begin = rest.find(f"<{tag}>")
        end = rest.find(f"</{tag}>", begin) if begin >= 0 else -1
        if end >= 0:
            parts.append(("text", rest[:begin]))
            parts.append((tag, rest[begin + len(tag) + 2 : end]))
            rest = rest[end + len(tag) + 3 :]
    parts.append(("text", rest))
    return [(kind, part) for kind, part in parts if kind != "text" or part.strip()]


def trace_answer(reasoning: str) -> str | None:
    """What stands in the trace's <answer>, or None."""
    return next((part.strip() for kind, part in split_trace(reasoning) if kind == "answer"), None)


def _warning(record: Record) -> Markup | None:
    said = trace_answer(record.reasoning)
    letter = re.fullmatch(r"\(?([A-Z])\b[).:]?.*", said, re.DOTALL) if said else None
    if not record.options or letter is None or letter[1] == record.answer:
        return None
    return element(
        "span", f"trace says {letter[1]}, answer is ", text(record.answer, 20), class_="chip warn"
    )


def _trace(reasoning: str) -> Markup | None:
    if not reasoning.strip():
        return element("p", "No reasoning", class_="quiet trace")
    out = []
    for kind, part in split_trace(reasoning):
        if kind == "think":
            size = element("span", counted(len(part), "character"), class_="quiet")
            tag = element("code", "<think>", class_="tag")
            title = element("summary", "Reasoning ", tag, " ", size)
            inner = element("div", text(part.strip()), class_="t", dir="auto", data_search="")
            out.append(element("details", title, inner))
        elif kind == "answer":
            tag = element("code", "<answer>", class_="tag")
            said = element("strong", text(part.strip(), 500), data_search="")
            out.append(element("p", tag, " ", said, class_="said"))
        else:
            out.append(element("div", text(part.strip()), class_="t", dir="auto", data_search=""))
    return element("div", *out, class_="trace")


def _rubric(units: Sequence[RubricUnit]) -> Markup | None:
    if not units:
        return None
    groups = []
    for axis in AXES:
        own = [_unit(unit) for unit in units if unit.axis == axis]
        if own:
            groups += [element("h3", f"{axis} ({len(own)})"), element("ul", *own, class_="units")]
    other = [_unit(unit) for unit in units if unit.axis not in AXES]
    if other:
        groups += [element("h3", f"other ({len(other)})"), element("ul", *other, class_="units")]
    count = element("span", f" {counted(len(units), 'unit')}", class_="quiet")
    return element("details", element("summary", "Rubric", count), *groups)


def _unit(unit: RubricUnit) -> Markup:
    facts = {
        "topic": unit.topic,
        "importance": unit.importance,
        "presence": unit.presence_question,
        "correctness": unit.correctness_question,
        "quote": unit.source_quote,
        "unit": unit.unit_id,
    }
    return element("li", element("div", text(unit.claim), class_="t", dir="auto"), _facts(facts))


def _provenance(shown: Shown) -> Markup:
    record = shown.record
    facts = {
        "shard": shown.shard,
        "key": shown.key,
        "id": record.id,
        "source": record.source,
        **_files(shown),
    }
    extra = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in record.extra.items()
    }
    title = element("h3", "Further columns") if extra else None
    return element("details", element("summary", "Provenance"), _facts(facts), title, _facts(extra))


def _files(shown: Shown) -> dict[str, str]:
    """The image parts, each with the name that it has in the source."""
    given = [image.name for image in shown.record.images] or [""] * len(shown.names)
    lines = [
        f"{name}, in the source {old}" if old and old != name else name
        for name, old in zip(shown.names, given, strict=True)
    ]
    return {"images": "\n".join(lines)}


def _facts(facts: Mapping[str, str]) -> Markup | None:
    rows = [
        join(
            element("dt", element("span", text(name, 200), class_="t")),
            element("dd", element("span", text(value), class_="t", dir="auto")),
        )
        for name, value in facts.items()
        if value
    ]
    return element("dl", *rows) if rows else None
