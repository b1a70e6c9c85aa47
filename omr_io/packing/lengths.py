"""What a plan is made of: the lengths of all samples, in memory or mapped from files.

Legend: n samples, w samples of one window.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import DataError, Where
from omr_io.types import Int64Array

Column = NDArray[Any]
"""(n,) int32 or int64, one number a sample."""

Rows = slice | Int64Array
"""Which samples: from start to stop, or by their numbers."""

_CHUNK = 1 << 20  # rows that are looked at together: 8 MB a column


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """What is known of every sample before any pixel is decoded; all (n,) int32 or int64.

    Columns may be memory-mapped (`numpy.memmap`): then nothing is read when this is made, and a
    plan checks the rows of a window when it reads them.

    Attributes:
        text_tokens: tokens that are not image tokens.
        image_tokens: merged patches of all its images.
        label_tokens: tokens that carry a loss: the trained ones, less the sample's first token.
        patches: patches of all its images before merging; what the vision tower sees.

    Raises:
        DataError: shapes or dtypes are others, a length is negative, or a sample has no token.
    """

    text_tokens: Column
    image_tokens: Column
    label_tokens: Column
    patches: Column

    def __post_init__(self) -> None:
        if len({column.shape for column in self._columns}) != 1 or self.text_tokens.ndim != 1:
            raise DataError("the columns of Lengths must be one-dimensional and of one length")
        if any(column.dtype not in (np.int32, np.int64) for column in self._columns):
            raise DataError("the columns of Lengths must be int32 or int64")
        if not self.mapped:
            for rows in chunks(0, len(self)):
                self.check(rows)

    def __len__(self) -> int:
        return len(self.text_tokens)

    @property
    def _columns(self) -> tuple[Column, Column, Column, Column]:
        return (self.text_tokens, self.image_tokens, self.label_tokens, self.patches)

    @property
    def mapped(self) -> bool:
        """Whether a column is memory-mapped."""
        return any(isinstance(column, np.memmap) for column in self._columns)

    @property
    def tokens(self) -> Int64Array:
        """(n,) int64: what a sample takes of a pack, text and image tokens together."""
        return self.tokens_of(slice(None))

    def tokens_of(self, rows: Rows) -> Int64Array:
        """(w,) int64: the tokens of some samples; nothing else is read."""
        return np.add(self.text_tokens[rows], self.image_tokens[rows], dtype=np.int64)

    def check(self, rows: Rows) -> None:
        """Refuse some samples' lengths if they cannot be right.

        Raises:
            DataError: a length is negative, or a sample has no token; names the first sample.
        """
        for column in self._columns:
            chosen = column[rows]
            if len(chosen) and chosen.min() < 0:
                raise DataError("a length is negative", where=_where(chosen < 0, rows))
        empty = self.tokens_of(rows) < 1
        if empty.any():
            raise DataError("a sample has no token", where=_where(empty, rows))

    def release(self, rows: Rows) -> None:
        """Give back the memory that memory-mapped rows take; reading them again maps them again.

        Pages of mapped files count as a process's memory until the kernel needs them elsewhere, so
        a plan that has gone over all windows would seem to hold the whole index.
        """
        if isinstance(rows, slice) and hasattr(mmap, "MADV_DONTNEED"):
            for column in self._columns:
                # A copy-on-write mapping ("c") would lose what was written to it.
                if isinstance(column, np.memmap) and column.mode in ("r", "r+"):
                    _release(column[rows])

    def digest(self) -> str:
        """16 hex digits of SHA-256 over all columns as int64, little-endian.

        Equal lengths give equal plans; the columns' dtype does not count. Reads all columns once,
        a few megabytes at a time.
        """
        sha = hashlib.sha256()
        for column in self._columns:
            for rows in chunks(0, len(self)):
                sha.update(np.ascontiguousarray(column[rows], dtype="<i8").data)
        return sha.hexdigest()[:16]


def chunks(start: int, stop: int) -> Iterator[slice]:
    """Cut a range of rows into pieces that are looked at together."""
    for begin in range(start, stop, _CHUNK):
        yield slice(begin, min(begin + _CHUNK, stop))


def _release(mapped: NDArray[Any]) -> None:
    """Unmap the whole pages of a part of a memory-mapped file."""
    pages = getattr(mapped, "_mmap", None)
    if not isinstance(pages, mmap.mmap) or not mapped.flags.c_contiguous:
        return
    origin = np.frombuffer(pages, np.uint8).ctypes.data
    begin = -(-(mapped.ctypes.data - origin) // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.ctypes.data - origin + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        pages.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _where(wrong: NDArray[np.bool_], rows: Rows) -> Where:
    first = int(np.argmax(wrong))
    number = (rows.start or 0) + first if isinstance(rows, slice) else int(rows[first])
    return Where(row=number)
