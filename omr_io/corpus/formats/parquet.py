"""Parquet as a source file: row groups, streamed page by page."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omr_io import _C
from omr_io.corpus.formats.arrow import column_type, reader_of
from omr_io.corpus.formats.base import CheckedFile
from omr_io.corpus.formats.location import (
    BUFFER_BYTES,
    Location,
    Stamp,
    open_binary,
    shown,
    stamp_of,
)
from omr_io.corpus.formats.parquet_pages import (
    PageBatch,
    PageLayout,
    page_batches,
    page_layout,
)
from omr_io.corpus.formats.untyped import OUTSIDE_IMAGE_BYTES, TAR_BYTES_PER_ROW, may_name_images
from omr_io.corpus.raw import ColumnType, RawRow, Span
from omr_io.errors import SourceError, Where
from omr_io.text import one_line

_BATCH_BYTES = 3 << 20  # stays in the processor's cache; a quarter faster than 8 MiB
_MAX_BATCH_ROWS = 1024
_FOOTER_TAIL = 8  # the footer's length, 4 bytes little-endian, and the magic "PAR1"
_CORRUPT = "The file is corrupt: fetch or write it again"


class ParquetFile(CheckedFile):
    """A Parquet file; a span is a row group.

    Memory is bounded by some 3 MiB of rows (or one row, if larger) and the current page of each
    column, a few times over, not by the file or its row groups. (Writers may make pages large:
    pyarrow puts at least 1024 values in one unless told otherwise.) Page checksums are verified.

    A column of a type that no row can carry (a map, a duration) has the kind "mixed"; asking `rows`
    for it is an error.
    """

    def __init__(self, location: Location, stamp: Stamp, digest: str, metadata: Any) -> None:
        self._metadata = metadata
        arrow = metadata.schema.to_arrow_schema()
        columns = {field.name: column_type(field.type) for field in arrow}
        # Read when it is needed, and not pickled: (None,) if pages are left to Arrow.
        self._footer: tuple[_C.ParquetFooter | None] | None = None
        super().__init__(location, stamp, digest, columns, _spans(metadata, columns))

    @classmethod
    def open(cls, location: Location) -> ParquetFile:
        """Read the footer.

        Raises:
            SourceError: the file is missing, cut short, encrypted or not Parquet, or a column's
                name appears twice or is not UTF-8.
        """
        where = Where(source=shown(location))
        stamp = stamp_of(location)
        with _opened(location, None) as file:
            metadata = file.metadata
            try:
                names = list(metadata.schema.to_arrow_schema().names)
            except UnicodeDecodeError as error:
                raise SourceError("a column's name is not UTF-8", where=where) from error
            except pa.ArrowException as error:
                raise SourceError(f"its schema cannot be read: {error}", where=where) from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SourceError(f"the column {twice[0]} appears twice", where=where)
        return cls(location, stamp, _footer_digest(location, stamp.size), metadata)

    def head(self, count: int) -> Sequence[RawRow]:
        """The first rows; values of type bytes are None, so that no image's page is read."""
        names = [name for name, kind in self.columns.items() if kind.kind != "mixed"]
        leaves = {name: _leaves_without_bytes(self._metadata.schema, name) for name in names}
        kept = [name for name in names if leaves[name]]
        wanted = [leaf for name in kept for leaf in leaves[name]]
        rows: list[RawRow] = []
        for span in self._spans:
            if len(rows) >= count or not wanted:
                break
            batches = self._batches(span, wanted, max_rows=count - len(rows))
            for lists in self._columns(span, kept, batches):
                for values in zip(*lists, strict=True):
                    found = dict(zip(kept, values, strict=True))
                    filled = {name: _filled(found.get(name), self.columns[name]) for name in names}
                    rows.append(filled)
                if len(rows) >= count:
                    break
        return rows[:count] if wanted else [dict.fromkeys(names)] * min(count, self.num_rows)

    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow]:
        """Exactly the rows of a row group; see `SourceFile`."""
        self.check_columns(columns)
        self.check_unchanged()
        names = list(columns)
        for name in names:
            kind = self.columns[name]
            if kind.kind == "mixed":
                what = f"column {name} has type {kind}, which no row can carry"
                raise SourceError(what, where=self.where, mend="Leave it out with the option omit")
        return self._rows(span, names)

    def batches(
        self, span: Span, columns: Collection[str]
    ) -> Iterator[tuple[int, pa.RecordBatch | PageBatch]]:
        """The same rows by batches: (number of the first one, rows); see `rows_of`.

        A batch of pages, of a local file's usual row groups, is only until the next one is asked
        for.
        """
        self.check_columns(columns)
        self.check_unchanged()
        names, location = list(columns), self.location
        layout = self._layout(span, names)
        if isinstance(location, Path) and layout is not None:
            return self._page_batches(location, span, names, layout)
        return self._batches(span, names)

    def _layout(self, span: Span, names: list[str]) -> PageLayout | None:
        if not isinstance(self.location, Path):
            return None
        if self._footer is None:
            size = self._stamp.size
            self._footer = (_C.parquet_footer(_footer(self.location, size)[:-_FOOTER_TAIL], size),)
        (footer,) = self._footer
        if footer is None:
            return None
        schema = self._metadata.schema.to_arrow_schema()
        return page_layout(footer, schema, span.place, span.num_rows, names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_footer": None}

    def _page_batches(
        self, path: Path, span: Span, names: list[str], layout: PageLayout
    ) -> Iterator[tuple[int, pa.RecordBatch | PageBatch]]:
        row = span.first_row
        for batch in page_batches(path, layout, _MAX_BATCH_ROWS):
            if batch is not None:
                yield row, batch
                row += batch.num_rows
                continue
            for first, rest in self._batches(span, names):
                if first + rest.num_rows > row:
                    done = max(row - first, 0)
                    yield first + done, rest.slice(done)

    def rows_of(self, span: Span, row: int, batch: pa.RecordBatch) -> Iterator[RawRow]:
        """Rows of `batches` as `rows` gives them; `row` is the number of the first one."""
        names = list(batch.schema.names)
        for lists in self._columns(span, names, [(row, batch)]):
            for values in zip(*lists, strict=True):
                yield dict(zip(names, values, strict=True))

    def _rows(self, span: Span, names: list[str]) -> Iterator[RawRow]:
        for lists in self._columns(span, names, self._batches(span, names)):
            for values in zip(*lists, strict=True):
                yield dict(zip(names, values, strict=True))

    def _columns(
        self, span: Span, names: list[str], batches: Iterable[tuple[int, pa.RecordBatch]]
    ) -> Iterator[list[Iterable[Any]]]:
        """For each batch, the values of each column of `names`."""
        readers = None
        for row, batch in batches:
            with self._reading(span, row):
                if readers is None:
                    readers = [reader_of(batch.schema.field(name).type) for name in names]
                columns = zip(names, readers, strict=True)
                lists = [reader(batch.column(name)) for name, reader in columns]
            yield lists

    def _batches(
        self, span: Span, leaves: list[str], max_rows: int = 0
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The batches of one row group, each with the number of its first row."""
        group = span.place
        about = self._metadata.row_group(group)
        row, end = span.first_row, span.first_row + span.num_rows
        wanted = _BATCH_BYTES * about.num_rows // max(about.total_byte_size, 1)
        batch_rows = min(max(wanted, 1), max_rows or _MAX_BATCH_ROWS)
        with _opened(self.location, self._metadata) as file:
            with self._reading(span, row):
                batches = file.iter_batches(
                    batch_rows, row_groups=[group], columns=leaves, use_threads=False
                )
            while True:
                with self._reading(span, row):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield row, batch
                row += batch.num_rows
        if row != end and not max_rows:
            held = f"holds {row - span.first_row} rows instead of {span.num_rows}"
            what = f"{_which(span)} {held}"
            raise SourceError(what, where=self.where, mend=_CORRUPT)

    @contextmanager
    def _reading(self, span: Span, row: int) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            what = f"{_which(span)} cannot be read from row {row} on: {one_line(error)}"
            raise SourceError(what, where=self.where, mend=_CORRUPT) from error

    def _digest_now(self) -> str:
        return _footer_digest(self.location, stamp_of(self.location).size)


@contextmanager
def _opened(location: Location, metadata: Any) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that reads pages as needed and verifies their checksums."""
    given: Any = location
    if isinstance(location, str):
        from omr_io import remote

        given = remote.open_url(location)  # it reads ahead on its own
    try:
        try:
            file = pq.ParquetFile(
                given,
                metadata=metadata,
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
                page_checksum_verification=True,
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"this is not a Parquet file, or it was cut short: {one_line(error)}",
                where=Where(source=shown(location)),
                mend="Fetch or write the file again",
            ) from error
        with file:
            yield file
    finally:
        if given is not location:
            given.close()  # Arrow closes only what it opened


def _which(span: Span) -> str:
    last = span.first_row + span.num_rows - 1
    return f"row group {span.place} (rows {span.first_row} to {last})"


def _footer(location: Location, size: int) -> bytes:
    """The file's end: its footer, the footer's length and the magic bytes."""
    try:
        with open_binary(location) as file:
            file.seek(size - _FOOTER_TAIL)
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(size - _FOOTER_TAIL - length, 0))
            return file.read()
    except (OSError, ValueError) as error:
        what = f"cannot be read: {one_line(error)}"
        raise SourceError(what, where=Where(source=shown(location))) from error


def _footer_digest(location: Location, size: int) -> str:
    """SHA-256 of the footer: the schema, and the place and size of every column chunk."""
    return hashlib.sha256(_footer(location, size)).hexdigest()


def _spans(metadata: Any, columns: Mapping[str, ColumnType]) -> list[Span]:
    """The row groups that hold rows; `place` counts all."""
    embedded = any(_holds_bytes(kind) for kind in columns.values())
    outside = not embedded and any(may_name_images(name) for name in columns)
    per_row = TAR_BYTES_PER_ROW + (OUTSIDE_IMAGE_BYTES if outside else 0)
    spans, first = [], 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        if about.num_rows:
            size = about.total_byte_size + per_row * about.num_rows
            spans.append(Span(first, about.num_rows, size, group))
        first += about.num_rows
    return spans


def _holds_bytes(kind: ColumnType) -> bool:
    if kind.kind == "bytes":
        return True
    inner = [kind.item] if kind.item else [item for _, item in kind.fields]
    return any(_holds_bytes(item) for item in inner)


def _leaves_without_bytes(schema: Any, name: str) -> list[str]:
    """The paths below a column, in Parquet's own schema, of all values that are not bytes."""
    columns = [schema.column(number) for number in range(len(schema))]
    return [
        column.path
        for column in columns
        if (column.path == name or column.path.startswith(f"{name}."))
        and (column.physical_type != "BYTE_ARRAY" or column.logical_type.type != "NONE")
    ]


def _filled(value: Any, kind: ColumnType) -> Any:
    """A value read without its bytes, as if they were null."""
    if isinstance(value, dict):
        return {name: _filled(value.get(name), item) for name, item in kind.fields}
    if isinstance(value, list) and kind.item is not None:
        return [_filled(item, kind.item) for item in value]
    return value
