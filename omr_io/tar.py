"""The members of a tar, by the strict C++ scanner: damage is an error, not an end of file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from omr_io.errors import IntegrityError, SourceError, TarError, Where
from omr_io.types import Int64Array

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BLOCK = 512
_MAX_PADDING = 1 << 20


@dataclass(frozen=True, slots=True)
class TarTable:
    """The regular files of a tar, in order; offsets and sizes are in bytes, all (N,) int64.

    `header_offsets` are those of the members' own headers, after any extended headers.
    """

    names: tuple[str, ...]
    header_offsets: Int64Array
    data_offsets: Int64Array
    sizes: Int64Array


def scan_tar(tar: Buffer, shard: str | None = None) -> TarTable:
    """List the members of a tar held in memory.

    Args:
        tar: the whole tar: bytes, an mmap, a memoryview. The GIL is released while it is scanned.
        shard: its name, for errors.

    Raises:
        TarError: anything malformed, with its byte offset: a bad header or checksum, data past the
            end, a trailer that is missing or followed by other bytes, a member that is no regular
            file or directory, a name that is not UTF-8.
    """
    # Here, not above: everything but scanning works from a source tree whose C++ is not built.
    from omr_io import _C

    try:
        raw_names, table = _C.scan_tar(tar)
    except _C.TarFormatError as error:
        reason, offset = error.args
        raise TarError(reason, where=Where(shard=shard, offset=offset)) from None
    names = []
    for raw, offset in zip(raw_names, table[:, 0].tolist(), strict=True):
        try:
            names.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            where = Where(shard=shard, offset=offset)
            raise TarError("the member's name is not UTF-8", where=where) from None
    header, data, size = (table[:, column].copy() for column in range(3))
    return TarTable(tuple(names), header, data, size)


def scan_tar_file(path: Path) -> TarTable:
    """List the members of a tar file through a memory map; see `scan_tar`.

    Raises:
        SourceError: the file cannot be opened.
        IntegrityError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return scan_tar(b"", path.name)  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return scan_tar(mapped, path.name)
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error


def tar_windows(
    file: BinaryIO, shard: str | None = None, window_bytes: int = 32 << 20
) -> Iterator[tuple[bytes, int, TarTable]]:
    """List the members of a tar that is read once, from start to end, in bounded memory.

    The tar is cut between members, and each window goes through `scan_tar` as a tar of its own, so
    damage is found as there. A global PAX header counts in its own window only.

    Args:
        file: the tar, at its start.
        shard: its name, for errors.
        window_bytes: a window ends after the member that reaches this.

    Yields:
        (window, base, table): the bytes, the offset of their first byte in the tar, and their
        members, with offsets counted within the window.

    Raises:
        TarError: as `scan_tar`, with the offset in the whole tar.
    """
    base, window, extended = 0, bytearray(), False
    while True:
        header = file.read(_BLOCK)
        if not any(header):  # the trailer, or the end of a tar that lacks one
            window += header + file.read(_MAX_PADDING)
            if file.read(1):
                where = Where(shard=shard, offset=base + len(window))
                raise TarError("the trailer is followed by more than 1 MiB", where=where)
            yield bytes(window), base, _scan_at(window, base, shard)
            return
        window += header
        data = -(-_size_field(header) // _BLOCK) * _BLOCK
        window += file.read(data)
        extended = header[156:157] in (b"x", b"g", b"L", b"K")
        if len(window) >= window_bytes and not extended:
            yield bytes(window), base, _scan_at(window + bytes(2 * _BLOCK), base, shard)
            base += len(window)
            window.clear()


def _scan_at(window: Buffer, base: int, shard: str | None) -> TarTable:
    try:
        return scan_tar(window, shard)
    except TarError as error:
        offset = base + (error.where.offset or 0) if error.where else None
        raise TarError(error.what, where=Where(shard=shard, offset=offset)) from None


def _size_field(header: bytes) -> int:
    """The size of a member's data; 0 where the field is malformed, which the scan then tells."""
    field = header[124:136]
    try:
        if field[:1] == b"\x80":
            return min(int.from_bytes(field[1:], "big"), 1 << 62)
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return 0
