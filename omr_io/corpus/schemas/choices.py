"""Multiple-choice corpora whose options stand in columns of their own: MedVLThinker, PMC-VQA."""

from __future__ import annotations

import json
import re
from string import ascii_uppercase

from omr_io.corpus.options import parse_letter, parse_options
from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import openmedreason
from omr_io.corpus.schemas.answers import answer_letter, as_text
from omr_io.corpus.schemas.conversation import take_out_placeholders
from omr_io.corpus.schemas.row import Found, Need, RowError, RowFields, Schema, Table
from omr_io.errors import RecordError
from omr_io.text import short
from omr_io.types import Option

_CHOICES = tuple(f"Choice {letter}" for letter in "ABCD")
_LIST_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*")
_PMC_LABEL = re.compile(r"\s*([A-Z])\s*:\s*")


def options_of(value: object) -> tuple[Option, ...] | None:
    """Options that a row gives apart from its question.

    Args:
        value: a dict of letter to text; a list of texts; JSON text of either; or lines, each
            labelled as in a question. Null or empty holds none.

    Returns:
        2 to 26 options lettered A, B, ... without gaps, or None if there are none. Trailing null or
        blank texts are no options; line breaks in a text become spaces. A label before a text of a
        list ("A. ...") is dropped if every text of the list has its own.

    Raises:
        RowError: "bad-options", "bad-type".
    """
    if isinstance(value, str):
        value = _parsed(value)
    if value is None or value == {} or value == []:
        return None
    if isinstance(value, dict):
        return _lettered(value)
    if isinstance(value, list):
        return numbered([_text(item, n) for n, item in enumerate(_unlabelled(value))])
    raise RowError("bad-type", f"the options are {type(value).__name__}, wanted a dict or a list")


def _parsed(text: str) -> object:
    bare = text.strip()
    if not bare:
        return None
    if bare[0] not in "{[":
        return _from_lines(bare)
    try:
        return json.loads(bare)
    except (ValueError, RecursionError) as error:
        raise RowError("bad-options", f"the options are not JSON: {error}") from None


def _from_lines(text: str) -> dict[str, str]:
    try:
        stem, options = parse_options(text)
    except RecordError as error:
        raise RowError("bad-options", error.what) from None
    if stem or not options:
        what = f"the options are neither JSON nor labelled lines: {short(text)}"
        raise RowError("bad-options", what)
    return {option.letter: option.text for option in options}


def _lettered(given: dict[object, object]) -> tuple[Option, ...]:
    bad = [key for key in given if key not in set(ascii_uppercase)]
    if bad:
        shown = short(str(bad[0]))
        raise RowError("bad-options", f"an option is called {shown}, wanted a letter from A")
    # A struct has the letters of all rows: those that this row lacks are null.
    there = [letter for letter in ascii_uppercase if letter in given]
    if "".join(there) != ascii_uppercase[: len(there)]:
        what = f"the letters of the options do not run A, B, C, ...: {', '.join(there)}"
        raise RowError("bad-options", what)
    return numbered([_text(given[letter], n) for n, letter in enumerate(there)])


def numbered(texts: list[str]) -> tuple[Option, ...]:
    """Options of texts in order; trailing blank ones are none.

    Raises:
        RowError: "bad-options": a blank one in between, less than 2 or more than 26.
    """
    while texts and not texts[-1]:
        texts = texts[:-1]
    if "" in texts:
        raise RowError("bad-options", f"option {ascii_uppercase[texts.index('')]} has no text")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise RowError("bad-options", f"{len(texts)} options, wanted 2 to 26")
    return tuple(Option(letter, text) for letter, text in zip(ascii_uppercase, texts, strict=False))


