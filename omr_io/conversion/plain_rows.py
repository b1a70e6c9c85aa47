"""Rows as most of OpenMedReason are, a batch at a time in C++ (csrc/plain_rows.hpp).

Some 4 us a row instead of 60. What such a row becomes is defined by the schema, by `prepare` and by
`PieceWriter.take`; C++ takes a row only where it can say the same, and leaves the others to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from omr_io import _C
from omr_io.conversion.prepare import ImageChecks
from omr_io.corpus.formats.parquet_pages import PageBatch
from omr_io.corpus.pieces import CorpusFile, RowBatch
from omr_io.corpus.schemas.bound import PlainColumns, id_prefix
from omr_io.images.sizes import MAX_ASPECT

_Column = tuple[Any, Any, Any, int, int]
"""Validity or None, offsets, data or None, first row, bytes of an offset: as `_C` takes it."""

_Given = _Column | _C.PageColumn
_Columns = tuple[_Given, _Given, _Given, _Given, _Given | None, _Given | None]
"""Images' bytes and paths, questions, answers, traces, ids."""


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Finds plain rows in the batches of one file."""

    _columns: PlainColumns
    _checks: ImageChecks
    _file_name: str

    @classmethod
    def of(cls, source: CorpusFile, checks: ImageChecks) -> PlainRows | None:
        """For a file, or None if none of its rows can be plain, or images are to be decoded."""
        columns = source.plain_columns()
        if columns is None or checks.decode or checks.transcode is not None:
            return None
        try:
            source.file.name.encode()
        except UnicodeEncodeError:
            return None
        return cls(columns, checks, source.file.name)

    def find(self, batch: RowBatch, into: _C.PlainBatch | None = None) -> _C.PlainBatch | None:
        """The plain rows of a batch; None if its columns are of other types than usual.

        Args:
            batch: the rows.
            into: what was found before and is not needed any more; its memory is used again.
        """
        names, table = self._columns, batch.columns
        columns = _in_pages(table, names) if isinstance(table, PageBatch) else _in(table, names)
        if columns is None:
            return None
        return _C.plain_rows(
            *columns,
            count=table.num_rows,
            file_name=self._file_name,
            id_prefix=id_prefix(self._file_name),
            first_row=batch.first_row,
            max_image_bytes=self._checks.max_bytes,
            max_pixels=self._checks.max_pixels,
            max_aspect=MAX_ASPECT,
            check_trace=names.refuse_mismatch,
            into=into,
        )


def _in_pages(table: PageBatch, names: PlainColumns) -> _Columns | None:
    data = table.field(names.image, "bytes", is_text=False)
    path = table.field(names.image, "path", is_text=True)
    question, answer = table.texts(names.question), table.texts(names.answer)
    if data is None or path is None or question is None or answer is None:
        return None
    reasoning = sample_id = None
    if names.reasoning is not None and (reasoning := table.texts(names.reasoning)) is None:
        return None
    if names.id is not None and (sample_id := table.texts(names.id)) is None:
        return None
    return data, path, question, answer, reasoning, sample_id


def _in(table: pa.RecordBatch, names: PlainColumns) -> _Columns | None:
    image = table.column(names.image)
    if not pa.types.is_struct(image.type):
        return None
    parts = dict(zip([field.name for field in image.type], image.flatten(), strict=True))
    data, path = _bytes_column(parts["bytes"]), _text_column(parts["path"])
    question, answer = (_text_column(table.column(n)) for n in (names.question, names.answer))
    if data is None or path is None or question is None or answer is None:
        return None
    reasoning = sample_id = None
    if names.reasoning is not None:
        reasoning = _text_column(table.column(names.reasoning))
        if reasoning is None:
            return None
    if names.id is not None:
        sample_id = _text_column(table.column(names.id))
        if sample_id is None:
            return None
    return data, path, question, answer, reasoning, sample_id


def _bytes_column(array: Any) -> _Column | None:
    types = pa.types
    if types.is_large_binary(array.type):
        return _laid_out(array, 8)
    return _laid_out(array, 4) if types.is_binary(array.type) else None


def _text_column(array: Any) -> _Column | None:
    types = pa.types
    if types.is_large_string(array.type):
        return _laid_out(array, 8)
    return _laid_out(array, 4) if types.is_string(array.type) else None


def _laid_out(array: Any, width: int) -> _Column:
    valid, offsets, data = array.buffers()
    return valid if array.null_count else None, offsets, data, array.offset, width
