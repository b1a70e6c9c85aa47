"""An index's columns as arrays over all samples, whatever the file's batches and however many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from omr_io.types import Int64Array, UInt8Array


def joined(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array.

    Arrow's texts and lists count in 32 bits, so one array holds 2 GiB of text: the names of parts
    in some 50 million samples. Beyond that it has the types that count in 64.
    """
    try:
        return _combined(column)
    except pa.ArrowInvalid:  # an offset overflows
        return _combined(column.cast(_wide(column.type)))


def offsets(lists: pa.Array) -> Int64Array:
    """(n + 1,) int64: where each row's list begins in the flattened array, from 0."""
    found: Int64Array = lists.offsets.to_numpy().astype(np.int64)
    found -= found[0]
    return found


def bytes_matrix(column: pa.FixedSizeBinaryArray) -> UInt8Array:
    """(n, width) uint8, not copied."""
    width = column.type.byte_width
    raw = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    begin = column.offset * width
    return raw[begin : begin + len(column) * width].reshape(-1, width)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_utf8()
    if pa.types.is_list(kind):
        return pa.large_list(kind.value_field.with_type(_wide(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_wide(field.type)) for field in kind])
    return kind
