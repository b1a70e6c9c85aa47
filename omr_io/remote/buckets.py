"""Buckets of objects through obstore: what s3:// and gs:// have in common."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from omr_io.errors import ConfigError, OmrError, SourceError, Where
from omr_io.remote.ranges import Buffer, Stat, changed
from omr_io.remote.retries import RetryPolicy, StallMeter, Traffic, TransientError, call
from omr_io.remote.urls import SUFFIXES, fixed_part, glob_regex, has_magic, in_folder, redact

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

    Store = S3Store | GCSStore

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_STATUS = re.compile(r"status code: (\d{3})")
_REFUSED = (401, 403)
_ALL_DAY = timedelta(days=1)
_ENVIRONMENT = {"s3": "AWS_ACCESS_KEY_ID and so on", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
_MEND = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if there is one) "
    "of an account that may read the bucket; `aws configure export-credentials --format env` "
    "prints them. On a machine that has a role, set AWS_SKIP_SIGNATURE=false",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the credentials of an account that may read the "
    "bucket (`gcloud auth application-default login` makes some). On a machine that has an "
    "account of its own, set GOOGLE_SKIP_SIGNATURE=false",
}
_CONNECTION = {
    "dns error": ": the host's name cannot be resolved",
    "ConnectionRefused": ": it was refused",
    "ConnectionReset": ": it was reset",
    "TimedOut": ": it took too long",
}
_MEND_KEY = "Check the URL for // and the like; or copy the object to a key without"
_FORK = "the bucket was used in a process before it forked: obstore's threads do not outlive a fork"
# obstore starts its threads at first use. In a child of a later fork they are missing, and a call
# would wait for them for ever: the process is remembered, so that this is an error instead.
_used_by: list[int] = []


def parse(url: str) -> tuple[str, str]:
    """Bucket and key of a URL; the key as it stands, without percent-decoding, as in AWS's tools.

    Raises:
        SourceError: it is of another form; or the key has an empty part, . or .., which obstore
            does not know: it would take BUCKET//KEY for BUCKET/KEY.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not _NAME.fullmatch(bucket):
        scheme = scheme.lower()
        mend = f"The form is {scheme}://BUCKET/KEY, where KEY is an object, folder or glob"
        if "@" in bucket:
            mend = f"Credentials belong into the environment, as {_ENVIRONMENT[scheme]}"
        raise SourceError("this names no bucket", where=Where(source=redact(url)), mend=mend)
    if key.strip("/") and {"", ".", ".."} & set(key.rstrip("/").split("/")):
        what = "the key holds an empty part, . or .., and such objects cannot be read"
        raise SourceError(what, where=Where(source=redact(url)), mend=_MEND_KEY)
    return bucket, key


