"""Arrow arrays by their buffers: what pyarrow makes of the same rows, without importing pandas."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.conversion.columns import Columns, array_of, integers
from omr_io.conversion.piece_record import KEYS_SCHEMA
from omr_io.shards.layout import INDEX_SCHEMA, REJECTS_SCHEMA
from tests.conversion.small_corpora import mixed_corpus

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def values_of(kind: Any, nullable: bool = False) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_list(kind):
        return st.lists(values_of(kind.value_type), max_size=3)
    if types.is_struct(kind):
        return st.tuples(*(values_of(field.type) for field in kind))
    if types.is_string(kind):
        found: st.SearchStrategy[Any] = TEXT
    elif types.is_fixed_size_binary(kind):
        found = st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    else:
        about = np.iinfo(kind.to_pandas_dtype())
        found = st.integers(int(about.min), int(about.max))
    return found | st.none() if nullable else found


def rows_of(schema: pa.Schema) -> st.SearchStrategy[Any]:
    nullable = schema is not INDEX_SCHEMA
    row = st.tuples(*(values_of(field.type, nullable) for field in schema))
    return st.tuples(st.just(schema), st.lists(row, min_size=1, max_size=12))


def file_of(batch: pa.RecordBatch) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return file.getvalue()


@settings(deadline=None)
@given(st.sampled_from([INDEX_SCHEMA, KEYS_SCHEMA, REJECTS_SCHEMA]).flatmap(rows_of))
def test_a_batch_is_pyarrows_own_and_so_are_the_bytes_of_its_file(given_: Any) -> None:
    schema, rows = given_
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    expected = pa.RecordBatch.from_arrays(arrays, schema=schema)
    made = Columns(schema)
    made.add(rows[0])
    made.clear()
    for row in rows:
        made.add(row)
    assert made.num_rows == len(rows)
    found = made.batch()
    found.validate(full=True)
    assert found.equals(expected)
    assert file_of(found) == file_of(expected)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(OverflowError):
        array_of([1 << 31], pa.int32())
    with pytest.raises(TypeError):
        array_of([1.5], pa.float64())
    with pytest.raises(ValueError, match="zip"):
        Columns(KEYS_SCHEMA).add((1, "key"))
    with pytest.raises(UnicodeEncodeError):
        array_of(["\ud800"], pa.utf8())


def test_integers_come_back_from_a_slice() -> None:
    array = array_of(range(10), pa.uint64())
    assert integers(array).tolist() == list(range(10))
    assert integers(array[3:7]).tolist() == [3, 4, 5, 6]
    assert integers(array[:0]).tolist() == []
    assert integers(array).dtype == np.uint64


def test_a_conversion_imports_neither_pandas_nor_pillow(tmp_path: Path) -> None:
    corpus = mixed_corpus(tmp_path / "corpus")
    code = (
        "import sys; from omr_io.conversion import ConvertOptions, convert; "
        f"convert({str(corpus)!r}, {str(tmp_path / 'set')!r}, ConvertOptions(check='header')); "
        "print({'pandas', 'PIL', 'pyarrow.compute', 'simplejpeg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", done.stderr
