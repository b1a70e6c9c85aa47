"""The files of a foreign set's index, written so that they are whole or absent.

manifest.json comes last. What a killed run left is written again, the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omr_io.errors import ConfigError
from omr_io.foreign_shards.keys_seen import KeysSeen
from omr_io.foreign_shards.locate import ForeignTars
from omr_io.foreign_shards.shard_rows import ShardRows, refuse_rows
from omr_io.foreign_shards.view import View
from omr_io.shards.idx import dali_index
from omr_io.shards.layout import (
    FORMAT,
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    REJECTS_NAME,
    REJECTS_SCHEMA,
    FileDigest,
    Foreign,
    Manifest,
    ShardEntry,
    reject_row,
)
from omr_io.storage import AtomicFile, fsync_folder, lock, write_atomically, writing
from omr_io.types import Refusal


class IndexWriter:
    """Takes shards in their order and writes index, DALI indexes, rejects and manifest.

    Args:
        folder: where to.
        tars: the shards.
        overwrite: replace what an earlier run wrote.

    Attributes:
        samples, images, bytes: so far; bytes are of the tars.

    Raises:
        ConfigError: the folder holds an index already, or files of these names that are not ours;
            or another process writes one there.
        DiskError: writing failed; from all methods.
    """

    def __init__(self, folder: Path, tars: ForeignTars, overwrite: bool) -> None:
        self.samples = self.images = self.bytes = 0
        self._folder, self._tars, self._overwrite = folder, tars, overwrite
        self._entries: list[ShardEntry] = []
        self._keys = KeysSeen()
        self._refused = 0
        self._unfinished: list[Path] = []
        self._replaces = False
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._claim()
            self._index_file = AtomicFile(folder / INDEX_NAME)
        except BaseException:
            os.close(self._lock)
            raise
        self._index = pa.ipc.new_file(self._index_file, INDEX_SCHEMA)
        self._rejects_file: AtomicFile | None = None
        self._rejects: pq.ParquetWriter | None = None

    def _claim(self) -> None:
        """Check that nobody else is at it, and that nothing of another origin is replaced."""
        if not lock(self._lock, self._folder):
            raise ConfigError(
                f"another `omr-io index` is writing into {self._folder}",
                mend="Wait until it has ended: one is enough, whatever the number of ranks",
            )
        manifest, index = self._folder / MANIFEST_NAME, self._folder / INDEX_NAME
        self._replaces = manifest.exists() or index.exists()
        if not self._replaces:
            return
        if manifest.exists():
            if not self._overwrite:
                raise ConfigError(
                    f"{self._folder} already holds a manifest.json",
                    mend="Pass --overwrite to index again, or choose another folder by -o",
                )
            head = manifest.read_bytes()
            if FORMAT.encode() not in head[:200] or b'"foreign": {' not in head:
                raise ConfigError(
                    f"{manifest} was not written by `omr-io index`, so it is not replaced",
                    mend="Choose another folder by -o",
                )
        elif not self._overwrite:
            self._check_left_behind(index)

    def _take_back(self) -> None:
        """The old manifest goes before anything changes that it tells of.

        Not earlier: a run that fails on the way leaves the old set as it was.
        """
        if not self._replaces:
            return
        with writing(self._folder):
            for name in (MANIFEST_NAME, REJECTS_NAME):
                (self._folder / name).unlink(missing_ok=True)
            fsync_folder(self._folder)

    def _check_left_behind(self, path: Path) -> None:
        """An index without a manifest is what a killed run left, or a file that is not ours."""
        try:
            with pa.memory_map(str(path)) as mapped:
                ours = pa.ipc.open_file(mapped).schema.equals(INDEX_SCHEMA)
        except (OSError, pa.ArrowException):
            ours = False
        if not ours:
            raise ConfigError(
                f"{path} is there and is no index of omr_io",
                mend="Pass --overwrite to replace it, or choose another folder by -o",
            )

    def take(self, rows: ShardRows) -> None:
        """Write what one shard gave; rows whose key came before become refusals."""
        number = len(self._entries)
        known = self._keys.add(rows.keys, number)
        if (known >= 0).any():
            details = [
                f"the key is in {self._tars.names[shard]} too; --qualify-keys sets them apart"
                if shard >= 0
                else ""
                for shard in known.tolist()
            ]
            refuse_rows(rows, (known >= 0).tolist(), "duplicate-key", details)
        for batch in rows.batches:
            shard = pa.array(np.full(batch.num_rows, number, np.int32))
            self._index.write_batch(batch.set_column(0, INDEX_SCHEMA.field("shard"), shard))
            self.images += pa.compute.sum(pa.compute.list_value_length(batch["images"])).as_py()
        self.samples += len(rows.keys)
        self.bytes += rows.bytes
        self._write_rejects(rows.refusals)
        idx = self._write_idx(rows.name, dali_index(rows.samples).encode())
        self._entries.append(ShardEntry(rows.name, rows.bytes, rows.sha256, len(rows.keys), idx))

    def _write_idx(self, shard: str, text: bytes) -> FileDigest:
        path = self._folder / idx_name(shard)
        digest = FileDigest(path.name, len(text), hashlib.sha256(text).hexdigest())
        if path.exists():
            with writing(path):
                if path.read_bytes() == text:
                    return digest
            if not self._overwrite:
                raise ConfigError(
                    f"{path} is there already, with other content",
                    mend="Pass --overwrite to replace it, or choose another folder by -o",
                )
            self._take_back()
        self._unfinished.append(path)
        write_atomically(path, text)
        return digest

    def _write_rejects(self, refusals: Sequence[Refusal]) -> None:
        if not refusals:
            return
        if self._rejects is None:
            self._rejects_file = AtomicFile(self._folder / REJECTS_NAME)
            self._rejects = pq.ParquetWriter(self._rejects_file, REJECTS_SCHEMA)
        rows = [reject_row(refusal) for refusal in refusals]
        self._rejects.write_table(pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA))
        self._refused += len(refusals)

    def finish(
        self,
        split: str,
        view: View,
        options: Mapping[str, object],
        refusals: Mapping[str, int],
        groups: int,
    ) -> Manifest:
        """Complete the set."""
        self._index.close()
        self._take_back()
        self._index_file.commit()
        if self._rejects is not None and self._rejects_file is not None:
            self._rejects.close()
            self._rejects_file.commit()
        together = not self._tars.is_remote and Path(self._tars.root) == self._folder.absolute()
        manifest = Manifest(
            split=split,
            shards=tuple(self._entries),
            index=_digest(self._index_file),
            rejects=None if self._rejects_file is None else _digest(self._rejects_file),
            sources=tuple(entry.name for entry in self._entries),
            source_fingerprint=_fingerprint(self._entries),
            options=dict(options),
            counts={
                "rows": groups,
                "samples": self.samples,
                "images": self.images,
                "refused": self._refused,
            },
            refusals=dict(sorted(refusals.items())),
            foreign=Foreign("" if together else self._tars.root, view.to_json()),
        )
        write_atomically(self._folder / MANIFEST_NAME, manifest.to_bytes())
        self._unfinished = []
        return manifest

    def close(self) -> None:
        """Remove what is not complete; nothing after `finish`."""
        self._index_file.close()
        if self._rejects is not None and self._rejects_file is not None:
            if not self._rejects_file.closed:
                self._rejects.close()  # now: it would write when it is collected
            self._rejects_file.close()
        for path in self._unfinished:
            with suppress(OSError):
                path.unlink()
        self._unfinished = []
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def idx_name(shard: str) -> str:
    """The name of a shard's DALI index; folders become part of it."""
    return shard.removesuffix(".tar").replace("%", "%25").replace("/", "%2F") + ".idx"


def _digest(file: AtomicFile) -> FileDigest:
    return FileDigest(file.path.name, file.num_bytes, file.sha256())


def _fingerprint(entries: Sequence[ShardEntry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.bytes}\0{entry.sha256}\n".encode())
    return digest.hexdigest()[:16]
