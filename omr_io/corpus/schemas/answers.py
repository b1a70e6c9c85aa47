"""Questions, their options and their answers: what a row says, checked, or why it cannot be right.

The answer of a multiple-choice question is one letter of its options. A source may give it as

- a letter: "B", "B.", "B)", "B:" or "(B)";
- a letter with that option's text: "B. Pneumonia";
- the text of exactly one option: first as it stands, white space around it ignored, then without
  regard to case, runs of white space and a last full stop;
- a whole number (not text): the option's place, counted from 0.

A value that means different letters by different rules is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from omr_io import _C
from omr_io.corpus.options import parse_comma_options, parse_letter, parse_options
from omr_io.corpus.raw import BadText
from omr_io.corpus.schemas.row import RowError, RowFields, Schema
from omr_io.errors import RecordError
from omr_io.text import short
from omr_io.types import Option

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LABELLED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(.+)", re.DOTALL)
# One line after the options that says how to answer: sources for instruction tuning append it.
_INSTRUCTION = re.compile(
    r"(?:please )?(?:answer|respond|reply|select|choose|give|provide|pick|output)\b", re.IGNORECASE
)


def printable(text: str, what: str) -> str:
    """The text; RowError "control-characters" for U+0000 to U+001F but tab, LF, CR, or U+007F."""
    if _C.is_printable(text):
        return text
    match = _CONTROL.search(text)
    if match is None:  # half a surrogate pair, which is no control character
        return text
    raise RowError(
        "control-characters",
        f"{what} holds U+{ord(match[0]):04X} at character {match.start()}",
    )


def as_text(value: object, what: str) -> str:
    """A value that must be text, checked.

    Raises:
        RowError: "invalid-utf8", "bad-type", "control-characters".
    """
    if isinstance(value, str):
        return printable(value, what)
    if isinstance(value, BadText):
        raise RowError("invalid-utf8", f"{what} is not UTF-8: {value.detail}")
    raise RowError("bad-type", f"{what} is {type(value).__name__}, wanted text")


def question_options_answer(
    fields: RowFields, schema: Schema
) -> tuple[str, tuple[Option, ...], str]:
    """The question as a model sees it, its options, and the answer: a letter, or free text.

    Options given apart are put under the question, a line each: "A. text".

    Raises:
        RowError: as `omr_io.corpus.schemas` lists them.
    """
    if fields.question is None:
        raise RowError("null-question", "the question is null")
    question = as_text(fields.question, "the question")
    if not question.strip():
        raise RowError("empty-question", "the question is blank")
    if fields.options is not None:
        choices = _printable_options(fields.options)
        question = _with_options(question, choices)
    else:
        choices = _options_in(question, fields, schema)
    if choices:
        letter = answer_letter(fields.answer, choices, letters_only=schema.answers == "letter")
        if letter is not None:
            return question, choices, letter
        lettered = fields.options is not None or letter_of(fields.answer) is not None
        if schema.options != "free" or lettered:
            raise _no_option(fields.answer, choices)
    elif schema.options != "free":
        _check_options_missing(fields.answer, schema)
    return question, (), _free_text(fields.answer)


def _options_in(question: str, fields: RowFields, schema: Schema) -> tuple[Option, ...]:
    """The options within the question's text; () if there are none."""
    try:
        if schema.answers == "letter":
            stem, choices = parse_options(question)
        else:
            stem, choices = inline_options(fields.options_text or question)
    except RecordError as error:
        if schema.options == "free" and letter_of(fields.answer) is None:
            return ()
        raise RowError("bad-options", error.what) from None
    if choices and not stem:
        raise RowError("empty-question", "nothing stands before the options")
    return choices


def inline_options(text: str) -> tuple[str, tuple[Option, ...]]:
    """`parse_options`, or the comma form; one line that says how to answer may follow.

    Raises:
        RecordError: as `parse_options` and `parse_comma_options`.
    """
    try:
        return _comma_form_or_usual(text)
    except RecordError:
        head, _, last = text.rstrip().rpartition("\n")
        if not _INSTRUCTION.match(last.strip()):
            raise
        return _comma_form_or_usual(head)


