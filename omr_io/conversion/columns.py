"""Rows → columns → Arrow arrays, by their buffers.

`pyarrow.array` and `to_numpy` import pandas wherever it is installed: 0.2 s of every process, in
which 2,000 rows are converted. And rows are taken apart when they come: kept as tuples until they
are written, Python's garbage collector walks through them again and again, 6 us a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Columns:
    """Rows on their way into a record batch.

    Args:
        schema: of integers, utf8, binaries of a fixed size, and lists and structs of them.

    Raises:
        TypeError: a column is of another type.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._columns = [_column(field.type) for field in self._schema]
        self._appends = [column.append for column in self._columns]
        self.num_rows = 0

    def add(self, row: Iterable[Any]) -> None:
        """Add a row.

        Args:
            row: its values in the schema's order: of a list any sequence, of a struct its fields'
                values in order. Text and integers may be None.
        """
        for append, value in zip(self._appends, row, strict=True):
            append(value)
        self.num_rows += 1

    def extend(self, count: int, columns: Sequence[Any]) -> None:
        """Add rows by their columns, none of them null.

        Args:
            count: how many.
            columns: in the schema's order: of integers an array; of text (lengths in bytes, int32,
                and the UTF-8 of all); of binaries their bytes; of a list (lengths, the items'
                column); of a struct its fields' columns.
        """
        for column, values in zip(self._columns, columns, strict=True):
            column.extend(values)
        self.num_rows += count

    def batch(self) -> pa.RecordBatch:
        """The rows so far.

        Raises:
            OverflowError: an integer does not fit its column.
        """
        arrays = [column.array() for column in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class _Column(Protocol):
    append: Callable[[Any], None]

    def extend(self, values: Any) -> None: ...
    def array(self) -> Any: ...


class _Values:
    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._values: list[Any] = []
        self._chunks: list[Any] = []  # before `_values`; as `extend` takes them
        self.append: Callable[[Any], None] = self._values.append

    def extend(self, values: Any) -> None:
        self._end_chunk()
        self._chunks.append(values)

    def _end_chunk(self) -> None:
        if self._values:
            assert None not in self._values
            self._chunks.append(_chunk_of(self._values, self._kind))
            self._values.clear()

    def array(self) -> Any:
        if not self._chunks:
            return array_of(self._values, self._kind)
        self._end_chunk()
        if pa.types.is_string(self._kind):
            lengths = np.concatenate([lengths for lengths, _ in self._chunks])
            offsets = np.zeros(len(lengths) + 1, np.int32)
            np.cumsum(lengths, out=offsets[1:])
            data = b"".join([data for _, data in self._chunks])
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
            return pa.Array.from_buffers(self._kind, len(lengths), buffers, 0)
        if pa.types.is_fixed_size_binary(self._kind):
            data = b"".join(self._chunks)
            count = len(data) // self._kind.byte_width
            return pa.Array.from_buffers(self._kind, count, [None, pa.py_buffer(data)], 0)
        values = np.concatenate(self._chunks)
        assert values.dtype == self._kind.to_pandas_dtype()
        return pa.Array.from_buffers(self._kind, len(values), [None, pa.py_buffer(values)], 0)


class _Lists:
    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._lengths: list[int] = []
        self._items = _column(kind.value_type)
        self.append: Callable[[Any], None] = self._append

    def extend(self, values: Any) -> None:
        lengths, items = values
        self._lengths += lengths
        self._items.extend(items)

    def _append(self, values: Sequence[Any]) -> None:
        self._lengths.append(len(values))
        for value in values:
            self._items.append(value)

    def array(self) -> Any:
        buffers, count = [None, _offsets(self._lengths)], len(self._lengths)
        return pa.Array.from_buffers(self._kind, count, buffers, children=[self._items.array()])


class _Structs:
    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._fields = [_column(field.type) for field in kind]
        self._appends = [field.append for field in self._fields]
        self.append: Callable[[Any], None] = self._append

    def extend(self, values: Any) -> None:
        for field, column in zip(self._fields, values, strict=True):
            field.extend(column)

    def _append(self, values: Sequence[Any]) -> None:
        for append, value in zip(self._appends, values, strict=True):
            append(value)

    def array(self) -> Any:
        fields = [field.array() for field in self._fields]
        return pa.Array.from_buffers(self._kind, len(fields[0]), [None], children=fields)


def _column(kind: Any) -> _Column:
    types = pa.types
    if types.is_list(kind):
        return _Lists(kind)
    return _Structs(kind) if types.is_struct(kind) else _Values(kind)


def _chunk_of(values: Sequence[Any], kind: Any) -> Any:
    """Values as `Columns.extend` takes them."""
    if pa.types.is_string(kind):
        data = [value.encode() for value in values]
        return np.fromiter(map(len, data), np.int32, len(data)), b"".join(data)
    if pa.types.is_fixed_size_binary(kind):
        assert all(len(value) == kind.byte_width for value in values)
        return b"".join(values)
    return np.array(values, kind.to_pandas_dtype())


def array_of(values: Sequence[Any], kind: Any) -> Any:
    """`pyarrow.array(values, kind)`, for integers, utf8 and binaries of a fixed size.

    Raises:
        TypeError: the type is another one.
        OverflowError: an integer does not fit it.
    """
    types = pa.types
    valid, nulls = None, values.count(None)
    if nulls:
        present = np.array([value is not None for value in values])
        valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    if types.is_string(kind):
        data = [b"" if value is None else value.encode() for value in values]
        buffers = [valid, _offsets(map(len, data)), pa.py_buffer(b"".join(data))]
    elif types.is_fixed_size_binary(kind):
        assert all(len(value) == kind.byte_width for value in values)
        buffers = [valid, pa.py_buffer(b"".join(values))]
    elif types.is_integer(kind):
        given = [0 if value is None else value for value in values] if nulls else values
        buffers = [valid, pa.py_buffer(np.array(given, kind.to_pandas_dtype()))]
    else:
        raise TypeError(f"a column of type {kind}")
    return pa.Array.from_buffers(kind, len(values), buffers, nulls)


def integers(array: Any) -> NDArray[Any]:
    """The values of an array of integers without nulls, not copied."""
    assert pa.types.is_integer(array.type)
    assert not array.null_count
    kind = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def _offsets(lengths: Iterable[int]) -> Any:
    return pa.py_buffer(np.fromiter(accumulate(lengths, initial=0), np.int32))
