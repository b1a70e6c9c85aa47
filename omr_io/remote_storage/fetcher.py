"""Threads that fetch: what a reader waits for at once, else what will be read, in its order."""

from __future__ import annotations

import copy
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import sha256

from omr_io.errors import ConfigError, IntegrityError, OmrWarning, SourceError, Where
from omr_io.remote.ranges import Buffer, Stat
from omr_io.remote.retries import Traffic
from omr_io.remote_storage.block_cache import BlockCache, Claim
from omr_io.remote_storage.hints import Hint, blocks
from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.origins import anonymous, join, make_origin
from omr_io.remote_storage.planning import Planner
from omr_io.remote_storage.units import State, Unit

_POLL = 0.02  # seconds until a block that another process fetches is looked for again
_TURNS = 5  # looks for a byte in the cache, which may lose it again, before it is fetched past it
_PATIENCE = 1.5  # times the policy's timeout, after which it is fetched here as well
_CLOSING = 1.0  # seconds that `close` waits for threads, which may be within obstore

KnownFile = tuple[int, str]
"""Size in bytes, and the hex digits of the SHA-256 ("" where it is not known)."""


class Fetcher:
    """Reads of a set's files in one process. Thread-safe.

    Args:
        root: see `origins.as_root`.
        known: what is known of files beforehand, from the manifest.
        options: see there.

    Raises:
        ConfigError: a package is missing; obstore was used before a fork.
        SourceError: the URL cannot be right.
    """

    def __init__(self, root: str, known: Mapping[str, KnownFile], options: RemoteOptions) -> None:
        self.traffic = Traffic()
        self.hits = self.misses = 0
        self._pid = os.getpid()
        self._root, self._known, self._options = root, known, options
        self._origin = make_origin(root, options.retries, self.traffic)
        self.cache = _cache(options)
        self._stats: dict[str, Stat] = {}
        self._stat_locks: dict[str, threading.Lock] = {}
        self._sizes = {name: size for name, (size, _) in known.items()}
        # Reentrant: garbage collection may close a storage within a thread that holds its lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._plan = Planner(self._sizes, self.cache, self.key, options)
        self._urgent: deque[Unit] = deque()
        self._delayed: deque[tuple[float, Unit]] = deque()  # being fetched by another process
        self._parked: dict[str, list[Hint]] = {}  # of files that are being asked for
        self._at_work_ahead = 0
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._reason: BaseException = SourceError("the storage was closed while it was read")
        self._warned = False

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            IntegrityError: the file is shorter, or has not the size that the manifest says.
            SourceError: they cannot be had.
        """
        stop, total = offset + size, self.stat(name).size
        if stop > total:
            what = f"{size} bytes are expected here and the file has {max(total - offset, 0)}"
            raise IntegrityError(what, where=Where(shard=name, offset=offset))
        with self._lock:
            hint = self._plan.begin_read(name, offset, stop)
        pieces, waited, at = [], False, offset
        while at < stop:
            piece, fetched = self._piece(name, at, stop, hint)
            waited |= fetched
            pieces.append(piece)
            at += len(piece)
        with self._lock:
            self.misses += waited
            self.hits += not waited
            if hint is not None and self._plan.end_read(hint, offset, stop):
                self._wake(1)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def will_read(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """These (name, offset, size) will be read, in this order, after those told before."""
        with self._lock:
            for name, offset, size in ranges:
                if size > 0 and offset >= 0:
                    self._plan.hints.add(name, offset, offset + size)
            self._wake(len(ranges))

    def stat(self, name: str) -> Stat:
        """What a file is, asked for once; its size agrees with what is known of it.

        Raises:
            IntegrityError: it does not.
            SourceError: the file cannot be had.
        """
        stat = self._stats.get(name)
        if stat is not None:
            return stat
        with self._lock:
            lock = self._stat_locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._stats:
                size = self._known.get(name, (None, ""))[0]
                if size is not None and self._origin.pinned:
                    stat = Stat(size, "")
                else:
                    stat = self._origin.stat(name)
                if size is not None and stat.size != size:
                    raise IntegrityError(
                        f"the file has {stat.size} bytes, the manifest says {size}",
                        where=Where(shard=name),
                        mend="Copy the set there again, all of it",
                    )
                self._sizes[name] = stat.size
                self._stats[name] = stat
        return self._stats[name]

    def fetch(self, name: str, offset: int, size: int, room: Buffer | None = None) -> memoryview:
        """Bytes of a file past cache and threads, by the caller's thread; errors as of `read`.

        Args:
            room: where they are put; else in memory of their own.
        """
        room = Buffer(size) if room is None else room
        room.clear()
        self._origin.fetch_into(room, name, offset, size, self.stat(name))
        return room.view()

    def forget(self, name: str, start: int, stop: int) -> None:
        """Drop bytes from memory and cache."""
        with self._lock:
            for unit in self._plan.units.between(name, start, stop):
                if unit.state is State.DONE:
                    self._plan.units.remove(unit)
        if self.cache is not None:
            for block in blocks(start, stop, self._options.block_bytes):
                self.cache.discard(self.key(name, block))

    def key(self, name: str, block: int) -> str:
        """The cache's name for a block of a file, -1 for all of it: a hash, so it tells nothing."""
        stat = self.stat(name)
        parts = (
            anonymous(join(self._root, name)), stat.tag, stat.size,
            self._known.get(name, (0, ""))[1], self._options.block_bytes, block,
        )  # fmt: skip
        return sha256("\0".join(map(str, parts)).encode()).hexdigest()[:40]

    def close(self) -> None:
        """End all threads; those within a transfer end soon."""
        if os.getpid() != self._pid:  # in a child of a fork, where threads are not and locks stay
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.traffic.end()
            self._work.notify_all()
        self._origin.close()
        end = time.monotonic() + _CLOSING
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0))
        with self._lock:
            self._fail_all()

    def _piece(self, name: str, at: int, stop: int, hint: Hint | None) -> tuple[bytes, bool]:
        """Some bytes from a place on, and whether they had to be waited for."""
        waited = False
        for _ in range(_TURNS):
            with self._lock:
                unit = self._plan.units.at(name, at)
            if unit is None and self.cache is not None:
                block, begin = divmod(at, self._options.block_bytes)
                size = min(stop - at, self._options.block_bytes - begin)
                data = self.cache.read(self.key(name, block), begin, size)
                if data is not None:
                    return data, waited
            with self._lock:
                if self._closed:
                    raise _again(self._reason)
                unit = self._plan.units.at(name, at)
                if unit is None:
                    unit = self._plan.unit_to_wait_for(name, at, stop, hint)
                    self._urgent.append(unit)
                    self._wake(1)
                elif unit.state is State.WAITING:
                    self._urgent.append(unit)
                    self._wake(1)
                waited |= unit.state is not State.DONE
            unit.ready.wait()
            if unit.error is not None:
                raise _again(unit.error)
            if unit.data is not None:
                return unit.slice(at, min(stop, unit.stop)), waited
        # An entry that is there and cannot be read: the folder's fault, not the reader's.
        return bytes(self.fetch(name, at, stop - at)), True

    # Threads

    def _wake(self, count: int) -> None:
        if not self._threads and not self._closed:
            for number in range(self._options.threads):
                name = f"omr-io-fetch-{number}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more are allowed; a few do as well
                    if self._threads:
                        break
                    raise ConfigError(
                        f"no thread can be started that fetches: {error}",
                        mend="Raise the limit of processes (ulimit -u, or the container's)",
                    ) from error
                self._threads.append(thread)
        self._work.notify(count)

    def _run(self) -> None:
        room: Buffer | None = None  # of a block, used again and again
        while True:
            with self._lock:
                try:
                    task = self._next()
                    while task is None and not self._closed:
                        self._work.wait(_POLL if self._delayed else None)
                        task = self._next()
                except BaseException as error:  # a defect: nobody may wait for ever because of it
                    self._closed, self._reason = True, error
                    self._fail_all()
                if self._closed or task is None:
                    return
            if isinstance(task, Unit):
                room = self._fetch(task, room)
            else:
                self._learn(task)

    def _next(self) -> Unit | str | None:
        """A unit to fetch, now at work; or the name of a file to be asked for."""
        while self._urgent:
            unit = self._urgent.popleft()
            if unit.state is State.WAITING:
                return self._at_work(unit, ahead=False)
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            unit = self._delayed.popleft()[1]
            if unit.state is State.WAITING:
                return self._at_work(unit, ahead=unit.ahead)
        if self._at_work_ahead >= max(self._options.threads - 1, 1):
            return None
        while (hint := self._plan.hints.next()) is not None:
            if hint.name not in self._stats:
                self._plan.hints.park(hint)
                parked = self._parked.setdefault(hint.name, [])
                parked.append(hint)
                if len(parked) > 1:
                    continue
                self._at_work_ahead += 1
                return hint.name
            oldest = min((each[0].position for each in self._parked.values()), default=None)
            if oldest is not None and hint.position - oldest > self._options.read_ahead_bytes // 2:
                return None  # what comes before that must find room
            found = self._plan.next_ahead(hint)
            if found is not None:
                return self._at_work(found, ahead=True)
            if not hint.launched:
                return None  # no room
        return None

    def _at_work(self, unit: Unit, *, ahead: bool) -> Unit:
        unit.state, unit.ahead = State.RUNNING, ahead
        self._at_work_ahead += ahead
        return unit

    def _learn(self, name: str) -> None:
        """Ask for a file that hints are waiting to hear of; who reads it finds out what failed."""
        known = False
        try:
            self.stat(name)
            known = True
        except Exception:  # noqa: S110
            pass
        with self._lock:
            self._at_work_ahead -= 1
            parked = self._parked.pop(name)
            if known:
                self._plan.hints.unpark(parked)
            self._wake(len(parked))

    def _fetch(self, unit: Unit, room: Buffer | None) -> Buffer | None:
        """Fetch a unit; gives room for the next block."""
        error: BaseException | None = None
        busy = False
        try:
            if unit.block and self.cache is not None:
                # Here, where failing is the reader's to hear of: there may be no memory for it.
                room = Buffer(self._options.block_bytes) if room is None else room
                busy = self._fetch_block(unit, self.cache, room)
            else:
                unit.data = self.fetch(unit.name, unit.start, unit.size)
        except BaseException as failure:  # it is the reader's
            error = self._reason if self.traffic.ended else failure
        with self._lock:
            self._at_work_ahead -= unit.ahead
            if busy and not self._closed:
                unit.state = State.WAITING
                self._delayed.append((time.monotonic() + _POLL, unit))
            else:
                self._finish(unit, error)
            self._wake(1)
        return room

    def _fail_all(self) -> None:
        for unit in self._plan.units.all():
            if unit.state is not State.DONE:
                self._finish(unit, self._reason)
        self._work.notify_all()

    def _finish(self, unit: Unit, error: BaseException | None) -> None:
        unit.error = error
        self._plan.finish(unit)
        unit.ready.set()

    def _fetch_block(self, unit: Unit, cache: BlockCache, room: Buffer | None) -> bool:
        """Bring a block into the cache; gives whether another process is about to."""
        key = self.key(unit.name, unit.start // self._options.block_bytes)
        claim: Claim | None = None
        if cache.has(key):
            return False
        try:
            claim = cache.claim(key)
        except OSError as error:
            self._warn(cache, error)
        else:
            if claim is None:
                unit.busy_since = unit.busy_since or time.monotonic()
                patience = _PATIENCE * self._options.retries.timeout
                if time.monotonic() - unit.busy_since < patience:
                    return True
        try:
            if claim is not None and cache.has(key):
                return False
            data = self.fetch(unit.name, unit.start, unit.size, room)
            stored = False
            if claim is not None:
                try:
                    stored = claim.commit([data], len(data))
                except OSError as error:
                    self._warn(cache, error)
            if not stored:  # it is kept in memory instead
                unit.data = bytes(data)
        finally:
            if claim is not None:
                claim.release()
        return False

    def _warn(self, cache: BlockCache, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {cache.folder} is of no use, so that bytes are fetched again when they "
                f"are read again: {error}. Give RemoteOptions a folder that can be written, or "
                "cache=None",
                OmrWarning,
                stacklevel=2,
            )


def _cache(options: RemoteOptions) -> BlockCache | None:
    folder = options.folder()
    cache = None if folder is None else BlockCache(folder, options.cache_bytes)
    if cache is not None and cache.max_bytes < options.least_cache_bytes:
        warnings.warn(
            f"there is no room for a cache in {cache.folder}: half of what is free there are "
            f"{cache.max_bytes} bytes, so that bytes are fetched again when they are read again. "
            "Free space there, give RemoteOptions another folder, or cache=None",
            OmrWarning,
            stacklevel=5,
        )
        return None
    return cache


def _again(error: BaseException) -> BaseException:
    """The error for one of several readers: each gets a traceback of its own."""
    return copy.copy(error) if isinstance(error, Exception) else error
