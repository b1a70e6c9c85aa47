"""Shards as deterministic tars: the bytes are a pure function of names and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from omr_io import _C
from omr_io.shards.layout import FileDigest, Part, ShardEntry
from omr_io.storage import AtomicFile, write_atomically

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
_WRITE_BYTES = 512 << 10  # hashed and written at a time: they stay in the processor's cache
_PADDINGS = tuple(bytes(-size % BLOCK) for size in range(BLOCK))


def tar_header(name: str, size: int) -> bytes:
    """The ustar header (POSIX.1-2017, pax) of a regular file: mode 644, owner 0, time 0.

    Names of keys fit the header's field by construction, so PAX headers are never needed.

    Args:
        name: ASCII, at most 100 bytes.
        size: of the data in bytes, below 8 GiB.

    Raises:
        ValueError: they are not.
    """
    return _C.tar_header(name, size)


class _Output(Protocol):
    """What a tar is written to."""

    path: Path
    num_bytes: int

    def write(self, data: bytes, /) -> int: ...
    def write_all(self, pieces: Sequence[bytes]) -> None: ...
    def write_now(self, view: memoryview) -> None: ...
    def sha256(self) -> str: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


class _Counted:
    """Stands for a file in a dry run: nothing is written, and the bytes are counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0

    def write(self, data: bytes, /) -> int:
        self.num_bytes += len(data)
        return len(data)

    def write_all(self, pieces: Sequence[bytes]) -> None:
        self.num_bytes += sum(map(len, pieces))

    def write_now(self, view: memoryview) -> None:
        self.num_bytes += len(view)

    def sha256(self) -> str:
        return ""

    def commit(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing is open."""


class PlainRun(NamedTuple):
    """Samples of plain rows as they lie in a shard.

    Attributes:
        last: the row after the last one.
        shard: its number.
        offset: what is added to a place in the batch's buffer to give that in the tar.
        hashes: XXH3-128 of the images, one after the other.
    """

    last: int
    shard: int
    offset: int
    hashes: bytes


class ShardWriter:
    """Writes samples into shards SPLIT-000000.tar, ..., each with its DALI index beside it.

    A shard is cut before the sample that would exceed a limit; a larger sample gets its own.

    Args:
        folder: where; a new folder that the caller will commit as a whole.
        split: the first part of the names.
        max_bytes: of a tar, trailer included.
        max_samples: of a tar.
        dry: only count; digests are then "".
    """

    def __init__(
        self, folder: Path, split: str, max_bytes: int, max_samples: int, *, dry: bool = False
    ) -> None:
        self._folder = folder
        self._split = split
        self._max_bytes = max_bytes
        self._max_samples = max_samples
        self._dry = dry
        self._file: _Output | None = None
        self._lines: list[str] = []  # of the index; each may be several
        self._samples = 0
        self._done: list[ShardEntry] = []

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> tuple[int, tuple[Part, ...]]:
        """Write a sample.

        Args:
            key: its key.
            members: (rest of the name after "KEY.", data) of each part, in order.

        Returns:
            The shard's number and the parts as they lie in it.

        Raises:
            DiskError: writing failed.
        """
        padded = 0
        for _, data in members:
            padded += BLOCK + len(data) + -len(data) % BLOCK
        file = self._file_for(padded)
        offset = file.num_bytes
        pieces: list[bytes] = []
        parts: list[Part] = []
        line: list[str] = []
        for extension, data in members:
            name, size = f"{key}.{extension}", len(data)
            offset += BLOCK
            pieces += (tar_header(name, size), data, _PADDINGS[size % BLOCK])
            parts.append(Part(name, offset, size, _C.crc32c(data)))
            line.append(f"{extension} {offset} {size} {name}")
            offset += size + -size % BLOCK
        file.write_all(pieces)
        self._lines.append(" ".join(line) + "\n")
        self._samples += 1
        return len(self._done), tuple(parts)

    def add_plain(self, batch: _C.PlainBatch, first: int, last: int) -> PlainRun:
        """Write samples of plain rows: as many as fit the shard.

        Args:
            batch: the rows; first to last of them are plain.

        Returns:
            What was written, of at least one row.

        Raises:
            DiskError: writing failed.
        """
        starts = batch.starts[first : last + 1]
        ends = starts[1:] - starts[0]
        file = self._file_for(int(ends[0]))
        room = self._max_bytes - len(TRAILER) - file.num_bytes
        fits = min(int(np.searchsorted(ends, room, "right")), self._max_samples - self._samples)
        last = first + max(fits, 1)
        tar = memoryview(batch)
        images, lines = batch.place(first, last, file.num_bytes)
        hashes = b"".join([xxhash.xxh3_128_digest(tar[image]) for image in images])
        begin, end = int(starts[0]), int(starts[last - first])
        offset = file.num_bytes - begin
        for at in range(begin, end, _WRITE_BYTES):
            file.write_now(tar[at : min(at + _WRITE_BYTES, end)])
        self._lines.append(lines)
        self._samples += last - first
        return PlainRun(last, len(self._done), offset, hashes)

    def finish(self) -> tuple[ShardEntry, ...]:
        """End the last shard and name them all."""
        self._end_shard()
        return tuple(self._done)

    def close(self) -> None:
        """Give up: remove what is not complete."""
        if self._file is not None:
            self._file.close()

    def _file_for(self, num_bytes: int) -> _Output:
        if self._file is not None:
            after = self._file.num_bytes + num_bytes + len(TRAILER)
            if after > self._max_bytes or self._samples >= self._max_samples:
                self._end_shard()
        if self._file is None:
            path = self._folder / shard_name(self._split, len(self._done))
            self._file = _Counted(path) if self._dry else AtomicFile(path, in_new_folder=True)
        return self._file

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.write(TRAILER)
        self._file.commit()
        index = self._file.path.with_suffix(".idx")
        text = idx_text(self._samples, self._lines).encode()
        digest = ""
        if not self._dry:
            digest = write_atomically(index, text, in_new_folder=True).sha256()
        idx = FileDigest(index.name, len(text), digest)
        name, num_bytes, sha256 = self._file.path.name, self._file.num_bytes, self._file.sha256()
        self._done.append(ShardEntry(name, num_bytes, sha256, self._samples, idx))
        self._file, self._lines, self._samples = None, [], 0


def shard_name(split: str, number: int) -> str:
    """The name of a shard; `number` counts from 0."""
    return f"{split}-{number:06d}.tar"


def idx_text(samples: int, lines: Sequence[str]) -> str:
    """DALI's text index (wds2idx v1.2): a line a sample, "EXTENSION OFFSET SIZE NAME" a part.

    Args:
        samples: how many.
        lines: their lines, each with its end; an item may hold several.
    """
    return "".join((f"v1.2 {samples}\n", *lines))