def _comma_form_or_usual(text: str) -> tuple[str, tuple[Option, ...]]:
    try:
        found = parse_comma_options(text)
    except RecordError:
        usual = parse_options(text)  # "A) x B) y" has no commas, and need have none
        if not usual[1]:
            raise
        return usual
    return parse_options(text) if found is None else found


def _check_options_missing(answer: object, schema: Schema) -> None:
    if schema.options == "needed":
        raise RowError("no-options", "the question does not end in options")
    letter = letter_of(answer)
    if letter is not None:
        what = f"the answer is the letter {letter}, and the question does not end in options"
        raise RowError("no-options", what)


def _printable_options(options: tuple[Option, ...]) -> tuple[Option, ...]:
    for option in options:
        printable(option.text, f"option {option.letter}")
    return options


def _with_options(question: str, options: tuple[Option, ...]) -> str:
    """The question with its options below it, unless they stand there already."""
    try:
        stem, inline = parse_options(question)
    except RecordError:
        stem, inline = question, ()
    if inline:
        same = len(inline) == len(options) and all(
            _loose(one.text) == _loose(other.text)
            for one, other in zip(inline, options, strict=True)
        )
        if not same:
            raise RowError("bad-options", "the question's own options are not the row's options")
        if not stem:
            raise RowError("empty-question", "nothing stands before the options")
        return question
    return question.rstrip() + "".join(f"\n{item.letter}. {item.text}" for item in options)


def letter_of(answer: object) -> str | None:
    """The letter, if an answer is nothing but one."""
    return parse_letter(answer) if isinstance(answer, str) else None


def answer_letter(
    answer: object, options: Sequence[Option], *, letters_only: bool = False
) -> str | None:
    """The letter of the option that an answer means; None if it means none, or several.

    Args:
        answer: see the module's docstring.
        options: of the question.
        letters_only: whether nothing but a letter is an answer.

    Raises:
        RowError: "null-answer", "bad-answer" (letters only), "bad-type", "control-characters",
            "invalid-utf8"; "answer-not-an-option" for a letter beyond the options.
    """
    if answer is None:
        raise RowError("null-answer", "the answer is null")
    if isinstance(answer, int) and not isinstance(answer, bool) and not letters_only:
        return _numbered(answer, options)
    if isinstance(answer, float):
        answer = str(answer)
    text = as_text(answer, "the answer")
    letter = parse_letter(text)
    if letters_only and letter is None:
        raise RowError("bad-answer", f"the answer is {short(text)}, wanted an upper-case letter")
    if letters_only:
        if letter not in [option.letter for option in options]:
            raise _no_option(letter, options)
        return letter
    return _one(_meant(text, letter, options))


def _meant(text: str, letter: str | None, options: Sequence[Option]) -> set[str]:
    """The letters that a text may mean."""
    meant = {option.letter for option in options if option.letter == letter}
    bare = text.strip()
    labelled = _LABELLED.fullmatch(bare)
    if labelled:
        own, rest = labelled[1] or labelled[2], _loose(labelled[3])
        meant |= {o.letter for o in options if o.letter == own and _loose(o.text) == rest}
    meant |= {option.letter for option in options if option.text == bare}
    if not meant and letter is None and bare:
        loose = _loose(bare)
        meant = {option.letter for option in options if _loose(option.text) == loose}
    return meant


def _numbered(number: int, options: Sequence[Option]) -> str | None:
    meant = {option.letter for option in options if option.text == str(number)}
    if 0 <= number < len(options):
        meant.add(options[number].letter)
    return _one(meant)


def _one(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _no_option(answer: object, options: Sequence[Option]) -> RowError:
    if letter_of(answer) is None:
        shown = short(answer) if isinstance(answer, str) else str(answer)[:80]
        what = f"the answer {shown} is not one of the {len(options)} options"
    else:
        first, last = options[0].letter, options[-1].letter
        what = f"the answer is {letter_of(answer)}, the options are {first} to {last}"
    return RowError("answer-not-an-option", what)


def _free_text(answer: object) -> str:
    if answer is None:
        raise RowError("null-answer", "the answer is null")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    text = as_text(answer, "the answer").strip()
    if not text:
        raise RowError("empty-answer", "the answer is blank")
    return text


def same_text(one: str, other: str) -> bool:
    """Whether two texts differ only in case, runs of white space and a last full stop."""
    return _loose(one) == _loose(other)


def _loose(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()
