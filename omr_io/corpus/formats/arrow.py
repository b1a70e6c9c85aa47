"""Arrow arrays → plain Python values.

Arrow does not check that text read from Parquet is UTF-8, and one bad value makes `to_pylist` fail
for its whole array. So text is read the fast way first, and value by value only where that failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa

from omr_io.corpus.raw import BadText, ColumnType

Reader = Callable[[Any], Iterable[Any]]
"""Array → its values, to be gone through once while the array is there.

Bytes are copied one by one as they are asked for, not a batch at a time: an image's memory is then
used again for the next one, which the processor still has in its cache.
"""


def column_type(kind: Any) -> ColumnType:
    """The type of an Arrow column; "mixed", with Arrow's own name, if no row can carry it."""
    kind, types = _storage(kind), pa.types
    if _is_list(kind):
        item = column_type(kind.value_type)
        return _mixed(kind) if item.kind == "mixed" else ColumnType("list", item)
    if types.is_struct(kind):
        fields = tuple((field.name, column_type(field.type)) for field in kind)
        lost = any(item.kind == "mixed" for _, item in fields) or len(dict(fields)) < len(fields)
        return _mixed(kind) if lost else ColumnType("struct", fields=fields)
    if types.is_null(kind):
        return ColumnType("null")
    if types.is_boolean(kind):
        return ColumnType("boolean")
    if types.is_integer(kind):
        return ColumnType("integer")
    if types.is_floating(kind):
        return ColumnType("float")
    if _is_bytes(kind):
        return ColumnType("bytes")
    return ColumnType("text") if _is_text(kind) or _is_written(kind) else _mixed(kind)


def reader_of(kind: Any) -> Reader:
    """What turns arrays of an Arrow type into Python values, as `RawRow` has them.

    Text is str, or BadText where it is not UTF-8; decimals, dates and times become Arrow's text for
    them; NaN and the infinities, which JSON lacks, become None. Structs are dicts, lists lists.
    Dictionaries and extension types (Parquet's JSON type is one) are looked through.
    """
    plain, types = _storage(kind), pa.types
    if not plain.equals(kind):
        inner = reader_of(plain)
        return lambda array: inner(array.cast(plain))
    if _is_list(plain):
        return _list_reader(reader_of(plain.value_type))
    if types.is_struct(plain):
        fields = [(field.name, reader_of(field.type)) for field in plain]
        return _struct_reader([name for name, _ in fields], [reader for _, reader in fields])
    if types.is_floating(plain):
        return lambda array: [_finite(value) for value in array.cast(pa.float64()).to_pylist()]
    if _is_written(plain):
        return lambda array: list(array.cast(pa.large_string()).to_pylist())
    if types.is_binary(plain) or types.is_large_binary(plain):
        return _bytes_reader(np.int64 if types.is_large_binary(plain) else np.int32)
    return _text if _is_text(plain) else lambda array: list(array.to_pylist())


def _bytes_reader(offset_type: type[np.signedinteger[Any]]) -> Reader:
    def read(array: Any) -> Iterator[bytes | None]:
        _, places, data = array.buffers()
        count = len(array)
        ends = np.frombuffer(places, offset_type, count + 1, array.offset * offset_type(0).nbytes)
        offsets = ends.tolist()
        view = memoryview(data or b"")
        if not array.null_count:
            for start, end in pairwise(offsets):
                yield view[start:end].tobytes()
            return
        valid = array.is_valid().to_pylist()
        for start, end, there in zip(offsets, offsets[1:], valid, strict=False):
            yield view[start:end].tobytes() if there else None

    return read


def _text(array: Any) -> list[Any]:
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_decoded(value) for value in array.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | BadText | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadText(bytes(value or b""), f"byte {error.start}: {error.reason}")


def _struct_reader(names: list[str], readers: list[Reader]) -> Reader:
    def read(array: Any) -> Iterator[dict[str, Any] | None]:
        # flatten, unlike field, counts a field of a null struct as null.
        columns = [reader(child) for reader, child in zip(readers, array.flatten(), strict=True)]
        valid = array.is_valid().to_pylist() if array.null_count else repeat(True, len(array))
        for there, *values in zip(valid, *columns, strict=True):
            yield dict(zip(names, values, strict=True)) if there else None

    return read


def _list_reader(item: Reader) -> Reader:
    import pyarrow.compute as pc  # 30 ms to import, and most corpora have no lists

    def read(array: Any) -> Iterator[list[Any] | None]:
        values = iter(item(array.flatten()))  # leaves out what lies beneath null lists
        for length in pc.list_value_length(array).to_pylist():
            yield None if length is None else list(islice(values, length))

    return read


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _storage(kind: Any) -> Any:
    """Look through extension types and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return _storage(kind.storage_type)
    return _storage(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_list(kind: Any) -> bool:
    types = pa.types
    known = (
        types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view,
        types.is_large_list_view,
    )  # fmt: skip
    return any(check(kind) for check in known)


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    known = (
        types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view,
    )  # fmt: skip
    return any(check(kind) for check in known)


def _is_written(kind: Any) -> bool:
    """Types that become text: decimals, dates, times of day, moments."""
    types = pa.types
    known = (types.is_decimal, types.is_date, types.is_time, types.is_timestamp)
    return any(check(kind) for check in known)


def _mixed(kind: Any) -> ColumnType:
    return ColumnType("mixed", named=str(kind))
