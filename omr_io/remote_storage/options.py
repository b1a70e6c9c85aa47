"""How a shard set behind a URL is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omr_io.cache import cache_root
from omr_io.errors import ConfigError
from omr_io.remote.retries import RetryPolicy


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How a shard set behind a URL is read; nothing here changes what is read.

    Attributes:
        cache: the folder of the local cache, which any number of processes may share, and which is
            safe to delete at any time. "default" is `shards/` in the folder of all caches
            (~/.cache/omr_io, or where OMR_IO_CACHE_DIR says; none where that is set to nothing).
            None keeps nothing on disk: only what is read ahead, in memory.
        cache_bytes: the bound of that folder; what was longest unused goes first. None: 32 GiB, or
            half of what is free there, if that is less. 0: as `cache` None. Shards are kept while
            those that are read from at a time take at most half of it: give twice their size.
        threads: transfers at once. One of them (if there are two or more) is kept for reads that
            somebody waits for.
        read_ahead_bytes: of memory, for what is read ahead and not yet asked for.
        block_bytes: what is kept in the cache are aligned blocks of shards, of this size.
        retries: how often and how long apart is tried again, and what counts as dead. The default
            rides out some three minutes of a server that does not answer.

    Raises:
        ConfigError: an option that cannot be right.
    """

    cache: str | Path | Literal["default"] | None = "default"
    cache_bytes: int | None = None
    threads: int = 16
    read_ahead_bytes: int = 256 << 20
    block_bytes: int = 8 << 20
    retries: RetryPolicy = field(default_factory=lambda: RetryPolicy(tries=12))

    def __post_init__(self) -> None:
        if self.threads < 1 or self.read_ahead_bytes < 0 or self.block_bytes < 1 << 12:
            raise ConfigError(
                f"threads {self.threads}, read_ahead_bytes {self.read_ahead_bytes}, block_bytes "
                f"{self.block_bytes}",
                mend="Use at least 1 thread, 0 bytes and blocks of 4096 bytes",
            )
        if self.cache_bytes and self.cache_bytes < self.least_cache_bytes:
            raise ConfigError(
                f"cache_bytes {self.cache_bytes} is less than four blocks of {self.block_bytes}",
                mend=f"Use {self.least_cache_bytes} or more, 0 for no cache, or None",
            )

    @property
    def least_cache_bytes(self) -> int:
        """A smaller cache is of no use."""
        return 4 * self.block_bytes

    def folder(self) -> Path | None:
        """The cache's folder, which need not exist; None: there is no cache."""
        if self.cache_bytes == 0 or self.cache is None:
            return None
        if self.cache == "default":
            root = cache_root()
            return None if root is None else root / "shards"
        return Path(self.cache).expanduser().absolute()
