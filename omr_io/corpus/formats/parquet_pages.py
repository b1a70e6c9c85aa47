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
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}


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
    chunks: Sequence[tuple[int, int, int, bool]]  # as `_C.PageRows` takes them
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
            buffers = [pa.py_buffer(part) for part in self._leaves[column.place].copied(first, last)]
            return pa.Array.from_buffers(column.kind, length, buffers)
        fields = column.fields
        children = [self._array(leaf, first, length) for leaf in fields.values()]
        any_leaf = self._leaves[next(iter(fields.values())).place]
        valid = pa.py_buffer(any_leaf.present(first, last, column.level))
        kind = pa.struct([(name, leaf.kind) for name, leaf in fields.items()])
        return pa.Array.from_buffers(kind, length, [valid], children=children)


def page_layout(
    metadata: Any, group: int, columns: Sequence[str], file_bytes: int
) -> PageLayout | None:
    """How columns of a row group are read page by page; None if they are Arrow's to read."""
    try:
        return _layout(metadata, group, columns, file_bytes)
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError):
        return None  # Arrow says what is wrong when it reads it


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


def _layout(
    metadata: Any, group: int, columns: Sequence[str], file_bytes: int
) -> PageLayout | None:
    about = metadata.row_group(group)
    schema = metadata.schema
    arrow = schema.to_arrow_schema()
    leaves = [schema.column(number) for number in range(len(schema))]
    numbers = {leaf.path: number for number, leaf in enumerate(leaves)}
    if len(numbers) < len(leaves):
        return None  # a dot in a name
    chunks: list[tuple[int, int, int, bool]] = []

    def leaf_of(path: str, field: Any, outer_level: int) -> _Leaf | None:
        types = pa.types
        is_text = types.is_string(field.type) or types.is_large_string(field.type)
        is_bytes = types.is_binary(field.type) or types.is_large_binary(field.type)
        number = numbers.get(path)
        if number is None or not (is_text or is_bytes):
            return None
        leaf, level = leaves[number], outer_level + field.nullable
        if leaf.physical_type != "BYTE_ARRAY" or leaf.max_repetition_level:
            return None
        chunk = _chunk(about.column(number), path, about.num_rows, file_bytes)
        if chunk is None or leaf.max_definition_level != level:
            return None
        start, size, snappy = chunk
        chunks.append((start, size, level, snappy))
        return _Leaf(len(chunks) - 1, is_text)

    found: dict[str, _Leaf | _Struct] = {}
    for name in columns:
        field = arrow.field(name)
        column: _Leaf | _Struct | None
        if pa.types.is_struct(field.type):
            outer = int(field.nullable)
            inner = {item.name: leaf_of(f"{name}.{item.name}", item, outer) for item in field.type}
            there = {key: leaf for key, leaf in inner.items() if leaf is not None}
            is_whole = there and len(there) == len(list(field.type))
            column = _Struct(there, outer) if is_whole else None
        else:
            column = leaf_of(name, field, 0)
        if column is None:
            return None
        found[name] = column
    return PageLayout(found, chunks, about.num_rows) if chunks else None


def _chunk(about: Any, path: str, num_rows: int, file_bytes: int) -> tuple[int, int, bool] | None:
    """(first byte, bytes, whether Snappy) of a column chunk of a usual kind."""
    if about.compression not in ("SNAPPY", "UNCOMPRESSED") or about.file_path:
        return None
    if not _ENCODINGS.issuperset(about.encodings) or about.path_in_schema != path:
        return None
    start, size = about.data_page_offset, about.total_compressed_size
    if about.has_dictionary_page and 0 < (about.dictionary_page_offset or 0) < start:
        start = about.dictionary_page_offset
    if about.num_values != num_rows or start < 4 or size < 0 or start + size > file_bytes:
        return None
    return start, size, about.compression == "SNAPPY"
