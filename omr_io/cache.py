"""Results that are kept between runs, in files that may be deleted at any time.

They are in `${XDG_CACHE_HOME:-~/.cache}/omr_io/KIND/`, or in `$OMR_IO_CACHE_DIR/KIND/`; where
OMR_IO_CACHE_DIR is set to nothing, none are kept. A file is its body and then 24 bytes: the body's
XXH3-128 (16 bytes, big-endian) and length (8 bytes, little-endian). So a body can be mapped as it
lies, and a file that was cut or damaged is found out, removed, and made anew.

Any number of processes may read and write at once: a file gets its name whole, and processes that
make the same entry write the same bytes. A cache that cannot be read or written costs time and is
told by an `OmrWarning`; it is never an error.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from omr_io.errors import DiskError, OmrWarning
from omr_io.storage import write_atomically

ENVIRONMENT = "OMR_IO_CACHE_DIR"
TRAILER_BYTES = 24
_ABANDONED = 3600.0  # seconds: a temporary file of this age belongs to a process that died


def cache_root() -> Path | None:
    """The folder of all caches, which need not exist; None: nothing is kept."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is not None:
        return Path(chosen).expanduser().absolute() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # noqa: PTH117  (its specification: ignore what is not absolute)
        return Path(base) / "omr_io"
    try:
        return Path.home() / ".cache" / "omr_io"
    except RuntimeError:  # no home: containers that run under a bare user id
        return None


@dataclass(frozen=True, slots=True)
class Cache:
    """The entries of one kind, under keys that name all that decides their bytes.

    Args:
        folder: where they are; None keeps nothing and finds nothing.
        max_files, max_bytes: beyond them the entries that were longest unused are removed.
    """

    folder: Path | None
    max_files: int = 64
    max_bytes: int = 1 << 30

    @classmethod
    def of(cls, kind: str) -> Cache:
        """The cache of a kind ("lengths") in the folder that the environment names."""
        root = cache_root()
        return cls(None if root is None else root / kind)

    def load(self, key: str) -> bytes | None:
        """The body under `key`, checked; None where there is no sound one."""
        path = self.path(key)
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None  # another process removed it just now
        return _body(data)  # again: this is not the file that `path` saw if one replaced it

    def path(self, key: str) -> Path | None:
        """The file of `key`, checked: its body, then TRAILER_BYTES. None where there is none.

        Finding it makes it the newest. A damaged file is removed.
        """
        if self.folder is None:
            return None
        file = self.folder / key
        try:
            with file.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                sound = False
                if size >= TRAILER_BYTES:
                    with mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ) as data:
                        sound = _is_sound(memoryview(data))
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn(f"{file} cannot be read: {error.strerror or error}")
            return None
        if not sound:
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):  # a folder that may only be read is a cache as well
            os.utime(file)
        return file

    def store(self, key: str, body: bytes) -> Path | None:
        """Keep a body under `key`; its file, or None where it could not be written."""
        if self.folder is None:
            return None
        file = self.folder / key
        # A name of its own: processes on several machines may write the same entry at once.
        temporary = self.folder / f".{key}.{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(temporary, body + _trailer(body))
            temporary.replace(file)
        except (DiskError, OSError) as error:
            with suppress(OSError):
                temporary.unlink()
            _warn(f"{file} cannot be written: {error}")
            return None
        self._remove_old(keep=file)
        return file

    def discard(self, key: str) -> None:
        """Remove the entry of `key`, whose body turned out to be unusable."""
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / key).unlink()

    def _remove_old(self, keep: Path) -> None:
        """Remove what is over the bounds, longest unused first, and what died half-written.

        `keep` counts first, whatever its time: clocks of file systems tick in milliseconds, and a
        writer beside this one may have begun later and ended sooner. So, of writers at once, the
        last to look leaves no more than the bounds allow.
        """
        now, count, total = time.time(), 0, 0
        newest_first = sorted(self._files(), reverse=True)
        for modified, size, file in sorted(newest_first, key=lambda found: found[2] != keep):
            if file.name.startswith("."):
                unwanted = now - modified > _ABANDONED
            else:
                count, total = count + 1, total + size
                unwanted = (count > self.max_files or total > self.max_bytes) and file != keep
            if unwanted:
                with suppress(OSError):
                    file.unlink()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        assert self.folder is not None
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process may remove it meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False):
                        yield status.st_mtime, status.st_size, Path(entry.path)


def _trailer(body: bytes) -> bytes:
    return xxhash.xxh3_128_digest(body) + len(body).to_bytes(8, "little")


def _is_sound(data: memoryview) -> bool:
    with data, data[:-TRAILER_BYTES] as body, data[-TRAILER_BYTES:] as trailer:
        return len(body) == int.from_bytes(trailer[16:], "little") and (
            xxhash.xxh3_128_digest(body) == trailer[:16]
        )


def _body(data: bytes) -> bytes | None:
    sound = len(data) >= TRAILER_BYTES and _is_sound(memoryview(data))
    return data[:-TRAILER_BYTES] if sound else None


def _warn(what: str) -> None:
    warnings.warn(
        f"the cache is of no use, so that every start does its work again: {what}. Set "
        f"{ENVIRONMENT} to a folder that can be written, or to nothing for no cache",
        OmrWarning,
        stacklevel=4,
    )
