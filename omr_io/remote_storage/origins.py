"""Where a set's files are: names under a URL, asked for by any number of threads."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Protocol
from urllib.parse import quote, urlsplit

from omr_io.errors import SourceError, Where
from omr_io.remote.buckets import Bucket, parse
from omr_io.remote.connections import Connections
from omr_io.remote.http_ranges import HttpRanges
from omr_io.remote.hub import open_hub
from omr_io.remote.ranges import Buffer, Stat
from omr_io.remote.retries import RetryPolicy, Traffic
from omr_io.remote.urls import BUCKETS, redact, scheme_of

_MAX_FILES = 64  # kept by a thread: each knows where the redirects of its file led


class Origin(Protocol):
    """The files under a URL. Thread-safe; in one process.

    Attributes:
        pinned: the URL names a commit, so that what is under it never changes.
    """

    pinned: bool

    def stat(self, name: str) -> Stat:
        """What a file is now; SourceError if it cannot be had."""
        ...

    def fetch_into(self, out: Buffer, name: str, offset: int, size: int, stat: Stat) -> None:
        """Exactly these bytes of a file that is still what it was, into an empty buffer.

        Raises:
            SourceError: they cannot be had, or the file has changed.
        """
        ...

    def close(self) -> None:
        """End the transfers at work, soon, and close connections."""
        ...


def join(root: str, name: str) -> str:
    """The URL of a file under a root.

    Args:
        root: as of `as_root`. name: as it stands; of http(s) it is percent-encoded here.
    """
    if scheme_of(root) in ("http", "https"):
        place, mark, query = root.partition("?")
        return f"{place}{quote(name)}{mark}{query}"
    return root + name


def as_root(url: str) -> str:
    """A URL prefix that ends in a slash; the query of one of http(s) stays at its end.

    Raises:
        SourceError: the scheme is not known, or the URL cannot be right.
    """
    if scheme_of(url) not in ("http", "https"):
        return url.rstrip("/") + "/"
    malformed = False
    try:
        malformed = not urlsplit(url).hostname
    except ValueError:
        malformed = True
    if malformed or "#" in url:
        raise SourceError("the URL is malformed", where=Where(source=redact(url)))
    place, mark, query = url.partition("?")
    return f"{place.rstrip('/')}/{mark}{query}"


def anonymous(url: str) -> str:
    """The URL without user name and password: what a cache may go by."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"


def make_origin(root: str, policy: RetryPolicy, traffic: Traffic) -> Origin:
    """The origin of a root (see `as_root`).

    Raises:
        ConfigError: a package is missing; obstore was used before a fork.
        SourceError: the scheme is not known, or the URL cannot be right.
    """
    if scheme_of(root) in BUCKETS:
        return BucketOrigin(root, policy, traffic)
    return HttpOrigin(root, policy, traffic)


class BucketOrigin:
    """Objects of a bucket, s3:// or gs://."""

    pinned = False

    def __init__(self, root: str, policy: RetryPolicy, traffic: Traffic) -> None:
        self._prefix = parse(root)[1]
        self._bucket = Bucket(root, policy, traffic)

    def stat(self, name: str) -> Stat:
        """See `Origin`."""
        return self._bucket.stat(self._prefix + name)

    def fetch_into(self, out: Buffer, name: str, offset: int, size: int, stat: Stat) -> None:
        """See `Origin`."""
        self._bucket.fetch_into(out, self._prefix + name, offset, size, stat)

    def close(self) -> None:
        """Nothing stays open: obstore keeps its own pool."""


class HttpOrigin:
    """Files of a server, or of the Hub at a commit."""

    def __init__(self, root: str, policy: RetryPolicy, traffic: Traffic) -> None:
        self._root, self._policy, self._traffic = root, policy, traffic
        self._hub = self.pinned = scheme_of(root) == "hf"
        self._own = threading.local()
        self._all: weakref.WeakSet[Connections] = weakref.WeakSet()
        self._lock = threading.Lock()

    def stat(self, name: str) -> Stat:
        """See `Origin`."""
        stat = self._file(name, None).stat
        # The storage servers behind the Hub may disagree on ETags.
        return Stat(stat.size, "") if self.pinned else stat

    def fetch_into(self, out: Buffer, name: str, offset: int, size: int, stat: Stat) -> None:
        """See `Origin`."""
        self._file(name, stat).fetch_into(out, offset, size)

    def close(self) -> None:
        """See `Origin`."""
        with self._lock:
            connections = list(self._all)
        for each in connections:
            each.interrupt()

    def _file(self, name: str, stat: Stat | None) -> HttpRanges:
        """This thread's own view of a file."""
        if not hasattr(self._own, "files"):
            self._own.files, self._own.connections = (
                OrderedDict(),
                Connections(self._policy.silence),
            )
            with self._lock:
                self._all.add(self._own.connections)
        files: OrderedDict[str, HttpRanges] = self._own.files
        if stat is None or name not in files or files[name].stat != stat:
            files[name] = self._open(name, stat)
            if len(files) > _MAX_FILES:
                files.popitem(last=False)
        files.move_to_end(name)
        return files[name]

    def _open(self, name: str, stat: Stat | None) -> HttpRanges:
        url, connections, traffic = join(self._root, name), self._own.connections, self._traffic
        if self._hub:
            return open_hub(url, self._policy, stat=stat, connections=connections, traffic=traffic)
        return HttpRanges(
            url, self._policy, head=1, stat=stat, connections=connections, traffic=traffic
        )
