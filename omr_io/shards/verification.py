"""A shard set checked against itself, byte by byte: every problem is named, not only the first."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from omr_io.errors import ConfigError, IntegrityError, OmrError, SourceError, Where
from omr_io.index import ShardSet, open_index, shard_storage
from omr_io.remote.urls import is_url, redact
from omr_io.remote_storage import RemoteOptions, RemoteStorage
from omr_io.sample_set import in_turn
from omr_io.shards.layout import FileDigest, Manifest, read_manifest
from omr_io.shards.shard_check import Problem, ShardCheck, read_and_compare
from omr_io.storage import LocalStorage

__all__ = ["Problem", "VerifyReport", "verify"]

_MISSING = "there is no such "  # what `omr_io.remote` says of a file or object that is not there


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `verify`: what was read, and every problem found.

    Attributes:
        folder: the set's, or its URL without secrets.
        shards, samples, images, bytes: of the set; bytes of all tars.
        decoded: whether every image was decoded.
        problems: in the order of the shards.
    """

    folder: Path | str
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
    remote: RemoteOptions | None = None,
) -> VerifyReport:
    """Read every byte of a shard set and check it all.

    Checked: the hash and size of every file; each tar's headers and trailer; that tar, index.arrow
    and .idx agree on every name, offset and size; every part's CRC-32C; that each JSON has a
    sample's fields and fits its key and index row; that each image's header and hash are those in
    the index; counts; keys that appear twice; tars in the folder that are no part of the set. Where
    a tar's hash is not the manifest's, headers, padding and trailer are compared byte by byte with
    what was written, so that damage is named with shard, key, part and offset wherever it lies.

    A set behind a URL is fetched once, past the cache, and every file compared with the manifest by
    size and SHA-256, which says all of that: the same bytes are the set that was written. Of a
    shard that differs the parts are then read one by one, and damaged ones named.

    Args:
        folder: the shard set: a folder or a URL.
        decode: decode every image too.
        progress: called with (bytes read, bytes of all shards) after each shard.
        threads: shards that are checked at once; None: one a core. The order of the problems does
            not depend on it.
        remote: how what a URL names is read.

    Raises:
        SourceError: the folder is no shard set, or of an unknown version; or a network fails.
        ConfigError: images behind a URL shall be decoded; or the set's tars are elsewhere.
        IntegrityError: the manifest itself is broken, so that nothing can be checked against it.
    """
    if isinstance(folder, str) and is_url(folder):
        return _verify_remote(folder, decode, progress, remote)
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


def _verify_remote(
    url: str,
    decode: bool,
    progress: Callable[[int, int], None] | None,
    remote: RemoteOptions | None,
) -> VerifyReport:
    """Every file by its hash; see `verify`."""
    if decode:
        raise ConfigError(
            "images behind a URL are not decoded",
            mend="Leave out --decode, or copy the set here and verify the copy",
        )
    # Nothing is read twice, so nothing is kept; and what a cache holds is not what is there.
    options = dataclasses.replace(remote or RemoteOptions(), cache=None)
    with ShardSet.open(url, options) as shards:
        manifest, storage = shards.manifest, RemoteStorage(url, options=options)
        if manifest.foreign is not None:
            raise ConfigError(
                "another program wrote the set's tars, elsewhere",
                mend="Copy them, run `omr-io index` on the copies, and verify those",
            )
        with closing(storage):
            problems, first, done = [], 0, 0
            total = sum(shard.bytes for shard in manifest.shards)
            for file in (manifest.index, manifest.rejects):
                if file is not None:
                    problems += _fetched(storage, file, Where(source=file.name))
            for entry in manifest.shards:
                problems += _fetched(storage, entry.idx, Where(source=entry.idx.name))
                tar = FileDigest(entry.name, entry.bytes, entry.sha256)
                found = _fetched(storage, tar, Where(shard=entry.name))
                problems += found
                rows = range(first, first + entry.samples)
                if found:
                    problems += _damaged(shards, rows)
                first, done = rows.stop, done + entry.bytes
                if progress is not None:
                    progress(done, total)
    counts = manifest.counts
    return VerifyReport(
        redact(url), len(manifest.shards), counts["samples"], counts["images"], total, False,
        tuple(problems),
    )  # fmt: skip


def _fetched(storage: RemoteStorage, file: FileDigest, where: Where) -> list[Problem]:
    """What is wrong with a file: all of it is fetched."""
    try:
        size, digest = 0, hashlib.sha256()
        for piece in storage.pieces(file.name):
            digest.update(piece)
            size += len(piece)
    except SourceError as error:
        if not error.what.startswith(_MISSING):  # no access, no network: nothing can be said
            raise
        return [Problem(f"the file cannot be read: {error.what}", where)]
    if size != file.bytes:
        return [Problem(f"the file has {size} bytes, the manifest says {file.bytes}", where)]
    if digest.hexdigest() != file.sha256:
        return [Problem("the file's SHA-256 is not the manifest's", where)]
    return []


def _damaged(shards: ShardSet, rows: range) -> list[Problem]:
    """The samples whose parts are not what was written."""
    problems = []
    for i in in_turn(shards, rows, images=True):
        try:
            shards.read_record(i)
        except IntegrityError as error:
            problems.append(Problem(error.what, error.where or Where(shard=shards.shard(i))))
        except SourceError:
            return problems  # the shard is gone or cut, which is said already
    return problems


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
