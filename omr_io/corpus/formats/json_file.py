"""JSON as a source file: an array of objects, {"data": [...]}, or JSON Lines, told by content."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from omr_io.corpus.formats.base import CheckedFile
from omr_io.corpus.formats.json_text import ArrayItems, Item, line_items
from omr_io.corpus.formats.location import (
    Location,
    Stamp,
    reading,
    reading_hashed,
    shown,
    stamp_of,
    whole_digest,
)
from omr_io.corpus.formats.untyped import (
    OUTSIDE_IMAGE_BYTES,
    SpanCutter,
    TypesByExample,
    outside_images,
    refuse_utf16,
)
from omr_io.corpus.raw import BadRow, RawRow, Span
from omr_io.errors import SourceError, Where

Layout = Literal["lines", "array", "data"]
_HEAD_BYTES = 1 << 20
_DATA_ARRAY = re.compile(rb'\s*\{\s*"data"\s*:\s*\[')
_BRACKETS = {"lines": ("", ""), "array": ("[", "]"), "data": ("[", "]}")}


class JsonFile(CheckedFile):
    """A file of JSON objects, a row each, whatever its name ends in.

    Opening reads the whole file once, in bounded memory: it counts rows, notes where every
    thousandth begins, collects the names in them and takes the file's SHA-256. A bad line of
    JSON Lines is a `BadRow`; in an array nothing after the damage can be read, so it is an error.
    A name that a row lacks is None. A name given twice in an object makes the row bad.
    """

    def __init__(self, location: Location, found: Scan) -> None:
        super().__init__(location, found.stamp, found.digest, found.types.columns, found.spans)
        self._layout: Layout = found.layout

    @classmethod
    def open(cls, location: Location) -> JsonFile:
        """Scan the file.

        Raises:
            SourceError: it is missing or empty, no row in it is an object, or an array is damaged
                (with row and byte).
        """
        return cls(location, _scan(location))

    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Exactly the rows of a span; see `SourceFile`."""
        self.check_columns(columns)
        self.check_unchanged()
        return self._rows(span, tuple(columns))

    def _rows(self, span: Span, names: tuple[str, ...]) -> Iterator[RawRow | BadRow]:
        count, end = 0, span.place + span.length
        with reading(self.location) as file:
            file.seek(span.place)
            for item in _items(file, span.place, end, self._layout, self.where):
                count += 1
                row = item.row
                yield row if isinstance(row, BadRow) else {name: row.get(name) for name in names}
        if count != span.num_rows:
            what = f"rows {span.first_row} on: found {count} rows, not {span.num_rows}"
            raise SourceError(what, where=self.where, mend="The file changed: run again")

    def _digest_now(self) -> str:
        return whole_digest(self.location)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file found."""

    stamp: Stamp
    digest: str
    types: TypesByExample
    spans: list[Span]
    layout: Layout


def _scan(location: Location) -> Scan:
    where = Where(source=shown(location))
    stamp = stamp_of(location)
    layout, begin = _layout_of(location, where)
    types, cutter = TypesByExample(where), SpanCutter()
    first_bad: BadRow | None = None
    with reading_hashed(location) as (file, digest):
        file.read(begin)
        for item in _items(file, begin, None, layout, where):
            images = 0
            if isinstance(item.row, BadRow):
                first_bad = first_bad or item.row
            else:
                types.see(item.row)
                images = outside_images(item.row)
            num_bytes = item.end - item.start + images * OUTSIDE_IMAGE_BYTES
            cutter.add(item.start, item.end, num_bytes)
    if not types.columns:
        why = f"; the first: {first_bad.detail}" if first_bad else ""
        raise SourceError(
            f"no row of the file is a JSON object with names in it{why}",
            where=where,
            mend="Give JSON Lines (one object a line) or an array of objects",
        )
    return Scan(stamp, str(digest.hexdigest()), types, cutter.finish(), layout)


def _items(
    file: BinaryIO, start: int, end: int | None, layout: Layout, where: Where
) -> Iterator[Item]:
    """The rows from byte `start`, where `file` stands; a whole file has no `end`."""
    if layout == "lines":
        return line_items(file, start, end, where)
    if end is not None:
        return iter(ArrayItems(file, start, end, where))
    opening, closing = _BRACKETS[layout]
    return iter(ArrayItems(file, start, None, where, opening, closing))


def _layout_of(location: Location, where: Where) -> tuple[Layout, int]:
    """How the rows stand in the file, and the byte where reading begins (after a BOM, a name)."""
    with reading(location) as file:
        head = file.read(_HEAD_BYTES)
    begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    text = head[begin:].lstrip()
    refuse_utf16(head, where)
    if not text:
        raise SourceError("the file is empty", where=where)
    if text.startswith(b"["):
        return "array", begin
    found = _DATA_ARRAY.match(head, begin)
    if found and not _begins_with_a_line(text, where):
        return "data", found.end() - 1
    return "lines", 0


def _begins_with_a_line(text: bytes, where: Where) -> bool:
    """Whether the first line is an object of its own, with more to come."""
    line, _, rest = text.partition(b"\n")
    if not rest.strip():
        return False
    item = next(iter(line_items(io.BytesIO(line), 1, None, where)), None)
    return item is not None and not isinstance(item.row, BadRow)
