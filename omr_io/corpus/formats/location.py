"""Where a source file is: a local path or a URL, read alike."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from omr_io.errors import SourceError, Where
from omr_io.remote import urls

Location = Path | str
"""A local path, or the text of a URL (hf://, s3://, gs://, http://, https://)."""

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells cheaply that a file is still the same: `tag` is the time of change or an ETag."""

    size: int
    tag: str


def name_of(location: Location) -> str:
    """The last part of the path: what a file is called in provenance, rejects and errors.

    Raises:
        SourceError: a URL names no file.
    """
    if isinstance(location, Path):
        return location.name
    return urls.name_of(location)


def shown(location: Location) -> str:
    """A location as it may be printed: a URL without the secrets that may stand in it."""
    if isinstance(location, Path):
        return str(location)
    return urls.redact(location)


def stem_of(name: str) -> str:
    """A file's name without its last suffix."""
    return PurePosixPath(name).stem


def stamp_of(location: Location) -> Stamp:
    """Size and time of change of a file.

    Raises:
        SourceError: it does not exist or is no file.
    """
    if isinstance(location, str):
        from omr_io import remote

        _, size, tag = remote.identity(location)
        return Stamp(int(size), str(tag))
    where = Where(source=str(location))
    try:
        about = location.stat()
    except FileNotFoundError:
        raise SourceError("the file does not exist", where=where) from None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=where) from error
    if not location.is_file():  # a pipe would hang, a folder cannot be read
        raise SourceError("this is not a file", where=where)
    return Stamp(about.st_size, str(about.st_mtime_ns))


def open_binary(location: Location) -> BinaryIO:
    """Open for reading and seeking, buffered; to be closed by the caller.

    Raises:
        SourceError: it cannot be opened.
    """
    if isinstance(location, str):
        from omr_io import remote

        opened: Any = remote.open_url(location)
        raw = opened if isinstance(opened, io.RawIOBase) else _Adapter(opened)
        return cast(BinaryIO, io.BufferedReader(raw, BUFFER_BYTES))
    try:
        return location.open("rb", buffering=BUFFER_BYTES)
    except FileNotFoundError:
        raise SourceError("the file does not exist", where=Where(source=str(location))) from None
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise SourceError(what, where=Where(source=str(location))) from error


@contextmanager
def reading(location: Location) -> Iterator[BinaryIO]:
    """`open_binary` for a `with` statement, in which failures to read are SourceErrors too."""
    try:
        with open_binary(location) as file:
            yield file
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise SourceError(what, where=Where(source=shown(location))) from error


@contextmanager
def reading_hashed(location: Location) -> Iterator[tuple[BinaryIO, Any]]:
    """`reading`, for one pass from start to end; the second item is the running SHA-256."""
    digest = hashlib.sha256()
    with reading(location) as file:
        yield cast(BinaryIO, io.BufferedReader(_Hashing(file, digest), BUFFER_BYTES)), digest


def whole_digest(location: Location) -> str:
    """SHA-256 of all bytes."""
    with reading_hashed(location) as (file, digest):
        while file.read(BUFFER_BYTES):
            pass
    return str(digest.hexdigest())


class _Adapter(io.RawIOBase):
    """A file object that has only read, seek and tell, as one of Python's own kind."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._opened.seek(offset, whence)
        return int(self._opened.tell())

    def tell(self) -> int:
        return int(self._opened.tell())

    def close(self) -> None:
        if not self.closed:
            close = getattr(self._opened, "close", None)
            if close is not None:
                close()
        super().close()


class _Hashing(io.RawIOBase):
    """Passes bytes on and hashes them; cannot seek, so that no byte is missed."""

    def __init__(self, opened: BinaryIO, digest: Any) -> None:
        self._opened = opened
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._opened.readinto(buffer)  # type: ignore[attr-defined]
        self._digest.update(memoryview(buffer)[:count])
        return int(count)
