"""Datasets on the Hugging Face Hub: hf://datasets/OWNER/NAME[@REVISION]/path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.message import Message
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from omr_io.errors import ConfigError, OmrError, SourceError, Where
from omr_io.remote.connections import Connections
from omr_io.remote.http_ranges import HttpRanges
from omr_io.remote.ranges import Stat
from omr_io.remote.retries import RetryPolicy, Traffic, TransientError, call, retry_after
from omr_io.remote.urls import fixed_part, glob_regex, has_magic, in_folder, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

_FORM = "The form is hf://datasets/OWNER/NAME[@REVISION]/path, where path is a file, folder or glob"
_LONG_REVISION = re.compile(r"refs/(?:convert|pr)/[^/]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_PLAIN = 16 << 20  # what is not LFS is smaller, and may be served by a host without ranges
LOG_IN = "set HF_TOKEN or run `hf auth login`"


@dataclass(frozen=True, slots=True)
class HubPath:
    """A place in a dataset of the Hub; `revision` is None where none was given."""

    repo: str
    revision: str | None
    path: str

    @property
    def url(self) -> str:
        """The URL of this place."""
        revision = "" if self.revision is None else "@" + quote(self.revision, safe="")
        return f"hf://datasets/{self.repo}{revision}/{self.path}".removesuffix("/")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, whose content never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def parse(url: str) -> HubPath:
    """Take a URL apart.

    Raises:
        SourceError: it is of another form.
    """
    where = Where(source=redact(url))
    rest = url.partition("://")[2]
    kind, _, rest = rest.partition("/")
    owner, _, rest = rest.partition("/")
    if kind != "datasets" or not owner or not rest:
        raise SourceError("this names no dataset of the Hub", where=where, mend=_FORM)
    name, _, path = rest.partition("/")
    name, at, revision = name.partition("@")
    long = _LONG_REVISION.match(f"{revision}/{path}") if at else None
    if long is not None and revision == "refs":
        revision, path = long[0], f"{revision}/{path}"[long.end() + 1 :]
    revision = unquote(revision)
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name) or (at and not revision):
        raise SourceError("this names no dataset of the Hub", where=where, mend=_FORM)
    if any(part in (".", "..") for part in path.split("/")) or "//" in path:
        raise SourceError("the path holds an empty part, . or ..", where=where, mend=_FORM)
    return HubPath(f"{owner}/{name}", revision if at else None, path)


def list_hub(url: str, policy: RetryPolicy) -> tuple[str, ...]:
    """The files that a URL stands for, as URLs that name the commit.

    Raises:
        ConfigError: huggingface-hub is missing.
        SourceError: there are none, or no access.
    """
    place = pin(parse(url), policy)
    if has_magic(place.path):
        match = glob_regex(place.path).fullmatch
        folder = fixed_part(place.path).rstrip("/")
        deep = "/" in place.path[len(fixed_part(place.path)) :] or "**" in place.path
        paths = sorted(path for path in _tree(place, folder, deep, policy) if match(path))
        if not paths:
            raise SourceError("no file matches", where=Where(source=redact(url)))
    else:
        path = place.path.rstrip("/")
        if path and not place.path.endswith("/") and file_info(place, policy) is not None:
            paths = [path]
        else:
            folder = f"{path}/" if path else ""
            paths = in_folder(lambda deep: _tree(place, path, deep, policy), folder, url)
    return tuple(replace(place, path=path).url for path in paths)


def open_hub(
    url: str,
    policy: RetryPolicy,
    *,
    stat: Stat | None = None,
    connections: Connections | None = None,
    traffic: Traffic | None = None,
) -> HttpRanges:
    """The byte ranges of one file.

    Args:
        stat, connections, traffic: as for `HttpRanges`.

    Raises:
        ConfigError: huggingface-hub is missing.
        SourceError: it cannot be had.
    """
    need_hub()

    place = pin(parse(url), policy)
    if not place.path:
        raise SourceError("the URL names no file", where=Where(source=redact(url)), mend=_FORM)
    revision = quote(place.revision or "main", safe="")
    target = f"{endpoint()}/datasets/{place.repo}/resolve/{revision}/{quote(place.path)}"

    def explain(status: int, headers: Message, source: str) -> SourceError:
        return refusal(status, headers.get("X-Error-Code", ""), place, source)

    return HttpRanges(
        target, policy, private=_authorization(), explain=explain, pinned=True,
        source=redact(url), whole_up_to=_MAX_PLAIN, stat=stat, renew=_authorization,
        connections=connections, traffic=traffic,
    )  # fmt: skip


def _authorization() -> dict[str, str]:
    """The header with the token that the environment or the file of `hf auth login` holds now."""
    from huggingface_hub import get_token

    token = None if implicit_token_off() else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def identify_hub(url: str, policy: RetryPolicy) -> tuple[int, str]:
    """Size and hash of one file: its SHA-256 if it is stored as LFS, else git's blob id.

    Raises:
        ConfigError: huggingface-hub is missing.
        SourceError: it cannot be had.
    """
    place = pin(parse(url), policy)
    info = file_info(place, policy)
    if info is None:
        raise SourceError("there is no such file", where=Where(source=redact(url)))
    return info.size, info.blob_id if info.lfs is None else info.lfs.sha256


def pin(place: HubPath, policy: RetryPolicy) -> HubPath:
    """The same place at the commit that its revision is at now."""
    if place.pinned:
        return place
    info = ask(lambda api: api.dataset_info(place.repo, revision=place.revision), place, policy)
    if info.sha is None:
        raise SourceError("the Hub names no commit", where=Where(source=redact(place.url)))
    return replace(place, revision=info.sha)


def file_info(place: HubPath, policy: RetryPolicy) -> Any:
    """The Hub's `RepoFile` of a file; None if there is none of that name."""

    def find(api: HfApi) -> Any:
        return api.get_paths_info(
            place.repo, [place.path], revision=place.revision, repo_type="dataset"
        )

    found = [item for item in ask(find, place, policy) if item.path == place.path]
    return found[0] if found and hasattr(found[0], "blob_id") else None


