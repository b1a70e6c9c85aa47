"""Objects in S3 and what speaks like it: s3://bucket/key, through obstore."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from omr_io.errors import ConfigError, OmrError, SourceError, Where
from omr_io.remote.ranges import Stat, changed
from omr_io.remote.retries import RetryPolicy, TransientError, call
from omr_io.remote.urls import SUFFIXES, fixed_part, glob_regex, has_magic, in_folder, redact

if TYPE_CHECKING:
    from obstore.store import S3Store

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_STATUS = re.compile(r"status code: (\d{3})")
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT",
)  # fmt: skip
_NO_ACCESS = (
    "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if there is one) of an "
    "account that may read the bucket; `aws configure export-credentials --format env` prints them"
)
_FORK = "s3:// was used in a process before it forked, and obstore's threads do not outlive a fork"
# obstore starts its threads at first use. In a child of a later fork they are missing, and a call
# would wait for them for ever: the process is remembered, so that this is an error instead.
_used_by: list[int] = []


def parse(url: str) -> tuple[str, str]:
    """Bucket and key of a URL; the key as it stands, without percent-decoding, as in AWS's tools.

    Raises:
        SourceError: it is of another form.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket):
        mend = "The form is s3://BUCKET/KEY, where KEY is an object, folder or glob"
        if "@" in bucket:
            mend = "Credentials belong into the environment, as AWS_ACCESS_KEY_ID and so on"
        raise SourceError("this names no bucket", where=Where(source=redact(url)), mend=mend)
    return bucket, key


def list_s3(url: str, policy: RetryPolicy) -> tuple[str, ...]:
    """The objects that a URL stands for.

    Raises:
        ConfigError: obstore is missing.
        SourceError: there are none, or no access.
    """
    bucket, key = parse(url)
    store = _store(bucket, url, policy)
    if has_magic(key):
        match, prefix = glob_regex(key).fullmatch, fixed_part(key)
        deep = "/" in key[len(prefix) :] or "**" in key
        keys = sorted(filter(match, _keys(store, prefix, deep, url, policy)))
        if not keys:
            raise SourceError("no object matches", where=Where(source=redact(url)))
    elif key and not key.endswith("/") and _is_object(store, key, url, policy):
        keys = [key]  # found without a list, which may be forbidden where reading is not
    else:
        folder = f"{key.rstrip('/')}/" if key else ""
        keys = in_folder(lambda deep: _keys(store, folder, deep, url, policy), folder, url)
    return tuple(f"s3://{bucket}/{name}" for name in keys)


def open_s3(url: str, policy: RetryPolicy) -> S3Ranges:
    """The byte ranges of one object."""
    return S3Ranges(url, policy)


def identify_s3(url: str, policy: RetryPolicy) -> tuple[int, str]:
    """Size and ETag (or date of change) of one object."""
    stat = S3Ranges(url, policy).stat
    return stat.size, stat.tag


