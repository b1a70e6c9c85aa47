"""Blocks of remote files on the local disk: bounded, checked, shared by processes.

An entry is a file FOLDER/ab/abcd...: its body, then 24 bytes (XXH3-128 of the body, its length in
little-endian), as in `omr_io.cache`. While it is made it is `.abcd...`, and who makes it holds that
file's lock (flock), so that an entry is fetched once and the lock of a process that died is free.
`usage` holds the bytes that entries and unfinished ones take, 8 bytes in little-endian, changed
under its own lock: room is taken there before anything is written, so the bound holds at all times.
Nothing is flushed to the device: after a crash the body does not match its hash, and goes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

TRAILER_BYTES = 24
_DEFAULT_BYTES = 32 << 30
_TOUCH = 1.0  # seconds: an entry's time is not set anew more often
_SLACK = 16  # 1/16 of the bound is freed with each scan, so that scans are few
_CHUNK = 1 << 20


class Claim:
    """The right to make an entry, held by one thread of one process at a time."""

    def __init__(self, cache: BlockCache, key: str, descriptor: int) -> None:
        self._cache, self._key, self._descriptor = cache, key, descriptor
        self._reserved = 0

    def commit(self, pieces: Iterable[bytes | bytearray | memoryview], size: int) -> bool:
        """Write the body, `size` bytes in pieces, and give it its name; the claim ends.

        Returns:
            False: it has no room, or not `size` bytes came; nothing was kept.

        Raises:
            OSError: the disk failed; nothing was kept.
        """
        try:
            whole = size + TRAILER_BYTES
            if not self._cache._reserve(self._descriptor, whole):
                return False
            self._reserved = whole
            hash_, left = xxhash.xxh3_128(), size
            for piece in pieces:
                hash_.update(piece)
                left -= len(piece)
                if left < 0:
                    return False
                _write(self._descriptor, memoryview(piece))
            if left:
                return False
            _write(self._descriptor, memoryview(hash_.digest() + size.to_bytes(8, "little")))
            os.rename(self._cache._unfinished(self._key), self._cache.path(self._key))  # noqa: PTH104
            self._cache._note_sound(self._key, os.fstat(self._descriptor))
            self._reserved = 0
            self._end()
            return True
        finally:
            self.release()

    def release(self) -> None:
        """Give the claim up, and what was written; nothing after a commit."""
        if self._descriptor < 0:
            return
        self._cache._remove(self._cache._unfinished(self._key), self._reserved)
        self._reserved = 0
        self._end()

    def _end(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        with suppress(OSError):  # a child of a fork may hold a copy, so closing is not enough
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(descriptor)


class BlockCache:
    """Entries under keys of hex digits. Safe for threads and processes, on one machine.

    Args:
        folder: made when it is first written to.
        max_bytes: of all files; None: 32 GiB, or half of what is free there, if that is less.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_bytes = _default_bytes(folder) if max_bytes is None else max_bytes
        self._sound: dict[str, tuple[int, int]] = {}  # key → inode and size of what was checked
        self._lock = threading.Lock()

    def path(self, key: str) -> Path:
        """Where the entry of a key is, if there is one."""
        return self.folder / key[:2] / key

    def _unfinished(self, key: str) -> Path:
        return self.folder / key[:2] / f".{key}"

    def has(self, key: str) -> bool:
        """Whether there is an entry, sound or not."""
        return os.path.exists(self.path(key))  # noqa: PTH110  (never raises)

    def read(self, key: str, offset: int, size: int) -> bytes | None:
        """Bytes of an entry's body, which is checked whole when this process first reads it.

        None if there is no such entry, or none that is sound: that one is removed. What is read
        counts as the newest.
        """
        path = self.path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if self._sound.get(key) != (status.st_ino, status.st_size):
                if not _is_sound(descriptor, status.st_size):
                    self.discard(key)
                    return None
                self._note_sound(key, status)
            if offset + size > status.st_size - TRAILER_BYTES:
                return None
            data = os.pread(descriptor, size, offset)
            if time.time() - status.st_mtime > _TOUCH:
                with suppress(OSError):  # a folder that may only be read is a cache as well
                    os.utime(descriptor)
            return data if len(data) == size else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def claim(self, key: str) -> Claim | None:
        """The right to make an entry; None while somebody else has it.

        Raises:
            OSError: the folder cannot be written, or its file system knows no locks.
        """
        path = self._unfinished(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    os.ftruncate(descriptor, 0)  # what one that died left
                    return Claim(self, key, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it was finished or removed just now

    def discard(self, key: str) -> None:
        """Remove an entry that is of no use."""
        with suppress(OSError):
            self._remove(self.path(key), self.path(key).stat().st_size)

    def used_bytes(self) -> int:
        """Bytes that the folder holds, as counted; 0 where there is none yet."""
        try:
            return _as_count((self.folder / "usage").read_bytes()) or 0
        except OSError:
            return 0

    def _note_sound(self, key: str, status: os.stat_result) -> None:
        self._sound[key] = (status.st_ino, status.st_size)

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Take room for an unfinished file and make it that long, so that a scan sees it."""
        with self._usage() as usage:
            used = _as_count(os.pread(usage, 9, 0))
            if used is None or used + size > self.max_bytes:
                used = self._remove_old(self.max_bytes - size)
            if used + size > self.max_bytes:
                _set_count(usage, used)
                return False
            os.ftruncate(descriptor, size)  # first: it may fail, and then nothing was taken
            _set_count(usage, used + size)
        return True

    def _remove(self, path: Path, size: int) -> None:
        """Remove a file that counts with so many bytes, if it is there."""
        # Both at once: a scan in between would not see the file, and its bytes would go twice.
        with suppress(OSError), self._usage() as usage:
            path.unlink()
            used = _as_count(os.pread(usage, 9, 0))
            if used is not None:
                _set_count(usage, max(used - size, 0))

    @contextmanager
    def _usage(self) -> Iterator[int]:
        """The file `usage`, locked against other processes and threads."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / "usage"
        with self._lock:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield descriptor
            finally:
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _remove_old(self, room: int) -> int:
        """Remove what was longest unused until at most `room` bytes are left; gives those left."""
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        wanted = room - self.max_bytes // _SLACK if total > room else room
        for _, size, path in found:
            if path.name.startswith("."):
                if _remove_abandoned(path):
                    total -= size
            elif total > wanted:
                with suppress(FileNotFoundError):
                    path.unlink()
                self._sound.pop(path.name, None)
                total -= size
        return total

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # another process may remove it meanwhile
                        status = entry.stat(follow_symlinks=False)
                        if entry.is_file(follow_symlinks=False):
                            yield status.st_mtime, status.st_size, Path(entry.path)


def _default_bytes(folder: Path) -> int:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        held = _as_count((folder / "usage").read_bytes()) if (folder / "usage").exists() else 0
    except OSError:
        return _DEFAULT_BYTES
    return min(_DEFAULT_BYTES, (free + (held or 0)) // 2)


def _as_count(data: bytes) -> int | None:
    return int.from_bytes(data, "little") if len(data) == 8 else None


def _set_count(descriptor: int, count: int) -> None:
    os.pwrite(descriptor, count.to_bytes(8, "little"), 0)
    os.ftruncate(descriptor, 8)


def _write(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_sound(descriptor: int, size: int) -> bool:
    trailer = os.pread(descriptor, TRAILER_BYTES, max(size - TRAILER_BYTES, 0))
    if len(trailer) < TRAILER_BYTES or int.from_bytes(trailer[16:], "little") != (
        size - TRAILER_BYTES
    ):
        return False
    hash_, at = xxhash.xxh3_128(), 0
    while at < size - TRAILER_BYTES:
        data = os.pread(descriptor, min(_CHUNK, size - TRAILER_BYTES - at), at)
        if not data:
            return False
        hash_.update(data)
        at += len(data)
    return bool(hash_.digest() == trailer[:16])


def _remove_abandoned(path: Path) -> bool:
    """Remove an unfinished entry that nobody is making; gives whether it is gone by that."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):  # somebody finished it just now, so it still counts
            return False
        path.unlink()  # while it is locked: nobody can take it up now
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
