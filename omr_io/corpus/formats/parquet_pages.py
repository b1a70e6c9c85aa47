"""Row groups of texts and bytes, read page by page in C++ (csrc/parquet_pages.hpp).

Arrow copies values out of their pages into memory that is fresh for every batch, and the kernel
clears fresh memory first: a sixth of a conversion's time. Here values stay where their page was
decoded, in memory that is used again. What a row group of a usual kind holds is read so; whatever
is unusual, and all that is wrong, is left to Arrow, which is the definition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from omr_io import _C

BATCH_BYTES = 1 << 20  # of images; with the tar made of them they stay in the processor's cache


_Chunk = tuple[int, int, int, bool, int, int]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column of texts or bytes: its place among those that are read."""

    place: int
    is_text: bool

    @property
    def kind(self) -> Any:
        return pa.large_string() if self.is_text else pa.large_binary()


@dataclass(frozen=True, slots=True)
class _Struct:
    """A column of structs; `level` is the definition level of one that is there."""

    fields: Mapping[str, _Leaf]
    level: int


@dataclass(frozen=True, slots=True)
class PageLayout:
    """What is read of a row group, and how."""

    columns: Mapping[str, _Leaf | _Struct]
    chunks: Sequence[_Chunk]  # as `_C.PageRows` takes them
    num_rows: int


class PageBatch:
    """Rows where their pages were decoded; only until the next batch is read.

    Attributes:
        num_rows: how many.
    """

    def __init__(self, layout: PageLayout, rows: _C.PageRows, num_rows: int) -> None:
        self.num_rows = num_rows
        self._columns = layout.columns
        self._leaves = [rows.column(place) for place in range(len(layout.chunks))]

    def texts(self, name: str) -> _C.PageColumn | None:
        """A column of texts; None if it is none."""
        return self._leaf(self._columns[name], is_text=True)

    def field(self, name: str, field: str, *, is_text: bool) -> _C.PageColumn | None:
        """A field of a column of structs, of texts or of bytes; None if it is none."""
        column = self._columns[name]
        if not isinstance(column, _Struct):
            return None
        return self._leaf(column.fields[field], is_text=is_text)

    def slice(self, first: int, length: int) -> pa.RecordBatch:
        """Some of the rows, copied, as Arrow would have them; texts and bytes are the large ones.

        Raises:
            ValueError: other rows have been read since.
        """
        arrays = [self._array(column, first, length) for column in self._columns.values()]
        return pa.RecordBatch.from_arrays(arrays, list(self._columns))

    def _leaf(self, column: _Leaf | _Struct, *, is_text: bool) -> _C.PageColumn | None:
        if isinstance(column, _Struct) or column.is_text != is_text:
            return None
        return self._leaves[column.place]

    def _array(self, column: _Leaf | _Struct, first: int, length: int) -> Any:
        last = first + length
        if isinstance(column, _Leaf):
            buffers = [
                pa.py_buffer(part) for part in self._leaves[column.place].copied(first, last)
            ]
            return pa.Array.from_buffers(column.kind, length, buffers)
        fields = column.fields
        children = [self._array(leaf, first, length) for leaf in fields.values()]
        any_leaf = self._leaves[next(iter(fields.values())).place]
        valid = pa.py_buffer(any_leaf.present(first, last, column.level))
        kind = pa.struct([(name, leaf.kind) for name, leaf in fields.items()])
        return pa.Array.from_buffers(kind, length, [valid], children=children)


def page_layout(
    footer: _C.ParquetFooter, schema: pa.Schema, group: int, num_rows: int, columns: Sequence[str]
) -> PageLayout | None:
    """How columns of a row group are read page by page; None if they are Arrow's to read.

    Args:
        footer: of the file.
        schema: as Arrow has it.
        group: the row group.
        num_rows: in it.
        columns: to read.
    """
    try:
        leaves = footer.leaves()
    except UnicodeDecodeError:
        return None
    numbers = {path: number for number, (path, _, _) in enumerate(leaves)}
    chunks: list[_Chunk] = []

    def leaf_of(path: tuple[str, ...], field: Any, outer_level: int, first: int) -> _Leaf | None:
        types = pa.types
        is_text = types.is_string(field.type) or types.is_large_string(field.type)
        is_bytes = types.is_binary(field.type) or types.is_large_binary(field.type)
        number = numbers.get(path)
        if number is None or not (is_text or is_bytes):
            return None
        _, level, is_flat_bytes = leaves[number]
        chunk = footer.chunk(group, number)
        if not is_flat_bytes or chunk is None or level != outer_level + field.nullable:
            return None
        chunks.append((*chunk[:2], level, chunk[2], outer_level, first))
        return _Leaf(len(chunks) - 1, is_text)

    found: dict[str, _Leaf | _Struct] = {}
    for name in columns:
        field = schema.field(name)
        column: _Leaf | _Struct | None
        if pa.types.is_struct(field.type):
            outer, first = int(field.nullable), len(chunks)
            inner = {
                item.name: leaf_of((name, item.name), item, outer, first) for item in field.type
            }
            there = {key: leaf for key, leaf in inner.items() if leaf is not None}
            is_whole = there and len(there) == len(list(field.type))
            column = _Struct(there, outer) if is_whole else None
        else:
            column = leaf_of((name,), field, 0, len(chunks))
        if column is None:
            return None
        found[name] = column
    return PageLayout(found, chunks, num_rows) if chunks else None


def page_batches(
    path: Path, layout: PageLayout, max_rows: int, max_bytes: int = BATCH_BYTES
) -> Iterator[PageBatch | None]:
    """The rows of a row group, in order; each batch only until the next one is asked for.

    Args:
        max_rows, max_bytes: of a batch; one row may take more bytes.

    Returns:
        Batches; a None at the end says that Arrow must go on from there, since the rest is
        unusual or wrong.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            rows = _C.PageRows(file, list(layout.chunks), layout.num_rows)
        finally:
            os.close(file)  # it has its own
    except OSError:
        yield None
        return
    while (count := rows.next(max_rows, max_bytes)) is not None:
        if count == 0:
            return
        yield PageBatch(layout, rows, count)
    yield None
