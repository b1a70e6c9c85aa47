"""One source file, read from its first row to its last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omr_io.corpus.pieces import CorpusFile, images_of, open_file
from omr_io.corpus.raw import ImageRoot
from omr_io.corpus.rows import ReadOptions
from omr_io.types import Record, Refusal


def read_source(
    path: str | Path, options: ReadOptions | None = None
) -> Iterator[tuple[int, Record | Refusal]]:
    """Read one source file of any known format and schema, row by row.

    Every row gives exactly one `Record` or one `Refusal`, in the order of the file. What makes a
    file unreadable as a whole (a missing column, a wrong type, a corrupt row group) raises
    `SourceError`; what is wrong with one row refuses that row (omr_io.corpus.schemas and
    omr_io.corpus.raw list the reasons). Memory is bounded: see `ParquetFile` and its like in
    omr_io.corpus.formats.

    Without an id column, row 17 of train-00000.parquet has the id "train-00000-00000017": the
    file name without its suffix, a hyphen, the row number from 0 in at least eight digits.

    Args:
        path: the file, or a URL.
        options: see `ReadOptions`; None takes its defaults.

    Returns:
        An iterator of (row number from 0, Record or Refusal), one for each row, in order. The
        file and its schema are checked before this function returns; no file stays open until
        the iterator starts.

    Raises:
        SourceError: the file is missing, cut short, of no known format or schema; or, while
            iterating, a part of it cannot be read.
    """
    options = options or ReadOptions()
    return _rows(open_file(path, options), images_of(options))


def _rows(item: CorpusFile, images: ImageRoot | None) -> Iterator[tuple[int, Record | Refusal]]:
    for span in item.file.spans():
        yield from item.read(span, images)
