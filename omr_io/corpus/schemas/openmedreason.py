"""OpenMedReason itself: image, question with its options inline, reasoning, a letter."""

from __future__ import annotations

from omr_io.corpus.options import parse_letter, parse_options
from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas.recognise import fit
from omr_io.corpus.schemas.row import Found, Need, RowFields, Schema, Table
from omr_io.errors import RecordError


def adapt(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row by its meaning."""
    reasoning = found.get("reasoning")
    return RowFields(
        raw.get(found["question"]),
        raw.get(found["answer"]),
        None if reasoning is None else raw.get(reasoning),
        raw.get(found["image"]),
    )


def looks_multiple_choice(table: Table, question: str, answer: str) -> bool:
    """Whether the first rows hold a question with its options inline and a letter for an answer."""
    for row in table.head:
        text, letter = row.get(question), row.get(answer)
        if not isinstance(text, str) or not isinstance(letter, str) or not parse_letter(letter):
            continue
        try:
            if parse_options(text)[1]:
                return True
        except RecordError:
            continue
    return False


def _against(table: Table, found: Found) -> str | None:
    """With a rival's columns beside ours, or without reasoning, the rows must look like ours."""
    rivals = [
        names
        for names in (("options", "answer_label"), ("gt",))
        if all(name in table.columns for name in names)
    ]
    unclear = rivals or ("reasoning" not in found and table.head)
    if unclear and not looks_multiple_choice(table, found["question"], found["answer"]):
        return "no question of its first rows ends in options"
    return None


SCHEMA = Schema(
    name="openmedreason",
    summary="OpenMedReason: options inline in the question, reasoning, a letter; rubrics",
    needs=(
        Need("image", ("image", "images"), "embedded-image"),
        Need("question", ("question",), "exact-text"),
        Need("answer", ("answer",), "exact-text"),
        Need("reasoning", ("reasoning", "reasoning_trace"), "exact-text"),
        Need("id", ("id",), "exact-id", optional=True),
        Need("perception", ("perception",), "rubric", optional=True),
        Need("knowledge", ("knowledge",), "rubric", optional=True),
        Need("rationale", ("rationale",), "rubric", optional=True),
    ),
    adapt=adapt,
    against=_against,
    options="needed",
    answers="letter",
    reasoning="whole",
    images="needed",
)


def claims(table: Table) -> bool:
    """Whether a table is OpenMedReason's by its columns and its rows."""
    it = fit(SCHEMA, table, judge_rows=False)
    if it.lacks:
        return False
    return looks_multiple_choice(table, it.found["question"], it.found["answer"])
