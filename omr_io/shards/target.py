"""The folder that a shard set is written to: claimed by one run, and never half complete.

A marker file says that a run is under way or was killed. manifest.json is written last, so a folder
with a manifest is complete whatever else lies there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omr_io.errors import ConfigError, OmrError
from omr_io.shards.layout import (
    INDEX_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    REJECTS_NAME,
    read_manifest,
)
from omr_io.storage import TEMPORARY_SUFFIX, fsync_folder, writing


@contextmanager
def claim(folder: Path, split: str, *, overwrite: bool) -> Iterator[None]:
    """Hold a folder for writing; on leaving without an error the folder is complete.

    What a killed run left is removed first. With `overwrite` so is a complete set: its manifest
    first, so that no reader ever takes a mixture for a set. Files that no run wrote are kept.

    Raises:
        ConfigError: a complete set is there and `overwrite` is False; other files are there; or
            another run is writing there.
        DiskError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_free(folder, overwrite=overwrite)
    marker = folder / MARKER_NAME
    with writing(marker):
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder)
        _check_free(folder, overwrite=overwrite)  # another run may have ended in between
        with writing(folder):
            _remove_old(folder, split, descriptor)
        yield
        with writing(marker):
            marker.unlink()
            fsync_folder(folder)
    finally:
        os.close(descriptor)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if (folder / MANIFEST_NAME).exists():
        if not overwrite:
            raise ConfigError(
                f"{folder} already holds a complete shard set",
                mend="Choose another folder, or pass --overwrite to replace it",
            )
    elif not (folder / MARKER_NAME).exists():
        with writing(folder):
            others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise ConfigError(
                f"{folder} is not empty and holds no shard set, for example {min(others)}",
                mend="Choose an empty folder or a new one",
            )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another run is writing to {folder}", mend="Wait for it, or choose another folder"
        ) from None
    except OSError as error:
        # Some cluster file systems are mounted without locks. The lock only guards against a
        # user's second run by mistake; nothing that is written relies on it.
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise


def _remove_old(folder: Path, split: str, marker: int) -> None:
    """Remove what the marker of a killed run and the manifest of a complete set name."""
    splits, files = _marked(marker)
    if (folder / MANIFEST_NAME).exists():
        try:
            files |= {file.name for file in read_manifest(folder).files()}
        except OmrError as error:
            raise ConfigError(
                f"the set in {folder} cannot be replaced, its manifest is broken: {error}",
                mend="Remove the folder yourself, or choose another one",
            ) from None
    state = {"splits": sorted({*splits, split}), "files": sorted(files)}
    os.pwrite(marker, json.dumps(state).encode(), 0)
    os.ftruncate(marker, len(json.dumps(state).encode()))
    os.fsync(marker)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    fsync_folder(folder)
    names = "|".join(map(re.escape, state["splits"]))
    own = re.compile(
        rf"((?:{names})-\d{{6,}}\.(?:tar|idx)|{INDEX_NAME}|{REJECTS_NAME}|{MANIFEST_NAME})"
        rf"(?:{re.escape(TEMPORARY_SUFFIX)})?"
    )
    for path in list(folder.iterdir()):
        if path.name in files or own.fullmatch(path.name):
            path.unlink()
    fsync_folder(folder)


def _marked(marker: int) -> tuple[set[str], set[str]]:
    """The splits and files that a killed run had noted; none if it was killed before."""
    try:
        state = json.loads(os.pread(marker, 1 << 26, 0) or b"{}")
        splits, files = set(state.get("splits", ())), set(state.get("files", ()))
    except (ValueError, AttributeError, TypeError):
        return set(), set()
    # Never follow a name out of the folder.
    return splits, {name for name in files if isinstance(name, str) and "/" not in name}