class S3Ranges:
    """An object; its content is held to the ETag that it had when it was opened.

    Raises:
        ConfigError: obstore is missing.
        SourceError: it cannot be had.
    """

    def __init__(self, url: str, policy: RetryPolicy) -> None:
        self._bucket, self._key = parse(url)
        self._source = redact(url)
        self._policy = policy
        self._store = _store(self._bucket, url, policy)
        self._etag: str | None = None
        self._stat: Stat = self._run(self._head)

    @property
    def stat(self) -> Stat:
        """As it was when it was opened."""
        return self._stat

    def fetch(self, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            SourceError: they cannot be had, or the object has changed since it was opened.
        """
        data: bytes = self._run(lambda: self._get(offset, size))
        return data

    def close(self) -> None:
        """Nothing stays open: obstore keeps its own pool."""

    def _head(self) -> Stat:
        import obstore

        meta = obstore.head(self._store, self._key)
        self._etag = meta["e_tag"]
        return Stat(meta["size"], self._etag or meta["last_modified"].isoformat())

    def _get(self, offset: int, size: int) -> bytes:
        import obstore

        options: dict[str, Any] = {"range": (offset, offset + size)}
        if self._etag is not None:
            options["if_match"] = self._etag
        result = obstore.get(self._store, self._key, options=options)  # type: ignore[arg-type]
        meta = result.meta
        tag = meta["e_tag"] or meta["last_modified"].isoformat()
        if meta["size"] != self._stat.size:
            raise changed(self._source, f"it has {meta['size']} bytes and had {self._stat.size}")
        if tag != self._stat.tag:
            raise changed(self._source, "its ETag or date is another")
        data = bytes(result.bytes())
        if len(data) != size:
            raise TransientError(f"{len(data)} bytes came instead of {size}")
        return data

    def _run(self, action: Any) -> Any:
        return _call(action, self._source, self._policy)


def _is_object(store: S3Store, key: str, url: str, policy: RetryPolicy) -> bool:
    """Whether a key is an object; if not, and it looks like a file's, that is an error."""
    import obstore

    def find() -> bool:
        try:
            obstore.head(store, key)
        except FileNotFoundError:
            if key.lower().endswith(tuple(SUFFIXES)):
                raise
            return False
        return True

    return bool(_call(find, redact(url), policy))


def _keys(store: S3Store, prefix: str, deep: bool, url: str, policy: RetryPolicy) -> list[str]:
    """The keys in a folder, or with `deep` also below it; `prefix` is "" or ends in "/"."""
    import obstore

    def find() -> list[str]:
        folder = prefix.rstrip("/") or None
        if not deep:
            return [meta["path"] for meta in obstore.list_with_delimiter(store, folder)["objects"]]
        pages = obstore.list(store, folder, chunk_size=1000)
        return [meta["path"] for page in pages for meta in page]

    return [key for key in _call(find, redact(url), policy) if key.startswith(prefix)]


def _store(bucket: str, url: str, policy: RetryPolicy) -> S3Store:
    missing = False
    try:
        from obstore.store import S3Store
    except ImportError:
        missing = True
    if missing:
        raise ConfigError(
            "s3:// needs obstore", mend="Install it with `pip install omr_io[remote]`"
        )
    if _used_by and _used_by[0] != os.getpid():
        raise ConfigError(
            _FORK,
            where=Where(source=redact(url)),
            mend="Start worker processes by spawn or forkserver, not by fork",
        )
    _used_by[:] = [os.getpid()]
    config: dict[str, Any] = {}
    if not any(os.environ.get(name) for name in _CREDENTIALS):
        config["skip_signature"] = True
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT")
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        config["region"] = "us-east-1"
    options: dict[str, Any] = {"timeout": timedelta(seconds=policy.timeout)}
    if endpoint:
        config["endpoint"] = endpoint
        options["allow_http"] = endpoint.startswith("http://")  # the user's own word
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]
        client_options=options,  # type: ignore[arg-type]
        retry_config={"max_retries": 0},  # tries are counted here
    )


def _call(action: Any, source: str, policy: RetryPolicy) -> Any:
    def give_up(what: str) -> OmrError:
        what = f"reading failed {policy.tries} times, the last time: {what}"
        return SourceError(
            what, where=Where(source=source), mend="Check the network, then run again"
        )

    return call(action, lambda error: _explain(error, source), give_up, policy)


def _explain(error: Exception, source: str) -> OmrError | TransientError:
    """What an exception of obstore means; its own text quotes requests and answers."""
    where = Where(source=source)
    text = str(error)
    kind = type(error).__name__
    match = _STATUS.search(text)
    status = int(match[1]) if match else None
    if isinstance(error, FileNotFoundError) or status == 404:
        return SourceError("there is no such object or bucket (404)", where=where)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return SourceError(f"no access ({status or 403})", where=where, mend=_NO_ACCESS)
    if kind == "PreconditionError":
        return changed(source, "its ETag is another")
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
    if kind == "GenericError":
        return TransientError("the connection failed")
    return SourceError(f"reading failed ({kind})", where=where)
