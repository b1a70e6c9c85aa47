"""Options of commands that read shard sets, in a folder or behind a URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omr_io.errors import ConfigError

if TYPE_CHECKING:
    from omr_io.remote_storage import RemoteOptions

_URL = re.compile(r"(hf|s3|gs|https?):/", re.IGNORECASE)

SET_HELP = "A shard set: a folder, or a URL (hf://, s3://, gs://, http(s)://)."

RemoteCache = Annotated[
    Path | None,
    typer.Option(
        "--remote-cache",
        metavar="DIR",
        help="Where what URLs name is kept; default: shards/ in omr_io's cache (OMR_IO_CACHE_DIR, "
        "else ~/.cache/omr_io).",
    ),
]
RemoteCacheBytes = Annotated[
    int | None,
    typer.Option(
        "--remote-cache-bytes",
        min=0,
        metavar="BYTES",
        help="The most that is kept there, 32 MiB or more; 0: nothing. Default: 32 GiB, or half of "
        "what is free.",
    ),
]


def remote_options(cache: Path | None, cache_bytes: int | None) -> RemoteOptions:
    """How what URLs name is read, from the command line's options.

    Raises:
        ConfigError: one cannot be right.
    """
    from omr_io.remote_storage import RemoteOptions

    return RemoteOptions(cache="default" if cache is None else cache, cache_bytes=cache_bytes)


def only_folders(*folders: Path) -> None:
    """Refuse URLs where a set's own folder is written to, or all of it is read.

    Raises:
        ConfigError: one is a URL (as a Path, which keeps one of its slashes).
    """
    for folder in folders:
        if _URL.match(str(folder)) and not folder.exists():
            raise ConfigError(
                "this command takes folders, not URLs",
                mend="Copy the set here, and name the copy",
            )
