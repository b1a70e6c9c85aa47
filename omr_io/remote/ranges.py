"""What every kind of remote file offers: its size, something that changes with it, byte ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from omr_io.errors import SourceError, Where


@dataclass(frozen=True, slots=True)
class Stat:
    """A remote file: its size in bytes, and an ETag, hash or date that changes when it does.

    `tag` is "" where the server tells nothing of the kind.
    """

    size: int
    tag: str


class Ranges(Protocol):
    """A remote file that gives byte ranges; for one caller at a time."""

    @property
    def stat(self) -> Stat:
        """As it was when it was first asked for."""
        ...

    def fetch(self, offset: int, size: int) -> bytes:
        """Exactly these bytes, all within the file.

        Raises:
            SourceError: they cannot be had, or the file has changed since.
        """
        ...

    def close(self) -> None:
        """Release connections; the next fetch opens them anew."""
        ...


class Buffer:
    """Room for bytes that come in pieces: allocated once, and used again after `clear`.

    What grows by itself is copied as it grows, and leaves holes that are never given back: sixteen
    threads with blocks of 8 MiB took 400 MB more.
    """

    def __init__(self, size: int) -> None:
        self._room = memoryview(bytearray(size))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def append(self, piece: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end; ValueError if there is no room for them."""
        end = self._used + len(piece)
        self._room[self._used : end] = piece
        self._used = end

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self._used = 0

    def view(self) -> memoryview:
        """What came so far, not copied."""
        return self._room[: self._used]


def changed(source: str, detail: str) -> SourceError:
    """The error for a file that is not what it was; `source` without secrets."""
    return SourceError(
        f"the file changed while it was read: {detail}",
        where=Where(source=source),
        mend="Wait until nobody writes it, then run again from the start",
    )
