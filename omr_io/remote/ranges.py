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


def changed(source: str, detail: str) -> SourceError:
    """The error for a file that is not what it was; `source` without secrets."""
    return SourceError(
        f"the file changed while it was read: {detail}",
        where=Where(source=source),
        mend="Wait until nobody writes it, then run again from the start",
    )
