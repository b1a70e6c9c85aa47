"""A piece being written: shards, index rows, keys, refusals and, last, its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from omr_io import _C
from omr_io.conversion.columns import Columns
from omr_io.conversion.piece_record import (
    EXAMPLES,
    KEYS_NAME,
    KEYS_SCHEMA,
    PIECE_REJECTS_NAME,
    RECORD_NAME,
    Holder,
    PieceRecord,
    Tally,
    first_of_each,
    key_digest,
)
from omr_io.conversion.prepare import Prepared, refuse
from omr_io.shards.layout import (
    INDEX_NAME,
    INDEX_SCHEMA,
    REJECTS_SCHEMA,
    FileDigest,
    Part,
    reject_row,
)
from omr_io.shards.tar_writer import PlainRun, ShardWriter
from omr_io.storage import AtomicFile, write_atomically
from omr_io.types import Refusal

_BATCH_ROWS = 4096  # of one record batch


class PieceWriter:
    """Takes the rows of a piece in order, refuses duplicates, counts everything.

    Memory: some 300 bytes a sample (its key, id and source, to find duplicates within the piece).

    Args:
        folder: a new folder that the caller commits as a whole.
        split: names the shards.
        max_shard_bytes, max_shard_samples: limits of a shard.
        taken: keys that samples of earlier pieces have.
        dry: write no shards and no index.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        max_shard_bytes: int,
        max_shard_samples: int,
        taken: Mapping[str, Holder],
        *,
        dry: bool = False,
    ) -> None:
        self._folder = folder
        self._taken = taken
        self._first: dict[str, int] = {}  # key -> place of its sample in the two lists
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._rows = self._samples = self._images = self._num_bytes = 0
        self._refusals: Counter[str] = Counter()
        self._examples: list[Refusal] = []
        limits = (max_shard_bytes, max_shard_samples)
        self._shards = ShardWriter(folder, split, *limits, dry=dry)
        self._index = None if dry else _RowFile(folder / INDEX_NAME, INDEX_SCHEMA)
        self._keys = _RowFile(folder / KEYS_NAME, KEYS_SCHEMA)
        self._rejects = _RowFile(folder / PIECE_REJECTS_NAME, REJECTS_SCHEMA)

    def take(self, row: int, item: Prepared | Refusal) -> None:
        """Write a sample, or note why there is none.

        Raises:
            DiskError: writing failed.
        """
        self._rows += 1
        if isinstance(item, Prepared):
            refusal = self._duplicate(row, item)
            if refusal is None:
                self._write(item)
                return
            item = refusal
        self._refusals[item.reason] += 1
        if self._refusals[item.reason] <= EXAMPLES:
            self._examples.append(item)
        self._rejects.add(reject_row(item).values())

    def take_plain(self, batch: _C.PlainBatch, first: int, last: int) -> bool:
        """Write the samples of rows, all of them plain.

        Args:
            batch: the rows; first to last of them are written.

        Returns:
            False, and nothing was done, if a key of them is taken: then `take` each.

        Raises:
            DiskError: writing failed.
        """
        keys, ids, sources = batch.names(first, last)
        places = dict(zip(keys, count(len(self._ids)), strict=False))
        is_new = len(places) == len(keys) and self._first.keys().isdisjoint(keys)
        if not is_new or any(key in self._taken for key in keys):
            return False
        self._first.update(places)
        self._ids += ids
        self._sources += sources
        self._rows += last - first
        self._samples += last - first
        self._images += last - first
        digests = np.array([key_digest(key) for key in keys], np.uint64)
        start = first
        while first < last:
            stop = min(last, first + self._keys.room)
            run = self._shards.add_plain(batch, first, stop)
            stop = run.last
            about = batch.columns(first, stop)
            self._num_bytes += int(about["sizes"].sum())
            if self._index is not None:
                self._index.extend(stop - first, _index_columns(about, stop - first, run))
            own = digests[first - start : stop - start]
            self._keys.extend(stop - first, (own, about["keys"], about["ids"], about["sources"]))
            first = stop
        return True

    def _duplicate(self, row: int, item: Prepared) -> Refusal | None:
        record = item.record
        holder = self._taken.get(item.key)
        if holder is None:
            place = self._first.setdefault(item.key, len(self._ids))
            if place == len(self._ids):
                self._ids.append(record.id)
                self._sources.append(record.source)
                return None
            holder = Holder(self._ids[place], self._sources[place])
        if holder.id == record.id:
            return refuse(row, record, "duplicate-id", f"the id is that of {holder.source}")
        detail = f"the key {item.key} is that of {holder.source} with id {holder.id!r}"
        return refuse(row, record, "duplicate-key", detail)

    def _write(self, item: Prepared) -> None:
        shard, parts = self._shards.add(item.key, item.members)
        if self._index is not None:
            self._index.add(_index_row(shard, parts, item))
        record = item.record
        self._keys.add((key_digest(item.key), item.key, record.id, record.source))
        self._samples += 1
        self._images += len(item.infos)
        for part in parts:
            self._num_bytes += part.size

    def tally(self) -> Tally:
        """The counts so far."""
        return Tally(
            self._rows, self._samples, self._images, self._num_bytes,
            dict(sorted(self._refusals.items())), first_of_each(self._examples),
        )  # fmt: skip

    def finish(self, plan: str, number: int) -> PieceRecord:
        """Complete every file, the record last; its arguments are the record's.

        Raises:
            DiskError: writing failed.
        """
        shards = self._shards.finish()
        arrow = [file for file in (self._index, self._keys, self._rejects) if file is not None]
        files = tuple(file.finish() for file in arrow)
        record = PieceRecord(plan, number, self.tally(), shards, files, len(self._taken))
        write_atomically(self._folder / RECORD_NAME, record.to_bytes(), in_new_folder=True)
        return record

    def close(self) -> None:
        """Remove what is not complete; nothing after `finish`."""
        self._shards.close()
        for file in (self._index, self._keys, self._rejects):
            if file is not None:
                file.close()


