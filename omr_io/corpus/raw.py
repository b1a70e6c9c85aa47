"""Between a file format and a schema: rows of named columns, nothing known yet of their meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

ColumnKind = Literal[
    "text", "bytes", "integer", "float", "boolean", "null", "list", "struct", "mixed"
]


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column: `item` is that of a list, `fields` are those of a struct.

    "mixed" is a column of a file without types (JSON) whose values differ in type, or one of a
    type that no JSON can carry (a map, a duration); `named` is then the file's own name for it.
    """

    kind: ColumnKind
    item: ColumnType | None = None
    fields: tuple[tuple[str, ColumnType], ...] = ()
    named: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.kind == "list":
            return f"list<{self.item}>"
        if self.kind == "struct":
            return f"struct<{', '.join(f'{name}: {kind}' for name, kind in self.fields)}>"
        return self.named if self.kind == "mixed" and self.named else self.kind


@dataclass(frozen=True, slots=True)
class BadText:
    """Stands where text is not UTF-8; `detail` says where the bytes go wrong."""

    data: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """Stands where a row could not be read from its file, while its neighbours could.

    It becomes a `Refusal` as it is. Reasons:

        bad-json         JSON that does not parse, is no object, or gives a name twice
        ragged-row       a CSV row with more or fewer fields than the header
        unnamed-member   a member of a WebDataset tar whose name has no extension
        dotted-key       members that can only be one sample if a dot belongs to their key
        interleaved-key  members of one key that do not stand together in their tar
        duplicate-member two members of one key and extension
    """

    reason: str
    detail: str


RawRow = Mapping[str, object]
"""Column name → None, bool, int, float, str, bytes, BadText, or a list or dict of such.

NaN and infinities are None; dates, times and decimals are text.
"""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a file that can be read on their own: a Parquet row group, a run of lines.

    Attributes:
        first_row: counted from 0 in the file.
        num_rows: at least 1.
        num_bytes: about how many bytes its samples will have; it steers how spans are put together,
            so it must be a pure function of the file.
        place: where it starts, in the format's own count (row group, byte offset).
        length: bytes from `place` to its end, where that is a byte offset.
    """

    first_row: int
    num_rows: int
    num_bytes: int
    place: int
    length: int = 0


class SourceFile(Protocol):
    """A source file of any format, checked; picklable, and nothing is open between calls.

    Attributes:
        location: a local path, or the text of a URL.
        name: as it stands in provenance, rejects and errors: the last part of its path.
        num_rows: of the whole file.
        columns: the columns by name, in the file's order.
    """

    @property
    def location(self) -> Path | str:
        """See above."""
        ...

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def num_rows(self) -> int:
        """See above."""
        ...

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """See above."""
        ...

    def head(self, count: int) -> Sequence[RawRow]:
        """The first good rows, by which a schema is recognised; bytes may be left out (None)."""
        ...

    def spans(self) -> tuple[Span, ...]:
        """All rows, in order, in the smallest runs that are worth reading on their own."""
        ...

    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Exactly the rows of a span, streamed, each with exactly the columns asked for.

        Raises:
            SourceError: the file changed since it was opened, or reading fails; it names the row.
        """
        ...

    def identity(self) -> tuple[str, int, str]:
        """Name, size in bytes and a digest: what the source fingerprint is made of."""
        ...


class ImageRoot(Protocol):
    """Where images lie that a row names by their path: a folder, a zip, a tar."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one image.

        Raises:
            ImageError: with a reason: "missing-image", "image-outside-root", "unreadable-image" or
                "image-too-large".
        """
        ...
