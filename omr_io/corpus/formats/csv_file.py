"""CSV and TSV as a source file: a header, then a row a record; quotes may hold line breaks."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Collection, Iterator
from typing import BinaryIO

from omr_io.corpus.formats.base import CheckedFile
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
    decoded,
    may_name_images,
    refuse_utf16,
    repaired,
)
from omr_io.corpus.raw import BadRow, ColumnType, RawRow, Span
from omr_io.errors import SourceError, Where

_DELIMITERS = ",\t;"
_MAX_LINE = 256 << 20


class CsvFile(CheckedFile):
    """A CSV or TSV file with a header; every column is text, and nothing is null.

    Quoting is as Python's csv module and spreadsheets have it. The delimiter is what stands most
    often in the header: a comma, a tab or a semicolon. A row with more or fewer fields than the
    header is a `BadRow`; blank lines are no rows. Opening reads the whole file once, in bounded
    memory. A column without a name is called "Unnamed: N", N from 0, as pandas does.
    """

    def __init__(
        self,
        location: Location,
        stamp: Stamp,
        digest: str,
        names: tuple[str, ...],
        spans: list[Span],
        delimiter: str,
    ) -> None:
        text = ColumnType("text")
        super().__init__(location, stamp, digest, dict.fromkeys(names, text), spans)
        self._names = names
        self._delimiter = delimiter

    @classmethod
    def open(cls, location: Location) -> CsvFile:
        """Scan the file.

        Raises:
            SourceError: it is missing or empty, a name appears twice in its header, a quote never
                closes, or a field is over csv.field_size_limit() (128 KiB).
        """
        where = Where(source=shown(location))
        stamp = stamp_of(location)
        with reading(location) as opened:
            head = opened.readline(_MAX_LINE)
        refuse_utf16(head, where)
        delimiter = _delimiter_of(head)
        cutter = SpanCutter()
        with reading_hashed(location) as (file, digest):
            records = _Records(file, 0, None, delimiter, where)
            header = next(iter(records), None)
            if header is None:
                raise SourceError("the file is empty", where=where)
            names = _names(header, where)
            images = any(may_name_images(name) for name in names) * OUTSIDE_IMAGE_BYTES
            start = records.at
            for fields in records:
                if fields:
                    cutter.add(start, records.at, records.at - start + images)
                    records.row += 1
                start = records.at
        return cls(location, stamp, str(digest.hexdigest()), names, cutter.finish(), delimiter)

    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Exactly the rows of a span; see `SourceFile`."""
        self.check_columns(columns)
        self.check_unchanged()
        return self._rows(span, [(name, self._names.index(name)) for name in columns])

    def _rows(self, span: Span, places: list[tuple[str, int]]) -> Iterator[RawRow | BadRow]:
        count, end, wanted = 0, span.place + span.length, len(self._names)
        with reading(self.location) as file:
            file.seek(span.place)
            records = _Records(file, span.place, end, self._delimiter, self.where)
            start = span.place
            for fields in records:
                if fields:
                    count += 1
                    if len(fields) == wanted:
                        row = {name: fields[place] for name, place in places}
                        yield dict(repaired(row)) if records.damaged else row
                    else:
                        what = f"byte {start}: {len(fields)} fields, the header has {wanted}"
                        yield BadRow("ragged-row", what)
                records.damaged = False
                start = records.at
        if count != span.num_rows:
            what = f"rows {span.first_row} on: found {count} rows, not {span.num_rows}"
            raise SourceError(what, where=self.where, mend="The file changed: run again")

    def _digest_now(self) -> str:
        return whole_digest(self.location)


class _Records:
    """The records of a CSV, and the byte `at` which the next one begins.

    `damaged` is set when a line was not UTF-8; `row` is for errors, and counted by the caller.
    """

    def __init__(
        self, file: BinaryIO, start: int, end: int | None, delimiter: str, where: Where
    ) -> None:
        self.at = start
        self.damaged = False
        self.row = 0
        self._file = file
        self._end = end
        self._where = where
        self._cut = False
        self._lines_of_record = 0
        self._reader = csv.reader(self._lines(), delimiter=delimiter)

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            self._lines_of_record, start = 0, self.at
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._error(str(error), start) from None
            if self._cut:
                raise self._error("a quote opens and never closes", start)
            yield fields

    def _lines(self) -> Iterator[str]:
        while self._end is None or self.at < self._end:
            line = self._file.readline(_MAX_LINE)
            if not line:
                break
            begin = 3 if self.at == 0 and line.startswith(codecs.BOM_UTF8) else 0
            text, damaged = decoded(line[begin:])
            self.damaged |= damaged
            self.at += len(line)
            self._lines_of_record += 1
            yield text
        # The reader asks for one line more only while a quote is open.
        self._cut = self._lines_of_record > 0

    def _error(self, what: str, start: int) -> SourceError:
        return SourceError(
            f"the record at byte {start} cannot be read: {what}",
            where=Where(source=self._where.source, row=self.row),
            mend='Mend it there; a quote within a quoted field is written twice: "". Longer fields '
            "than 128 KiB can be given as JSON Lines or Parquet",
        )


def _delimiter_of(header: bytes) -> str:
    text, _ = decoded(header)
    return max(_DELIMITERS, key=text.count)


def _names(header: list[str], where: Where) -> tuple[str, ...]:
    names = tuple(name or f"Unnamed: {place}" for place, name in enumerate(header))
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"the column {name} appears twice in the header", where=where)
        if not isinstance(repaired(name), str):
            raise SourceError("a column's name is not UTF-8", where=where)
    return names
