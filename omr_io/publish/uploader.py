"""What pushing asks of a server that takes files, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from omr_io.publish.set_files import LocalFile


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What a repository has under a name: size, git's blob id, and the SHA-256 if it is LFS."""

    bytes: int
    blob_id: str
    sha256: str | None


class Uploader(Protocol):
    """A dataset repository that takes files. Errors are SourceError or ConfigError."""

    def prepare(self, create: bool, private: bool, dry_run: bool) -> bool:
        """Check that the repository can be pushed to, or make it; False if it is not there yet."""
        ...

    def state(self, names: Sequence[str]) -> Mapping[str, RemoteState]:
        """Those of the names that are there."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a small file that is there."""
        ...

    def upload(self, files: Sequence[LocalFile]) -> None:
        """Send contents; they are seen after `commit`. What the server has is not sent again."""
        ...

    def commit(self, files: Sequence[LocalFile], remove: Sequence[str], message: str) -> str:
        """Make files that were uploaded seen, and others gone, at once; gives the commit's id."""
        ...
