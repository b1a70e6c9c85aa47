"""A remote file as Python's file protocol, read ahead so that small reads cost few requests."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omr_io.remote.ranges import Ranges

if TYPE_CHECKING:
    from typing_extensions import Buffer

FIRST_READ = 1 << 18
MAX_AHEAD = 4 << 20
MAX_HELD = 16 << 20
TAIL = 1 << 20
_LINE = 1 << 12  # lines are looked for in pieces of this size


@dataclass(slots=True)
class _Window:
    """Bytes held from `start`; `ahead` is how much was asked for last, doubled when read on."""

    start: int
    data: bytes
    ahead: int

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class RemoteFile(io.RawIOBase):
    """A readable, seekable binary file over `Ranges`. One per caller: not thread-safe.

    Parquet's columns are read in turns, each in order. So several windows are held, and each grows
    from 256 KiB to 4 MiB as long as it is read on where it ended; at most some 16 MiB are held. The
    last MiB of a file, where Parquet has its footer, comes in one request and is one window.

    Args:
        ranges: closed with the file.
        source: the URL without its secrets: `name`.

    Attributes:
        size: bytes of the whole file. tag: see `Stat`.
    """

    def __init__(self, ranges: Ranges, source: str) -> None:
        self._ranges = ranges
        self.name = source
        self.size = ranges.stat.size
        self.tag = ranges.stat.tag
        self._at = 0
        self._windows: list[_Window] = []  # the one used last comes last

    def readable(self) -> bool:
        """True: `io` asks."""
        return True

    def seekable(self) -> bool:
        """True: `io` asks."""
        return True

    def tell(self) -> int:
        """The place of the next read, in bytes."""
        self._check_open()
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; a place beyond the end reads nothing, as with any file."""
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is {whence}, not 0, 1 or 2")
        place = bases[whence] + offset
        if place < 0:
            raise ValueError(f"the place {place} is before the start")
        self._at = place
        return place

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, fewer only at the end; all that is left if None or negative.

        Raises:
            SourceError: they cannot be had, or the file has changed since it was opened.
        """
        self._check_open()
        left = max(self.size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            piece = self._some(wanted)
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer; gives the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to and with the next line break, and at most `size` bytes."""
        self._check_open()
        left = max(self.size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        line = bytearray()
        while wanted and not line.endswith(b"\n"):
            piece = self._some(min(wanted, _LINE))
            piece = piece[: piece.find(b"\n") + 1] or piece
            line += piece
            self._at += len(piece)
            wanted -= len(piece)
        return bytes(line)

    def close(self) -> None:
        """Close the connections and forget what was read."""
        if not self.closed:
            self._windows = []
            self._ranges.close()
        super().close()

    def __repr__(self) -> str:
        return f"<RemoteFile {self.name}, {self.size} bytes>"

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")

    def _some(self, wanted: int) -> bytes:
        """At least one and at most `wanted` bytes from here on."""
        for place, window in enumerate(self._windows):
            if window.start <= self._at < window.end:
                self._windows.append(self._windows.pop(place))
                begin = self._at - window.start
                return window.data[begin : begin + wanted]
        for place, window in enumerate(self._windows):
            if window.end == self._at:
                del self._windows[place]
                return self._load(self._at, min(2 * window.ahead, MAX_AHEAD), wanted)
        if self._at >= self.size - TAIL:
            start = max(self.size - TAIL, 0)
            self._hold(_Window(start, self._ranges.fetch(start, self.size - start), FIRST_READ))
            return self._some(wanted)
        return self._load(self._at, FIRST_READ, wanted)

    def _load(self, start: int, ahead: int, wanted: int) -> bytes:
        if wanted > MAX_AHEAD:  # large reads are not held, but what follows is read on from there
            data = self._ranges.fetch(start, wanted)
            self._hold(_Window(start + wanted, b"", MAX_AHEAD))
            return data
        size = min(max(ahead, wanted), self.size - start)
        window = _Window(start, self._ranges.fetch(start, size), max(ahead, FIRST_READ))
        self._hold(window)
        return window.data[:wanted]

    def _hold(self, window: _Window) -> None:
        self._windows.append(window)
        held = sum(len(other.data) for other in self._windows)
        while len(self._windows) > 1 and (held > MAX_HELD or len(self._windows) > 32):
            held -= len(self._windows.pop(0).data)
