"""Parquet → Record: the rows of a source, streamed and checked one by one.

Every row gives exactly one `Record` or one `Refusal`, in the order of the file. What makes a file
unreadable as a whole (a missing column, a wrong type, a corrupt row group) raises `SourceError`;
what is wrong with one row refuses that row (omr_io.corpus.rows lists the reasons).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from omr_io.corpus.columns import Columns, find_columns
from omr_io.corpus.raw import Span
from omr_io.corpus.rows import ReadOptions, take_row
from omr_io.corpus.sources import one_line, open_parquet
from omr_io.errors import SourceError, Where
from omr_io.types import Record, Refusal

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024
_CORRUPT = "The file is corrupt: fetch or write it again"


def read_parquet(
    path: str | Path, options: ReadOptions | None = None
) -> Iterator[tuple[int, Record | Refusal]]:
    """Read one Parquet file of OpenMedReason's schema, row by row.

    Memory is bounded by some 8 MiB of rows (or one row, if larger) and the current Parquet page of
    each column, a few times over, not by the file or its row groups. (Writers may make pages
    large: pyarrow puts at least 1024 values in one unless told otherwise.)

    Columns: image (struct<bytes, path>; or images: a list of them, may be empty), question, answer,
    reasoning (or reasoning_trace), and optionally id (string or integer) and all of perception,
    knowledge and rationale (lists of units, or JSON text); every other column goes to
    `Record.extra` as plain JSON values (dates, times and decimals as text; NaN and infinities as
    None). The answer becomes a bare letter; question and reasoning stay as they stand.

    Without an id column, row 17 of train-00000.parquet has the id "train-00000-00000017": the
    file name without its suffix, a hyphen, the row number from 0 in at least eight digits.

    Args:
        path: the file.
        options: see `ReadOptions`; None takes its defaults.

    Returns:
        An iterator of (row number from 0, Record or Refusal), one for each row, in order. The
        file and its schema are checked before this function returns; no file stays open until
        the iterator starts.

    Raises:
        SourceError: the file is missing, cut short or not Parquet; a column is missing or has a
            wrong type; or, while iterating, a row group cannot be read.
    """
    return read_groups(Path(path), options or ReadOptions(), None)


def read_groups(
    path: Path, options: ReadOptions, span: Span | None
) -> Iterator[tuple[int, Record | Refusal]]:
    """`read_parquet` for one row group, `span.place`, or for all of them."""
    _open(path, options)[0].close()
    return _rows(path, options, span)


def _open(path: Path, options: ReadOptions) -> tuple[Any, Columns]:
    """The opened ParquetFile and its columns, checked."""
    file = open_parquet(path)
    try:
        columns = find_columns(
            file.schema_arrow,
            source=str(path),
            omit=options.omit,
            need_reasoning=options.need_reasoning,
        )
    except UnicodeDecodeError as error:
        file.close()
        raise SourceError("a column's name is not UTF-8", where=Where(source=str(path))) from error
    except SourceError:
        file.close()
        raise
    return file, columns


def _rows(
    path: Path, options: ReadOptions, span: Span | None
) -> Iterator[tuple[int, Record | Refusal]]:
    # Opened only now: a caller may hold the iterators of thousands of files, checked, at once.
    file, columns = _open(path, options)
    names = list(columns.casts)
    row = 0 if span is None else span.first_row
    with file:
        groups = range(file.metadata.num_row_groups) if span is None else [span.place]
        for group in groups:
            for lists in _batches(path, file, group, columns, row):
                for values in zip(*lists, strict=True):
                    raw = dict(zip(names, values, strict=True))
                    yield row, take_row(path, row, raw, columns, options)
                    row += 1


def _batches(
    path: Path, file: Any, group: int, columns: Columns, start: int
) -> Iterator[list[list[object]]]:
    """The batches of one row group: for each column, its values, text still as bytes."""
    about = file.metadata.row_group(group)
    end, row = start + about.num_rows, start
    wanted = _BATCH_BYTES * about.num_rows // max(about.total_byte_size, 1)
    batch_rows = min(max(wanted, 1), _MAX_BATCH_ROWS)
    where = Where(source=str(path))
    which = f"row group {group} (rows {start} to {end - 1})"
    try:
        batches = file.iter_batches(
            batch_rows, row_groups=[group], columns=list(columns.casts), use_threads=False
        )
        for batch in batches:
            lists = [
                batch.column(name).cast(cast).to_pylist() for name, cast in columns.casts.items()
            ]
            yield lists
            row += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"{which} cannot be read from row {row} on: {one_line(error)}"
        raise SourceError(what, where=where, mend=_CORRUPT) from error
    if row != end:
        what = f"{which} holds {row - start} rows instead of {end - start}"
        raise SourceError(what, where=where, mend=_CORRUPT)
