"""A corpus cut into pieces that are converted on their own, the same way for any number of workers.

A piece is a run of whole spans (row groups, runs of lines), over file boundaries where files are
small. It is a pure function of the files and of the limits, so whoever converts it, in whatever
order, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omr_io.corpus.formats import open_source
from omr_io.corpus.formats.location import shown
from omr_io.corpus.image_roots import open_image_root
from omr_io.corpus.raw import BadRow, ImageRoot, SourceFile, Span
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import BoundSchema, bind
from omr_io.corpus.schemas.bound import PlainColumns
from omr_io.corpus.sources import fingerprint_of, list_sources
from omr_io.types import Record, Refusal

if TYPE_CHECKING:  # Arrow is imported when a Parquet file is opened
    import pyarrow as pa

    from omr_io.corpus.formats.parquet import ParquetFile
    from omr_io.corpus.formats.parquet_pages import PageBatch

_HEAD_ROWS = 64


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A span of one file of the corpus; `file` is its place in `Corpus.names`."""

    file: int
    span: Span


@dataclass(frozen=True, slots=True)
class Piece:
    """What one worker converts at a time: `number` counts from 0 over the corpus."""

    number: int
    spans: tuple[FileSpan, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all its spans."""
        return sum(item.span.num_rows for item in self.spans)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A source file and its schema; picklable, and nothing is open between calls."""

    file: SourceFile
    schema: BoundSchema

    def read(self, span: Span, images: ImageRoot | None) -> Iterator[tuple[int, Record | Refusal]]:
        """The rows of a span, in order: (row number in the file, record or refusal).

        Raises:
            SourceError: the file is not what it was, or cannot be read.
        """
        name, take, row = self.file.name, self.schema.take, span.first_row
        for raw in self.file.rows(span, self.schema.columns):
            if isinstance(raw, BadRow):
                yield row, Refusal(name, row, None, raw.reason, raw.detail)
            else:
                yield row, take(name, row, raw, images)
            row += 1

    def batches(self, span: Span, images: ImageRoot | None) -> Iterator[RowBatch]:
        """The same rows by batches, of a file that has `plain_columns`.

        Raises:
            SourceError: as `read`.
        """
        file = cast("ParquetFile", self.file)  # what `plain_columns` says
        for row, batch in file.batches(span, self.schema.columns):
            yield RowBatch(self, span, row, batch, images)

    def plain_columns(self) -> PlainColumns | None:
        """The columns, if the file's rows may be plain (see `PlainColumns`); else None."""
        from omr_io.corpus.formats.parquet import ParquetFile

        return self.schema.plain_columns() if isinstance(self.file, ParquetFile) else None


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of a span as Arrow has them, or as they lie in the file's pages.

    Attributes:
        source, span: where they are from.
        first_row: number of the first one in the file.
        columns: their values; those in pages only until the next batch is asked for.
        images: where images lie that rows name by their path.
    """

    source: CorpusFile
    span: Span
    first_row: int
    columns: pa.RecordBatch | PageBatch
    images: ImageRoot | None

    def read(self, first: int, last: int) -> Iterator[tuple[int, Record | Refusal]]:
        """Some of the rows, counted from 0 in the batch; as `CorpusFile.read`."""
        take, row = self.source.schema.take, self.first_row + first
        file = cast("ParquetFile", self.source.file)
        for raw in file.rows_of(self.span, row, self.columns.slice(first, last - first)):
            yield row, take(file.name, row, raw, self.images)
            row += 1


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files of a corpus, checked; picklable, and nothing is open between calls.

    It holds the place of every span, some 60 bytes each when pickled: send it to a worker once,
    not with each piece. Use `open_corpus`.

    Attributes:
        files: with their schemas, sorted by path.
        fingerprint: 16 hex digits that stand for the files (see `source_fingerprint`).
        options: how rows are read.
        images: where images lie that rows name by their path.
    """

    files: tuple[CorpusFile, ...]
    fingerprint: str
    options: ReadOptions
    images: ImageRoot | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The last parts of the files' paths, as in provenance."""
        return tuple(item.file.name for item in self.files)

    @property
    def num_rows(self) -> int:
        """Of all files."""
        return sum(item.file.num_rows for item in self.files)

    @property
    def schemas(self) -> tuple[str, ...]:
        """The names of the schemas found, each once."""
        return tuple(dict.fromkeys(item.schema.name for item in self.files))

    def pieces(self, max_bytes: int, max_rows: int) -> tuple[Piece, ...]:
        """Cut the corpus into pieces.

        Args:
            max_bytes, max_rows: a piece ends before the span that would exceed either; a larger
                span is a piece of its own.
        """
        pieces: list[Piece] = []
        spans: list[FileSpan] = []
        num_bytes = num_rows = 0
        for item in self._spans():
            full = num_bytes + item.span.num_bytes > max_bytes
            if spans and (full or num_rows + item.span.num_rows > max_rows):
                pieces.append(Piece(len(pieces), tuple(spans)))
                spans, num_bytes, num_rows = [], 0, 0
            spans.append(item)
            num_bytes += item.span.num_bytes
            num_rows += item.span.num_rows
        if spans:
            pieces.append(Piece(len(pieces), tuple(spans)))
        return tuple(pieces)

    def read(self, piece: Piece) -> Iterator[tuple[int, Record | Refusal]]:
        """Read the rows of a piece, in order: (row number in its file, record or refusal).

        Raises:
            SourceError: a file is not what it was, or cannot be read.
        """
        for item in piece.spans:
            yield from self.files[item.file].read(item.span, self.images)

    def spans(self, piece: Piece) -> Iterator[tuple[CorpusFile, Span]]:
        """The spans of a piece with their files, in order."""
        for item in piece.spans:
            yield self.files[item.file], item.span

    def _spans(self) -> Iterator[FileSpan]:
        for number, item in enumerate(self.files):
            for span in item.file.spans():
                yield FileSpan(number, span)


def open_corpus(
    sources: str | Path | Iterable[str | Path],
    options: ReadOptions | None = None,
    *,
    mixed_splits: bool = False,
) -> Corpus:
    """Find the files of a corpus and check that each can be read.

    Args:
        sources: files, folders, glob patterns or URLs; all of one split. See `list_sources`.
        options: how rows are read.
        mixed_splits: allow files whose names say different splits.

    Raises:
        SourceError: a source is missing, is of no known schema, or cannot be read.
        ConfigError: an option cannot be right.
    """
    options = options or ReadOptions()
    files = tuple(
        open_file(path, options) for path in list_sources(sources, mixed_splits=mixed_splits)
    )
    identities = [item.file.identity() for item in files]
    return Corpus(files, fingerprint_of(identities), options, images_of(options))


def open_file(path: str | Path, options: ReadOptions) -> CorpusFile:
    """Open one source file and find its schema.

    Raises:
        SourceError: it is missing, is of no known schema, or cannot be read.
    """
    file = open_source(path)
    where = shown(file.location)
    return CorpusFile(file, bind(file.columns, file.head(_HEAD_ROWS), options, where))


def images_of(options: ReadOptions) -> ImageRoot | None:
    """Where images lie that rows name by their path.

    Raises:
        ConfigError, SourceError, DiskError: see `open_image_root`.
    """
    if options.image_root is None:
        return None
    return open_image_root(options.image_root, options.unpack_to)
