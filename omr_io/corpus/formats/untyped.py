"""Formats without types of their own (JSON, CSV): types by example, damaged text, spans."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from omr_io.corpus.raw import BadText, ColumnType, Span
from omr_io.errors import SourceError, Where

OUTSIDE_IMAGE_BYTES = 100_000
"""What an image that is not in the source file is assumed to have; it only steers how rows are put
together, and need only be the same every time."""

TAR_BYTES_PER_ROW = 1536
"""Two headers and the padding of a sample with one image."""

_IMAGES = re.compile(r"image|img|figure|picture|photo", re.IGNORECASE)
_SPAN_ROWS = 1000
_SPAN_BYTES = 16 << 20
_TYPED_ROWS = 1000
_MAX_COLUMNS = 10_000
_KINDS: dict[type, str] = {str: "text", bool: "boolean", int: "integer", float: "float"}
_KINDS |= {bytes: "bytes", type(None): "null", BadText: "text"}


def may_name_images(column: str) -> bool:
    """Whether a column by its name may hold the paths of images."""
    return _IMAGES.search(column) is not None


def type_of(value: Any) -> ColumnType:
    """The type of one Python value."""
    if isinstance(value, dict):
        return ColumnType("struct", fields=tuple((name, type_of(v)) for name, v in value.items()))
    if isinstance(value, list):
        item = ColumnType("null")
        for one in value:
            item = merged(item, type_of(one))
        return ColumnType("list", item)
    return ColumnType(_KINDS[type(value)])  # type: ignore[arg-type]  # the values are kinds


def merged(one: ColumnType, other: ColumnType) -> ColumnType:
    """The type that both values fit: null fits all, an integer is a float too."""
    if one == other or other.kind == "null" or one.kind == "mixed":
        return one
    if one.kind == "null":
        return other
    if {one.kind, other.kind} == {"integer", "float"}:
        return ColumnType("float")
    if one.kind == other.kind == "list" and one.item and other.item:
        return ColumnType("list", merged(one.item, other.item))
    if one.kind == other.kind == "struct":
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = merged(fields.get(name, ColumnType("null")), kind)
        return ColumnType("struct", fields=tuple(fields.items()))
    return ColumnType("mixed")


class TypesByExample:
    """The columns of the rows seen so far, and their types.

    Every name and every value counts, but what is nested in a value only in the first thousand
    rows: a schema that needs it looks at each row anyway.
    """

    def __init__(self, where: Where) -> None:
        self.columns: dict[str, ColumnType] = {}
        self._where = where
        self._seen = 0
        self._usual: dict[str, type] = {}

    def see(self, row: Mapping[str, Any]) -> None:
        """Take one row into account."""
        self._seen += 1
        early, usual = self._seen <= _TYPED_ROWS, self._usual
        for name, value in row.items():
            if early or usual.get(name) is not value.__class__:
                self._merge(name, value)

    def _merge(self, name: str, value: Any) -> None:
        if value is None and name in self.columns:
            return
        known = self.columns.get(name, ColumnType("null"))
        kind = self.columns[name] = merged(known, type_of(value))
        if kind.kind == _KINDS.get(type(value)) or kind.kind in ("list", "struct"):
            self._usual[name] = type(value)
        if len(self.columns) > _MAX_COLUMNS:
            raise SourceError(
                f"the first {self._seen} rows have more than {_MAX_COLUMNS} different names",
                where=self._where,
                mend="Give a table: a list of objects, each with the same names",
            )


def repaired(value: Any) -> Any:
    """Replace text that holds half a surrogate pair, from an escape or a bad byte, by BadText.

    Raises:
        ValueError: a name of an object is such text.
    """
    if isinstance(value, str):
        return _repaired_text(value)
    if isinstance(value, list):
        return [repaired(item) for item in value]
    if isinstance(value, dict):
        for name in value:
            if isinstance(_repaired_text(name), BadText):
                raise ValueError("a name is not UTF-8")
        return {name: repaired(item) for name, item in value.items()}
    return value


def _repaired_text(text: str) -> str | BadText:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return BadText(
                text.encode("utf-8", "surrogatepass"),
                f"character {error.start}: half a surrogate pair",
            )
        return BadText(data, f"character {error.start}: not UTF-8")
    return text


def decoded(data: bytes) -> tuple[str, bool]:
    """Text, and whether bytes that are not UTF-8 stand in it as halves of surrogate pairs."""
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), True


def refuse_utf16(head: bytes, where: Where) -> None:
    """Raise SourceError for a file that begins as UTF-16 does: spreadsheets write such."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError("this is UTF-16", where=where, mend="Write it again as UTF-8")


def outside_images(row: Mapping[str, Any]) -> int:
    """How many images a row seems to name by path, for an estimate of its size."""
    most = 0
    for name, value in row.items():
        if value and may_name_images(name):
            if isinstance(value, str) and len(value) < 1024:  # longer text is base64 or prose
                most = max(most, 1)
            elif isinstance(value, list):
                most = max(most, len(value))
    return most


class SpanCutter:
    """Cuts rows into spans of about a thousand rows or 16 MiB, at byte offsets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.num_rows = 0
        self._first = self._start = self._bytes = self._end = 0

    def add(self, start: int, end: int, num_bytes: int) -> None:
        """Add the row that stands at start to end, in bytes; its sample will have `num_bytes`."""
        rows = self.num_rows - self._first
        if rows and (rows >= _SPAN_ROWS or end - self._start > _SPAN_BYTES):
            self.finish()
        if self.num_rows == self._first:
            self._start = start
        self.num_rows += 1
        self._bytes += num_bytes + TAR_BYTES_PER_ROW
        self._end = end

    def finish(self) -> list[Span]:
        """Close the last span; all of them."""
        rows = self.num_rows - self._first
        if rows:
            length = self._end - self._start
            self.spans.append(Span(self._first, rows, self._bytes, self._start, length))
        self._first, self._bytes = self.num_rows, 0
        return self.spans