def _text(value: object, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return " ".join(as_text(value, f"option {number}").split())


def _unlabelled(texts: list[object]) -> list[object]:
    labels = [_LIST_LABEL.match(item) if isinstance(item, str) else None for item in texts]
    letters = [(label[1] or label[2]) if label else "" for label in labels]
    if "".join(letters) != ascii_uppercase[: len(texts)]:
        return texts
    return [
        item[label.end() :] if isinstance(item, str) and label else item
        for item, label in zip(texts, labels, strict=True)
    ]


def agreed_answer(label: object, text: object, options: tuple[Option, ...]) -> object:
    """The answer of a row that gives it twice: its letter, and its text.

    Raises:
        RowError: "bad-answer" if the label is no letter, "label-mismatch" if the text is not that
            of the letter's option.
    """
    if label is None or label == "":
        return text
    letter = parse_letter(label) if isinstance(label, str) else None
    if letter is None:
        shown = short(label) if isinstance(label, str) else type(label).__name__
        raise RowError("bad-answer", f"the answer's label is {shown}, wanted a letter")
    own = [option for option in options if option.letter == letter]
    if not isinstance(text, str) or not text.strip() or not own:
        return letter
    if answer_letter(text, own) != letter:
        what = (
            f"by its label {letter} the answer is {short(own[0].text)}, by its text {short(text)}"
        )
        raise RowError("label-mismatch", what)
    return letter


def adapt_medvlthinker(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row of MedVLThinker."""
    question = raw.get(found["question"])
    count, between = 0, False
    if isinstance(question, str):
        question, count, between = take_out_placeholders(question)
    choices = options_of(raw.get(found["options"]))
    answer = raw.get(found["answer"]) if "answer" in found else None
    label = raw.get(found["label"])
    if choices is not None:
        answer = agreed_answer(label, answer, choices)
    return RowFields(
        question,
        label if choices is None else answer,
        raw.get(found["reasoning"]) if "reasoning" in found else None,
        raw.get(found["image"]) if "image" in found else None,
        options=choices,
        placeholders=count,
        keep=(found["question"],) if between else (),
    )


def _against_medvlthinker(table: Table, found: Found) -> str | None:
    """A file of OpenMedReason may have such columns too."""
    return "its rows are as OpenMedReason's" if openmedreason.claims(table) else None


MEDVLTHINKER = Schema(
    name="medvlthinker",
    summary="MedVLThinker: images, question, options (JSON), answer_label, answer, reasoning",
    needs=(
        Need("question", ("question",), "text"),
        Need("options", ("options",), "choices"),
        Need("label", ("answer_label",), "text"),
        Need("answer", ("answer",), "text", optional=True),
        Need("image", ("images", "image"), "picture", optional=True),
        Need("reasoning", ("reasoning",), "text", optional=True),
        Need("id", ("id",), "exact-id", optional=True),
    ),
    adapt=adapt_medvlthinker,
    against=_against_medvlthinker,
    options="needed",
)


def adapt_pmc_vqa(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row of PMC-VQA: choices carry their letters, "A:...", in some releases."""
    given = zip(_CHOICES, "ABCD", strict=True)
    choices = numbered([_choice(raw.get(column), letter) for column, letter in given])
    answer = raw.get(found["answer"])
    if "label" in found:
        answer = agreed_answer(raw.get(found["label"]), answer, choices)
    return RowFields(
        raw.get(found["question"]), answer, None, raw.get(found["image"]) or None, options=choices
    )


def _choice(value: object, letter: str) -> str:
    text = "" if value is None else " ".join(as_text(value, f"choice {letter}").split())
    label = _PMC_LABEL.match(text)
    if label is None:
        return text
    if label[1] != letter:
        raise RowError("bad-options", f"choice {letter} is labelled {label[1]}: {short(text)}")
    return text[label.end() :]


PMC_VQA = Schema(
    name="pmc-vqa",
    summary="PMC-VQA CSV (v1, v2): Figure_path, Question, Answer, Choice A to D, Answer_label",
    needs=(
        Need("image", ("Figure_path",), "text"),
        Need("question", ("Question",), "text"),
        Need("answer", ("Answer",), "text"),
        *(Need(name, (name,), "text") for name in _CHOICES),
        Need("label", ("Answer_label",), "text", optional=True),
    ),
    adapt=adapt_pmc_vqa,
    options="needed",
    images="needed",
)
