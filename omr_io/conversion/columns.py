"""Python values → Arrow arrays and back, by their buffers.

`pyarrow.array` and `to_numpy` import pandas wherever it is installed: 0.2 s of every process, in
which 2,000 rows are converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def record_batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a record batch.

    Args:
        rows: at least one; the values of each in the schema's order. A list is any sequence, a
            struct a tuple of its fields' values, in order; text and integers may be None.
        schema: of integers, utf8, binaries of a fixed size, lists and structs.

    Raises:
        TypeError: a column is of another type.
        OverflowError: an integer does not fit its column.
    """
    columns = zip(*rows, strict=True)
    arrays = [array_of(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def array_of(values: Sequence[Any], kind: Any) -> Any:
    """`pyarrow.array(values, kind)`, for the types of `record_batch`."""
    types = pa.types
    if types.is_list(kind):
        items = array_of(list(chain.from_iterable(values)), kind.value_type)
        return pa.Array.from_buffers(
            kind, len(values), [None, _offsets(map(len, values))], children=[items]
        )
    if types.is_struct(kind):
        columns = zip(*values, strict=True) if values else [()] * kind.num_fields
        children = [array_of(column, f.type) for column, f in zip(columns, kind, strict=True)]
        return pa.Array.from_buffers(kind, len(values), [None], children=children)
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


def _offsets(lengths: Any) -> Any:
    return pa.py_buffer(np.fromiter(accumulate(lengths, initial=0), np.int32))
