"""Images in a zip or a tar, read where they lie: by one pread each, never extracted."""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omr_io.corpus.image_names import (
    AmbiguousNameError,
    check_size,
    checked_name,
    missing,
    unreadable,
)
from omr_io.corpus.unpacking import unpack_tar
from omr_io.errors import IntegrityError, SourceError, Where
from omr_io.tar import scan_tar_file
from omr_io.text import short

_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a file is in its archive; `stored` bytes there become `size`. A tar has no CRC."""

    offset: int
    stored: int
    size: int
    method: int = _STORED
    crc: int | None = None
    encrypted: bool = False


class _Archive(ABC):
    """An archive, indexed when first read and once a process; reads share one descriptor.

    pread has no position to share, so threads and forked children may read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd = -1
        self._members: dict[str, _Member | None] = {}  # None: several members of that name
        self._by_last: dict[str, list[str]] = {}

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.path,)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _Archive.__init__(self, state[0])

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one image; see `ImageRoot`.

        Raises:
            SourceError: the archive cannot be read at all.
        """
        wanted = str(checked_name(name))
        self._index_once()
        member = self._find(wanted, name)
        if member.encrypted:
            raise unreadable(name, "it is encrypted")
        check_size(name, max(member.size, member.stored), max_bytes)
        try:
            return self._data(member, name)
        except OSError as error:
            raise unreadable(name, error.strerror or "input/output error") from None
        except OverflowError:
            raise unreadable(name, "its place is beyond the end of any file") from None

    @abstractmethod
    def _list(self) -> Iterable[tuple[str, _Member]]:
        """All files in the archive."""

    @abstractmethod
    def _data(self, member: _Member, name: str) -> bytes:
        """The bytes of a member whose size is within the cap."""

    def _index_once(self) -> None:
        with self._lock:
            if self._fd >= 0:
                return
            where = Where(source=str(self.path))
            try:
                for name, member in self._list():
                    clean = name.removeprefix("./")
                    self._members[clean] = None if clean in self._members else member
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except (OSError, ValueError, zipfile.BadZipFile, IntegrityError) as error:
                raise SourceError(
                    f"the images' archive cannot be read: {error}",
                    where=where,
                    mend="Fetch it again, or unpack it and give the folder",
                ) from error
            for clean in self._members:
                self._by_last.setdefault(clean.rpartition("/")[2], []).append(clean)
            self._fd = fd

    def _find(self, wanted: str, name: str) -> _Member:
        ending = f"/{wanted}"
        candidates = [wanted] if wanted in self._members else []
        candidates = candidates or [
            member
            for member in self._by_last.get(wanted.rpartition("/")[2], [])
            if member.endswith(ending)
        ]
        if not candidates:
            raise missing(name)
        found = self._members[candidates[0]]
        if len(candidates) > 1 or found is None:
            what = f"several members of {self.path.name} are called {short(name)}: "
            raise AmbiguousNameError(
                what + ", ".join(map(short, sorted(candidates)[:2])), reason="missing-image"
            )
        return found


class TarRoot(_Archive):
    """A plain tar of images."""

    def _list(self) -> Iterable[tuple[str, _Member]]:
        table = scan_tar_file(self.path)
        columns = (table.names, table.data_offsets.tolist(), table.sizes.tolist())
        for name, offset, size in zip(*columns, strict=True):
            yield name, _Member(offset, size, size)

    def _data(self, member: _Member, name: str) -> bytes:
        data = _pread(self._fd, member.offset, member.size)
        if len(data) != member.size:
            raise unreadable(name, "the tar was cut short")
        return data


class PackedTarRoot(TarRoot):
    """A packed tar of images, unpacked when it is opened, by one process for all that get a copy.

    A copy on a machine that does not see the plain tar unpacks the packed one for itself.
    """

    def __init__(self, packed: Path, packing: str, to: Path | None) -> None:
        tar, self._owner = unpack_tar(packed, packing, to)
        self._packed = (packed, packing, to)
        super().__init__(tar)

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.path, self._packed)  # a temporary folder stays the process' that made it

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state)
        self._owner, self._packed = None, state[1]

    def _list(self) -> Iterable[tuple[str, _Member]]:
        if not self.path.is_file():
            self.path, self._owner = unpack_tar(*self._packed)
        return super()._list()


class ZipRoot(_Archive):
    """A zip of images, stored or deflated. Sizes are checked before anything is inflated."""

    def _list(self) -> Iterable[tuple[str, _Member]]:
        for info in self._directory():
            # A damaged name may be empty, which `is_dir` does not expect.
            if info.filename and not info.is_dir():
                yield (
                    info.filename,
                    _Member(
                        info.header_offset,
                        info.compress_size,
                        info.file_size,
                        info.compress_type,
                        info.CRC,
                        bool(info.flag_bits & _ENCRYPTED),
                    ),
                )

    def _directory(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.infolist()
        except (NotImplementedError, LookupError, ArithmeticError, struct.error) as error:
            # What zipfile makes of versions, places and lengths that cannot be.
            raise zipfile.BadZipFile(str(error)) from error

    def _data(self, member: _Member, name: str) -> bytes:
        if member.method not in (_STORED, _DEFLATED):
            raise unreadable(name, f"zip method {member.method} is neither stored nor deflated")
        header = _pread(self._fd, member.offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise unreadable(name, "its header in the zip is damaged")
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)[-2:]
        begin = member.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        data = _pread(self._fd, begin, member.stored)
        if member.method == _DEFLATED:
            data = _inflated(data, member.size, name)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise unreadable(name, "its size or CRC in the zip does not match")
        return data


def _inflated(data: bytes, size: int, name: str) -> bytes:
    """At most one byte more than the zip's directory says, however much is packed."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise unreadable(name, f"its data in the zip is damaged: {error}") from None


def _pread(fd: int, offset: int, count: int) -> bytes:
    data = os.pread(fd, count, offset)
    while 0 < len(data) < count:  # a signal or a network file system may give less
        more = os.pread(fd, count - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
