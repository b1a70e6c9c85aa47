"""A foreign WebDataset tar as a source file: a sample a row, an extension a column."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omr_io.corpus.formats.base import CheckedFile
from omr_io.corpus.formats.json_text import RowParser
from omr_io.corpus.formats.location import Location, reading, shown, stamp_of
from omr_io.corpus.formats.untyped import SpanCutter, decoded, merged, repaired, type_of
from omr_io.corpus.formats.webdataset_groups import Group, Grouper
from omr_io.corpus.raw import BadRow, BadText, ColumnType, RawRow, Span
from omr_io.errors import SourceError, TarError, Where
from omr_io.tar import TarTable, scan_tar, tar_windows
from omr_io.text import one_line

KEY = "__key__"
_BLOCK = 512
TEXT_ENDINGS = ("txt", "text", "transcript", "caption", "cls")
JSON_ENDINGS = ("json", "jsn")
_MAX_SAMPLE_BYTES = 1 << 30
_TYPED_ROWS = 100


class WebDatasetFile(CheckedFile):
    """A WebDataset tar; columns are `__key__` and the extensions.

    `.txt`, `.text`, `.transcript`, `.caption` and `.cls` are text, `.json` and `.jsn` are parsed,
    all else is bytes and nothing is ever unpickled. A sample lacks a member: None. Opening reads
    the headers of a local tar, a remote one as a whole. Its digest is over the headers (names,
    places, sizes, times): a change of data alone, with the time of the member kept, goes unseen.
    """

    def __init__(self, location: Location, found: _Scan) -> None:
        stamp, columns = stamp_of(location), {KEY: ColumnType("text")}
        columns |= {name: _type_by_name(name) for name in sorted(found.extensions)}
        spans = found.cutter.finish()
        super().__init__(location, stamp, found.digest.hexdigest(), columns, spans)
        self._interleaved = frozenset(found.interleaved)
        structs = [name for name in columns if ending_of(name) in JSON_ENDINGS]
        if structs:
            for row in self.head(_TYPED_ROWS):
                for name in structs:
                    columns[name] = merged(columns[name], type_of(row[name]))
            unseen = [name for name in structs if columns[name].kind == "null"]
            self.columns = columns | dict.fromkeys(unseen, ColumnType("mixed"))

    @classmethod
    def open(cls, location: Location) -> WebDatasetFile:
        """Scan the tar.

        Raises:
            SourceError: it is missing, malformed (with its byte offset) or empty, or a sample is
                over 1 GiB.
        """
        return cls(location, _scan(location))

    def rows(self, span: Span, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Exactly the rows of a span; see `SourceFile`."""
        self.check_columns(columns)
        self.check_unchanged()
        return self._rows(span, tuple(columns))

    def _rows(self, span: Span, names: tuple[str, ...]) -> Iterator[RawRow | BadRow]:
        with reading(self.location) as file:
            file.seek(span.place)
            data = file.read(span.length)
        try:
            table = scan_tar(data + bytes(2 * _BLOCK))
        except TarError as error:
            raise _not_a_tar(self.location, error, span.place) from None
        groups = list(_grouped(table))
        if len(data) != span.length or len(groups) != span.num_rows:
            what = f"rows {span.first_row} on: found {len(groups)} samples, not {span.num_rows}"
            raise SourceError(what, where=self.where, mend="The file changed: run again")
        view = memoryview(data)
        for group in groups:
            yield self._row(group, view, names)

    def _row(self, group: Group, data: memoryview, names: tuple[str, ...]) -> RawRow | BadRow:
        defect = group.defect()
        if defect is None and group.key in self._interleaved:
            what = f"members of {str(group.key)[:100]!r} stand at several places in the tar"
            defect = BadRow("interleaved-key", what)
        if defect is not None:
            return defect
        members = {member.extension: member for member in group.members}
        row: dict[str, object] = {}
        for name in names:
            if name == KEY:
                row[name] = group.key
            elif name in members:
                at = members[name].offset
                value = part_value(ending_of(name), bytes(data[at : at + members[name].size]))
                if isinstance(value, BadRow):
                    return BadRow(value.reason, f"{group.key}.{name}: {value.detail}"[:300])
                row[name] = value
            else:
                row[name] = None
        return row

    def _digest_now(self) -> str:
        return str(_scan(self.location).digest.hexdigest())