class _RowFile:
    """An Arrow IPC file, written a batch of rows at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = AtomicFile(path, in_new_folder=True)
        self._writer = pa.ipc.new_file(self._file, schema)
        self._rows = Columns(schema)

    @property
    def room(self) -> int:
        """Rows until the batch is full; `extend` takes no more."""
        return _BATCH_ROWS - self._rows.num_rows

    def add(self, row: Iterable[Any]) -> None:
        """Add the values of a row, in the schema's order."""
        self._rows.add(row)
        self._flush_if_full()

    def extend(self, count: int, columns: Sequence[Any]) -> None:
        """Add rows as `Columns.extend`, at most `room` of them."""
        assert count <= self.room
        self._rows.extend(count, columns)
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        if self._rows.num_rows >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(self._rows.batch())
        self._rows.clear()

    def finish(self) -> FileDigest:
        if self._rows.num_rows:
            self._flush()
        self._writer.close()
        self._file.commit()
        return FileDigest(self._file.path.name, self._file.num_bytes, self._file.sha256())

    def close(self) -> None:
        self._file.close()


def _index_row(shard: int, parts: Sequence[Part], item: Prepared) -> tuple[Any, ...]:
    """The values of `INDEX_SCHEMA`, in its order."""
    record = item.record
    return (
        shard,
        item.key,
        parts,
        tuple(
            [
                (info.width, info.height, info.format, info.mode, info.orientation, digest)
                for info, digest in zip(item.infos, item.hashes, strict=True)
            ]
        ),
        len(record.question.encode()),
        len(record.reasoning.encode()),
        len(record.options),
        # Letters only: a free-text answer (no options) is in the JSON.
        record.answer if record.options else "",
    )


def _index_columns(about: Mapping[str, Any], samples: int, run: PlainRun) -> tuple[Any, ...]:
    """What `_index_row` gives, by columns: see `Columns.extend`."""
    parts = (about["names"], about["places"] + run.offset, about["sizes"], about["crcs"])
    images = (
        about["widths"], about["heights"], about["formats"], about["modes"],
        np.ones(samples, np.int8), run.hashes,
    )  # fmt: skip
    return (
        np.full(samples, run.shard, np.int32),
        about["keys"],
        ([2] * samples, parts),
        ([1] * samples, images),
        about["question_bytes"],
        about["reasoning_bytes"],
        about["num_options"],
        about["answers"],
    )
