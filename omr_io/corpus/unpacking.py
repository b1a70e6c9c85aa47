"""Packed tars of images, unpacked once into plain ones, which can be read at any place."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import time
import weakref
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from omr_io.errors import DiskError, SourceError, TarError, Where
from omr_io.tar import scan_tar_file

_CHUNK_BYTES = 4 << 20
_PREFIX = ".unpacking-"
_IDLE_SECONDS = 3600  # without a byte written; who unpacks writes all the time


class _Temporary:
    """A temporary folder, removed with this object or at exit, by the process that made it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="omr-io-images-"))
        self._finalize = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the finalizer, but not the folder
        shutil.rmtree(path, ignore_errors=True)


def unpack_tar(path: Path, packing: str, to: Path | None) -> tuple[Path, Any]:
    """Unpack once.

    Args:
        path: the packed tar.
        packing: "gzip" or "zstd".
        to: the folder for NAME-HASH.tar, the hash being of the packed file's path, size and time of
            change; one that is there is taken as it is. None takes a temporary folder.

    Returns:
        The plain tar, and what must be kept alive as long as it is needed, or None.

    Raises:
        SourceError: the packed tar is damaged or cut short.
        DiskError: it cannot be written; nothing of it is left.
    """
    about = path.stat()
    identity = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}"
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]
    owner = None
    try:
        if to is None:
            owner = _Temporary()
            to = owner.path
        to.mkdir(parents=True, exist_ok=True)
        target = to / f"{path.name.split('.')[0]}-{digest}.tar"
        _remove_left_over(to)
        if not target.is_file():
            _unpack(path, packing, target)
    except OSError as error:
        raise DiskError(
            f"{path.name} cannot be unpacked: {error.strerror or error}",
            where=Where(source=str(path)),
            mend="Give a folder with room for it (--unpack-to), or unpack it and give the folder",
        ) from error
    return target, owner


def _unpack(path: Path, packing: str, target: Path) -> None:
    """Write under a temporary name, check, rename: whoever is last wins with the same bytes."""
    fd, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".tar", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as out, closing(_opened(path, packing)) as file:
            while data := _read(file, path):
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        try:
            scan_tar_file(temporary)
        except TarError as error:
            raise _damaged(path, str(error)) from None
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left_over(folder: Path) -> None:
    """Remove what runs that were killed had begun to unpack: nobody goes on with it.

    By its age, not by a lock: some cluster file systems have none that other machines see.
    """
    for path in folder.glob(f"{_PREFIX}*.tar"):
        with suppress(OSError):  # another run removes it at the same time, or has just ended
            if time.time() - path.stat().st_mtime > _IDLE_SECONDS:
                path.unlink()


def _opened(path: Path, packing: str) -> BinaryIO | Any:
    if packing == "gzip":
        return gzip.open(path, "rb")
    return pa.input_stream(str(path), compression="zstd")


def _read(file: Any, path: Path) -> bytes:
    try:
        return bytes(file.read(_CHUNK_BYTES))
    except (EOFError, OSError, ValueError, zlib.error, pa.ArrowException) as error:
        # OSError: gzip's BadGzipFile, and Arrow's errors of zstd.
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(
        f"this is no whole packed tar: {why}",
        where=Where(source=str(path)),
        mend="Fetch it again",
    )
