"""The columns of a source: which are there, of which type, and how their values leave Arrow.

Arrow does not check that text read from Parquet is UTF-8, and one bad value makes `to_pylist` fail
for its whole batch. So text leaves Arrow as bytes and is decoded value by value (`plain`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from omr_io.errors import SourceError, Where
from omr_io.types import AXES, Axis

UNIT_FIELDS = (
    "unit_id",
    "topic",
    "claim",
    "presence_question",
    "correctness_question",
    "source_quote",
    "importance",
)
IMAGE_FIELDS = ("bytes", "path")
_UNIT_TYPE = f"list<struct<{', '.join(UNIT_FIELDS)}: string>>, or JSON text"
_IMAGE_TYPE = "struct<bytes: binary, path: string>, or a list of them"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one source by their meaning, and the type each is cast to before it is read.

    `axes` are the rubric columns present; `extra` all columns without a meaning here; `casts` has
    an Arrow type for every column read.
    """

    image: str
    question: str
    answer: str
    reasoning: str | None
    id: str | None
    axes: tuple[Axis, ...]
    extra: tuple[str, ...]
    casts: dict[str, Any]


def find_columns(
    schema: Any, *, source: str, omit: Sequence[str], need_reasoning: bool = True
) -> Columns:
    """Find and check the columns of a source.

    Args:
        schema: a `pyarrow.Schema`.
        source: the file's name, for errors.
        omit: names of columns to leave out.
        need_reasoning: whether a missing reasoning column is an error.

    Raises:
        SourceError: a column is missing, appears twice, or has a type that cannot be read.
    """
    where = Where(source=source)
    kept = _kept(list(schema.names), omit, where)

    def first(*aliases: str) -> str | None:
        return next((name for name in aliases if name in kept), None)

    image, reasoning = first("image", "images"), first("reasoning", "reasoning_trace")
    found = {"image": image, "question": first("question"), "answer": first("answer")}
    if need_reasoning:
        found["reasoning"] = reasoning
    axes = tuple(axis for axis in AXES if axis in kept)
    if axes:  # a misspelt axis must not vanish among the extra columns
        found |= {axis: first(axis) for axis in AXES}
    _check_present(found, kept, where)
    taken = {image, "question", "answer", reasoning, "id", *axes}
    columns = Columns(
        image=str(image),
        question="question",
        answer="answer",
        reasoning=reasoning,
        id=first("id"),
        axes=axes,
        extra=tuple(name for name in kept if name not in taken),
        casts={},
    )
    for name in kept:
        columns.casts[name] = _checked_cast(columns, name, schema.field(name).type, where)
    return columns


def plain(value: object) -> object:
    """Turn a cast Arrow value into plain JSON values.

    Bytes become text, checked to be UTF-8; NaN and the infinities, which JSON lacks, become None.

    Raises:
        UnicodeDecodeError: some text is not UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def _kept(names: list[str], omit: Sequence[str], where: Where) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"the column {twice[0]} appears twice", where=where)
    unknown = [name for name in omit if name not in names]
    if unknown:
        raise SourceError(
            f"there is no column {unknown[0]} to omit; there are: {', '.join(names)}", where=where
        )
    return [name for name in names if name not in omit]


def _check_present(found: dict[str, str | None], names: list[str], where: Where) -> None:
    missing = [name for name, column in found.items() if column is None]
    if not missing:
        return
    near = []
    for name in missing:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        if close:
            near.append(f"nearest to {name} is {close[0]}")
    raise SourceError(
        f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; the file has: "
        f"{', '.join(names) or 'none'}" + "".join(f"; {text}" for text in near),
        where=where,
        mend="Rename the columns to OpenMedReason's: image, question, reasoning, answer",
    )


def _checked_cast(columns: Columns, name: str, found: Any, where: Where) -> Any:
    """The type that a column is cast to; a wrong type raises SourceError."""
    kind = _storage(found)
    if name == columns.image:
        cast, wanted = _image_cast(kind), _IMAGE_TYPE
    elif name in columns.axes:
        cast, wanted = _rubric_cast(kind), _UNIT_TYPE
    elif name == "id":
        is_integer = pa.types.is_integer(kind)
        cast, wanted = kind if is_integer else _text_cast(kind), "string or an integer"
    elif name in columns.extra:
        cast, wanted = _json_cast(kind), "a type that JSON can carry (not bytes, maps, durations)"
    else:
        cast, wanted = _text_cast(kind), "string"
    if cast is None:
        mend = "Convert the column"
        if name in columns.extra:
            mend = "Leave it out by name with the option omit, or remove it from the file"
        raise SourceError(
            f"column {name} has type {found}, wanted {wanted}", where=where, mend=mend
        )
    return cast


def _storage(kind: Any) -> Any:
    """Look through extension types (Parquet's JSON type is one) and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return _storage(kind.storage_type)
    return _storage(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _text_cast(kind: Any) -> Any | None:
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return pa.large_binary() if is_text else None


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _image_cast(kind: Any) -> Any | None:
    if _is_list(kind):
        inner = _image_cast(kind.value_type) if pa.types.is_struct(kind.value_type) else None
        return None if inner is None else pa.large_list(inner)
    if not pa.types.is_struct(kind) or {field.name for field in kind} != set(IMAGE_FIELDS):
        return None
    data, path = _storage(kind.field("bytes").type), _storage(kind.field("path").type)
    is_bytes = pa.types.is_binary(data) or pa.types.is_large_binary(data)
    # A source whose paths are all null may carry them with Arrow's null type, and bytes likewise.
    if not (is_bytes or pa.types.is_null(data)):
        return None
    path_cast = path if pa.types.is_null(path) else _text_cast(path)
    if path_cast is None:
        return None
    # In the source's own order: Arrow matches the fields of a struct by their place.
    casts = {"bytes": data if pa.types.is_null(data) else pa.large_binary(), "path": path_cast}
    return pa.struct([(field.name, casts[field.name]) for field in kind])


def _rubric_cast(kind: Any) -> Any | None:
    """Text (JSON), a list of units, or a type that can hold no unit at all (train: all empty)."""
    if pa.types.is_null(kind):
        return kind
    if not _is_list(kind):
        return _text_cast(kind)
    unit = kind.value_type
    if pa.types.is_null(unit):
        return kind
    if not pa.types.is_struct(unit) or {field.name for field in unit} != set(UNIT_FIELDS):
        return None
    casts = [(field.name, _json_cast(field.type)) for field in unit]
    texts = all(_text_cast(_storage(field.type)) or pa.types.is_null(field.type) for field in unit)
    return pa.large_list(pa.struct(casts)) if texts else None


def _json_cast(kind: Any) -> Any | None:
    """A type whose `to_pylist` gives JSON values (text as bytes); None if there is none.

    Decimals, dates and times become Arrow's text for them.
    """
    kind, types = _storage(kind), pa.types
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
        return kind
    if types.is_floating(kind):
        return pa.float64()
    if types.is_decimal(kind) or types.is_date(kind) or types.is_time(kind):
        return pa.large_string()
    if types.is_timestamp(kind):
        return pa.large_string()
    if _is_list(kind):
        inner = _json_cast(kind.value_type)
        return None if inner is None else pa.large_list(inner)
    if types.is_struct(kind):
        fields = [(field.name, _json_cast(field.type)) for field in kind]
        lost = any(cast is None for _, cast in fields) or len(dict(fields)) < len(fields)
        return None if lost else pa.struct(fields)
    return _text_cast(kind)
