"""One file that is elsewhere, read once: hf://, s3://, gs://, http(s)://.

`list_urls` finds files, `open_url` reads one with Python's file protocol, `identity` tells what a
corpus' fingerprint is made of. No other scheme is known, and none starts a program. Conversion and
`omr-io index` read their sources so. **Shard sets that are trained from are another package's**,
`omr_io.remote_storage`, which has the cache and reads ahead; it asks by the same clients:

    urls                       what a URL is, what in it is secret, patterns
    retries, ranges            trying again, stalls; what every client gives
    connections, http_ranges   HTTP by the standard library
    hub                        hf://: names, commits, tokens; the bytes by http_ranges
    buckets, s3, gcs           s3:// and gs:// by obstore
    remote_file                a client's ranges as a Python file
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from omr_io.remote.retries import RetryPolicy
from omr_io.remote.urls import BUCKETS, is_url, redact

if TYPE_CHECKING:
    from omr_io.remote.remote_file import RemoteFile

__all__ = ["RetryPolicy", "identity", "is_url", "list_urls", "open_url", "redact"]

_EDGE = 1 << 16


def list_urls(url: str, policy: RetryPolicy | None = None) -> tuple[str, ...]:
    """Find the files that a URL stands for.

    hf://datasets/OWNER/NAME[@REVISION]/PATH, s3://BUCKET/KEY and gs://BUCKET/KEY may name a file, a
    folder (its own *.parquet; if it has none, its files of another format in `urls.SUFFIXES`) or a
    glob pattern (* and ? within a folder, ** over folders). http(s)://HOST/PATH is one file.

    Args:
        url: see above.
        policy: of trying again; None takes its defaults.

    Returns:
        URLs of files, sorted. Those of the Hub name the commit that the revision is at now, so that
        all who open them later read the same bytes. They may hold secrets if `url` does: print
        them through `redact`.

    Raises:
        ConfigError: a package is missing; it says how to install it.
        SourceError: nothing is found, there is no access, or the server fails.
    """
    from omr_io.remote.urls import check_http, scheme_of

    policy = policy or RetryPolicy()
    scheme = scheme_of(url)
    if scheme == "hf":
        from omr_io.remote.hub import list_hub

        return list_hub(url, policy)
    if scheme in BUCKETS:
        from omr_io.remote.buckets import list_bucket

        return list_bucket(url, policy)
    check_http(url)
    return (url,)


def open_url(url: str, policy: RetryPolicy | None = None) -> RemoteFile:
    """Open a file for reading: `read`, `seek`, `tell`, `size`, lines, a context manager.

    One per caller: it is not thread-safe. What it reads ahead is bounded (some 16 MiB). Failures
    that may pass are tried again.

    Raises:
        ConfigError: a package is missing.
        SourceError: the file cannot be had; the server does not know ranges. While reading also:
            the file changed.
    """
    from omr_io.remote.remote_file import FIRST_READ, RemoteFile
    from omr_io.remote.urls import check_http, name_of, scheme_of

    policy = policy or RetryPolicy()
    scheme = scheme_of(url)
    name_of(url)
    if scheme == "hf":
        from omr_io.remote.hub import open_hub

        return RemoteFile(open_hub(url, policy), redact(url))
    if scheme in BUCKETS:
        from omr_io.remote.buckets import BucketRanges

        return RemoteFile(BucketRanges(url, policy), redact(url))
    from omr_io.remote.http_ranges import HttpRanges

    check_http(url)
    return RemoteFile(HttpRanges(url, policy, head=FIRST_READ), redact(url))


def identity(url: str, policy: RetryPolicy | None = None) -> tuple[str, int, str]:
    """What a file is, without reading it: the last part of its path, its size, and a tag.

    The tag changes with the content: the SHA-256 or git blob id on the Hub, else the ETag or the
    date of change. Where a server has neither, it is a digest of the first and last 64 KiB.

    Raises:
        ConfigError, SourceError: as `open_url`.
    """
    from omr_io.remote.urls import name_of, scheme_of

    policy = policy or RetryPolicy()
    scheme = scheme_of(url)
    name = name_of(url)
    if scheme == "hf":
        from omr_io.remote.hub import identify_hub

        return name, *identify_hub(url, policy)
    if scheme in BUCKETS:
        from omr_io.remote.buckets import identify_object

        return name, *identify_object(url, policy)
    with open_url(url, policy) as file:
        if file.tag:
            return name, file.size, file.tag
        digest = hashlib.sha256(file.read(_EDGE))
        file.seek(max(file.size - _EDGE, 0))
        digest.update(file.read())
        return name, file.size, f"edges-sha256:{digest.hexdigest()}"
