"""Shard sets behind URLs: read ahead in the plan's order, kept in a local cache, by ranges."""

from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.storage import RemoteStorage

__all__ = ["RemoteOptions", "RemoteStorage"]
