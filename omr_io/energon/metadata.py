"""`.nv-meta` and the tar indexes, as `energon prepare` 7.4.1 makes them.

Energon wants beside each shard NAME.tar.idx (the offset of each sample, and of the end, as 64-bit
little-endian integers), and in `.nv-meta`: .info.json (samples a shard), split.yaml, dataset.yaml,
index.sqlite (where each part lies) and index.uuid. All of it follows from our index, so that no
shard is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import struct
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import ConfigError, DataError, DiskError, IntegrityError, Where
from omr_io.index import ShardSet
from omr_io.shards.layout import ENERGON_FOLDER, Part
from omr_io.storage import fsync_folder, write_atomically, writing

MADE_AS = "7.4.1"
"""The version of Energon whose layout this is."""

_UNFINISHED = ".nv-meta.tmp"
_OLD = ".nv-meta.old"
_BLOCK = 512
_SPLITS = {"validation": "val", "valid": "val", "dev": "val"}
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and the rest, as Energon cuts them

_TABLES = (
    "CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, "
    "sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER)",
    "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, "
    "content_byte_offset INTEGER, content_byte_size INTEGER)",
)
_INDEXES = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON "
    "sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, "
    "content_byte_offset, content_byte_size)",
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EnergonSummary:
    """What was written: the metadata's folder, its split's name there, and the set's size."""

    folder: Path
    split: str
    shards: int
    samples: int