class Bucket:
    """A bucket. Thread-safe; in one process.

    Credentials are those of the environment when it is first used, and again, once a call, when
    they are refused: they may have expired, and another be there by now.

    Args:
        url: of anything in it.
        policy: of trying again. traffic: where requests are counted.

    Raises:
        ConfigError: obstore is missing; or it was used before a fork.
        SourceError: the URL names no bucket.
    """

    def __init__(self, url: str, policy: RetryPolicy, traffic: Traffic | None = None) -> None:
        self.scheme = url.partition("://")[0].lower()
        self.name = parse(url)[0]
        self._policy = policy
        self._traffic = traffic or Traffic()
        self._lock = threading.Lock()
        _check_process(url)
        self._store = self._make()

    def url(self, key: str) -> str:
        """The URL of an object."""
        return f"{self.scheme}://{self.name}/{key}"

    def stat(self, key: str) -> Stat:
        """Size and ETag (or date of change) of an object; SourceError if it cannot be had."""

        def head(store: Store) -> Stat:
            import obstore

            meta = obstore.head(store, key)
            return Stat(meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())

        return self._call(head, redact(self.url(key)))

    def fetch_into(self, out: Buffer, key: str, offset: int, size: int, stat: Stat) -> None:
        """Exactly these bytes of an object that is still what it was, into an empty buffer.

        What a try brought is kept, and the next one goes on after it, held to the same ETag.

        Raises:
            SourceError: they cannot be had, or the object has changed.
        """

        def get(store: Store) -> None:
            self._get(store, key, offset, size, stat, out)

        self._call(get, redact(self.url(key)), lambda: len(out))

    def _get(self, store: Store, key: str, offset: int, size: int, stat: Stat, out: Buffer) -> None:
        import obstore

        options: dict[str, Any] = {"range": (offset + len(out), offset + size)}
        if stat.tag.startswith('"'):  # a weak one never matches, and a date is none
            options["if_match"] = stat.tag
        result = obstore.get(store, key, options=options)  # type: ignore[arg-type]
        meta, source = result.meta, redact(self.url(key))
        tag = meta["e_tag"] or meta["last_modified"].isoformat()
        if meta["size"] != stat.size:
            raise changed(source, f"it has {meta['size']} bytes and had {stat.size}")
        if tag != stat.tag:
            raise changed(source, "its ETag or date is another")
        if tuple(result.range) != (offset + len(out), offset + size):
            raise TransientError("the server sends another range than was asked for")
        meter = StallMeter(self._policy)
        # Whatever comes at once, 8 to 64 KiB: of larger pieces a trickle would never make one.
        for piece in result.stream(min_chunk_size=1):
            if len(out) + len(piece) > size:
                out.clear()  # nothing of it can be trusted
                raise TransientError("more bytes came than were asked for")
            out.append(memoryview(piece))
            self._traffic.received(len(piece))
            if len(out) < size:
                meter.received(len(piece))
        if len(out) != size:
            raise TransientError(f"{len(out)} bytes came instead of {size}")

    def is_object(self, key: str) -> bool:
        """Whether a key is an object; if not, and it looks like a file's, that is an error."""

        def find(store: Store) -> bool:
            import obstore

            try:
                obstore.head(store, key)
            except FileNotFoundError:
                if key.lower().endswith(tuple(SUFFIXES)):
                    raise
                return False
            return True

        return self._call(find, redact(self.url(key)))

    def keys(self, prefix: str, deep: bool) -> list[str]:
        """The keys in a folder, or with `deep` also below it; `prefix` is "" or ends in "/"."""

        def find(store: Store) -> list[str]:
            import obstore

            folder = prefix.rstrip("/") or None
            if not deep:
                listed = obstore.list_with_delimiter(store, folder)
                return [meta["path"] for meta in listed["objects"]]
            pages = obstore.list(store, folder, chunk_size=1000)
            return [meta["path"] for page in pages for meta in page]

        found = self._call(find, redact(self.url(prefix)))
        return [key for key in found if key.startswith(prefix)]

    def _call(
        self, action: Callable[[Store], T], source: str, progress: Callable[[], int] = lambda: 0
    ) -> T:
        renewed = False
        used = self._store

        def attempt() -> T:
            nonlocal used
            used = self._store
            self._traffic.request()
            return action(used)

        def explain_and_renew(error: Exception) -> OmrError | TransientError:
            nonlocal renewed
            if not renewed and _is_refusal(error):
                renewed = True
                self._renew(used)
                return TransientError("the credentials were refused", 0.0)
            return explain(error, source, self.scheme)

        def give_up(what: str) -> OmrError:
            what = f"reading failed {self._policy.tries} times, the last time: {what}"
            return SourceError(
                what, where=Where(source=source), mend="Check the network, then run again"
            )

        return call(attempt, explain_and_renew, give_up, self._policy, self._traffic, progress)

    def _renew(self, refused: Store) -> None:
        """Make the store anew from the environment, unless another thread did so already."""
        with self._lock:
            if self._store is refused:
                self._store = self._make()

    def _make(self) -> Store:
        # The whole request may take as long as it likes, as long as bytes come.
        options = {
            "timeout": _ALL_DAY,
            "read_timeout": timedelta(seconds=self._policy.silence),
            "connect_timeout": timedelta(seconds=min(self._policy.timeout, 10.0)),
        }
        if self.scheme == "gs":
            from omr_io.remote.gcs import make_store as make
        else:
            from omr_io.remote.s3 import make_store as make  # type: ignore[assignment]
        try:
            return make(self.name, options)
        except OmrError:
            raise
        except Exception as error:  # obstore's, of settings that cannot be; it may quote secrets
            text = redact(str(error).partition("\n")[0])[:200]
        names = "AWS_*" if self.scheme == "s3" else "GOOGLE_*"
        what = f"the settings of {self.scheme}:// in the environment cannot be: {text}"
        raise ConfigError(what, mend=f"Mend the variables {names} of the environment")


