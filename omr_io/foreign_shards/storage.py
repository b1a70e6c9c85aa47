"""Where the tars of a foreign set are read: a folder, or a place on the network."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omr_io.errors import ConfigError, IntegrityError, Where
from omr_io.remote.urls import is_url
from omr_io.storage import LocalStorage, Storage, StorageStats

if TYPE_CHECKING:
    from omr_io.remote.remote_file import RemoteFile

_MAX_IDLE = 32


def tar_storage(folder: Path, root: str) -> Storage:
    """The storage of a foreign set's tars.

    Args:
        folder: the set's own.
        root: as the manifest has it: "" for `folder`, an absolute folder, or a URL.

    Raises:
        ConfigError: `root` is none of these.
    """
    if is_url(root):
        return RemoteStorage(root)
    if root and not Path(root).is_absolute():
        raise ConfigError(f"the manifest's root {root!r} is neither an absolute folder nor a URL")
    return LocalStorage(Path(root) if root else folder)


class RemoteStorage:
    """Tars behind a URL, read by ranges. Safe to share between threads and across a fork.

    A file is opened once a thread that reads it at the same time; what is idle is kept for the next
    read, up to 32 of them.

    Args:
        root: ends in a slash.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, tuple[str, RemoteFile]] = OrderedDict()
        self._pid = os.getpid()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            IntegrityError: the file is shorter.
            SourceError: it cannot be had: a failing network stops a run, it is no bad sample.
        """
        with self._file(name) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            what = f"{size} bytes are expected here and the file has {len(data)}"
            raise IntegrityError(what, where=Where(shard=name, offset=offset))
        return data

    def size(self, name: str) -> int:
        """The file's size in bytes; SourceError if it cannot be had."""
        with self._file(name) as file:
            return file.size

    @contextmanager
    def _file(self, name: str) -> Iterator[RemoteFile]:
        from omr_io import remote

        file = self._take(name)
        if file is None:
            file = remote.open_url(self.root + name)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        with self._lock:
            self._idle[id(file)] = (name, file)
            old = self._idle.popitem(last=False)[1][1] if len(self._idle) > _MAX_IDLE else None
        if old is not None:
            old.close()

    def _take(self, name: str) -> RemoteFile | None:
        if self._pid != os.getpid():  # a child of a fork must not share the parent's connections
            self._lock, self._idle = threading.Lock(), OrderedDict()
            self._pid = os.getpid()
        with self._lock:
            for place, (known, file) in reversed(self._idle.items()):
                if known == name:
                    del self._idle[place]
                    return file
        return None

    def will_read(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """Nothing is read ahead."""

    def stats(self) -> StorageStats:
        """Nothing is counted."""
        return StorageStats()

    def close(self) -> None:
        """Close what is idle; reading again opens anew."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for _, file in idle.values():
            file.close()

    def __getstate__(self) -> str:
        return self.root

    def __setstate__(self, state: str) -> None:
        self.__init__(state)  # type: ignore[misc]
