"""Rules on a record's text: tags, letters named in traces, control tokens, answers.

Every pattern takes time linear in the text: runs of white space are bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from omr_io.corpus.options import parse_options, trace_letter
from omr_io.errors import RecordError
from omr_io.types import Record

_SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>"  # Qwen, Llama 3, Phi, ...: <|im_end|>, <|image_pad|>
    r"|</?s>|\[/?INST\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:image|img|video|audio)(?:_\d{1,3})?>|</?image_?soft_?token>"  # placeholders
    r"|<(?:bos|eos|pad|start_of_turn|end_of_turn)>"  # Gemma
)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# "option B", "choice (C)", "letter D", "options A and B"; "(B)"; a line that begins "B." or "B)".
_NAMED = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)s?\s{1,4}[*\"'(]{0,3}([A-Z])(?![\w'\u2019]))"
    r"|\(([A-Z])\)"
    r"|(?:^[ \t]{0,8}[-*]{0,3}[ \t]{0,4}([A-Z])[.):]\s)",
    re.MULTILINE,
)
_ANSWER_IS = re.compile(
    r"\b[Aa]nswer\s{1,4}(?:is|would be|must be|should be)\s{0,4}:?\s{0,4}"
    r"(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s{1,4})?[*\"'(]{0,4}([A-Z])(?![\w'\u2019])"
)


def text_findings(record: Record) -> Iterator[tuple[str, str]]:
    """(rule, detail) of each rule that applies to a record's texts."""
    texts = (record.question, *(option.text for option in record.options), record.reasoning)
    special = next((match[0] for text in texts if (match := _SPECIAL.search(text))), None)
    if special is not None:
        yield "special-tokens", special
    yield from _answer_findings(record)
    if not _thinking(record.reasoning).strip():
        yield "empty-traces", ""
    else:
        yield from _trace_findings(record)


def _answer_findings(record: Record) -> Iterator[tuple[str, str]]:
    letters = [option.letter for option in record.options]
    if letters and record.answer not in letters:
        yield "no-such-option", f"{record.answer!r} of {', '.join(letters)}"
        return
    right = answer_text(record)
    if not right.strip():
        yield "empty-answers", ""
    elif not any(char.isalnum() for char in right):
        yield "near-empty-answers", repr(right[:40])
    seen: dict[str, str] = {}
    for option in record.options:
        first = seen.setdefault(_normal(option.text), option.letter)
        if first != option.letter:
            yield "repeated-options", f"{first} and {option.letter}: {option.text[:40]}"
            return


def _trace_findings(record: Record) -> Iterator[tuple[str, str]]:
    trace = record.reasoning
    found = [trace.count(tag) for tag in _TAGS]
    if not (found[0] or found[1]) or not (found[2] or found[3]):
        missing = " ".join(tag for tag, n in zip(_TAGS, found, strict=True) if not n)
        yield "missing-tags", f"without {missing}"
    places = [trace.find(tag) for tag in _TAGS if tag in trace]
    pairs_match = found[0] == found[1] and found[2] == found[3] and max(found) <= 1
    if not pairs_match or places != sorted(places):
        counts = ", ".join(f"{n} {tag}" for tag, n in zip(_TAGS, found, strict=True))
        yield "unclosed-tags", counts
    letters = {option.letter for option in record.options}
    if not letters:
        return
    last = trace_letter(trace)
    if last is not None and last != record.answer:
        yield "wrong-answers", f"the trace ends in {last}, the answer is {record.answer}"
    thinking = _thinking(trace)
    answered = _first_of(_ANSWER_IS, thinking, letters)
    named = _first_of(_NAMED, thinking, letters) or answered
    if named is not None:
        yield "letters-in-traces", named
    if answered is not None:
        yield "early-answers", answered


def _first_of(pattern: re.Pattern[str], text: str, letters: set[str]) -> str | None:
    """What the first match says whose letter is an option's."""
    for match in pattern.finditer(text):
        if any(group in letters for group in match.groups()):
            return " ".join(match[0].split())
    return None


def _thinking(trace: str) -> str:
    """What stands before the answer: inside <think>, or all up to <answer>."""
    start, end = trace.find("<think>"), trace.find("</think>")
    if end < 0:
        end = trace.rfind("<answer>")
    return trace[start + len("<think>") if start >= 0 else 0 : end if end >= 0 else len(trace)]


def answer_text(record: Record) -> str:
    """The text of the right option, or the free text of an open-ended answer."""
    if not record.options:
        return record.answer
    return next((o.text for o in record.options if o.letter == record.answer), "")


def question_digest(record: Record, image_hashes: bytes) -> bytes:
    """16 bytes that stand for a question and its images; white space and case do not count.

    Options count by their texts in any order, so that a shuffled copy is the same question.
    """
    try:
        stem = parse_options(record.question)[0]  # options may stand in the question too
    except RecordError:
        stem = record.question
    options = sorted(_normal(option.text) for option in record.options)
    digest = hashlib.blake2b(image_hashes, digest_size=16)
    for text in (_normal(stem), *options):
        digest.update(b"\0" + text.encode())
    return digest.digest()


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
