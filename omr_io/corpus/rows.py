"""One row, checked: raw column values → Record or Refusal.

The first defect found is the reason; the checks go in this order:

    invalid-utf8         text in any column (the id first) that is not UTF-8
    null-id              there is an id column, and the id is null or blank
    control-characters   U+0000 to U+001F (but tab, line feed, carriage return) or U+007F in the
                         id, an image's path, the question, the answer, the reasoning, the rubric
    null-question        the question is null
    empty-question       the question is blank, or nothing stands before its options
    no-options           the question does not end in options
    bad-options          the options do not parse (omr_io.corpus.options has the grammar)
    null-answer          the answer is null
    bad-answer           the answer is not an upper-case letter: "B", "B.", "B)", "B:" or "(B)"
    answer-not-an-option the answer's letter is not among the options
    answer-mismatch      the trace's last <answer> holds another letter (see ReadOptions)
    bad-rubric           JSON that does not parse; a unit that lacks a field or has an unknown one
    null-image           the image is null, or has neither bytes nor a path
    empty-image          the image has zero bytes
    image-not-embedded   the image's bytes are null, only a path is there, and no image_root is set
    image-outside-root, missing-image, unreadable-image, image-too-large: from image_root

Control characters are looked for as each text is used, so that reason may come later than its
line. The reasoning is kept as it stands, null becoming "": tags that are missing or not closed are
the corpus' own. Whether image bytes decode and ids are unique is for the next stage to check.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from omr_io.corpus.columns import UNIT_FIELDS, Columns, plain
from omr_io.corpus.options import parse_letter, parse_options, trace_letter
from omr_io.errors import ConfigError, RecordError
from omr_io.types import AXES, Axis, EncodedImage, Option, Record, Refusal, RubricUnit

MEANINGS = ("question", "answer", "reasoning", "image", "images", "options", "id", *AXES)
"""What columns can be mapped to."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# The fields that evaluation cannot do without; the others may be null, which becomes "".
_NEEDED = ("unit_id", "claim", "presence_question", "correctness_question")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a source.

    Args:
        image_root: folder in which images are looked up whose bytes are null. Nothing outside
            it is ever read: absolute paths, ".." and links that lead out are refused.
        omit: columns to leave out by name, such as one of bytes that JSON cannot carry.
        answer_mismatch: what to do with a row whose trace ends in another letter than its answer
            says: one of them is wrong. "refuse" counts and names the row; "keep" takes it as it
            is, which suits a test split, where the trace is not trained on.
        need_reasoning: whether a source without a reasoning column is an error; if not, its
            records' reasoning is "".
        max_image_bytes: largest file, in bytes, read from image_root.
        schema: the name of the sources' schema (`omr-io schemas`); None recognises it.
        column_map: (meaning, column) pairs: read any columns as OpenMedReason's. Meanings are
            question, answer, reasoning, image, images, options, id and the rubric's axes; one that
            is not mapped is the column of its own name, if there is one.
        open_ended: mapped columns may hold questions without options.
        turns: what to do with a conversation of several exchanges: "refuse" the row, or take its
            "first"; the whole conversation then stays in `Record.extra`.
        question: asked of captioned images.

    Raises:
        ConfigError: image_root is not a folder, or a value is not one of those above.
    """

    image_root: Path | None = None
    omit: tuple[str, ...] = ()
    answer_mismatch: Literal["refuse", "keep"] = "refuse"
    need_reasoning: bool = True
    max_image_bytes: int = 256 << 20
    schema: str | None = None
    column_map: tuple[tuple[str, str], ...] = ()
    open_ended: bool = False
    turns: Literal["refuse", "first"] = "refuse"
    question: str = "Describe the image."

    def __post_init__(self) -> None:
        if self.image_root is not None and not Path(self.image_root).is_dir():
            raise ConfigError(f"image_root {self.image_root} is not a folder")
        if self.answer_mismatch not in ("refuse", "keep"):
            raise ConfigError(
                f"answer_mismatch is {self.answer_mismatch!r}", mend="Use 'refuse' or 'keep'"
            )
        if self.turns not in ("refuse", "first"):
            raise ConfigError(f"turns is {self.turns!r}", mend="Use 'refuse' or 'first'")
        if not self.question.strip():
            raise ConfigError("the question for captions is blank")
        _check_map(self.column_map, self.schema)


def _check_map(column_map: tuple[tuple[str, str], ...], schema: str | None) -> None:
    meanings = [meaning for meaning, _ in column_map]
    columns = [column for _, column in column_map]
    for meaning in meanings:
        if meaning not in MEANINGS:
            known = ", ".join(MEANINGS)
            raise ConfigError(f"{meaning!r} is nothing to map to", mend=f"Use one of {known}")
    for name in (*meanings, *columns):
        if meanings.count(name) > 1 or columns.count(name) > 1:
            raise ConfigError(f"{name} is mapped twice")
    if column_map and schema not in (None, "mapped"):
        raise ConfigError(
            f"the schema is {schema} and columns are mapped", mend="Give one or the other"
        )


class _RowError(RecordError):
    """What is wrong with a row; it becomes the row's Refusal and goes no further."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def take_row(
    path: Path, row: int, raw: dict[str, object], columns: Columns, options: ReadOptions
) -> Record | Refusal:
    """Check one row.

    Args:
        path: its file.
        row: its number in the file, from 0.
        raw: its values by column, text still as bytes (see omr_io.corpus.columns).
        columns: the file's columns by their meaning.
        options: how to read.
    """
    known_id: str | None = None
    try:
        known_id = _row_id(path, row, raw, columns)
        return _record(f"{path.name}#{row}", known_id, raw, columns, options)
    except _RowError as defect:
        return Refusal(path.name, row, known_id, defect.reason, defect.what)


