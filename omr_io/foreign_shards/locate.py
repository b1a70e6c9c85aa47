"""Which tars are meant: files, folders, globs, braces {000..012}, URLs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from omr_io.corpus.formats.location import Location
from omr_io.errors import ConfigError, SourceError
from omr_io.remote.urls import is_url

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 1_000_000


@dataclass(frozen=True, slots=True)
class ForeignTars:
    """Tars of one place.

    Attributes:
        root: an absolute folder, or a URL that ends in a slash.
        names: of the tars, relative to `root`, in the order given; each once. As they stand, not
            percent-encoded: `RemoteStorage` encodes what it reads by http(s).
    """

    root: str
    names: tuple[str, ...]

    @property
    def is_remote(self) -> bool:
        """Whether the tars are read over the network."""
        return is_url(self.root)

    def location(self, name: str) -> Location:
        """Where one of them is."""
        if not self.is_remote:
            return Path(self.root) / name
        from omr_io.remote_storage.origins import join

        return join(self.root, name)


def locate(sources: Iterable[str | Path]) -> ForeignTars:
    """Find the tars that sources stand for.

    Args:
        sources: files; folders (their *.tar); glob patterns; any of these with braces, {000..012}
            or {a,b}; URLs, those of hf://, s3:// and gs:// also of folders and with globs. All
            local or all remote.

    Raises:
        SourceError: nothing is found.
        ConfigError: local and remote sources are mixed, have no folder in common, or a URL holds a
            secret: a manifest never does.
    """
    named = [name for source in sources for name in expand_braces(str(source))]
    if not named:
        raise ConfigError("no source was given")
    remote = [is_url(name) for name in named]
    if any(remote) != all(remote):
        raise ConfigError("some sources are local, others remote", mend="Index them apart")
    if remote[0]:
        return _relative_urls([url for name in named for url in _urls(name)])
    paths = [path for name in named for path in _paths(name)]
    root = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(root).as_posix() for path in paths]
    return ForeignTars(root, tuple(dict.fromkeys(names)))


def expand_braces(pattern: str) -> Iterator[str]:
    """All that a pattern with braces stands for, as a shell and webdataset have it.

    {08..11} counts with leading zeros, up or down; {a,b} lists; braces may follow one another and
    nest. Anything else in braces stays as it is.

    Raises:
        ConfigError: more than a million names.
    """
    waiting, count = [pattern], 0
    while waiting:
        text = waiting.pop()
        for start in (place for place, char in enumerate(text) if char == "{"):
            commas, end = _closed(text, start)
            choices = _choices(text, start, commas, end)
            if choices is not None:
                head, tail = text[:start], text[end + 1 :]
                waiting += [head + choice + tail for choice in reversed(choices)]
                break
        else:
            count += 1
            yield text
        if len(waiting) + count > _MAX_NAMES:
            raise ConfigError(f"{pattern} stands for more than {_MAX_NAMES} names")


def _closed(text: str, start: int) -> tuple[list[int], int]:
    """The commas directly within the brace at `start`, and where it is closed; -1 if nowhere."""
    depth, commas = 0, []
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 1 and text[place] == ",":
            commas.append(place)
        if depth == 0:
            return commas, place
    return [], -1


def _choices(text: str, start: int, commas: list[int], end: int) -> list[str] | None:
    inside = text[start + 1 : max(end, 0)]
    if match := _RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        padded = any(len(text) > 1 and text[0] == "0" for text in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        if abs(last - first) >= _MAX_NAMES:
            raise ConfigError(f"{{{inside}}} stands for more than {_MAX_NAMES} names")
        step = 1 if last >= first else -1
        return [f"{n:0{width}d}" for n in range(first, last + step, step)]
    if not commas:
        return None
    return [text[a + 1 : b] for a, b in zip([start, *commas], [*commas, end], strict=True)]


def _paths(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            packed = next(
                (
                    p
                    for end in ("gz", "tgz", "xz", "bz2", "zst")
                    for p in sorted(path.glob(f"*.{end}"))
                ),
                None,
            )
            if packed is not None:
                raise SourceError(
                    f"{path} holds no .tar; compressed ones, such as {packed.name}, hold no sample "
                    "that can be read on its own",
                    mend="Unpack them, or convert them with `omr-io convert`",
                )
            raise SourceError(f"{path} holds no .tar", mend="Give the folder of the shards")
    elif path.exists():
        found = [path]
    else:
        # With [0-9] too, and never over a name that is there as it stands.
        found = sorted(Path(one) for one in glob.glob(name, recursive=True))  # noqa: PTH207
        if not found:
            raise SourceError(f"{name} does not exist", mend="Check the path; quote patterns")
    # Not resolved: in a cache, a link has the name and its target a hash.
    return [Path(os.path.abspath(one)) for one in found]  # noqa: PTH100


def _urls(name: str) -> tuple[str, ...]:
    from omr_io import remote

    if remote.redact(name) != name:
        raise ConfigError(
            f"{remote.redact(name)} holds a secret, and a manifest may not",
            mend="Give the URL without query, user and password; credentials come from the "
            "environment",
        )
    lists = name.lower().startswith(("hf://", "s3://", "gs://"))
    folder = lists and not re.search(r"\.tar$|[*?]", name)
    return remote.list_urls(f"{name.rstrip('/')}/*.tar" if folder else name)


def _relative_urls(urls: list[str]) -> ForeignTars:
    folders = [url.split("/")[:-1] for url in urls]
    same = 0
    while all(len(parts) > same and parts[same] == folders[0][same] for parts in folders):
        same += 1
    root = "".join(f"{part}/" for part in folders[0][:same])
    if same < 3:  # scheme:, nothing, host
        raise ConfigError("the URLs have no place in common", mend="Index them apart")
    names = [url.removeprefix(root) for url in urls]
    if root.lower().startswith(("http://", "https://")):
        names = [_decoded(name) for name in names]
    return ForeignTars(root, tuple(dict.fromkeys(names)))


def _decoded(name: str) -> str:
    """A name under a URL of http(s), without percent-encoding."""
    parts: list[str] = []
    with suppress(UnicodeDecodeError):
        parts = [unquote(part, errors="strict") for part in name.split("/")]
    if not parts or any("/" in part for part in parts):
        raise SourceError(f"{name} is no name of a tar: %2F, or no UTF-8", mend="Rename it")
    return "/".join(parts)
