"""Records → a shard set: tars, DALI indexes, index.arrow, manifest.json (`layout` has each).

Every row becomes a sample or a named `Refusal`; nothing is lost in between. A corpus is cut into
pieces (`plan`), each is converted on its own (`piece`) into a hidden folder (`staging`), by workers
(`workers`), machines (`part`) or Ray (`ray_adapter`); when all are there they become one set
(`merging`), which is named at the very end (`publishing`). Killed anywhere, the same command goes
on, and the bytes are those of a run that was not killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from omr_io.conversion.merging import publish, refuse_duplicates, require_samples
from omr_io.conversion.options import ConvertOptions
from omr_io.conversion.piece import Job, Runner, Task, write_piece
from omr_io.conversion.piece_record import PieceRecord, Tally
from omr_io.conversion.plan import ConversionPlan, option_differences, plan_conversion
from omr_io.conversion.progress import ConvertProgress, Progress, check_rejects
from omr_io.conversion.publishing import Publication
from omr_io.conversion.staging import (
    Staging,
    check_target,
    claim,
    clean_complete,
    remove_staging,
    unfinished,
)
from omr_io.conversion.summary import ConvertSummary
from omr_io.conversion.workers import Cores
from omr_io.corpus.pieces import Corpus, Piece, open_corpus
from omr_io.errors import ConfigError, OmrError
from omr_io.shards.layout import MANIFEST_NAME, Manifest, read_manifest
from omr_io.types import Record, Refusal


def convert(
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    options: ConvertOptions | None = None,
    progress: Callable[[ConvertProgress], None] | None = None,
    *,
    part: tuple[int, int] | None = None,
    merge: bool = False,
    dry_run: bool = False,
    runner: Runner | None = None,
) -> ConvertSummary:
    """Convert a corpus into one shard set.

    Args:
        sources: files, folders or glob patterns; all of one split.
        out: a folder that is new or empty, or left by a run of the same conversion that was
            stopped: then this one goes on. A set that is complete and the same is left as it is.
        options: see `ConvertOptions`.
        progress: called a few times a second.
        part: (i, n) makes only every n-th piece, from the i-th on; i counts from 1. Machines that
            share `out` can each make a part, at the same time or not. `merge` ends it.
        merge: end what parts have made; convert nothing but duplicates.
        dry_run: read and check all, write nothing (but notes in the system's temporary folder),
            and tell what would be written.
        runner: converts the pieces; None uses this machine's cores.

    Raises:
        SourceError: a source cannot be read.
        ConfigError: `out` is taken, holds another unfinished conversion, or lacks pieces to merge.
        DataError: not one row became a sample, or more were refused than `max_rejects`.
        DiskError: writing failed; running again goes on.
    """
    start = time.monotonic()
    options = options or ConvertOptions()
    _check_mode(options, part, merge, dry_run)
    out = Path(out)
    corpus = open_corpus(sources, options.read)
    plan, pieces = plan_conversion(corpus, options)
    run = runner or Cores(options.workers or len(os.sched_getaffinity(0)), options.threads)
    conversion = _Conversion(corpus, plan, pieces, options, run, progress, start)
    manifest = _complete(out, plan, options)
    if manifest is not None:
        if not dry_run:
            clean_complete(out)
        return ConvertSummary.of_manifest(out, manifest, start, "already complete", len(pieces))
    if dry_run:
        return conversion.dry(out)
    if part is not None:
        return conversion.part(out, *part)
    return conversion.whole(out, merge=merge)


@dataclass(frozen=True, slots=True)
class _Conversion:
    corpus: Corpus
    plan: ConversionPlan
    pieces: tuple[Piece, ...]
    options: ConvertOptions
    run: Runner
    progress: Callable[[ConvertProgress], None] | None
    start: float

    def whole(self, out: Path, *, merge: bool) -> ConvertSummary:
        if merge and unfinished(out) is None:
            raise ConfigError(
                f"{out} holds nothing to merge", mend="Run the parts first, or leave --merge out"
            )
        with claim(out, self.plan, overwrite=self.options.overwrite and not merge) as staging:
            staging.sweep()
            publication = Publication.read(staging.folder)
            if publication is not None:  # an earlier run was stopped while it named the files
                publication.run(staging.folder, out)
                remove_staging(out)
                return ConvertSummary.of_manifest(
                    out, read_manifest(out), self.start, "converted", len(self.pieces)
                )
            job = Job(self.options, staging.pieces, self.plan.digest, self.corpus)
            if merge:
                _require_all(job, staging, self.pieces)
            kept = self._make(job, staging, self.pieces)
            records = self._finish(job, staging)
        return ConvertSummary.of_pieces(
            out, records, self.start, "converted", len(self.pieces), kept
        )

    def _finish(self, job: Job, staging: Staging) -> list[PieceRecord]:
        records = self._refuse_duplicates(job, staging)
        if not any(record.tally.samples for record in records):
            remove_staging(staging.out)  # there is nothing in it to go on with
        self._check(records)
        publish(job, staging, records)
        remove_staging(staging.out)
        return records

    def part(self, out: Path, which: int, parts: int) -> ConvertSummary:
        pieces = self.pieces[which - 1 :: parts]
        with claim(out, self.plan, overwrite=False, shared=True) as staging:
            if Publication.read(staging.folder) is not None:
                raise ConfigError(
                    f"all pieces in {out} are there, and it is being merged",
                    mend="Run with --merge to end it",
                )
            staging.note_parts(parts)
            staging.sweep(piece.number for piece in pieces)
            job = Job(self.options, staging.pieces, self.plan.digest, self.corpus)
            kept = self._make(job, staging, pieces)
            records = _records(job, pieces)
        return ConvertSummary.of_pieces(out, records, self.start, "part done", len(pieces), kept)

    def dry(self, out: Path) -> ConvertSummary:
        import tempfile  # 3 ms to import

        check_target(out, self.plan, overwrite=self.options.overwrite)
        with tempfile.TemporaryDirectory(prefix="omr-io-dry-run-") as notes:
            job = Job(self.options, Path(notes), self.plan.digest, self.corpus, dry=True)
            self._make(job, None, self.pieces)
            records = self._refuse_duplicates(job, None)
            self._check(records)
            return ConvertSummary.of_pieces(
                out, records, self.start, "dry run", len(self.pieces), 0
            )

    def _make(self, job: Job, staging: Staging | None, pieces: Sequence[Piece]) -> int:
        """Convert the pieces that are not there yet; how many were."""
        known = [job.record(piece.number) for piece in pieces]
        kept = [record for record in known if record is not None]
        missing = [piece for piece, record in zip(pieces, known, strict=True) if record is None]
        total = sum(piece.num_rows for piece in pieces)
        progress = Progress(self.progress, total, self.options.max_rejects, self.corpus.num_rows)
        progress.keep(record.tally for record in kept)
        with _swept(job, staging):
            self.run(job, (Task(piece) for piece in missing), len(missing), progress.tell)
        return len(kept)

    def _refuse_duplicates(self, job: Job, staging: Staging | None) -> list[PieceRecord]:
        records = _records(job, self.pieces)
        check_rejects(
            Tally.total(record.tally for record in records),
            self.options.max_rejects, self.corpus.num_rows,
        )  # fmt: skip
        progress = Progress(self.progress, None, None, None, "merge")
        with _swept(job, staging):
            return refuse_duplicates(job, records, self.pieces, self.run, progress.tell)

    def _check(self, records: Sequence[PieceRecord]) -> None:
        total = Tally.total(record.tally for record in records)
        check_rejects(total, self.options.max_rejects, self.corpus.num_rows)
        require_samples(total)


def write_shard_set(
    rows: Iterable[tuple[int, Record | Refusal]],
    out: Path,
    options: ConvertOptions,
    progress: Callable[[ConvertProgress], None] | None = None,
    *,
    sources: Sequence[str] = (),
    fingerprint: str = "",
    total_rows: int | None = None,
) -> ConvertSummary:
    """Write rows from anywhere into a shard set, as one piece in this process.

    A run that was stopped starts afresh: whether the rows are the same cannot be told.

    Args:
        rows: (row number, record or refusal) in the order to be written. `Record.source` is
            "FILE#ROW".
        out, options: as in `convert`; `options.read` is not used.
        progress: called after each row.
        sources, fingerprint: of the source, for the manifest.
        total_rows: for `progress`.

    Raises:
        ConfigError, DataError, DiskError: as `convert`.
    """
    start = time.monotonic()
    plan = ConversionPlan(
        tuple(sources), fingerprint, options.recorded(), 1, "rows", resumable=False
    )
    threads = options.threads or options.workers or len(os.sched_getaffinity(0))
    counts = Progress(progress, total_rows, options.max_rejects, total_rows)
    with claim(out, plan, overwrite=options.overwrite) as staging:
        staging.sweep()
        job = Job(options, staging.pieces, plan.digest)
        record = write_piece(job, rows, 0, {}, threads, counts.tell, tell_seconds=0)
        if not record.tally.samples:
            remove_staging(out)
        check_rejects(record.tally, options.max_rejects, record.tally.rows)
        require_samples(record.tally)
        publish(job, staging, [record])
        remove_staging(out)
    return ConvertSummary.of_pieces(out, [record], start, "converted", 1, 0)


def _check_mode(
    options: ConvertOptions, part: tuple[int, int] | None, merge: bool, dry_run: bool
) -> None:
    if (part is not None) + merge + dry_run > 1:
        raise ConfigError(
            "part, merge and dry_run exclude each other", mend="Run one after the other"
        )
    if part is not None:
        which, parts = part
        if which == 0:
            raise ConfigError(
                "part 0: parts count from 1", mend=f"Use 1/{parts} to {parts}/{parts}"
            )
        if not 1 <= which <= parts:
            raise ConfigError(f"there is no part {which} of {parts}", mend="Use i/n, i from 1 to n")
        if options.overwrite:
            raise ConfigError(
                "overwrite with a part would let each part throw away what others have made",
                mend="Remove the folder before the first part",
            )


def _complete(out: Path, plan: ConversionPlan, options: ConvertOptions) -> Manifest | None:
    """The manifest of the set in a folder if it is what this conversion would make.

    Raises:
        ConfigError: it is complete, differs, and is not to be overwritten.
    """
    if options.overwrite or unfinished(out) is not None or not (out / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(out)
    if plan.describes(manifest):
        return manifest
    found = option_differences(manifest.options, plan.options)
    if manifest.source_fingerprint != plan.source_fingerprint or not found:
        found.insert(0, "other sources")
    raise ConfigError(
        f"{out} already holds a complete shard set, of {'; '.join(found)}",
        mend="Choose another folder, or pass --overwrite to replace it",
    )


def _require_all(job: Job, staging: Staging, pieces: Sequence[Piece]) -> None:
    missing = [piece.number for piece in pieces if job.record(piece.number) is None]
    if not missing:
        return
    shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    parts = [
        f"{which}/{parts}"
        for parts in staging.noted_parts()
        for which in sorted({number % parts + 1 for number in missing})
    ]
    named = ", ".join(parts[:20]) + (", ..." if len(parts) > 20 else "")
    raise ConfigError(
        f"{len(missing)} of {len(pieces)} pieces are not there: {shown}",
        mend=f"Run --part {named}" if parts else "Run the parts that make them",
    )


@contextmanager
def _swept(job: Job, staging: Staging | None) -> Iterator[None]:
    """Remove what workers that were stopped in the block have left: they are killed at work."""
    try:
        yield
    except BaseException:
        if staging is not None:
            with suppress(OmrError):
                staging.sweep_run(job.run)
        raise


def _records(job: Job, pieces: Sequence[Piece]) -> list[PieceRecord]:
    records = [job.record(piece.number) for piece in pieces]
    return [record for record in records if record is not None]