def _row_id(path: Path, row: int, raw: dict[str, object], columns: Columns) -> str:
    if columns.id is None:
        return f"{path.stem}-{row:08d}"
    value = _decoded(raw[columns.id], columns.id)
    if value is None or not str(value).strip():
        raise _RowError("null-id", "the id is null" if value is None else "the id is blank")
    return _printable(str(value), columns.id)


def _record(
    source: str, known_id: str, raw: dict[str, object], columns: Columns, options: ReadOptions
) -> Record:
    values = {name: _decoded(value, name) for name, value in raw.items() if name != columns.image}
    images = _raw_images(raw[columns.image], columns.image)
    question, choices = _question(values[columns.question])
    answer = _answer(values[columns.answer], choices)
    reasoning = _reasoning(values[columns.reasoning] if columns.reasoning else None)
    traced = trace_letter(reasoning)
    if traced not in (None, answer) and options.answer_mismatch == "refuse":
        raise _RowError("answer-mismatch", f"the trace answers {traced}, the answer is {answer}")
    return Record(
        id=known_id,
        question=question,
        options=choices,
        answer=answer,
        reasoning=reasoning,
        rubric=tuple(unit for axis in columns.axes for unit in _units(values[axis], axis)),
        images=tuple(_image(data, name, options) for data, name in images),
        source=source,
        extra={name: values[name] for name in columns.extra},
    )


def _decoded(value: object, column: str) -> object:
    try:
        return plain(value)
    except UnicodeDecodeError as error:
        raise _RowError("invalid-utf8", f"column {column} is not UTF-8: {error}") from None


def _printable(text: str, what: str) -> str:
    match = _CONTROL.search(text)
    if match is not None:
        raise _RowError(
            "control-characters",
            f"{what} holds U+{ord(match[0]):04X} at character {match.start()}",
        )
    return text


def _question(value: object) -> tuple[str, tuple[Option, ...]]:
    if value is None:
        raise _RowError("null-question", "the question is null")
    question = _printable(str(value), "the question")
    if not question.strip():
        raise _RowError("empty-question", "the question is blank")
    try:
        stem, choices = parse_options(question)
    except RecordError as error:
        raise _RowError("bad-options", error.what) from None
    if not choices:
        raise _RowError("no-options", "the question does not end in options")
    if not stem:
        raise _RowError("empty-question", "nothing stands before the options")
    return question, choices


