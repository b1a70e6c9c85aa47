"""Kinds of column that a schema asks for, each checked against the type found in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from omr_io.corpus.raw import ColumnType

UNIT_FIELDS = (
    "unit_id",
    "topic",
    "claim",
    "presence_question",
    "correctness_question",
    "source_quote",
    "importance",
)
"""The fields of a rubric unit, all text."""

_SCALARS = frozenset({"text", "integer", "float", "boolean", "null", "mixed"})


def accepts(kind: str, found: ColumnType) -> bool:
    """Whether a column of type `found` can be of this kind."""
    if found.named:  # a type of the file's own that no row can carry
        return False
    return _KINDS[kind][0](found)


def wanted(kind: str) -> str:
    """The kind in words, for errors."""
    return _KINDS[kind][1]


def fits_json(found: ColumnType) -> bool:
    """Whether JSON can carry every value of the type: no bytes at any depth, no maps."""
    if found.kind == "list":
        return found.item is None or fits_json(found.item)
    if found.kind == "struct":
        names = {name for name, _ in found.fields}
        return len(names) == len(found.fields) and all(fits_json(kind) for _, kind in found.fields)
    return found.kind in _SCALARS and not found.named  # named: a map, a duration


def struct_fields(found: ColumnType | None) -> Mapping[str, ColumnType] | None:
    """The fields of a struct by name; None if it is none."""
    return dict(found.fields) if found is not None and found.kind == "struct" else None


def _one_of(*kinds: str) -> Callable[[ColumnType], bool]:
    return lambda found: found.kind in kinds


def _embedded(found: ColumnType) -> bool:
    """struct<bytes, path> or a list of them: what `datasets` writes for an image."""
    if found.kind == "list":
        item = found.item
        return item is not None and item.kind == "struct" and _embedded(item)
    fields = struct_fields(found)
    if fields is None or set(fields) != {"bytes", "path"}:
        return False
    # A source whose paths (or bytes) are all null may carry them without a type.
    return fields["bytes"].kind in ("bytes", "null") and fields["path"].kind in ("text", "null")


def _picture(found: ColumnType) -> bool:
    """Anything that may hold an image: bytes, a path, a struct of them, or a list of such."""
    if found.kind == "list":
        item = found.item
        return item is None or (item.kind != "list" and _picture(item))
    fields = struct_fields(found)
    if fields is not None:
        data = fields.get("bytes", ColumnType("null"))
        return bool({"bytes", "path", "image"} & set(fields)) and data.kind in ("bytes", "null")
    return found.kind in ("text", "bytes", "null", "mixed")


def _rubric(found: ColumnType) -> bool:
    """JSON text, a list of units, or a type that can hold no unit at all (train: all empty)."""
    if found.kind != "list":
        return found.kind in ("text", "null")
    if found.item is None or found.item.kind == "null":
        return True
    fields = struct_fields(found.item)
    texts = fields is not None and all(kind.kind in ("text", "null") for kind in fields.values())
    return texts and set(fields or ()) == set(UNIT_FIELDS)


def _lists(found: ColumnType) -> bool:
    """A list of structs, or one whose items only the rows can tell (JSON)."""
    if found.kind == "list":
        return found.item is None or found.item.kind in ("struct", "mixed", "null")
    return found.kind == "mixed"


def _choices(found: ColumnType) -> bool:
    if found.kind == "list":
        return found.item is None or found.item.kind in ("text", "mixed", "null")
    return found.kind in ("text", "struct", "mixed")


_KINDS: Mapping[str, tuple[Callable[[ColumnType], bool], str]] = {
    "exact-text": (_one_of("text"), "text"),
    "exact-id": (_one_of("text", "integer"), "text or an integer"),
    "embedded-image": (_embedded, "struct<bytes: bytes, path: text>, or a list of them"),
    "rubric": (_rubric, f"list<struct<{', '.join(UNIT_FIELDS)}: text>>, or JSON text"),
    "text": (_one_of("text", "mixed", "null"), "text"),
    "answer": (_one_of("text", "integer", "float", "mixed"), "text or a number"),
    "picture": (_picture, "bytes, a path, struct<bytes, path>, or a list of these"),
    "bytes": (_one_of("bytes"), "bytes"),
    "messages": (_lists, "a list of messages"),
    "prompt": (lambda found: found.kind == "text" or _lists(found), "text or a list of messages"),
    "choices": (_choices, "a struct, a list of texts, or JSON text of either"),
    "struct": (_one_of("struct", "mixed"), "a struct"),
    "caption": (_one_of("text", "bytes", "mixed"), "text"),
}
