"""Remote URLs: which are known, what is secret in them, and matching names against patterns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from omr_io.errors import SourceError, Where

SCHEMES = ("hf", "s3", "gs", "http", "https")
BUCKETS = ("s3", "gs")

Format = Literal["parquet", "json", "csv", "webdataset"]

SUFFIXES: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
}
"""Formats of sources by a name's last suffix: what a folder, here or elsewhere, is searched for."""

_MAGIC = re.compile(r"[*?[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)  # fmt: skip
_MIN_SECRET = 6  # a shorter value of a variable is no secret, and would blank out plain words


def is_url(text: object) -> bool:
    """Whether this is a URL, of a known scheme or not, rather than a path."""
    return isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.\-]+://", text) is not None


def scheme_of(url: str) -> str:
    """The scheme in lower case, checked.

    Raises:
        SourceError: the scheme is not one of `SCHEMES`, or the URL cannot be right.
    """
    scheme = url.partition("://")[0].lower() if is_url(url) else ""
    where = Where(source=redact(url))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceError("this is no URL that omr_io reads", where=where, mend=f"It reads {known}")
    if re.search(r"[\x00-\x1f\x7f]", url) or (scheme.startswith("http") and " " in url):
        raise SourceError(
            "the URL holds a blank or a control character",
            where=where,
            mend="Write it percent-encoded: a blank is %20",
        )
    return scheme


def redact(text: str) -> str:
    """A URL, or any text with URLs in it, without its secrets.

    User names and passwords, all of a query of http(s) and the values of one elsewhere, fragments,
    tokens of the Hub, and the values of the usual environment variables become ***.
    """
    whole = is_url(text)
    out = _redact_url(text) if whole else _URL.sub(lambda match: _redact_url(match[0]), text)
    out = _HUB_TOKEN.sub("hf_***", out)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _MIN_SECRET:
            out = out.replace(value, "***")
    return out


def _redact_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password may hold any of "@/?#" unescaped. Where there is one (or what looks like a port is
    # no number), all up to the last "@" goes.
    port = host.rpartition("]")[2].partition(":")[2]
    if "@" in host or ("@" in rest and port and not port.isdigit()):
        rest = "***@" + rest.rpartition("@")[2]
    if scheme.lower() in ("hf", *BUCKETS):  # here "?" and "#" may be part of a name
        return f"{scheme}://{re.sub(r'=[^&;]*', '=***', rest) if '?' in rest else rest}"
    body, mark, _ = rest.partition("#")[0].partition("?")
    return f"{scheme}://{body}{'?***' if mark else ''}"


def place_of(path: str | Path) -> Path | str:
    """Where a set is, to be shown: a path, or a URL without its secrets."""
    return redact(path) if isinstance(path, str) and is_url(path) else Path(path)


def last_part(path: str | Path) -> str:
    """What a set is called: the last folder of a path or a URL."""
    place = place_of(path)
    if isinstance(place, Path):
        return place.resolve().name
    return place.partition("?")[0].rstrip("/").rpartition("/")[2]


def name_of(url: str) -> str:
    """The last part of the path, percent-decoded for http(s): a source's name in provenance.

    Raises:
        SourceError: the path has no last part.
    """
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        name = unquote(_split(url).path).rpartition("/")[2]
    else:
        name = url.partition("://")[2].rpartition("/")[2]
    if not name:
        raise SourceError("the URL names no file", where=Where(source=redact(url)))
    return name


def check_http(url: str) -> None:
    """Check a URL of http(s): one file, no pattern.

    Raises:
        SourceError: it has no host, no file name, or a pattern, which http cannot list.
    """
    parts = _split(url)
    where = Where(source=redact(url))
    if not parts.hostname:
        raise SourceError("the URL has no host", where=where)
    if "*" in parts.path or "[" in parts.path:
        raise SourceError(
            "http(s) cannot list files, so patterns do not work there",
            where=where,
            mend="Give each file's URL; a literal * or [ is %2A or %5B",
        )
    name_of(url)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # checked only when asked for
        return parts
    except ValueError:
        pass  # its message may quote a password, so it is no context of the error
    raise SourceError("the URL is malformed", where=Where(source=redact(url)))


def has_magic(text: str) -> bool:
    """Whether a path is a glob pattern."""
    return _MAGIC.search(text) is not None


def fixed_part(pattern: str) -> str:
    """The folders before a pattern's first wildcard: "a/b/" of "a/b/c-*.parquet"."""
    match = _MAGIC.search(pattern)
    return pattern[: pattern.rfind("/", 0, match.start()) + 1] if match else pattern


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Match as `glob.glob(recursive=True)` does: * and ? within a folder, ** over folders.

    As there, wildcards do not match a leading dot.
    """
    out = []
    parts = pattern.split("/")
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            out.append(r"(?:[^/.][^/]*/)*" + (r"(?:[^/.][^/]*)?" if last else ""))
        else:
            hidden = "" if part.startswith(".") or not has_magic(part) else r"(?!\.)"
            out.append(hidden + _part_regex(part) + ("" if last else "/"))
    return re.compile("".join(out), re.DOTALL)


def _part_regex(part: str) -> str:
    out, at = "", 0
    while at < len(part):
        end = part.find("]", at + 2 if part[at + 1 : at + 2] != "!" else at + 3)
        if part[at] == "[" and end > 0:
            inner = part[at + 1 : end]
            negated = inner.startswith("!")
            inner = re.sub(r"([\\\]\[^&~|])", r"\\\1", inner.removeprefix("!"))
            out += f"[{'^/' if negated else ''}{inner}]"
            at = end + 1
            continue
        out += {"*": "[^/]*", "?": "[^/]"}.get(part[at], re.escape(part[at]))
        at += 1
    return out


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by kind of file; hidden ones and those of no known kind do not count."""
    found: dict[str, list[str]] = {}
    for name in names:
        last = name.rpartition("/")[2]
        kind = SUFFIXES.get(last[last.rfind(".") :].lower()) if "." in last[1:] else None
        if kind is not None and not last.startswith("."):
            found.setdefault(kind, []).append(name)
    return found


def in_folder(find: Callable[[bool], Iterable[str]], folder: str, url: str) -> list[str]:
    """The files of a folder, as for a local one.

    Args:
        find: gives the paths in the folder, or with True also those of its subfolders.
        folder: ends in "/" unless it is "".
        url: for errors.

    Raises:
        SourceError: there is none; it names a subfolder that has some.
    """
    found = by_kind(sorted(find(False)))
    if "parquet" in found:
        return found["parquet"]
    if len(found) == 1:
        return next(iter(found.values()))
    where = Where(source=redact(url))
    if found:
        listed = ", ".join(f"{len(names)} {kind}" for kind, names in sorted(found.items()))
        raise SourceError(
            f"the folder holds files of several formats: {listed}",
            where=where,
            mend="Give those of one, as a glob such as .../*.json",
        )
    below = sorted(find(True))
    if not below:
        raise SourceError("there is no such file or folder", where=where)
    deeper = sorted(name for names in by_kind(below).values() for name in names)
    mend = f"There are some in {deeper[0].rpartition('/')[0]}/" if deeper else None
    kinds = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
    raise SourceError(f"the folder has none of {kinds}", where=where, mend=mend)
