"""Any columns, read as OpenMedReason's by their names or by a map."""

from __future__ import annotations

from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas.choices import options_of
from omr_io.corpus.schemas.conversation import take_out_placeholders
from omr_io.corpus.schemas.recognise import describe
from omr_io.corpus.schemas.row import Found, Need, RowFields, Schema, Table
from omr_io.errors import SourceError, Where

_ROLES = (
    ("question", ("question",), "text", False),
    ("answer", ("answer",), "answer", False),
    ("reasoning", ("reasoning", "reasoning_trace"), "text", True),
    ("image", ("image", "images"), "picture", True),
    ("options", ("options",), "choices", True),
    ("id", ("id",), "exact-id", True),
    ("perception", ("perception",), "rubric", True),
    ("knowledge", ("knowledge",), "rubric", True),
    ("rationale", ("rationale",), "rubric", True),
)


def adapt(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row by the meanings that its columns were mapped to."""
    question, count, between = raw.get(found["question"]), 0, False
    if isinstance(question, str):
        question, count, between = take_out_placeholders(question)
    image: object = []
    if "image" in found:
        image = raw.get(found["image"])
    return RowFields(
        question,
        raw.get(found["answer"]),
        raw.get(found["reasoning"]) if "reasoning" in found else None,
        image,
        options=options_of(raw.get(found["options"])) if "options" in found else None,
        placeholders=count,
        keep=(found["question"],) if between else (),
    )


def schema_of(table: Table, source: str) -> Schema:
    """The schema of mapped columns; a meaning that is not mapped is the column of its own name.

    Raises:
        SourceError: a column to map is not there.
    """
    given = dict(table.options.column_map)
    for column in given.values():
        if column not in table.columns:
            raise SourceError(
                f"there is no column {column} to map; the file has: {describe(table.columns)}",
                where=Where(source=source),
            )
    taken = set(given.values())
    needs = []
    for role, usual, kind, optional in _ROLES:
        mapped = tuple(given[name] for name in usual if name in given)
        names = mapped or tuple(name for name in usual if name not in taken)
        needs.append(Need(role, names, kind, optional and not mapped))
    return Schema(
        name="mapped",
        summary=SUMMARY,
        needs=tuple(needs),
        adapt=adapt,
        options="letters" if table.options.open_ended else "needed",
        images="needed",
    )


SUMMARY = "any columns, by --map: question, answer, reasoning, image, options, id, rubric axes"
