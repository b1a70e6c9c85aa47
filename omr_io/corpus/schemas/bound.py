"""A schema bound to the columns of a source: raw row → Record or Refusal."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from omr_io.corpus.options import trace_letter
from omr_io.corpus.raw import BadText, ImageRoot, RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import openmedreason
from omr_io.corpus.schemas.answers import as_text, printable, question_options_answer
from omr_io.corpus.schemas.kinds import UNIT_FIELDS
from omr_io.corpus.schemas.pictures import pictures, read_picture
from omr_io.corpus.schemas.row import RowError, Schema
from omr_io.corpus.schemas.traces import completion
from omr_io.text import short
from omr_io.types import Axis, Record, Refusal, RubricUnit

_SURROGATE = re.compile(r"[\ud800-\udfff]")
# The fields that evaluation cannot do without; the others may be null, which becomes "".
_NEEDED = ("unit_id", "claim", "presence_question", "correctness_question")


class PlainColumns(NamedTuple):
    """The columns of a source whose rows may be plain: OpenMedReason's, and none beside them.

    A row is plain if it becomes a record of one image without a rubric and without `extra`, by
    nothing but OpenMedReason's own rules. Each is the name of a column, or None without one.
    """

    image: str
    question: str
    answer: str
    reasoning: str | None
    id: str | None
    refuse_mismatch: bool


@dataclass(frozen=True, slots=True)
class BoundSchema:
    """A schema with the columns of one source; picklable. Use `omr_io.corpus.schemas.bind`.

    Attributes:
        name: of the schema.
        columns: those to read, in the file's order.
    """

    name: str
    columns: tuple[str, ...]
    _schema: Schema
    _found: dict[str, str]
    _axes: tuple[Axis, ...]
    _plain: tuple[str, ...]  # columns of JSON values: no bytes, no text that is not UTF-8
    _extra: tuple[str, ...]
    _options: ReadOptions

    def take(
        self, file_name: str, row: int, raw: RawRow, images: ImageRoot | None
    ) -> Record | Refusal:
        """Check one row; never raises for what is wrong with it.

        Args:
            file_name: its file, as it stands in provenance.
            row: its number in the file, from 0.
            raw: its values by column.
            images: where images lie that the row names by their path; None if nowhere.
        """
        known_id: str | None = None
        try:
            known_id = self._id(file_name, row, raw)
            return self._record(f"{file_name}#{row}", known_id, raw, images)
        except RowError as defect:
            return Refusal(file_name, row, known_id, defect.reason, defect.what)

    def plain_columns(self) -> PlainColumns | None:
        """The columns, if rows may be plain; None if none can be."""
        found = self._found
        if self._schema is not openmedreason.SCHEMA or self._axes or self._extra:
            return None
        return PlainColumns(
            found["image"], found["question"], found["answer"], found.get("reasoning"),
            found.get("id"), self._options.answer_mismatch == "refuse",
        )  # fmt: skip

    def _id(self, file_name: str, row: int, raw: RawRow) -> str:
        column = self._found.get("id")
        if column is None:
            return f"{id_prefix(file_name)}-{row:08d}"
        value = raw.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or value == "":
            raise RowError("null-id", "the id is null" if value is None else "the id is blank")
        if isinstance(value, BadText):
            raise _not_utf8(column, value)
        text = as_text(value, column)
        if not text.strip():
            raise RowError("null-id", "the id is blank")
        return text

    def _record(self, source: str, known_id: str, raw: RawRow, images: ImageRoot | None) -> Record:
        schema, options = self._schema, self._options
        self._check_plain(raw)
        fields = schema.adapt(raw, self._found, options)
        found = pictures(fields.images, needed=schema.images == "needed")
        for _, name in found:
            printable(name, "the image's path")
        if fields.placeholders not in (0, len(found)):
            what = f"the text has {fields.placeholders} <image> for {len(found)} images"
            raise RowError("image-count", what)
        question, choices, answer = question_options_answer(fields, schema)
        reasoning = completion(fields.reasoning, schema, answer, has_options=bool(choices))
        if choices and options.answer_mismatch == "refuse":
            traced = trace_letter(reasoning)
            if traced not in (None, answer):
                what = f"the trace answers {traced}, the answer is {answer}"
                raise RowError("answer-mismatch", what)
        return Record(
            id=known_id,
            question=question,
            options=choices,
            answer=answer,
            reasoning=reasoning,
            rubric=self._rubric(raw) if self._axes else (),
            images=tuple([read_picture(item, images, options.max_image_bytes) for item in found]),
            source=source,
            extra=self._rest(raw, fields.keep),
        )

    def _check_plain(self, raw: RawRow) -> None:
        for name in self._plain:
            value = raw.get(name)
            if value is not None and value.__class__ is not str:
                _check_deep(name, value)

    def _rest(self, raw: RawRow, keep: tuple[str, ...]) -> dict[str, object]:
        """What is not used, or not in full; also keys that only some JSON rows have."""
        if not keep and not self._extra and len(raw) == len(self.columns):
            return {}
        if keep:
            names = [name for name in self.columns if name in self._extra or name in keep]
        else:
            names = list(self._extra)
        rest = {name: raw.get(name) for name in names}
        if len(raw) > len(self.columns):
            left_out = {*self.columns, *self._options.omit}
            for name in raw:
                if name not in left_out:
                    _check_deep(name, raw[name])
                    rest[name] = raw[name]
        return rest

    def _rubric(self, raw: RawRow) -> tuple[RubricUnit, ...]:
        return tuple(
            unit for axis in self._axes for unit in _units(raw.get(self._found[axis]), axis)
        )


def id_prefix(file_name: str) -> str:
    """What ids of rows begin with that have none of their own: the name without its suffix."""
    return file_name.rpartition(".")[0] or file_name


def _not_utf8(column: str, value: object) -> RowError:
    detail = value.detail if isinstance(value, BadText) else ""
    return RowError("invalid-utf8", f"column {column} is not UTF-8: {detail}")


def _check_deep(column: str, value: object) -> None:
    """Refuse text that is not UTF-8, and bytes, at any depth (so not by recursion)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, BadText):
            raise _not_utf8(column, item)
        elif isinstance(item, bytes):
            raise RowError("bad-type", f"column {column} holds bytes, which JSON cannot carry")


