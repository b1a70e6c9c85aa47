"""The storage of files under a URL: read ahead in the order told, kept in a local cache."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from omr_io.remote.hub import parse as parse_hub
from omr_io.remote.hub import pin
from omr_io.remote.urls import redact, scheme_of
from omr_io.remote_storage.fetcher import Fetcher, KnownFile
from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.origins import as_root
from omr_io.storage import StorageStats

_PIECE = 8 << 20


class RemoteStorage:
    """Files under a URL (hf://, s3://, gs://, http(s)://); see `omr_io.storage.Storage`.

    Safe to share between threads. Picklable: the URL goes along, secrets in it included. After a
    fork a child opens connections of its own; with s3:// and gs:// that is an error, since obstore
    does not outlive a fork.

    Args:
        url: the folder of the files. One of the Hub is pinned to the commit that it is at now.
        known: size and SHA-256 of files, from a manifest: what is found must have that size.
        options: see there.
        before: counts that go on.

    Raises:
        SourceError: the URL is none of these, or cannot be right.
        ConfigError: a package is missing.
    """

    def __init__(
        self,
        url: str,
        known: Mapping[str, KnownFile] | None = None,
        options: RemoteOptions | None = None,
        before: StorageStats | None = None,
    ) -> None:
        self.options = options or RemoteOptions()
        root = as_root(url)
        if scheme_of(root) == "hf":
            place = parse_hub(root)
            root = pin(place, self.options.retries).url.rstrip("/") + "/"
        self.root = root
        self._known = dict(known or {})
        self._before = before or StorageStats()
        # By process: a child must not take its parent's.
        self._fetchers: dict[int, tuple[Fetcher, weakref.finalize[..., RemoteStorage]]] = {}
        self._locks: dict[int, threading.Lock] = {}

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            IntegrityError: the file is shorter, or has not the size that the manifest says.
            SourceError: it cannot be had: a failing network stops a run, it is no bad sample.
        """
        return self.fetcher().read(name, offset, size) if size else b""

    def size(self, name: str) -> int:
        """The file's size in bytes; SourceError if it cannot be had."""
        return self.fetcher().stat(name).size

    def will_read(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """These (name, offset, size) will be read soon, in this order; returns at once."""
        if ranges:
            self.fetcher().will_read(ranges)

    def forget(self, name: str, offset: int, size: int) -> None:
        """Drop these bytes from memory and cache, where they were damaged: read them anew."""
        self.fetcher().forget(name, offset, offset + size)

    def stats(self) -> StorageStats:
        """Counts so far, in this process."""
        found = self._fetchers.get(os.getpid())
        return self._before if found is None else _added(self._before, found[0])

    def pieces(self, name: str) -> Iterator[memoryview]:
        """All of a file, 8 MiB at a time, several at once, past the cache."""
        fetcher = self.fetcher()
        size = fetcher.stat(name).size
        threads = self.options.threads
        with ThreadPoolExecutor(threads, thread_name_prefix="omr-io-fetch-file") as pool:
            waiting: deque[Future[memoryview]] = deque()
            try:
                for start in range(0, size, _PIECE):
                    if len(waiting) == threads:
                        yield waiting.popleft().result()
                    wanted = min(_PIECE, size - start)
                    waiting.append(pool.submit(fetcher.fetch, name, start, wanted))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End all transfers and connections; reading again begins anew."""
        with self._lock():
            found = self._fetchers.pop(os.getpid(), None)
        if found is not None:
            found[0].close()
            found[1].detach()
            self._before = _added(self._before, found[0])

    def fetcher(self) -> Fetcher:
        """This process's threads and connections."""
        pid = os.getpid()
        found = self._fetchers.get(pid)
        if found is None:
            with self._lock():
                found = self._fetchers.get(pid)
                if found is None:
                    if self._fetchers:  # the parent's, after a fork
                        self._fetchers, self._before = {}, StorageStats()
                    fetcher = Fetcher(self.root, self._known, self.options)
                    found = fetcher, weakref.finalize(self, fetcher.close)
                    self._fetchers[pid] = found
        return found[0]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # One a process: another thread of the parent may have held it. setdefault is atomic.
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            yield

    def __repr__(self) -> str:
        return f"<RemoteStorage {redact(self.root)}>"

    def __getstate__(self) -> tuple[str, dict[str, KnownFile], RemoteOptions]:
        return self.root, self._known, self.options

    def __setstate__(self, state: tuple[str, dict[str, KnownFile], RemoteOptions]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def _added(before: StorageStats, fetcher: Fetcher) -> StorageStats:
    traffic, cache = fetcher.traffic, fetcher.cache
    return StorageStats(
        fetched_bytes=before.fetched_bytes + traffic.received_bytes,
        requests=before.requests + traffic.requests,
        retries=before.retries + traffic.retries,
        cache_hits=before.cache_hits + fetcher.hits,
        cache_misses=before.cache_misses + fetcher.misses,
        cache_bytes=0 if cache is None else cache.used_bytes(),
    )
