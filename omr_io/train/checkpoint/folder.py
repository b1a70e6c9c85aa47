"""The folders that checkpoints are: names, manifests, publishing, checking, keeping the newest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omr_io.errors import DiskError, IntegrityError, OmrWarning, Where
from omr_io.storage import commit_folder, fsync_folder, lock, write_atomically, writing

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d{6,})")
_TEMPORARY = ".writing-"
_LOCK = ".lock"


class CheckpointWarning(OmrWarning):
    """A checkpoint that is not valid was skipped, or cannot give back all that it held."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest says of a file."""

    num_bytes: int
    sha256: str


def numbered(root: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by number, oldest first."""
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


class Claim:
    """The right to write checkpoints in a folder, which one run has at a time.

    Two runs that write in one folder would take each other's unfinished files for leftovers.

    Args:
        root: the folder; made when it is claimed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Have it from now on; nothing if it is had already.

        Raises:
            DiskError: another run has it, or the folder cannot be made.
        """
        if self._file is not None:
            with suppress(OSError):
                there = (self._root / _LOCK).stat()
                if os.path.samestat(there, os.fstat(self._file.fileno())):
                    return
            self.release()  # the folder was deleted, and may be another's by now
        with writing(self._root):
            made = not self._root.exists()
            self._root.mkdir(parents=True, exist_ok=True)
            if made:
                fsync_folder(self._root.parent)
            file = (self._root / _LOCK).open("ab")
        if not lock(file.fileno(), self._root / _LOCK):
            file.close()
            raise DiskError(
                "another run writes checkpoints there",
                mend="End that run, or give this one another folder (a recipe with another name); "
                f"if a machine that is gone still holds it, delete {_LOCK} there",
            )
        self._file = file

    def release(self) -> None:
        """Leave it to others; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def begin(root: Path) -> Path:
    """A new empty folder to write the next checkpoint in, without what an earlier stop left.

    Args:
        root: the folder of all, claimed.

    Raises:
        OSError: it cannot be made.
    """
    for leftover in root.glob(f"{_TEMPORARY}*"):
        _delete(leftover)
    number = max((n for n, _ in numbered(root)), default=0) + 1
    work = root / f"{_TEMPORARY}checkpoint-{number:06d}"
    work.mkdir()
    return work


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder; nothing if it is not there.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete(path: Path, aside: Path | None = None) -> None:
    """`remove` what nothing depends on: that it is still there is no reason to end a run.

    Args:
        aside: a name to give it first.
    """
    try:
        if aside is not None:
            path = path.rename(aside)
        remove(path)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be deleted, and takes room: {error.strerror or error}",
            CheckpointWarning,
            stacklevel=2,
        )


def publish(work: Path, entries: Mapping[str, Entry]) -> Path:
    """Give a folder, whose files are all on the disk, its manifest and its final name.

    Raises:
        DiskError: writing failed.
        OSError: likewise.
    """
    final = work.with_name(work.name.removeprefix(_TEMPORARY))
    write_atomically(work / MANIFEST, manifest(entries), in_new_folder=True)
    if not commit_folder(work, final):
        raise FileExistsError(f"{final} is there already: does another run write here?")
    return final


def keep_newest(root: Path, keep: int, invalid: Collection[str]) -> None:
    """Delete what is older than the newest `keep` checkpoints, of which `invalid` ones are none."""
    left = keep
    for _, path in reversed(numbered(root)):
        if left <= 0:
            # Renamed first: a kill in between leaves no half-deleted checkpoint under its name.
            _delete(path, root / f"{_TEMPORARY}old-{path.name}")
        left -= path.name not in invalid


def manifest(entries: Mapping[str, Entry]) -> bytes:
    """The manifest of these files, the only bytes that it can be."""
    files = {name: {"bytes": e.num_bytes, "sha256": e.sha256} for name, e in entries.items()}
    return json.dumps({"format": FORMAT, "files": files}, sort_keys=True).encode()


def read_manifest(path: Path) -> tuple[bytes, list[str]]:
    """A checkpoint's manifest, and the names of the files that are there beside it, sorted.

    Raises:
        IntegrityError: there is none, or it is of another format.
    """
    where = Where(source=str(path))
    try:
        written = (path / MANIFEST).read_bytes()
        kind = json.loads(written)["format"]
        names = sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"its manifest is unreadable: {error!r}", where=where) from error
    if kind != FORMAT:
        raise IntegrityError(f"its format is {kind}, this version reads {FORMAT}", where=where)
    return written, [name for name in names if name != MANIFEST]


def entry(path: Path) -> Entry:
    """What a manifest would say of a file as it is now.

    Raises:
        IntegrityError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Entry(path.stat().st_size, digest)
    except OSError as error:
        what = f"{path.name} is unreadable: {error}"
        raise IntegrityError(what, where=Where(source=str(path.parent))) from error


def check(path: Path, written: bytes, entries: Mapping[str, Entry]) -> None:
    """Compare a manifest with what the files are now.

    The manifest made again must be the one that was written, byte for byte: so it need not be
    trusted either.

    Raises:
        IntegrityError: a file is missing, too many, or not what was written; it names them.
    """
    if written == manifest(entries):
        return
    where = Where(source=str(path))
    try:
        files = json.loads(written)["files"]
        said = {name: Entry(file["bytes"], file["sha256"]) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError("its manifest is not what was written", where=where) from error
    names = said.keys() | entries.keys()
    wrong = sorted(name for name in names if said.get(name) != entries.get(name))
    what = ", ".join(wrong) or MANIFEST
    raise IntegrityError(f"not what was written: {what}", where=where)