def _answer(value: object, choices: tuple[Option, ...]) -> str:
    if value is None:
        raise _RowError("null-answer", "the answer is null")
    text = _printable(str(value), "the answer")
    letter = parse_letter(text)
    if letter is None:
        raise _RowError("bad-answer", f"the answer is {_short(text)}, wanted an upper-case letter")
    letters = [option.letter for option in choices]
    if letter not in letters:
        raise _RowError(
            "answer-not-an-option",
            f"the answer is {letter}, the options are {letters[0]} to {letters[-1]}",
        )
    return letter


def _reasoning(value: object) -> str:
    return "" if value is None else _printable(str(value), "the reasoning")


def _units(value: object, axis: Axis) -> list[RubricUnit]:
    """The rubric units of one axis, from JSON text or a list; null and "" hold none."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise _RowError("bad-rubric", f"{axis} is not JSON: {error}") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise _RowError("bad-rubric", f"{axis} is not a list of units")
    return [_unit(item, axis, number) for number, item in enumerate(value)]


def _unit(item: object, axis: Axis, number: int) -> RubricUnit:
    what = f"{axis} unit {number}"
    if not isinstance(item, dict):
        raise _RowError("bad-rubric", f"{what} is not an object")
    missing = [name for name in UNIT_FIELDS if name not in item]
    unknown = [str(name) for name in item if name not in UNIT_FIELDS]
    if missing or unknown:
        fault = f"lacks {missing[0]}" if missing else f"has an unknown field {_short(unknown[0])}"
        raise _RowError("bad-rubric", f"{what} {fault}")
    fields: dict[str, str] = {}
    for name in UNIT_FIELDS:
        value = item[name]
        if value is None and name not in _NEEDED:
            value = ""
        if not isinstance(value, str) or (name in _NEEDED and not value.strip()):
            raise _RowError("bad-rubric", f"{what} has no text for {name}")
        # JSON can escape halves of a surrogate pair, which no UTF-8 file can hold again.
        if _SURROGATE.search(value):
            raise _RowError("bad-rubric", f"{what} has half a surrogate pair in {name}")
        fields[name] = _printable(value, f"{what}, {name},")
    return RubricUnit(axis=axis, **fields)


def _raw_images(value: Any, column: str) -> list[tuple[bytes | None, str]]:
    """(bytes, path) of each image, the path decoded."""
    structs = value if isinstance(value, list) else [value]
    images = []
    for struct in structs:
        if struct is None:
            raise _RowError("null-image", "the image is null")
        name = _decoded(struct["path"], column) or ""
        images.append((struct["bytes"], _printable(str(name), "the image's path")))
    return images


def _image(data: bytes | None, name: str, options: ReadOptions) -> EncodedImage:
    if data is None:
        if not name:
            raise _RowError("null-image", "the image has neither bytes nor a path")
        if options.image_root is None:
            raise _RowError(
                "image-not-embedded",
                f"the image's bytes are null, only its path {_short(name)} is there, and no "
                "image_root was given",
            )
        data = _from_root(Path(options.image_root), name, options.max_image_bytes)
    if not data:
        raise _RowError("empty-image", f"the image {_short(name)} has zero bytes")
    return EncodedImage(data, name)


def _from_root(root: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of root/name, never of anything outside root."""
    relative = PurePosixPath(name)
    outside = _RowError("image-outside-root", f"the path {_short(name)} leads out of image_root")
    if relative.is_absolute() or ".." in relative.parts:
        raise outside
    try:
        file = (root / relative).resolve()
        if not file.is_relative_to(root.resolve()):
            raise outside
        if not file.is_file():  # neither a folder nor a pipe, on which reading would hang
            raise _RowError("missing-image", f"image_root has no file {_short(name)}")
        size = file.stat().st_size
        if size > max_bytes:
            raise _RowError(
                "image-too-large", f"{_short(name)} has {size} bytes, over the cap of {max_bytes}"
            )
        return file.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        why = getattr(error, "strerror", None) or "a loop of links"
        raise _RowError("unreadable-image", f"{_short(name)} cannot be read: {why}") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
