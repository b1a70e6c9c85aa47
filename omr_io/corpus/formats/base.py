"""What all formats share: a checked file that is found unchanged before it is read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from omr_io.corpus.formats.location import Location, Stamp, name_of, shown, stamp_of
from omr_io.corpus.raw import BadRow, ColumnType, RawRow, Span
from omr_io.errors import SourceError, Where


class CheckedFile(ABC):
    """A `SourceFile` (omr_io.corpus.raw) that was read through once, or whose footer was.

    Attributes:
        location: a local path or a URL.
        name, num_rows, columns: see `SourceFile`.
    """

    def __init__(
        self,
        location: Location,
        stamp: Stamp,
        digest: str,
        columns: Mapping[str, ColumnType],
        spans: Sequence[Span],
    ) -> None:
        self.location = location
        self.name = name_of(location)
        self.columns: Mapping[str, ColumnType] = dict(columns)
        self.num_rows = sum(span.num_rows for span in spans)
        self._stamp = stamp
        self._digest = digest
        self._spans = tuple(spans)

    @property
    def where(self) -> Where:
        """The file, for errors."""
        return Where(source=shown(self.location))

    def spans(self) -> tuple[Span, ...]:
        """All rows, in order, in the smallest runs that are worth reading on their own."""
        return self._spans

    def identity(self) -> tuple[str, int, str]:
        """Name, size in bytes and a digest, the same wherever the file lies."""
        return self.name, self._stamp.size, self._digest

    def head(self, count: int) -> Sequence[RawRow]:
        """The first good rows, at most `count` of them."""
        found = (
            row
            for span in self._spans
            for row in self.rows(span, self.columns)
            if not isinstance(row, BadRow)
        )
        return list(islice(found, count))

    @abstractmethod
    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Exactly the rows of a span; see `SourceFile`."""

    @abstractmethod
    def _digest_now(self) -> str:
        """The digest of `identity`, taken from the file as it is now."""

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise SourceError for a column that the file does not have."""
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            there = ", ".join(self.columns)
            raise SourceError(
                f"there is no column {unknown[0]}; there are: {there}", where=self.where
            )

    def check_unchanged(self) -> None:
        """Raise SourceError if the file is not what it was when it was opened.

        Size and time of change tell at no cost; where only the time differs (a copy on another
        machine), the digest decides, once.
        """
        now = stamp_of(self.location)
        if now == self._stamp:
            return
        if now.size == self._stamp.size and self._digest_now() == self._digest:
            self._stamp = now
            return
        raise SourceError(
            "the file changed while it was being converted",
            where=self.where,
            mend="Leave the sources alone, and run the conversion again from its start",
        )
