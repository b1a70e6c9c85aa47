"""A shard set checked against itself, byte by byte: every problem is named, not only the first."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from omr_io.errors import ConfigError, OmrError, Where
from omr_io.index import ShardSet, open_index, shard_storage
from omr_io.shards.layout import FileDigest, Manifest, read_manifest
from omr_io.shards.shard_check import Problem, ShardCheck, read_and_compare
from omr_io.storage import LocalStorage

__all__ = ["Problem", "VerifyReport", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `verify`: what was read, and every problem found."""

    folder: Path
    shards: int
    samples: int
    images: int
    bytes: int
    decoded: bool
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    folder: str | Path,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> VerifyReport:
    """Read every byte of a shard set and check it all.

    Checked: the hash and size of every file; each tar's headers and trailer; that tar, index.arrow
    and .idx agree on every name, offset and size; every part's CRC-32C; that each JSON has a
    sample's fields and fits its key and index row; that each image's header and hash are those in
    the index; counts; keys that appear twice; tars in the folder that are no part of the set. Where
    a tar's hash is not the manifest's, headers, padding and trailer are compared byte by byte with
    what was written, so that damage is named with shard, key, part and offset wherever it lies.

    Args:
        folder: the shard set.
        decode: decode every image too.
        progress: called with (bytes read, bytes of all shards) after each shard.
        threads: shards that are checked at once; None: one a core. The order of the problems does
            not depend on it.

    Raises:
        SourceError: the folder is no shard set, or of an unknown version.
        IntegrityError: the manifest itself is broken, so that nothing can be checked against it.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    problems = _other_files(root, manifest)
    shards = _open_index(root, manifest, problems)
    total, done = sum(shard.bytes for shard in manifest.shards), 0
    threads = threads or len(os.sched_getaffinity(0))
    try:
        for number, found in enumerate(_in_order(_checks(root, manifest, shards, decode), threads)):
            problems += found
            done += manifest.shards[number].bytes
            if progress is not None:
                progress(done, total)
    finally:
        if shards is not None:
            shards.close()
    counts = manifest.counts
    return VerifyReport(
        root, len(manifest.shards), counts["samples"], counts["images"], total, decode,
        tuple(problems),
    )  # fmt: skip


def _checks(
    root: Path, manifest: Manifest, shards: ShardSet | None, decode: bool
) -> Iterator[ShardCheck]:
    repeated = {} if shards is None else _repeated_keys(shards)
    tars, first = _tars(root, manifest), 0
    for entry in manifest.shards:
        rows = range(first, first + entry.samples)
        yield ShardCheck(root, tars, entry, shards, rows, repeated, decode)
        first = rows.stop


def _tars(root: Path, manifest: Manifest) -> Path:
    """The folder of the tars.

    Raises:
        ConfigError: they are remote.
    """
    storage = shard_storage(root, manifest)
    if not isinstance(storage, LocalStorage):
        raise ConfigError(
            "the set's shards are remote, and every byte of them would have to be fetched",
            mend="Copy them, run `omr-io index` on the copies, and verify those",
        )
    return storage.folder


def _in_order(checks: Iterator[ShardCheck], threads: int) -> Iterator[list[Problem]]:
    """Run checks on threads, a bounded number ahead, and give what they find in their order."""
    waiting: deque[Future[list[Problem]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="omr-io-verify") as pool:
        try:
            for check in checks:
                waiting.append(pool.submit(check.run))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _other_files(root: Path, manifest: Manifest) -> list[Problem]:
    """index.arrow, rejects.parquet, and what does not belong here."""
    problems: list[Problem] = []
    if manifest.rejects is not None and _as_written(root, manifest.rejects, problems):
        rows = pq.read_metadata(root / manifest.rejects.name).num_rows
        if rows != manifest.counts["refused"]:
            what = f"{rows} rows, the manifest counts {manifest.counts['refused']} refusals"
            problems.append(Problem(what, Where(source=manifest.rejects.name)))
    known = {file.name for file in manifest.files()}
    for path in sorted(root.glob("*.tar")):
        if path.name not in known and manifest.foreign is None:
            # A reader that takes train-*.tar would train on it.
            problems.append(Problem("this tar is not part of the set", Where(shard=path.name)))
    return problems


def _as_written(root: Path, file: FileDigest, problems: list[Problem]) -> bool:
    state, found = read_and_compare(root / file.name, file, Where(source=file.name))
    problems += found
    return state == "as written"


def _open_index(root: Path, manifest: Manifest, problems: list[Problem]) -> ShardSet | None:
    """The index, or None if it is broken: then tars are checked on their own."""
    if not _as_written(root, manifest.index, problems):
        return None
    try:
        return open_index(root, manifest)
    except OmrError as error:
        problems.append(Problem(error.what, error.where or Where(source=manifest.index.name)))
        return None


def _repeated_keys(shards: ShardSet) -> dict[int, str]:
    """Sample → the shard that has its key before; hashes keep this small for any number of keys."""
    digests = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(shards.key(i).encode(), digest_size=8).digest(), "big")
            for i in range(len(shards))
        ),
        np.uint64,
        len(shards),
    )
    order = np.argsort(digests, kind="stable")
    equal = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    first: dict[str, int] = {}
    repeated = {}
    for i in sorted({*order[equal].tolist(), *order[equal + 1].tolist()}):
        key = shards.key(i)
        if key in first:  # two keys may share a digest
            repeated[i] = shards.shard(first[key])
        first.setdefault(key, i)
    return repeated
