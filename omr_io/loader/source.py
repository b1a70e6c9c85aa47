"""What the loader asks of its samples: the small surface of a `ShardSet` that it uses.

Whatever has it can be loaded: a shard set, or several as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from omr_io.shards.layout import Part
from omr_io.storage import StorageStats
from omr_io.types import ImageInfo, Record


class SampleSource(Protocol):
    """Samples by number. Calls from several threads are safe, and so are calls after a fork."""

    @property
    def fingerprint(self) -> str:
        """Stands for the whole content."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The key of sample i."""

    def shard(self, i: int) -> str:
        """The name of the shard that holds sample i."""

    def parts(self, i: int) -> tuple[Part, ...]:
        """Where the bytes of sample i are."""

    def images(self, i: int) -> tuple[ImageInfo, ...]:
        """What the headers of sample i's images say."""

    def read_record(self, i: int, images: bool = True) -> Record:
        """Sample i, with its images' bytes or without; IntegrityError if a byte is wrong."""

    def read_images(self, i: int) -> tuple[bytes, ...]:
        """The encoded images of sample i; IntegrityError if a byte is wrong."""

    def will_read(self, numbers: Sequence[int]) -> None:
        """These samples will be read soon, in this order; returns at once."""

    def storage_stats(self) -> StorageStats:
        """What the storage did so far in this process."""

    def close(self) -> None:
        """Release all handles; reading again opens them anew."""