def _tree(place: HubPath, folder: str, deep: bool, policy: RetryPolicy) -> list[str]:
    """The files in a folder, or also those below it; none if there is no such folder."""

    def find(api: HfApi) -> list[str]:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            items = list(
                api.list_repo_tree(
                    place.repo, folder or None, recursive=deep, revision=place.revision,
                    repo_type="dataset",
                )
            )  # fmt: skip
        except EntryNotFoundError:
            return []
        return [item.path for item in items if hasattr(item, "blob_id")]

    return ask(find, place, policy)


def endpoint() -> str:
    """Where the Hub is: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def implicit_token_off() -> bool:
    """Whether the user forbids to send a token that was not given for the request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_DISABLE_IMPLICIT_TOKEN)


def need_hub() -> None:
    """Raise ConfigError if huggingface-hub is missing."""
    missing = False
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        missing = True
    if missing:
        raise ConfigError(
            "hf:// needs huggingface-hub", mend="Install it with `pip install omr_io[remote]`"
        )


def ask(action: Callable[[HfApi], T], place: HubPath, policy: RetryPolicy) -> T:
    """Ask the Hub, again if it fails in a way that may pass.

    Raises:
        ConfigError: huggingface-hub is missing, or told to stay offline.
        SourceError: the Hub refuses.
    """
    need_hub()
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), library_name="omr_io")
    source = redact(place.url)

    def give_up(what: str) -> OmrError:
        what = f"asking the Hub failed {policy.tries} times, the last time: {what}"
        return SourceError(
            what, where=Where(source=source), mend="Check the network, then run again"
        )

    return call(lambda: action(api), lambda error: explain_hub(error, place), give_up, policy)


def explain_hub(error: Exception, place: HubPath) -> OmrError | TransientError:
    """What an exception of huggingface_hub means."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    source = redact(place.url)
    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError("HF_HUB_OFFLINE is set, so the Hub cannot be asked", mend="Unset it")
    if isinstance(error, HfHubHTTPError):
        headers = error.response.headers
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            after = retry_after(str(headers.get("Retry-After", "")))
            return TransientError(f"the Hub answers {status}", after)
        return refusal(status, headers.get("X-Error-Code", ""), place, source)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return explain_hub(error.__cause__, place)  # so it wraps what fails in its threads
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) or kinds & {"TransportError", "TimeoutException"}:
        return TransientError(f"the connection failed ({type(error).__name__})")
    what = f"asking the Hub failed: {type(error).__name__}: {redact(str(error))[:200]}"
    return SourceError(what, where=Where(source=source))


def refusal(status: int, code: str, place: HubPath, source: str) -> SourceError:
    """What a final refusal of the Hub means, and what to do."""
    where = Where(source=source)
    page = f"{endpoint()}/datasets/{place.repo}"
    if code == "GatedRepo":
        return SourceError(
            f"the dataset is gated ({status})",
            where=where,
            mend=f"Accept its terms at {redact(page)}, then {LOG_IN} for the account that did",
        )
    if code == "RevisionNotFound":
        return SourceError(f"the dataset has no revision {place.revision!r}", where=where)
    if code == "EntryNotFound":
        return SourceError("there is no such file in the dataset", where=where)
    if code == "RepoNotFound" or status == 404:
        return SourceError(
            f"there is no such dataset, or no access to it ({status})",
            where=where,
            mend=f"Check the name; if it is private or gated, {LOG_IN}",
        )
    if status in (401, 403):
        return SourceError(
            f"the Hub gives no access ({status})",
            where=where,
            mend=f"Check that the token is right and may do this: {LOG_IN}; terms, if any, are at "
            f"{redact(page)}",
        )
    return SourceError(f"the Hub answers {status}", where=where)
