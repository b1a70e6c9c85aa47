"""Shard sets behind URLs, read all through a training: ahead, in the plan's order, and cached.

What `omr_io.storage.LocalStorage` is for folders. Requests, retries and secrets are those of
`omr_io.remote`, which by itself reads one file once.

    shard_sets       a set's manifest and index, and the storage of its shards
    storage          `RemoteStorage`: what readers ask; a fetcher for each process
    fetcher          threads that fetch, and readers that wait for them
    planning         which bytes next, and as what: `hints` (what will be read), `units` (requests)
    block_cache      blocks on the local disk, bounded, shared by processes
    origins          names under a URL, asked for by the clients of `omr_io.remote`
"""

from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.storage import RemoteStorage

__all__ = ["RemoteOptions", "RemoteStorage"]
