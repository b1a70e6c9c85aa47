"""Bytes of a shard set's files: positioned reads, and writing that is whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omr_io.errors import DiskError, IntegrityError, Where

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEMPORARY_SUFFIX = ".tmp"
_BUFFER_BYTES = 1 << 20
_MISSING = "Copy the set again, all of it, or convert again"


@dataclass(frozen=True, slots=True)
class StorageStats:
    """What a storage did so far in this process; all 0 where files are local.

    Attributes:
        fetched_bytes: that came over the network.
        requests: sent, those that were tried again included.
        retries: of these.
        cache_hits, cache_misses: reads that the local cache could serve at once, and that had to
            wait for the network.
        cache_bytes: that the cache holds now.
    """

    fetched_bytes: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0


class Storage(Protocol):
    """Where the files of a shard set are; `name` is a file's name within it."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; IntegrityError if there are fewer."""
        ...

    def size(self, name: str) -> int:
        """The file's size in bytes; IntegrityError if it is missing."""
        ...

    def will_read(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """These (name, offset, size) will be read soon, in this order; returns at once.

        A hint: what is never told is read as well, and a failure shows when it is read.
        """
        ...

    def stats(self) -> StorageStats:
        """Counts so far."""
        ...

    def close(self) -> None:
        """Release all handles; reading again opens them anew."""
        ...


class LocalStorage:
    """Files in a folder, read with pread through a bounded number of open descriptors.

    Safe to share between threads, and across a fork: descriptors belong to the process that opened
    them, and a child opens its own.

    Args:
        folder: the shard set's folder.
        max_open: descriptors kept open; more are open only while that many threads read at once.
    """

    def __init__(self, folder: Path, max_open: int = 64) -> None:
        self.folder = folder
        self._prefix = f"{folder}/"  # a Path made and hashed for every read took 8 us of its 30
        self._max_open = max_open
        # One table a process. A child of a fork must not take the parent's lock: another thread
        # of the parent may have held it. dict.setdefault and pop are atomic.
        self._tables: dict[int, _Descriptors] = {}

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes from `offset`.

        Raises:
            IntegrityError: the file is missing, ends too early or cannot be read.
        """
        where = Where(shard=name, offset=offset)
        try:
            with self._table().use(self._prefix + name) as descriptor:
                data = os.pread(descriptor, size, offset)
                while len(data) < size:  # pread may stop short of the end, at 2 GiB for one
                    more = os.pread(descriptor, size - len(data), offset + len(data))
                    if not more:
                        raise IntegrityError(
                            f"{size} bytes are expected here and the file has {len(data)}",
                            where=where,
                            mend="The file was cut short: copy it again, or convert again",
                        )
                    data += more
                return data
        except FileNotFoundError:
            raise IntegrityError("the file is missing", where=where, mend=_MISSING) from None
        except OSError as error:
            raise IntegrityError(f"reading failed: {error.strerror}", where=where) from error

    def size(self, name: str) -> int:
        """The file's size in bytes.

        Raises:
            IntegrityError: the file is missing or out of reach.
        """
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            what = "the file is missing" if isinstance(error, FileNotFoundError) else str(error)
            mend = _MISSING if isinstance(error, FileNotFoundError) else ""
            raise IntegrityError(what, where=Where(shard=name), mend=mend) from None

    def will_read(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """Nothing: the operating system reads ahead on its own."""

    def stats(self) -> StorageStats:
        """All 0: nothing goes over a network."""
        return StorageStats()

    def close(self) -> None:
        """Close this process's descriptors."""
        table = self._tables.pop(os.getpid(), None)
        if table is not None:
            table.close()

    def _table(self) -> _Descriptors:
        pid = os.getpid()
        table = self._tables.get(pid)
        if table is None:
            for other in [other for other in self._tables if other != pid]:
                inherited = self._tables.pop(other, None)
                if inherited is not None:
                    inherited.close_idle()  # this process's copies; the parent keeps its own
            table = self._tables.setdefault(pid, _Descriptors(self._max_open))
        return table

    def __getstate__(self) -> tuple[Path, int]:
        return self.folder, self._max_open

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __del__(self) -> None:
        # AttributeError: __init__ did not finish. TypeError: the interpreter is shutting down, and
        # the modules' names are gone. (contextlib's suppress would be one of them.)
        try:  # noqa: SIM105
            self.close()
        except (AttributeError, TypeError):
            pass


class _Descriptors:
    """Open descriptors, least recently used first; one in use is never closed."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, list[int]] = OrderedDict()  # path -> [descriptor, users]
        self._closed = False

    @contextmanager
    def use(self, path: str) -> Iterator[int]:
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = self._open[path] = [os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0]
            self._open.move_to_end(path)
            entry[1] += 1
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1
                self._close_spare()

    def _close_spare(self) -> None:
        limit = 0 if self._closed else self._max_open
        idle = [path for path, (_, users) in self._open.items() if users == 0]
        for path in idle[: max(0, len(self._open) - limit)]:
            os.close(self._open.pop(path)[0])

    def close(self) -> None:
        with self._lock:
            self._closed = True  # readers still at work close theirs when they are done
            self._close_spare()

    def close_idle(self) -> None:
        """For the child of a fork, where the lock may be held by a thread that is not there."""
        while self._open:
            _, (descriptor, _) = self._open.popitem()
            os.close(descriptor)


def disk_error(error: OSError, path: Path) -> DiskError:
    """Say what failed in writing `path`, and what to do about it."""
    advice = {
        errno.ENOSPC: "Free space there or choose another folder, then run again",
        errno.EDQUOT: "Your quota is used up: free space or choose another folder, then run again",
        errno.EROFS: "The file system is read-only: choose another folder",
        errno.EACCES: "You may not write there: choose another folder",
        errno.EPERM: "You may not write there: choose another folder",
        errno.EIO: "The device failed: check it before you write there again",
        errno.EFBIG: "The file system cannot hold such files: use smaller shards",
    }
    what = f"writing {path} failed: {error.strerror or error}"
    return DiskError(what, mend=advice.get(error.errno or 0))


def fsync_folder(folder: Path) -> None:
    """Make renames and removals in a folder last through a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Have this file's or folder's lock, until the descriptor is closed or the process ends.

    Args:
        path: the open file's.
        shared: with others that share it; else alone.

    Returns:
        False if somebody else has it.

    Raises:
        DiskError: an input/output error.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some cluster file systems are mounted without locks, or lock no folder (EBADF, on NFS).
        # The lock only guards against a user's second run by mistake.
        unknown = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
        if error.errno not in unknown:
            raise disk_error(error, path) from error
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


class AtomicFile(io.RawIOBase):
    """A file that under its name is either whole or absent, even after a crash.

    It is written under a temporary name in the same folder; `commit` makes it last and renames it.
    Closing without `commit` removes it. `num_bytes` and `sha256()` are of what was written.

    Args:
        path: its final name.
        in_new_folder: the folder itself gets its name only once all in it is whole (`commit_folder`
            then makes the names in it last), so `commit` leaves the folder alone.

    Raises:
        DiskError: from opening, writing and committing.
    """

    def __init__(self, path: Path, *, in_new_folder: bool = False) -> None:
        self.path = path
        self.num_bytes = 0
        self._in_new_folder = in_new_folder
        self._hash = hashlib.sha256()
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._descriptor = -1
        with writing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o666)

    def writable(self) -> bool:
        """True: `io` asks."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self.num_bytes

    def write(self, data: Buffer, /) -> int:
        """Write all of `data`."""
        # Whoever wrote a buffer that can change may change it before it is flushed.
        kept = data if type(data) is bytes else bytes(data)
        self.write_all((kept,))
        return len(kept)

    def write_all(self, pieces: Sequence[bytes]) -> None:
        """Write all of `pieces`, one after the other."""
        num_bytes = sum(map(len, pieces))
        self._waiting += pieces
        self.num_bytes += num_bytes
        self._waiting_bytes += num_bytes
        if self._waiting_bytes >= _BUFFER_BYTES:
            self._flush()

    def write_now(self, view: memoryview) -> None:
        """Write bytes of a buffer that may change afterwards; better if there are many."""
        self._flush()
        self.num_bytes += len(view)
        self._put(view)

    def _flush(self) -> None:
        """Hash and write what waits, at once: a call for each header and padding costs more."""
        data, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        if data:
            self._put(memoryview(data))

    def _put(self, view: memoryview) -> None:
        self._hash.update(view)
        with writing(self.path):
            while view:
                view = view[os.write(self._descriptor, view) :]  # it may stop short

    def sha256(self) -> str:
        """Hex digits of the SHA-256 of all that was written so far."""
        so_far = self._hash.copy()
        for data in self._waiting:
            so_far.update(data)
        return so_far.hexdigest()

    def commit(self) -> None:
        """Flush to the device, give the file its final name, and close."""
        self._flush()
        with writing(self.path):
            os.fsync(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.close(descriptor)  # a network file system may fail only here
                os.rename(self._temporary, self.path)  # noqa: PTH104
            except OSError:
                with suppress(OSError):
                    os.unlink(self._temporary)  # noqa: PTH108
                raise
            if not self._in_new_folder:
                fsync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Close, and remove the file unless it was committed."""
        self._waiting = []
        if not self.closed and self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with suppress(OSError):  # it is thrown away
                os.close(descriptor)
            with suppress(OSError):
                self._temporary.unlink()
        super().close()


def write_atomically(path: Path, data: bytes, *, in_new_folder: bool = False) -> AtomicFile:
    """Write a whole file as an `AtomicFile` and give that back for its size and hash."""
    with AtomicFile(path, in_new_folder=in_new_folder) as file:
        file.write(data)
        file.commit()
    return file


def commit_folder(temporary: Path, final: Path) -> bool:
    """Give a folder whose files are whole its final name, in one step that lasts.

    Returns:
        False if a folder of that name was there already: `temporary` is left as it is.

    Raises:
        DiskError: renaming failed.
    """
    with writing(final):
        fsync_folder(temporary)
        try:
            os.rename(temporary, final)  # noqa: PTH104
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        fsync_folder(final.parent)
    return True
