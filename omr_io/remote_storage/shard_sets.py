"""A shard set behind a URL: its manifest, its index, and the storage of its shards."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from contextlib import closing, suppress

import pyarrow as pa

from omr_io.errors import ConfigError, IntegrityError, OmrWarning, SourceError, Where
from omr_io.remote.urls import is_url, redact
from omr_io.remote_storage.block_cache import BlockCache
from omr_io.remote_storage.fetcher import KnownFile
from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.origins import join
from omr_io.remote_storage.storage import RemoteStorage
from omr_io.shards.layout import (
    INDEX_SCHEMA,
    MANIFEST_NAME,
    FileDigest,
    Manifest,
    parse_manifest,
)

_GIVE = "Give the URL of the folder that `omr-io convert` or `omr-io index` wrote, all of it copied"
_MAX_MANIFEST = 1 << 30
_WHOLE = -1  # in a key of the cache: the file, not one of its blocks
_POLL = 0.05  # seconds
_PATIENCE = 600.0  # seconds: who fetches it is then as good as dead


def known_files(manifest: Manifest) -> dict[str, KnownFile]:
    """Size and SHA-256 of each of a set's files."""
    return {file.name: (file.bytes, file.sha256) for file in manifest.files()}


def open_remote(
    url: str, options: RemoteOptions | None = None
) -> tuple[Manifest, pa.Table, RemoteStorage, str]:
    """Manifest, index and shards of a set behind a URL, and the URL (of the Hub: at its commit).

    Raises:
        SourceError: there is no shard set, no access, or a format version that is not known.
        IntegrityError: manifest or index are not what was written.
        ConfigError: a package is missing; or the manifest names tars of another machine.
    """
    first = RemoteStorage(url, options=options)
    root = first.root
    source = redact(join(root, MANIFEST_NAME))
    failure: SourceError | None = None
    with closing(first):
        try:
            size = first.size(MANIFEST_NAME)
            if size > _MAX_MANIFEST:
                raise SourceError(f"{size} bytes are no manifest", where=Where(source=source))
            data = bytes(first.fetcher().fetch(MANIFEST_NAME, 0, size)) if size else b""
        except SourceError as error:
            failure = error
    if failure is not None:
        what = f"the set's manifest cannot be had: {failure.what}"
        mend = f"{failure.mend}. {_GIVE}" if failure.mend else _GIVE
        raise SourceError(what, where=Where(source=source), mend=mend)
    manifest = parse_manifest(data, source)
    storage = RemoteStorage(root, known_files(manifest), options, first.stats())
    table = _read_index(storage, manifest.index)
    foreign = "" if manifest.foreign is None else manifest.foreign.root
    if foreign and not is_url(foreign):
        storage.close()
        raise ConfigError(
            f"the set's tars are in the folder {foreign} of the machine that indexed them",
            where=Where(source=source),
            mend="Copy index and manifest to where that folder is, and open them there",
        )
    if foreign:
        storage.close()
        storage = RemoteStorage(foreign, known_files(manifest), options, storage.stats())
    return manifest, table, storage, root


def _read_index(storage: RemoteStorage, index: FileDigest) -> pa.Table:
    """The index, mapped from the cache, or held in memory where there is none."""
    where = Where(source=redact(join(storage.root, index.name)))
    mend = "Copy the set there again, all of it"
    buffer = _cached(storage, index)
    if buffer is None:
        buffer = pa.py_buffer(b"".join(storage.pieces(index.name)))
        if not _matches(buffer, index):
            raise IntegrityError("the index is not what was written", where=where, mend=mend)
    try:
        table = pa.ipc.open_file(pa.BufferReader(buffer)).read_all()
    except pa.ArrowException as error:
        raise IntegrityError(f"the index cannot be read: {error}", where=where) from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise IntegrityError("the index has another schema", where=where, mend=mend)
    return table


def _cached(storage: RemoteStorage, index: FileDigest) -> pa.Buffer | None:
    """The index in the cache, put there if need be; None where it cannot be."""
    fetcher = storage.fetcher()
    cache = fetcher.cache
    if cache is None:
        return None
    key = fetcher.key(index.name, _WHOLE)
    end = time.monotonic() + _PATIENCE
    try:
        while (buffer := _mapped(cache, key, index)) is None and time.monotonic() < end:
            claim = cache.claim(key)
            if claim is None:  # another process fetches it; should that one die, the claim is free
                time.sleep(_POLL)
                continue
            try:
                # It may be there just now; if not, None means that there is no room for it.
                if cache.has(key) or not claim.commit(storage.pieces(index.name), index.bytes):
                    return _mapped(cache, key, index)
            finally:
                claim.release()
            return _mapped(cache, key, index)  # None: not the manifest's, see `_read_index`
    except OSError as error:
        warnings.warn(
            f"the index cannot be kept in the cache, and is held in memory: {error}. Give "
            "RemoteOptions a folder that can be read and written, or cache=None",
            OmrWarning,
            stacklevel=5,
        )
        return None
    return buffer


def _mapped(cache: BlockCache, key: str, index: FileDigest) -> pa.Buffer | None:
    """An entry's body, mapped; it stays so when the entry is removed.

    None if there is no such entry, or none that is sound: that one is removed.

    Raises:
        OSError: it is there and cannot be read: another user's, say.
    """
    path = cache.path(key)
    try:
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer(index.bytes)
    except FileNotFoundError:
        return None
    if not _matches(buffer, index):
        cache.discard(key)
        return None
    with suppress(OSError):
        os.utime(path)
    return buffer


def _matches(buffer: pa.Buffer, index: FileDigest) -> bool:
    return (
        buffer.size == index.bytes
        and hashlib.sha256(memoryview(buffer)).hexdigest() == index.sha256
    )
