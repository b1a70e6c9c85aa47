r"""A question with its options in another order: does a model know the answer, or its place?

Options stand inside the question's text, so that text is rewritten: the words of each option go to
another label, and labels, separators and everything else stay where they are.

    Which plane?\nA. axial\nB. coronal     order (1, 0)     Which plane?\nA. coronal\nB. axial

Nothing is taken on trust: the corpus' own parser must read the rewritten question as the same stem
with the options in the wanted order, and rewriting it back must give the first text again. A
question for which that fails is refused, and so is one whose options speak of each other ("all of
the above", "both A and C"): in another order these mean something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from omr_io.corpus.options import parse_options
from omr_io.corpus.schemas.answers import inline_options, same_text
from omr_io.errors import DataError, RecordError, Where
from omr_io.text import short
from omr_io.types import Option, Record

Parser = Callable[[str], tuple[str, tuple[Option, ...]]]
Spans = list[tuple[int, int]]

_LETTER = r"\(?[A-Z]\)?"
_JOIN = r"\s*(?:,\s*(?:and|or|nor)\b|,|\band\b|\bor\b|\bnor\b|&|\+|/)\s*"
_LETTERS = re.compile(
    rf"(?:both|either|neither|only|all of)?\s*(?:options?|choices?|answers?)?\s*"
    rf"{_LETTER}(?:{_JOIN}{_LETTER})+(?:\s+(?:only|both|are\b.*|is\b.*))?\s*\.?",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:all|none|both|any|either|neither|some|two|one|each|more|most)\b(?:\s+\w+){0,3}?\s+"
    r"(?:the\s+|those\s+)?(?:above|below|foregoing|preceding|previous|following)\s*"
    r"(?:options?|choices?|answers?|statements?)?\s*[.)]?\s*\Z",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?)\s+\(?[A-Z]\b\)?")


@dataclass(frozen=True, slots=True)
class Shuffled:
    """A record whose options were put in another order.

    Attributes:
        record: question rewritten, options relabelled A, B, ... in their new order, answer the new
            letter of the right option. Reasoning and the rest are as they were: they are no part
            of a prompt.
        letters: the option now at place j had the letter letters[j]: "CAB".
    """

    record: Record
    letters: str

    def original(self, letter: str | None) -> str | None:
        """The letter, in the record as it was, of the option that now has this letter."""
        if letter is None:
            return None
        return self.letters[ascii_uppercase.index(letter)]


def permutation(seed: int, key: str, count: int) -> tuple[int, ...]:
    """An order of `count` options that depends on the seed and the sample's key alone.

    Every order is as likely as any other, the unchanged one too: the right answer is then at each
    place equally often, so that a model that prefers a place scores 1 / count.

    Returns:
        The number of the option at each place; the ranks of SHA-256 of "seed key number".
    """

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed} {key} {number}".encode("utf-8", "replace")).digest()

    return tuple(sorted(range(count), key=rank))


def shuffle_options(record: Record, order: Sequence[int]) -> Shuffled:
    """Put a record's options into another order.

    Args:
        record: with options.
        order: a permutation; order[j] is the number of the option that comes to place j.

    Raises:
        DataError: the question cannot be rewritten with certainty; it says why.
    """
    if sorted(order) != list(range(len(record.options))) or not record.options:
        raise _refusal(record, f"{list(order)} is no order of its {len(record.options)} options")
    for option in record.options:
        if _speaks_of_others(option.text):
            said = f"option {option.letter} speaks of the others: {short(option.text, 60)}"
            raise _refusal(record, said)
    parse, stem, inline = _parsed(record)
    question = _rewritten(record.question, parse, stem, inline, order)
    if question is None:
        raise _refusal(record, "the options cannot be found in the question with certainty")
    options = tuple(
        Option(ascii_uppercase[place], record.options[number].text)
        for place, number in enumerate(order)
    )
    letters = "".join(record.options[number].letter for number in order)
    answer = ascii_uppercase[letters.index(record.answer)]
    changed = dataclasses.replace(record, question=question, options=options, answer=answer)
    return Shuffled(changed, letters)


def _parsed(record: Record) -> tuple[Parser, str, tuple[Option, ...]]:
    """The parser that finds the record's own options in its question, and what it finds."""
    for parse in (parse_options, inline_options):
        try:
            stem, inline = parse(record.question)
        except RecordError:
            continue
        if len(inline) == len(record.options) and all(
            one.letter == own.letter and same_text(one.text, own.text)
            for one, own in zip(inline, record.options, strict=True)
        ):
            return parse, stem, inline
    raise _refusal(record, "the options do not stand in the question as the record has them")


def _rewritten(
    question: str, parse: Parser, stem: str, inline: tuple[Option, ...], order: Sequence[int]
) -> str | None:
    """The question with its options in that order; None unless exactly one reading holds."""
    texts = [option.text for option in inline]
    wanted = [texts[number] for number in order]
    back = sorted(range(len(order)), key=order.__getitem__)
    found = set()
    for spans in _places(question, texts):
        made = _with_texts(question, spans, wanted)
        try:
            new_stem, new = parse(made)
        except RecordError:
            continue
        if new_stem != stem or [option.text for option in new] != wanted:
            continue
        returned = (_with_texts(made, s, [wanted[n] for n in back]) for s in _places(made, wanted))
        if question in returned:
            found.add(made)
    return found.pop() if len(found) == 1 else None


def _places(question: str, texts: Sequence[str]) -> list[Spans]:
    """Where the texts stand behind labels A, B, ..., in that order, each time they do."""
    labelled = [
        rf"(?:\({letter}\)|{letter}[.):])\s*({re.escape(text)})"
        for letter, text in zip(ascii_uppercase, texts, strict=False)
    ]
    # A look-ahead, so that runs which overlap are all found.
    pattern = re.compile(r"(?<!\w)(?=" + r"[\s,;]*".join(labelled) + ")")
    groups = range(1, len(texts) + 1)
    return [[match.span(group) for group in groups] for match in pattern.finditer(question)]


def _with_texts(question: str, spans: Spans, texts: Sequence[str]) -> str:
    parts, done = [], 0
    for (start, end), text in zip(spans, texts, strict=True):
        parts += [question[done:start], text]
        done = end
    return "".join(parts) + question[done:]


def _speaks_of_others(text: str) -> bool:
    bare = text.strip()
    return bool(_LETTERS.fullmatch(bare) or _PLACE.search(bare) or _NAMED.search(bare))


def _refusal(record: Record, why: str) -> DataError:
    return DataError(why, where=Where(source=record.source or None, key=record.id))
