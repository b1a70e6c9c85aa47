"""All pieces are there → one shard set: duplicates refused, shards numbered, the index joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omr_io.conversion.columns import array_of, integers
from omr_io.conversion.duplicates import TakenSpool, find_taken, read_batches
from omr_io.conversion.piece import Job, Runner, Task, Tell
from omr_io.conversion.piece_record import (
    PIECE_REJECTS_NAME,
    PieceRecord,
    Tally,
    first_of_each,
)
from omr_io.conversion.publishing import Publication
from omr_io.conversion.staging import PIECES_NAME, Staging
from omr_io.corpus.pieces import Piece
from omr_io.errors import DataError, IntegrityError
from omr_io.shards.layout import (
    ENERGON_FOLDER,
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    REJECTS_NAME,
    REJECTS_SCHEMA,
    FileDigest,
    Manifest,
    ShardEntry,
    read_manifest,
)
from omr_io.shards.tar_writer import shard_name
from omr_io.storage import AtomicFile, write_atomically

_INDEX_ROWS = 4096  # of a record batch, at least
_REJECT_ROWS = 65_536  # of a row group, at least


def refuse_duplicates(
    job: Job, records: Sequence[PieceRecord], pieces: Sequence[Piece], run: Runner, tell: Tell
) -> list[PieceRecord]:
    """Make pieces again that have keys of earlier ones; all records, in order.

    Args:
        job, pieces: of the whole conversion.
        records: of all pieces, in order.
        run, tell: as in `omr_io.conversion.piece`.
    """
    spool = TakenSpool(job.pieces)
    # All are found before one is made again: finding reads the pieces as they are.
    numbers = spool.fill(find_taken(job.folder, records))
    if not numbers:
        return list(records)
    run(job, (Task(pieces[number], taken) for number, taken in spool), len(numbers), tell)
    spool.remove()
    again = {number: _present(job, number) for number in numbers}
    return [again.get(record.number, record) for record in records]


def _present(job: Job, number: int) -> PieceRecord:
    record = job.record(number)
    if record is None:
        raise IntegrityError(
            f"{job.folder(number)} was written and is not there", mend="Run again to go on"
        )
    return record


def publish(job: Job, staging: Staging, records: Sequence[PieceRecord]) -> Manifest:
    """Join the pieces and give everything its final name.

    Raises:
        DataError: there is no sample.
        DiskError: writing failed; running again goes on.
    """
    total = Tally.total(record.tally for record in records)
    folder, split = staging.folder, job.options.split
    shards: list[ShardEntry] = []
    moves: list[tuple[str, str]] = []
    for record in records:
        for shard in record.shards:
            entry = _renamed(shard, shard_name(split, len(shards)))
            place = f"{PIECES_NAME}/{job.folder(record.number).name}"
            moves.append((f"{place}/{shard.name}", entry.name))
            moves.append((f"{place}/{shard.idx.name}", entry.idx.name))
            shards.append(entry)
    index = _write_index(job, folder / INDEX_NAME, records)
    rejects = _write_rejects(job, folder / REJECTS_NAME, records) if total.refused else None
    joined = [index, *([] if rejects is None else [rejects])]
    moves += [(file.name, file.name) for file in joined]
    manifest = Manifest(
        split=split,
        shards=tuple(shards),
        index=index,
        rejects=rejects,
        sources=staging.plan.sources,
        source_fingerprint=staging.plan.source_fingerprint,
        options=dict(staging.plan.options),
        counts={
            "rows": total.rows, "samples": total.samples, "images": total.images,
            "refused": total.refused,
        },
        refusals=dict(total.refusals),
        schemas=staging.plan.schemas,
    )  # fmt: skip
    write_atomically(folder / MANIFEST_NAME, manifest.to_bytes())
    publication = Publication(tuple(moves), _old_files(staging.out))
    publication.begin(folder, staging.out)
    publication.run(folder, staging.out)
    return manifest


def require_samples(total: Tally) -> None:
    """Raise DataError if no row became a sample."""
    if total.samples:
        return
    if not total.rows:
        raise DataError("the source has no rows")
    examples = "; ".join(
        f"{item.source} row {item.row}: {item.reason}, {item.detail}"
        for item in first_of_each(total.examples, 1)
    )
    counts = ", ".join(f"{reason} {count}" for reason, count in total.refusals.items())
    raise DataError(
        f"not one of {total.rows} rows became a sample: {counts}. First of each reason: {examples}"
    )


def _old_files(out: Path) -> tuple[str, ...]:
    """Files of the complete set that is replaced, and what Energon reads its shards by."""
    if not (out / MANIFEST_NAME).exists():
        return ()
    manifest = read_manifest(out)
    offsets = [f"{shard.name}.idx" for shard in manifest.shards]
    # A folder in there is not Energon's, and stays.
    described = sorted(path for path in (out / ENERGON_FOLDER).glob("*") if not path.is_dir())
    energon = [name for name in offsets if (out / name).exists()]
    energon += [f"{ENERGON_FOLDER}/{path.name}" for path in described]
    return (*(file.name for file in manifest.files()), *energon)


def _renamed(shard: ShardEntry, name: str) -> ShardEntry:
    idx = FileDigest(f"{name.removesuffix('.tar')}.idx", shard.idx.bytes, shard.idx.sha256)
    return ShardEntry(name, shard.bytes, shard.sha256, shard.samples, idx)


def _write_index(job: Job, path: Path, records: Sequence[PieceRecord]) -> FileDigest:
    def batches() -> Iterator[pa.RecordBatch]:
        first = 0  # number of the piece's first shard
        for record in records:
            for batch in read_batches(job.folder(record.number) / INDEX_NAME):
                columns = list(batch.columns)
                columns[0] = array_of((integers(columns[0]) + first).tolist(), pa.int32())
                yield pa.RecordBatch.from_arrays(columns, schema=INDEX_SCHEMA)
            first += len(record.shards)

    with AtomicFile(path) as file:
        with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
            for table in _joined(batches(), _INDEX_ROWS):
                writer.write_table(table)
        file.commit()
    return FileDigest(path.name, file.num_bytes, file.sha256())


def _write_rejects(job: Job, path: Path, records: Sequence[PieceRecord]) -> FileDigest:
    batches = (
        batch
        for record in records
        if record.tally.refusals
        for batch in read_batches(job.folder(record.number) / PIECE_REJECTS_NAME)
    )
    with AtomicFile(path) as file:
        with pq.ParquetWriter(file, REJECTS_SCHEMA) as writer:
            for table in _joined(batches, _REJECT_ROWS):
                writer.write_table(table, row_group_size=table.num_rows)
        file.commit()
    return FileDigest(path.name, file.num_bytes, file.sha256())


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Small batches joined, as a table of one, until they have so many rows; nothing is cut."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count >= rows:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()
