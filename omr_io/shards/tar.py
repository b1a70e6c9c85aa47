"""The members of a tar, by the strict C++ scanner: damage is an error, not an end of file."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omr_io.errors import IntegrityError, SourceError, TarError, Where
from omr_io.types import Int64Array

if TYPE_CHECKING:
    from typing_extensions import Buffer


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
