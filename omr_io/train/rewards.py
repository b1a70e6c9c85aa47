r"""One parser of answers, for rewards and evaluation alike.

What counts as the answer of a completion, in this order:

1. The last closed `<answer>…</answer>`: a letter ("B", "(b)", "B."), a letter with that option's
   text ("B. liver"), or an option's text. If it is none of these, the completion is unparsed:
   nothing else in it is looked at.
2. The last `\boxed{…}` around a single letter.
3. The last sentence "answer is X" with a capital letter; one that names two letters, says "not", or
   goes on with another option's text is unparsed. So is "C. difficile", unless that is C's text.

Valid letters come from the row's own options. Unparsed answers are counted apart, and are wrong.
Letters are ASCII: a Cyrillic or full-width look-alike is not a letter here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from omr_io.types import Option

How = Literal["answer", "boxed", "sentence", "unparsed"]

# (?:(?!<tag).)* cannot run past another tag, and never backtracks into one.
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
_STRICT = re.compile(rf"<think>({_INSIDE})</think>\s*<answer>({_INSIDE})</answer>", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
# Whitespace is bounded where two runs of it could share a gap: unbounded, that is quadratic.
_BOXED = re.compile(
    r"\\boxed\s{0,8}\{\s{0,8}(?:\\text\s{0,8}\{\s{0,8})?\(?([A-Za-z])\)?\s{0,8}\}?\s{0,8}\}",
    re.ASCII,
)
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[.):]*", re.ASCII)
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])\s*[.):]+\s*(.+)", re.ASCII | re.DOTALL)
_ADVERBS = r"(?:(?:[a-z]{1,20}ly|most|therefore|thus|then|now|still|indeed|instead)\s{1,8}){0,2}"
_SENTENCE = re.compile(
    rf"""\b[Aa]nswer\s{{1,8}}is(?:(?P<is_not>n['\u2019]t)\b|\s{{0,8}}:?)\s{{1,8}}
    {_ADVERBS}(?P<not>not\s{{1,8}})?{_ADVERBS}
    (?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s{{1,8}})?[*_"'`(\[]{{0,4}}
    (?P<letter>[A-Z])(?![\w'\u2019^])[*_"'`)\]]{{0,4}}""",
    re.VERBOSE,
)
# What may follow the letter of a sentence: its end, punctuation, or a reason. Anything else ("A
# fracture", "A = b", "A/B") is prose or maths.
_AFTER = re.compile(
    r"\s*(?:\Z|[.,;:!?](?:\s|\Z)|\n|[\u2013\u2014]|(?:because|since|as|due|given|for|not)\b)"
)
_ANOTHER = re.compile(
    r"\s{0,8}[.,;]?\s{0,8}(?:or|and|/|&|,)\s{0,8}"
    r"(?:(?:[a-z]{1,20}ly|maybe|perhaps|even|else|also)\s{1,8}){0,2}"
    r"[\"'(*]{0,3}[A-Z](?![\w'\u2019])"
)
# "B. it" and "C. difficile": no new sentence begins with a small letter.
_GOES_ON = re.compile(r"\.\s{1,8}[a-z]")
_CLAUSE_ENDS = re.compile(r"\s{0,8}(?:\Z|[.,;:!?)\n])")


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The letter that a completion answers, None if unparsed, and where it was found."""

    letter: str | None
    how: How


UNPARSED = ParsedAnswer(None, "unparsed")


class Answered(Protocol):
    """What a reward needs of a record."""

    @property
    def options(self) -> Sequence[Option]:
        """The row's options."""

    @property
    def answer(self) -> str:
        """The right letter."""


@dataclass(frozen=True, slots=True)
class Reward:
    """accuracy and format are 0 or 1; total is their weighted sum."""

    accuracy: float
    format: float
    total: float


def parse_answer(completion: str, options: Sequence[Option], *, strict: bool) -> ParsedAnswer:
    """Which of `options` a completion answers.

    Args:
        completion: the model's text, without control tokens.
        options: the row's options; other letters are never an answer.
        strict: take nothing but `<think>…</think><answer>…</answer>`, whitespace between and
            around; for rewards. Otherwise all three rules above; for evaluation.
    """
    if strict:
        matched = _STRICT.fullmatch(completion.strip())
        letter = _resolve(matched[2], options) if matched and matched[1].strip() else None
        return ParsedAnswer(letter, "answer") if letter else UNPARSED
    closed = _ANSWER.findall(completion)
    if closed:
        letter = _resolve(closed[-1], options)
        return ParsedAnswer(letter, "answer") if letter else UNPARSED
    boxed = _BOXED.findall(completion)
    if boxed:
        letter = _valid(boxed[-1], options)
        return ParsedAnswer(letter, "boxed") if letter else UNPARSED
    sentences = list(_SENTENCE.finditer(completion))
    if sentences:
        letter = _sentence_letter(sentences[-1], completion, options)
        return ParsedAnswer(letter, "sentence") if letter else UNPARSED
    return UNPARSED


def reward(
    completion: str, record: Answered, *, accuracy_weight: float = 1.0, format_weight: float = 0.5
) -> Reward:
    """The reward of a completion: strictly parsed accuracy, and its form.

    Form is right if the whole text is `<think>…</think>` with something in it and then
    `<answer>…</answer>`, as in the corpus itself; the answer inside may be wrong or no option.
    Accuracy without form is 0, so `total` is 0, format_weight, or both weights together.
    """
    matched = _STRICT.fullmatch(completion.strip())
    form = 1.0 if matched and matched[1].strip() and matched[2].strip() else 0.0
    right = parse_answer(completion, record.options, strict=True).letter == record.answer
    accuracy = 1.0 if right else 0.0
    return Reward(accuracy, form, accuracy_weight * accuracy + format_weight * form)


def _valid(letter: str, options: Sequence[Option]) -> str | None:
    upper = letter.upper()
    return upper if any(option.letter == upper for option in options) else None


def _resolve(content: str, options: Sequence[Option]) -> str | None:
    """The letter that the content of an answer tag means, or None."""
    text = content.strip()
    alone = _LETTER.fullmatch(text)
    if alone and (letter := _valid(alone[1], options)):
        return letter
    both = _LETTER_AND_TEXT.fullmatch(text)
    if both and (letter := _valid(both[1], options)):
        own = next(option.text for option in options if option.letter == letter)
        if _same(both[2]) == _same(own):
            return letter
    exact = [o.letter for o in options if _composed(o.text) == _composed(text)]
    found = exact or [o.letter for o in options if _same(o.text) == _same(text)]
    return found[0] if _same(text) and len(found) == 1 else None


def _composed(text: str) -> str:
    """Characters composed (NFC), as Qwen's tokenizers make them: a model's é is one, not two."""
    return unicodedata.normalize("NFC", text.strip())


def _same(text: str) -> str:
    """Text without the differences that do not matter: case, runs of whitespace, a last stop."""
    return " ".join(_composed(text).split()).casefold().removesuffix(".").rstrip()


def _sentence_letter(
    match: re.Match[str], completion: str, options: Sequence[Option]
) -> str | None:
    rest = completion[match.end() :]
    negated = match["not"] or match["is_not"]
    letter = _valid(match["letter"], options)
    if negated or letter is None:
        return None
    own = next(option.text for option in options if option.letter == letter)
    after = rest.lstrip(_PUNCTUATION)
    if _begins_with(after, own):
        return letter
    if _ANOTHER.match(rest) or not _AFTER.match(rest):
        return None
    named = completion[match.start("letter") :]
    others = [option.text for option in options if option.letter != letter]
    if any(_begins_with(text, other) for text in (after, named) for other in others):
        return None
    return None if _GOES_ON.match(rest) else letter


_PUNCTUATION = " .:;,*-\u2013\u2014\n\t"


def _begins_with(text: str, option: str) -> bool:
    """Whether a text begins with an option's, and the clause ends there."""
    wanted = _composed(option).removesuffix(".")
    head, tail = text[: len(wanted)], text[len(wanted) :]
    return bool(wanted) and _same(head) == _same(wanted) and bool(_CLAUSE_ENDS.match(tail))