class _Scan:
    """What one pass over the headers finds."""

    def __init__(self, where: Where) -> None:
        self.digest = hashlib.sha256()
        self.extensions: set[str] = set()
        self.interleaved: set[str] = set()
        self.cutter = SpanCutter()
        self._keys: set[str] = set()
        self._groups = Grouper()
        self._where = where

    def take(self, buffer: Any, base: int, table: TarTable) -> None:
        """Take a tar, or a window of one."""
        for header, data in zip(
            table.header_offsets.tolist(), table.data_offsets.tolist(), strict=True
        ):
            self.digest.update(b"%d %d " % (base + header, base + data))
            self.digest.update(buffer[header : header + _BLOCK])
        for name in table.names:  # long names are not in the headers
            self.digest.update(name.encode() + b"\n")
        for group in self._groups.add(table, base):
            self._count(group)

    def finish(self) -> None:
        """Count the last sample."""
        if self._groups.pending:
            self._count(self._groups.flush())

    def _count(self, group: Group) -> None:
        size = group.end - group.start
        if size > _MAX_SAMPLE_BYTES:
            raise SourceError(
                f"the sample {group.name[:100]!r} has {size} bytes, over 1 GiB", where=self._where
            )
        self.cutter.add(group.start, group.end, size)
        if group.key is not None:
            if group.key in self._keys:
                self.interleaved.add(group.key)
            self._keys.add(group.key)
        if group.defect() is None:
            self.extensions |= {member.extension for member in group.members}


def _scan(location: Location) -> _Scan:
    found = _Scan(Where(source=shown(location)))
    try:
        if isinstance(location, Path):
            _scan_local(location, found)
        else:
            with reading(location) as file:
                for window, base, table in tar_windows(file):
                    found.take(window, base, table)
    except TarError as error:
        raise _not_a_tar(location, error, 0) from None
    found.finish()
    if not found.cutter.num_rows:
        raise SourceError("the tar is empty", where=Where(source=shown(location)))
    return found


def _scan_local(path: Path, found: _Scan) -> None:
    """A memory map touches the headers alone."""
    if not stamp_of(path).size:
        scan_tar(b"")  # an empty file cannot be mapped; this says what is missing
    with (
        reading(path) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        found.take(mapped, 0, scan_tar(mapped))


def _grouped(table: TarTable) -> Iterator[Group]:
    groups = Grouper()
    yield from groups.add(table, 0)
    if groups.pending:
        yield groups.flush()


def ending_of(extension: str) -> str:
    """What follows the last dot of an extension: "png" of "img0.png"."""
    return extension.rpartition(".")[2]


def _type_by_name(extension: str) -> ColumnType:
    ending = ending_of(extension)
    if ending in JSON_ENDINGS:
        return ColumnType("null")  # until its values are seen
    return ColumnType("text" if ending in TEXT_ENDINGS else "bytes")


def part_value(ending: str, data: bytes) -> object:
    """What a part holds, by its ending: text, a JSON object, or bytes; BadRow if it is broken."""
    if ending in TEXT_ENDINGS:
        text, damaged = decoded(data)
        return repaired(text) if damaged else text
    return _parsed(data) if ending in JSON_ENDINGS else data


def _parsed(data: bytes) -> object:
    text, damaged = decoded(data)
    if damaged:
        return BadText(data, "JSON that is not UTF-8")
    parser = RowParser()
    try:
        value, stop = parser.parse(text.strip(), 0)
    except (ValueError, RecursionError) as error:
        return BadRow("bad-json", one_line(error, 120))
    if stop < len(text.strip()):
        return BadRow("bad-json", "more than one value")
    return parser.row(value, 0, damaged="\\ud" in text.lower()) if value is not None else None


def _not_a_tar(location: Location, error: TarError, base: int) -> SourceError:
    offset = base + (error.where.offset or 0) if error.where else base
    return SourceError(
        f"this is no whole tar of plain files: {error.what}",
        where=Where(source=shown(location), offset=offset),
        mend="Fetch or write the tar again",
    )