def write_energon_metadata(
    folder: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> EnergonSummary:
    """Write what Megatron Energon needs to read a shard set, beside its shards.

    `dataset.yaml` reads samples as InterleavedSample (images, question, reasoning) by a
    sample_loader.py that lies there too; `crude.yaml` gives them as they are, to one's own cookers.
    The bytes are a pure function of the set (and of SQLite's version). `.nv-meta` appears whole or
    not at all.

    Args:
        folder: a shard set on a local disk.
        overwrite: replace an .nv-meta that is there.
        progress: called with samples done and samples in all.

    Raises:
        ConfigError: there is an .nv-meta already, or the shards are not in the folder.
        SourceError, IntegrityError: it is no sound shard set.
        DataError: a part has a name that Energon does not take.
        DiskError: writing failed.
    """
    root = Path(folder)
    final, unfinished, old = root / ENERGON_FOLDER, root / _UNFINISHED, root / _OLD
    with ShardSet.open(root) as shards:
        if final.exists() and not overwrite:
            raise ConfigError(f"{final} is there already", mend="Pass --overwrite to replace it")
        for name in shards.shard_names:
            if not (root / name).is_file():
                raise ConfigError(f"{name} is not in {root}", mend="Copy the shards there first")
        split = _SPLITS.get(shards.manifest.split, shards.manifest.split)
        with writing(unfinished):
            _remove(unfinished, old)
            unfinished.mkdir()
        try:
            _write_indexes(root, shards, unfinished / "index.sqlite", progress)
            for name, text in _texts(shards, split).items():
                write_atomically(unfinished / name, text.encode())
            with writing(final):
                if final.exists():
                    final.rename(old)
                unfinished.rename(final)
                fsync_folder(root)
                _remove(old)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            if old.exists() and not final.exists():
                old.rename(final)
            raise
        return EnergonSummary(final, split, len(shards.shard_names), len(shards))


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _texts(shards: ShardSet, split: str) -> dict[str, str]:
    """The small files; the YAML ones hold JSON strings, so that any name is taken."""
    counts = {entry.name: entry.samples for entry in shards.manifest.shards}
    info = {"energon_version": MADE_AS, "shard_counts": counts}
    lines = ["split_parts:"]
    for name in dict.fromkeys((split, "train", "val", "test")):
        lines.append(f"  {json.dumps(name)}:" + ("" if name == split and counts else " []"))
        if name == split:
            lines += [f"  - {json.dumps(shard)}" for shard in counts]
    lines.append("exclude: []")
    loader = Path(__file__).with_name("sample_loader.py").read_text(encoding="utf-8")
    return {
        "index.uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"omr_io:{shards.fingerprint}")),
        "split.yaml": "\n".join(lines) + "\n",
        "dataset.yaml": (
            "sample_type:\n"
            "  __module__: megatron.energon\n"
            "  __class__: InterleavedSample\n"
            "decoder: null\n"
            "sample_loader: sample_loader.py:sample_loader\n"
            "part_filter: sample_loader.py:part_filter\n"
        ),
        "crude.yaml": "__module__: megatron.energon\n__class__: CrudeWebdataset\n",
        "sample_loader.py": loader.replace("# ruff: noqa: INP001\n", ""),
        ".info.json": json.dumps(info, indent=2),
    }


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    begin: int  # of its first header in the shard
    parts: list[tuple[str, int, int]]  # the rest of the name, offset and size of the data


def _write_indexes(root: Path, shards: ShardSet, path: Path, progress: Progress | None) -> None:
    """NAME.tar.idx of every shard, and index.sqlite."""
    ends = shards.sample_shards.searchsorted(range(1, len(shards.shard_names) + 1)).tolist()
    begin = 0
    with _database(path) as database:
        for number, (name, end) in enumerate(zip(shards.shard_names, ends, strict=True)):
            samples, last = _samples(root, shards, name, begin, end)
            starts = [sample.begin for sample in samples]
            stops = [*starts[1:], last]
            database.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                [
                    (number, sample.key, i, sample.begin, stop - sample.begin)
                    for i, (sample, stop) in enumerate(zip(samples, stops, strict=True))
                ],
            )
            database.executemany(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                [(number, i, *part) for i, sample in enumerate(samples) for part in sample.parts],
            )
            offsets = struct.pack(f"<{len(starts) + 1}Q", *starts, last)
            write_atomically((root / name).with_suffix(".tar.idx"), offsets)
            begin = end
            if progress is not None:
                progress(end, len(shards))
        for statement in _INDEXES:
            database.execute(statement)


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database; without locks and journal, since nobody else knows of it yet."""
    try:
        address = f"{path.resolve().as_uri()}?nolock=1"
        with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as database:
            database.execute("PRAGMA page_size = 4096")
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")  # the file is flushed at the end
            database.execute("BEGIN")
            for statement in _TABLES:
                database.execute(statement)
            yield database
            database.execute("COMMIT")
        with writing(path), path.open("rb") as file:
            os.fsync(file.fileno())
    except sqlite3.IntegrityError as error:
        mend = "Energon needs keys that are unique in the whole set"
        raise DataError(f"a key comes twice: {error}", mend=mend) from error
    except sqlite3.OperationalError as error:
        raise DiskError(f"writing {path} failed: {error}", mend="Is there space left?") from error


def _samples(
    root: Path, shards: ShardSet, name: str, begin: int, end: int
) -> tuple[list[_Sample], int]:
    """The samples of a shard as Energon sees them, and where the last one ends.

    In our own shards one header of a block stands before each part and nothing between the parts.
    Shards by others may have longer headers and other members; then their headers are read.
    """
    samples: list[_Sample] = []
    headers: dict[int, int] | None = None
    at = 0
    for i in range(begin, end):
        parts = sorted(shards.parts(i), key=lambda part: part.offset)
        if headers is None and parts[0].offset != at + _BLOCK:
            headers = _headers(root / name)
        first = parts[0].offset - _BLOCK if headers is None else headers.get(parts[0].offset)
        if first is None:
            where = Where(shard=name, key=shards.key(i), part=parts[0].name)
            raise IntegrityError("the index names a part that the shard does not have", where=where)
        keys, cut = _cut(shards, name, i, parts)
        samples.append(_Sample(keys, first, cut))
        at = parts[-1].offset + -(-parts[-1].size // _BLOCK) * _BLOCK
    return samples, at


def _headers(path: Path) -> dict[int, int]:
    """Where the header of each file begins, by where its data does."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {member.offset_data: member.offset for member in tar if member.isreg()}
    except (OSError, tarfile.TarError) as error:
        where = Where(shard=path.name)
        raise IntegrityError(f"the tar cannot be read: {error}", where=where) from error


def _cut(
    shards: ShardSet, name: str, i: int, parts: list[Part]
) -> tuple[str, list[tuple[str, int, int]]]:
    """The key that Energon finds in the parts' names, and the parts by the rest of their names."""
    key, cut = "", []
    for part in parts:
        found = _NAME.fullmatch(part.name)
        if found is None or (key and found[1] != key):
            where = Where(shard=name, key=shards.key(i), part=part.name)
            what = "Energon would not take this name for a part of the sample"
            raise DataError(what, where=where, mend="Convert the set anew: its keys fit then")
        key = found[1]
        cut.append((found[2], part.offset, part.size))
    return key, cut
