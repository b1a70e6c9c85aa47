"""What passes between a schema and the common checks: one row's values by their meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from omr_io.corpus.raw import ColumnType, RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.types import Option


class RowError(Exception):
    """What is wrong with a row; it becomes the row's Refusal and never leaves this package."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what


class RowFields(NamedTuple):
    """One row by its meaning, not yet checked: any value may still be of a wrong type.

    Attributes:
        question: the text, `<image>` placeholders taken out.
        answer: a letter, an option's text, an option's number from 0, or free text.
        reasoning: see `Schema.reasoning`.
        images: one image or a list; an image is bytes, a path, or a dict of bytes and path.
        options: given apart from the question; None if they stand in it, if anywhere.
        options_text: the text that the options are looked for in, if not the question.
        placeholders: `<image>` in the text; 0, or as many as there are images.
        keep: columns that go to `Record.extra` although they were used, since the record does not
            say all that they say.
    """

    question: object
    answer: object
    reasoning: object = None
    images: object = None
    options: tuple[Option, ...] | None = None
    options_text: str | None = None
    placeholders: int = 0
    keep: tuple[str, ...] = ()


class Table(NamedTuple):
    """What a schema is recognised by: columns (those left out by `omit` are gone), first rows."""

    columns: Mapping[str, ColumnType]
    head: Sequence[RawRow]
    options: ReadOptions


class Need(NamedTuple):
    """A column that a schema reads.

    Attributes:
        role: what it means there.
        names: the first of these that the file has is the column.
        kind: see `omr_io.corpus.schemas.kinds`.
        optional: whether a file without it fits too.
    """

    role: str
    names: tuple[str, ...]
    kind: str
    optional: bool = False


Found = Mapping[str, str]
"""Role → name of the column."""

Adapt = Callable[[RawRow, Found, ReadOptions], RowFields]
"""A function of a module, so that it can be pickled; it may raise RowError."""


def _nothing(table: Table, found: Found) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Schema:
    """How a corpus lays out its rows.

    Attributes:
        name: as given to `--schema`; `aliases` are taken too.
        summary: one line.
        needs: its columns.
        adapt: a row by its meaning.
        against: what in the columns or first rows speaks against this schema although its columns
            are there, or None.
        options: "needed" refuses a question without options. "letters" takes it as open-ended
            unless its answer is a letter, which shows that there should be options. "free" takes
            whatever is not plainly a multiple-choice question with its answer as open-ended.
        answers: "letter" takes nothing but a letter; "option" also an option's text or number.
        reasoning: "whole" is the completion as it stands. A "trace" without tags is wrapped as
            `<think>…</think>` and `<answer>X</answer>`. A "reply" is the completion as it stands,
            but one that merely names an option counts as none.
        images: "needed" refuses a row whose image is null.
    """

    name: str
    summary: str
    needs: tuple[Need, ...]
    adapt: Adapt
    against: Callable[[Table, Found], str | None] = _nothing
    options: Literal["needed", "letters", "free"] = "free"
    answers: Literal["letter", "option"] = "option"
    reasoning: Literal["whole", "trace", "reply"] = "trace"
    images: Literal["needed", "optional"] = "optional"
    aliases: tuple[str, ...] = ()


def find(schema: Schema, table: Table) -> dict[str, str]:
    """The columns of a table by the roles they have in a schema; roles without one are left out."""
    found = {}
    for need in schema.needs:
        name = next((name for name in need.names if name in table.columns), None)
        if name is not None:
            found[need.role] = name
    return found
