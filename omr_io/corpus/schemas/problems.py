"""Problems with an answer that can be checked: EasyR1, R1-V and Med-R1, VLAA-Thinking."""

from __future__ import annotations

from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import openmedreason
from omr_io.corpus.schemas.conversation import take_out_placeholders
from omr_io.corpus.schemas.row import Found, Need, RowFields, Schema, Table
from omr_io.corpus.schemas.traces import tagged_answer

_IMAGE = Need("image", ("images", "image"), "picture", optional=True)


def adapt(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A problem, and an answer that may stand in `<answer>` tags, after its thinking."""
    question, count, between = raw.get(found["question"]), 0, False
    if isinstance(question, str):
        question, count, between = take_out_placeholders(question)
    answer = given = raw.get(found["answer"])
    trace = raw.get(found["reasoning"]) if "reasoning" in found else None
    if isinstance(given, str):
        tagged = tagged_answer(given)
        answer = given if tagged is None else tagged
        if trace is None and "<think>" in given:
            trace = given
    return RowFields(
        question,
        answer,
        trace,
        raw.get(found["image"]) if "image" in found else None,
        placeholders=count,
        keep=(found["question"],) if between else (),
    )


def _solutions_are_tagged(table: Table) -> bool:
    values = [row.get("solution") for row in table.head]
    return any(isinstance(value, str) and "<answer>" in value for value in values)


def _against_easyr1(table: Table, found: Found) -> str | None:
    if "solution" in table.columns and _solutions_are_tagged(table):
        return "has solutions in <answer> tags, as R1-V"
    return None


EASYR1 = Schema(
    name="easyr1",
    summary="EasyR1: problem, answer, images; <image> in the text",
    needs=(
        Need("question", ("problem",), "text"),
        Need("answer", ("answer",), "answer"),
        _IMAGE,
    ),
    adapt=adapt,
    against=_against_easyr1,
    options="letters",
)


def _against_r1v(table: Table, found: Found) -> str | None:
    if "answer" in table.columns and not _solutions_are_tagged(table):
        return "has answers, and no solution in <answer> tags"
    return None


R1V = Schema(
    name="r1v",
    summary="R1-V, Med-R1: image, problem, solution '<answer> A </answer>', options 'A)CT, B)MR'",
    needs=(
        Need("question", ("problem",), "text"),
        Need("answer", ("solution",), "answer"),
        _IMAGE,
    ),
    adapt=adapt,
    against=_against_r1v,
    options="letters",
    aliases=("r1-v", "med-r1"),
)


def adapt_vlaa(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row of VLAA-Thinking: without a ground truth, the answer's tags or box hold it."""
    fields = adapt(raw, found, options)
    given = raw.get("answer")
    if fields.answer is None and isinstance(given, str):
        return fields._replace(answer=tagged_answer(given))
    return fields


def _against_vlaa(table: Table, found: Found) -> str | None:
    """A file of OpenMedReason may have a column gt too."""
    return "its rows are as OpenMedReason's" if openmedreason.claims(table) else None


VLAA = Schema(
    name="vlaa-thinking",
    summary="VLAA-Thinking: image (a path), question, gt, reasoning",
    needs=(
        Need("question", ("question", "problem"), "text"),
        Need("answer", ("gt",), "answer"),
        Need("image", ("image", "images"), "picture"),
        Need("reasoning", ("reasoning", "think", "thinking"), "text", optional=True),
    ),
    adapt=adapt_vlaa,
    against=_against_vlaa,
    options="letters",
    aliases=("vlaa",),
)
