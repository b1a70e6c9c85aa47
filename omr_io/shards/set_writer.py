"""A shard set being written: shards, index, rejects and, last, the manifest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omr_io.errors import DataError
from omr_io.shards.layout import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    REJECTS_NAME,
    FileDigest,
    Manifest,
    Part,
)
from omr_io.shards.prepare import Prepared, refuse
from omr_io.shards.tar_writer import ShardWriter
from omr_io.storage import AtomicFile, write_atomically
from omr_io.types import Refusal

_INDEX_ROWS = 4096  # of one record batch

_REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.utf8()), ("row", pa.int64()), ("id", pa.utf8()), ("reason", pa.utf8()),
        ("detail", pa.utf8()),
    ]
)  # fmt: skip


class SetWriter:
    """A shard set being written: takes rows in order, refuses duplicates, counts everything.

    Args:
        folder: claimed by the caller.
        split: names the shards.
        max_shard_bytes, max_shard_samples: limits of a shard.

    Attributes:
        rows, samples, images: rows taken; samples and images written.
        num_bytes: of images and text written.
        refusals: every row that was not written.
    """

    def __init__(
        self, folder: Path, split: str, max_shard_bytes: int, max_shard_samples: int
    ) -> None:
        self.rows = self.samples = self.images = self.num_bytes = 0
        self.refusals: list[Refusal] = []
        self._folder = folder
        self._split = split
        self._first: dict[str, tuple[str, str]] = {}  # key -> (id, source) that has it
        self._shards = ShardWriter(folder, split, max_shard_bytes, max_shard_samples)
        self._index_file = AtomicFile(folder / INDEX_NAME)
        self._index = pa.ipc.new_file(self._index_file, INDEX_SCHEMA)
        self._pending: list[dict[str, Any]] = []

    def take(self, row: int, item: Prepared | Refusal) -> None:
        """Write a sample, or note why there is none.

        Raises:
            DiskError: writing failed.
        """
        self.rows += 1
        if isinstance(item, Prepared):
            refusal = self._duplicate(row, item)
            if refusal is None:
                self._write(item)
                return
            item = refusal
        self.refusals.append(item)

    def _duplicate(self, row: int, item: Prepared) -> Refusal | None:
        record = item.record
        if item.key not in self._first:
            self._first[item.key] = (record.id, record.source)
            return None
        known_id, source = self._first[item.key]
        if known_id == record.id:
            return refuse(row, record, "duplicate-id", f"the id is that of {source}")
        detail = f"the key {item.key} is that of {source} with id {known_id!r}"
        return refuse(row, record, "duplicate-key", detail)

    def _write(self, item: Prepared) -> None:
        shard, parts = self._shards.add(item.key, item.members)
        self._pending.append(_index_row(shard, parts, item))
        self.samples += 1
        self.images += len(item.infos)
        self.num_bytes += sum(part.size for part in parts)
        if len(self._pending) >= _INDEX_ROWS:
            self._flush_index()

    def _flush_index(self) -> None:
        self._index.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=INDEX_SCHEMA))
        self._pending = []

    def finish(
        self, sources: Sequence[str], source_fingerprint: str, options: Mapping[str, object]
    ) -> Manifest:
        """Complete the set.

        Raises:
            DataError: no sample was written.
            DiskError: writing failed.
        """
        if not self.samples:
            raise DataError(_nothing_left(self.rows, self.refusals))
        shards = self._shards.finish()
        if self._pending:
            self._flush_index()
        self._index.close()
        self._index_file.commit()
        by_reason = Counter(refusal.reason for refusal in self.refusals)
        manifest = Manifest(
            split=self._split,
            shards=shards,
            index=_digest_of(self._index_file),
            rejects=self._write_rejects(),
            sources=tuple(sources),
            source_fingerprint=source_fingerprint,
            options=dict(options),
            counts={
                "rows": self.rows,
                "samples": self.samples,
                "images": self.images,
                "refused": len(self.refusals),
            },
            refusals=dict(sorted(by_reason.items())),
        )
        write_atomically(self._folder / MANIFEST_NAME, manifest.to_bytes())
        return manifest

    def _write_rejects(self) -> FileDigest | None:
        if not self.refusals:
            return None
        rows = [_reject_row(refusal) for refusal in self.refusals]
        with AtomicFile(self._folder / REJECTS_NAME) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=_REJECTS_SCHEMA), file)
            file.commit()
        return _digest_of(file)

    def close(self) -> None:
        """Remove what is not complete; nothing after `finish`."""
        self._shards.close()
        self._index_file.close()


def _index_row(shard: int, parts: Sequence[Part], item: Prepared) -> dict[str, Any]:
    record = item.record
    images = [
        {**dataclasses.asdict(info), "sha256": digest}
        for info, digest in zip(item.infos, item.hashes, strict=True)
    ]
    return {
        "shard": shard,
        "key": item.key,
        "parts": [dataclasses.asdict(part) for part in parts],
        "images": images,
        "question_bytes": len(record.question.encode()),
        "reasoning_bytes": len(record.reasoning.encode()),
        "num_options": len(record.options),
        "answer": record.answer if record.options else "",  # letters only
    }


def _reject_row(refusal: Refusal) -> dict[str, Any]:
    # What is wrong with a row may be that its text is not Unicode.
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value
        for name, value in dataclasses.asdict(refusal).items()
    }


def _digest_of(file: AtomicFile) -> FileDigest:
    return FileDigest(file.path.name, file.num_bytes, file.sha256())


def first_of_each(refusals: Iterable[Refusal], count: int) -> tuple[Refusal, ...]:
    """The first `count` refusals of each reason, sorted by reason, rows in their order."""
    taken: Counter[str] = Counter()
    first = []
    for refusal in refusals:
        taken[refusal.reason] += 1
        if taken[refusal.reason] <= count:
            first.append(refusal)
    return tuple(sorted(first, key=lambda refusal: refusal.reason))  # stable: rows keep order


def _nothing_left(rows: int, refusals: Sequence[Refusal]) -> str:
    if not rows:
        return "the source has no rows"
    examples = "; ".join(
        f"{item.source} row {item.row}: {item.reason}, {item.detail}"
        for item in first_of_each(refusals, 1)
    )
    return f"not one of {rows} rows became a sample. First of each reason: {examples}"
