"""One piece of a corpus → its shards: the pure function that workers, parts and Ray tasks run.

The bytes depend on the piece, the options and the keys that earlier pieces have, on nothing else.
A converted piece is a folder that got its name in one step, when everything in it was on the
device; so it is whole or absent, whoever was killed, and may be made twice with no harm.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from omr_io import _C
from omr_io.conversion.lookahead import prepare_rows
from omr_io.conversion.options import ConvertOptions
from omr_io.conversion.piece_record import RECORD_NAME, Holder, PieceRecord, Tally
from omr_io.conversion.piece_writer import PieceWriter
from omr_io.conversion.plain_rows import PlainRows
from omr_io.conversion.prepare import ImageChecks
from omr_io.corpus.pieces import Corpus, Piece, RowBatch
from omr_io.storage import TEMPORARY_SUFFIX, commit_folder, writing
from omr_io.types import Record, Refusal

TELL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all pieces of a conversion; picklable.

    Attributes:
        options: how rows become shards.
        pieces: the folder that holds the converted pieces.
        plan: digest of the plan that they belong to.
        corpus: what pieces are read from; None for rows from elsewhere.
        dry: write no shards, only what it takes to count.
        run: tells this run's attempts from those of others.
    """

    options: ConvertOptions
    pieces: Path
    plan: str
    corpus: Corpus | None = None
    dry: bool = False
    run: str = field(default_factory=lambda: secrets.token_hex(6))

    def folder(self, number: int) -> Path:
        """Where a converted piece is."""
        return self.pieces / f"{number:06d}"

    def attempt(self, number: int) -> Path:
        """A name for an attempt at a piece, that no other attempt has."""
        name = f"{number:06d}-{self.run}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        return self.pieces / name

    def record(self, number: int) -> PieceRecord | None:
        """The record of a piece, or None if it is not there, or not whole, or of another plan."""
        folder = self.folder(number)
        try:
            record = PieceRecord.from_bytes((folder / RECORD_NAME).read_bytes())
            if record is None or (record.plan, record.number) != (self.plan, number):
                return None
            for file in record.all_files():
                if not self.dry and (folder / file.name).stat().st_size != file.bytes:
                    return None
        except OSError:
            return None
        return record


@dataclass(frozen=True, slots=True)
class Task:
    """A piece to convert; `taken` are the keys in it that samples of earlier pieces have."""

    piece: Piece
    taken: Mapping[str, Holder] = field(default_factory=dict)


Tell = Callable[[int, Tally, bool], None]
"""Called with (number of the piece, its counts so far, whether it is done)."""

Runner = Callable[[Job, Iterable[Task], int, Tell], None]
"""Converts tasks, so many of them, in any order; returns when all are done."""


def convert_piece(job: Job, task: Task, threads: int = 1, tell: Tell | None = None) -> PieceRecord:
    """Read a piece, prepare its rows, and write its folder.

    Args:
        job, task: what to convert.
        threads: that prepare rows.
        tell: called now and then, and not at the end.

    Raises:
        SourceError: the source cannot be read.
        DiskError: writing failed; nothing of this attempt is left.
    """
    corpus = job.corpus
    assert corpus is not None

    def fill(writer: PieceWriter, told: Callable[[], None]) -> None:
        checks = job.options.image_checks()
        plain = [PlainRows.of(source, checks) for source, _ in corpus.spans(task.piece)]
        if threads > 1 or not any(plain):
            _take(writer, corpus.read(task.piece), checks, threads, told)
            return
        found = None
        for finder, (source, span) in zip(plain, corpus.spans(task.piece), strict=True):
            if finder is None:
                _take(writer, source.read(span, corpus.images), checks, threads, told)
                continue
            for batch in source.batches(span, corpus.images):
                found = _take_batch(writer, batch, finder, checks, told, found)

    return _write(job, fill, task.piece.number, task.taken, tell, TELL_SECONDS)


def write_piece(
    job: Job,
    rows: Iterable[tuple[int, Record | Refusal]],
    number: int,
    taken: Mapping[str, Holder],
    threads: int,
    tell: Tell | None,
    tell_seconds: float = TELL_SECONDS,
) -> PieceRecord:
    """`convert_piece` for rows from anywhere."""

    def fill(writer: PieceWriter, told: Callable[[], None]) -> None:
        _take(writer, rows, job.options.image_checks(), threads, told)

    return _write(job, fill, number, taken, tell, tell_seconds)


def _take(
    writer: PieceWriter,
    rows: Iterable[tuple[int, Record | Refusal]],
    checks: ImageChecks,
    threads: int,
    told: Callable[[], None],
) -> None:
    for row, item in prepare_rows(rows, checks, threads):
        writer.take(row, item)
        told()


def _take_batch(
    writer: PieceWriter,
    batch: RowBatch,
    finder: PlainRows,
    checks: ImageChecks,
    told: Callable[[], None],
    spent: _C.PlainBatch | None,
) -> _C.PlainBatch | None:
    """The same by runs of rows; those that are not plain, and duplicates, go one by one.

    Args:
        spent: what the call before gave back, whose memory is used again.
    """
    found = finder.find(batch, spent)
    runs = [(0, batch.columns.num_rows, False)] if found is None else found.runs()
    for first, last, is_plain in runs:
        if is_plain and found is not None and writer.take_plain(found, first, last):
            told()
        else:
            _take(writer, batch.read(first, last), checks, 1, told)
    return found


def _write(
    job: Job,
    fill: Callable[[PieceWriter, Callable[[], None]], None],
    number: int,
    taken: Mapping[str, Holder],
    tell: Tell | None,
    tell_seconds: float,
) -> PieceRecord:
    """Write a piece's folder; `fill` gives its rows to the writer, and calls back now and then."""
    options = job.options
    folder = job.attempt(number)
    limits = (options.max_shard_bytes, options.max_shard_samples)
    try:
        with writing(folder):
            folder.mkdir()
        due = time.monotonic() + tell_seconds
        with closing(PieceWriter(folder, options.split, *limits, taken, dry=job.dry)) as writer:

            def told() -> None:
                nonlocal due
                if tell is not None and time.monotonic() >= due:
                    tell(number, writer.tally(), False)
                    due = time.monotonic() + tell_seconds

            fill(writer, told)
            record = writer.finish(job.plan, number)
        return _commit(job, folder, record)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise


def _commit(job: Job, folder: Path, record: PieceRecord) -> PieceRecord:
    """Give the folder its name; one that stands there already is replaced if it is not as good."""
    final = job.folder(record.number)
    while not commit_folder(folder, final):
        known = job.record(record.number)
        if known is not None and known.taken >= record.taken:
            with writing(folder):
                shutil.rmtree(folder)  # another run of the same part was first
            return known
        old = job.attempt(record.number)
        with writing(final), suppress(FileNotFoundError):
            final.rename(old)
        with writing(old), suppress(FileNotFoundError):
            shutil.rmtree(old)
    return record