def _units(value: object, axis: Axis) -> list[RubricUnit]:
    """The rubric units of one axis, from JSON text or a list; null and "" hold none."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise RowError("bad-rubric", f"{axis} is not JSON: {error}") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("bad-rubric", f"{axis} is not a list of units")
    return [_unit(item, axis, number) for number, item in enumerate(value)]


def _unit(item: object, axis: Axis, number: int) -> RubricUnit:
    what = f"{axis} unit {number}"
    if not isinstance(item, dict):
        raise RowError("bad-rubric", f"{what} is not an object")
    missing = [name for name in UNIT_FIELDS if name not in item]
    unknown = [str(name) for name in item if name not in UNIT_FIELDS]
    if missing or unknown:
        fault = f"lacks {missing[0]}" if missing else f"has an unknown field {short(unknown[0])}"
        raise RowError("bad-rubric", f"{what} {fault}")
    return RubricUnit(
        axis=axis, **{name: _unit_text(item[name], name, what) for name in UNIT_FIELDS}
    )


def _unit_text(value: object, name: str, what: str) -> str:
    if value is None and name not in _NEEDED:
        return ""
    if not isinstance(value, str) or (name in _NEEDED and not value.strip()):
        raise RowError("bad-rubric", f"{what} has no text for {name}")
    # JSON can escape halves of a surrogate pair, which no UTF-8 file can hold again.
    if _SURROGATE.search(value):
        raise RowError("bad-rubric", f"{what} has half a surrogate pair in {name}")
    return printable(value, f"{what}, {name},")
