"""A corpus cut into pieces that are converted on their own, the same way for any number of workers.

A piece is a run of whole spans (row groups, runs of lines), over file boundaries where files are
small. It is a pure function of the files and of the limits, so whoever converts it, in whatever
order, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omr_io.corpus.raw import Span
from omr_io.corpus.reader import read_groups
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.sources import count_rows, list_sources, open_parquet, source_fingerprint
from omr_io.types import Record, Refusal


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
class Corpus:
    """The files of a corpus, checked; picklable, and nothing is open between calls.

    Use `open_corpus`.

    Attributes:
        paths: where the files are; names: their last parts, as in provenance.
        fingerprint: 16 hex digits that stand for the files (see `source_fingerprint`).
        num_rows: of all files.
        options: how rows are read.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str
    num_rows: int
    options: ReadOptions

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
            yield from read_groups(Path(self.paths[item.file]), self.options, item.span)

    def _spans(self) -> Iterator[FileSpan]:
        for number, path in enumerate(self.paths):
            with open_parquet(Path(path)) as file:
                first = 0
                for group in range(file.metadata.num_row_groups):
                    about = file.metadata.row_group(group)
                    if about.num_rows:
                        span = Span(first, about.num_rows, about.total_byte_size, group)
                        yield FileSpan(number, span)
                    first += about.num_rows


def open_corpus(
    sources: str | Path | Iterable[str | Path], options: ReadOptions | None = None
) -> Corpus:
    """Find the files of a corpus and check that each can be read.

    Args:
        sources: files, folders or glob patterns; all of one split.
        options: how rows are read.

    Raises:
        SourceError: a source is missing, is of no known schema, or cannot be read.
    """
    paths = list_sources(sources)
    options = options or ReadOptions()
    for path in paths:
        read_groups(path, options, None)
    return Corpus(
        paths=tuple(map(str, paths)),
        names=tuple(path.name for path in paths),
        fingerprint=source_fingerprint(paths),
        num_rows=count_rows(paths),
        options=options,
    )