class BucketRanges:
    """An object; its content is held to the ETag that it had when it was opened.

    Raises:
        ConfigError: obstore is missing.
        SourceError: it cannot be had.
    """

    def __init__(self, url: str, policy: RetryPolicy) -> None:
        self._key = parse(url)[1]
        self._bucket = Bucket(url, policy)
        self._stat = self._bucket.stat(self._key)

    @property
    def stat(self) -> Stat:
        """As it was when it was opened."""
        return self._stat

    def fetch(self, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            SourceError: they cannot be had, or the object has changed since it was opened.
        """
        room = Buffer(size)
        self._bucket.fetch_into(room, self._key, offset, size, self._stat)
        return bytes(room.view())

    def close(self) -> None:
        """Nothing stays open: obstore keeps its own pool."""


def list_bucket(url: str, policy: RetryPolicy) -> tuple[str, ...]:
    """The objects that a URL stands for.

    Raises:
        ConfigError: obstore is missing.
        SourceError: there are none, or no access.
    """
    key = parse(url)[1]
    bucket = Bucket(url, policy)
    if has_magic(key):
        match, prefix = glob_regex(key).fullmatch, fixed_part(key)
        deep = "/" in key[len(prefix) :] or "**" in key
        keys = sorted(filter(match, bucket.keys(prefix, deep)))
        if not keys:
            raise SourceError("no object matches", where=Where(source=redact(url)))
    elif key and not key.endswith("/") and bucket.is_object(key):
        keys = [key]  # found without a list, which may be forbidden where reading is not
    else:
        folder = f"{key.rstrip('/')}/" if key else ""
        keys = in_folder(lambda deep: bucket.keys(folder, deep), folder, url)
    return tuple(bucket.url(name) for name in keys)


def identify_object(url: str, policy: RetryPolicy) -> tuple[int, str]:
    """Size and ETag (or date of change) of one object."""
    stat = BucketRanges(url, policy).stat
    return stat.size, stat.tag


def _check_process(url: str) -> None:
    missing = False
    try:
        import obstore.store  # noqa: F401
    except ImportError:
        missing = True
    if missing:
        raise ConfigError(
            f"{url.partition('://')[0].lower()}:// needs obstore",
            mend="Install it with `pip install omr_io[remote]`",
        )
    if _used_by and _used_by[0] != os.getpid():
        raise ConfigError(
            _FORK,
            where=Where(source=redact(url)),
            mend="Start worker processes by spawn or forkserver, not by fork",
        )
    _used_by[:] = [os.getpid()]


def _status(error: Exception) -> int | None:
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def _is_refusal(error: Exception) -> bool:
    """Whether other credentials might help."""
    kind, status = type(error).__name__, _status(error)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in _REFUSED:
        return True
    # S3 says so with status 400; the answer to HEAD has no body that would say it.
    text = str(error)
    return status == 400 and ("ExpiredToken" in text or "InvalidToken" in text or "HEAD" in text)


def explain(error: Exception, source: str, scheme: str) -> OmrError | TransientError:
    """What an exception of obstore means; its own text quotes requests and answers."""
    where = Where(source=source)
    text, kind, status = str(error), type(error).__name__, _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return SourceError("there is no such object or bucket (404)", where=where)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in _REFUSED:
        return SourceError(f"no access ({status or 403})", where=where, mend=_MEND[scheme])
    if status == 400 and ("ExpiredToken" in text or "InvalidToken" in text):
        return SourceError("the credentials have expired (400)", where=where, mend=_MEND[scheme])
    if kind == "PreconditionError" or status == 412:
        return changed(source, "its ETag is another")
    if kind == "InvalidPathError":
        what = "a key there holds an empty part, . or .., and such objects cannot be listed"
        return SourceError(what, where=where, mend="Name the files, or a folder without such keys")
    if "non-partial response" in text:
        return SourceError("the server ignores Range and sends whole objects", where=where)
    if "incorrectly configured region" in text or status in (301, 307):
        return SourceError(
            "the bucket is in another region", where=where, mend="Set AWS_REGION to the bucket's"
        )
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return SourceError(f"the server answers {status}", where=where)
    if status is not None:
        return TransientError(f"the server answers {status}")
    if "InvalidCertificate" in text:
        mend = "Check the endpoint; a certificate of your own must be known to this machine"
        return SourceError("the server's certificate is not trusted", where=where, mend=mend)
    if kind == "GenericError" or isinstance(error, TimeoutError | ConnectionError):
        told = (words for mark, words in _CONNECTION.items() if mark in text)
        return TransientError(f"the connection failed{next(told, '')}")
    return SourceError(f"reading failed ({kind})", where=where)
