"""The options of a multiple-choice question, parsed from its text by one exact grammar.

Labels are `A.`, `A)`, `A:` or `(A)`: an upper-case ASCII letter, white space around it ignored.

*Line form*, always tried first: the question ends in lines that each begin with a label, blank
lines allowed in between. The options are the run that starts at the last line labelled A; its
letters must be A, B, C, ... without gap or repetition, up to the end. One line is one option: a
line without a label after the first option cannot be told from an instruction, so it is an error.
A stem line such as "A. lumbricoides is shown" does no harm, since a later A starts the run; but two
whole runs one right after the other are an error, since nothing says which one counts.

*Inline form*, only if there are no lines of options: the last line holds all of them,
`Which one? A) x B) y`, labelled `A.`, `A)` or `(A)` (the same way throughout) with white space
around each label. "?" in an option is an error here: it shows that the letters belong to the
sentence ("In (A) axial and (B) coronal, what is seen?").

*Comma form*, for sources that have it (`parse_comma_options`): the last line holds all options,
`Which one? A)x, B)y`, labelled `A)` with or without white space behind, each but the last followed
by a comma or a semicolon, which is no part of the option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

from omr_io.errors import RecordError
from omr_io.text import short
from omr_io.types import Option

_LINE = re.compile(r"[^\r\n]+")
_LABEL_ENDS = frozenset(".):")
_LINE_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])(.*)", re.DOTALL)
_INLINE_LABEL = re.compile(r"(?<!\S)(?:(\()([A-Z])\)|([A-Z])([.)]))(?=\s|$)")
_COMMA_LABEL = re.compile(r"(?<![^\s?:.!;,])([A-Z])\)")
_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])[.):]?")
_LEADING_LETTER = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\s")


@dataclass(frozen=True, slots=True)
class _Labelled:
    start: int  # of the label, in characters from the start of the question
    letter: str
    text: str


def parse_options(question: str) -> tuple[str, tuple[Option, ...]]:
    """Split a question into its stem and its options (the module's docstring has the grammar).

    Args:
        question: the whole text, options inline.

    Returns:
        The stem (what stands before the options, surrounding white space removed; may be "") and
        2 to 26 options, lettered A, B, ... in order, each text stripped and not empty. A question
        without any option gives its own text, stripped, and ().

    Raises:
        RecordError: there are options, but they do not parse; the message says why.
    """
    plain = _plain_options(question)
    if plain is not None:
        return plain
    lines = [match for match in _LINE.finditer(question) if match[0].strip()]
    if not lines:
        return "", ()
    block = _trailing_labels(lines)
    if not block:
        _check_no_earlier_options(lines)
    if not block or block[-1].letter == "A":
        inline = _inline_options(lines[-1])
        if inline is not None:
            return _result(question, inline)
    return _result(question, _last_run(block)) if block else (question.strip(), ())


def _plain_options(question: str) -> tuple[str, tuple[Option, ...]] | None:
    """What `parse_options` gives for the line form at its plainest, in a third of the time.

    That is: lines end in LF, none is blank from the last one without a label on, and the labels,
    "A." or "A)" or "A:" at the very start of a line, are A, B, C, ... from the first line with a
    label to the end.

    Returns:
        None for anything else.
    """
    if "\r" in question:
        return None
    lines = question.rstrip().split("\n")
    options: list[Option] = []
    while lines:
        line = lines[-1]
        if line[1:2] not in _LABEL_ENDS or line[0] not in ascii_uppercase:
            break
        text = line[2:].strip()
        if not text:
            return None
        options.append(Option(line[0], text))
        lines.pop()
    options.reverse()
    letters = "".join([option.letter for option in options])
    if len(letters) < 2 or letters != ascii_uppercase[: len(letters)]:
        return None
    if lines and (not lines[-1].strip() or _LINE_LABEL.match(lines[-1])):
        return None  # the block of labels may go on above
    return "\n".join(lines).strip(), tuple(options)


def parse_comma_options(question: str) -> tuple[str, tuple[Option, ...]] | None:
    """Split a question whose options are in the comma form (the module's docstring has it).

    Returns:
        As `parse_options`; None if the last line does not hold two labels or more, the first an A.

    Raises:
        RecordError: the labels do not run A, B, C, ...; a comma is missing before one; an option
            has no text or holds a question.
    """
    lines = [match for match in _LINE.finditer(question) if match[0].strip()]
    if not lines:
        return None
    line = lines[-1]
    labels = list(_COMMA_LABEL.finditer(line[0]))
    if len(labels) < 2 or labels[0][1] != "A":
        return None
    ends = [*(label.start() for label in labels), len(line[0])][1:]
    texts = [line[0][label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]
    letters = ", ".join(label[1] for label in labels)
    if "".join(label[1] for label in labels) != ascii_uppercase[: len(labels)]:
        raise RecordError(f"the letters of the options do not run A, B, C, ...: {letters}")
    run = []
    for label, text in zip(labels, texts, strict=True):
        last = label is labels[-1]
        if not last and not text.endswith((",", ";")):
            raise RecordError(f"no comma stands between option {label[1]} and the next")
        bare = text if last else text[:-1].rstrip()
        if "?" in bare:
            raise RecordError(f"option {label[1]} holds a question: {short(bare, 60)}")
        run.append(_Labelled(line.start() + label.start(), label[1], bare))
    return _result(question, run)


def parse_letter(text: str) -> str | None:
    """Read an answer that is a letter: "B", "B.", "B)", "B:" or "(B)", white space around it.

    Lower case, several letters, and a letter with more text are not answers.

    Returns:
        The upper-case letter, or None.
    """
    match = _LETTER.fullmatch(text.strip())
    return None if match is None else match[1] or match[2]


def trace_letter(reasoning: str) -> str | None:
    """Read the letter in the last `<answer>…</answer>` of a reasoning trace.

    It is a letter as `parse_letter` reads it, or a label with more text ("B. Pneumonia").

    Returns:
        The upper-case letter, or None if the trace has no such element or it holds no letter.
    """
    # Not a regular expression: many opening tags without a closing one would cost it quadratically.
    end = reasoning.rfind("</answer>")
    start = reasoning.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return None
    text = reasoning[start + len("<answer>") : end].strip()
    match = _LEADING_LETTER.match(text)
    return parse_letter(text) if match is None else match[1] or match[2]


def _result(question: str, run: list[_Labelled]) -> tuple[str, tuple[Option, ...]]:
    empty = [item.letter for item in run if not item.text]
    if empty:
        raise RecordError(f"option {empty[0]} has no text")
    stem = question[: run[0].start].strip()
    return stem, tuple(Option(item.letter, item.text) for item in run)


def _labelled(line: re.Match[str]) -> _Labelled | None:
    match = _LINE_LABEL.fullmatch(line[0])
    if match is None:
        return None
    return _Labelled(line.start(), match[1] or match[2], match[3].strip())


def _trailing_labels(lines: list[re.Match[str]]) -> list[_Labelled]:
    """The lines at the end that all begin with a label, in order."""
    block: list[_Labelled] = []
    for line in reversed(lines):
        item = _labelled(line)
        if item is None:
            break
        block.append(item)
    return block[::-1]


def _run_start(items: list[_Labelled]) -> int | None:
    """Where the last A stands, if the letters from there to the end are A, B, C, ..."""
    letters = "".join(item.letter for item in items)
    start = letters.rfind("A")
    return start if start >= 0 and ascii_uppercase.startswith(letters[start:]) else None


def _last_run(items: list[_Labelled]) -> list[_Labelled]:
    """The last run of two or more letters from A to the end; anything else is an error."""
    letters = ", ".join(item.letter for item in items)
    start = _run_start(items)
    if start is None:
        raise RecordError(f"the letters of the options do not run A, B, C, ...: {letters}")
    if len(items) - start < 2:
        raise RecordError(f"there is only one option after the last A: {letters}")
    earlier = items[:start]
    earlier_start = _run_start(earlier)
    if earlier_start is not None and len(earlier) - earlier_start >= 2:
        raise RecordError(f"there are two lists of options, one right after the other: {letters}")
    return items[start:]


def _inline_options(line: re.Match[str]) -> list[_Labelled] | None:
    """The options within one line, or None if no label style has two letters from A there."""
    runs = []
    for style in (".", ")", "("):
        items = _inline_labels(line, style)
        if len(items) >= 2 and "A" in (item.letter for item in items[:-1]):
            runs.append(_last_run(items))
    if not runs:
        return None
    if len(runs) > 1:
        raise RecordError(f"the last line labels options in two ways: {short(line[0].strip(), 60)}")
    asking = [item for item in runs[0] if "?" in item.text]
    if asking:
        shown = short(asking[0].text, 60)
        raise RecordError(f"option {asking[0].letter} on the last line holds a question: {shown}")
    return runs[0]


def _inline_labels(line: re.Match[str], style: str) -> list[_Labelled]:
    matches = [match for match in _INLINE_LABEL.finditer(line[0]) if style in (match[1], match[4])]
    ends = [*(match.start() for match in matches), len(line[0])][1:]
    return [
        _Labelled(
            line.start() + match.start(),
            match[2] or match[3],
            line[0][match.end() : end].strip(),
        )
        for match, end in zip(matches, ends, strict=True)
    ]


def _check_no_earlier_options(lines: list[re.Match[str]]) -> None:
    """Refuse a list (adjacent lines labelled A, B, ...) that other text follows."""
    items = [_labelled(line) for line in lines]
    letters = "".join(item.letter if item else "." for item in items)
    start = letters.rfind("AB")
    if start < 0:
        return
    end = start + 2
    while letters[end] == f"{ascii_uppercase}?"[end - start]:  # stops: the last line has no label
        end += 1
    raise RecordError(
        f"option {letters[end - 1]} is followed by a line that is not an option: "
        f"{short(lines[end][0].strip(), 60)}"
    )
