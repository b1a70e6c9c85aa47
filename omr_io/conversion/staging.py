"""The hidden folder in which a conversion grows until all of it is there.

    OUT/.omr-io-unfinished/
        plan.json        what is being made; only the same conversion goes on with it
        lock             guards against a second run by mistake; nothing relies on it
        pieces/000012/   a converted piece, whole or absent
        parts-of-16      some machine works with --part i/16
        index.arrow, rejects.parquet, manifest.json, publish.json    see `publishing`

Nothing is in OUT itself before every file of the set is complete here. Names that end in .tmp are
attempts; those of killed runs are removed by the next one.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from omr_io.conversion.plan import ConversionPlan
from omr_io.conversion.publishing import Publication
from omr_io.errors import ConfigError, OmrError
from omr_io.shards.layout import MANIFEST_NAME, UNFINISHED_NAME, read_manifest
from omr_io.storage import TEMPORARY_SUFFIX, fsync_folder, lock, write_atomically, writing

PLAN_NAME = "plan.json"
PIECES_NAME = "pieces"
LOCK_NAME = "lock"
TRASH_NAME = ".omr-io-removing"
_PARTS_PREFIX = "parts-of-"


@dataclass(frozen=True, slots=True)
class Staging:
    """The folder, claimed: `out` is the shard set's own."""

    out: Path
    plan: ConversionPlan

    @property
    def folder(self) -> Path:
        """The hidden folder itself."""
        return self.out / UNFINISHED_NAME

    @property
    def pieces(self) -> Path:
        """Where converted pieces are."""
        return self.folder / PIECES_NAME

    def sweep(self, numbers: Iterable[int] | None = None) -> None:
        """Remove attempts of killed runs: at these pieces, or (None) all."""
        wanted = None if numbers is None else {f"{number:06d}" for number in numbers}
        with writing(self.folder):
            if wanted is None:
                for path in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
                    path.unlink(missing_ok=True)
            for path in self.pieces.glob(f"*{TEMPORARY_SUFFIX}"):
                if wanted is None or path.name.partition("-")[0] in wanted:
                    _remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def sweep_run(self, run: str) -> None:
        """Remove the attempts of one run (`Job.run`), whose workers were stopped."""
        with writing(self.folder):
            for path in self.pieces.glob(f"*-{run}-*{TEMPORARY_SUFFIX}"):
                _remove_tree(path)

    def note_parts(self, parts: int) -> None:
        """Note that machines share the work in so many parts."""
        note = self.folder / f"{_PARTS_PREFIX}{parts}"
        with writing(note):
            note.touch()

    def noted_parts(self) -> list[int]:
        """In how many parts machines share the work; usually one number."""
        names = [path.name for path in self.folder.glob(f"{_PARTS_PREFIX}*")]
        numbers = [name.removeprefix(_PARTS_PREFIX) for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal())


@contextmanager
def claim(
    out: Path, plan: ConversionPlan, *, overwrite: bool, shared: bool = False
) -> Iterator[Staging]:
    """Hold a folder for a conversion: begin it, or go on with what earlier runs left.

    Args:
        out: the shard set's folder; made if it is not there.
        plan: what will be made.
        overwrite: replace a complete set (it stays until the new one is whole), and throw away an
            unfinished conversion that differs.
        shared: other parts may work there at the same time.

    Raises:
        ConfigError: a complete set is there, or other files are, or an unfinished conversion that
            differs; or another run is writing there.
        DiskError: the folder cannot be written.
    """
    check_target(out, plan, overwrite=overwrite)
    clean_complete(out)
    staging = Staging(out, plan)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        staging.folder.mkdir(exist_ok=True)
    with writing(staging.folder):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(staging.folder / LOCK_NAME, flags, 0o644)
    try:
        _lock(descriptor, staging.folder / LOCK_NAME, shared=shared)
        check_target(out, plan, overwrite=overwrite)  # another run may have ended in between
        _begin(staging)
        yield staging
    finally:
        os.close(descriptor)


def check_target(out: Path, plan: ConversionPlan, *, overwrite: bool) -> None:
    """Refuse a folder that this conversion must not write to; see `claim`. Writes nothing."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the path {out} is not UTF-8, and Arrow opens no other", mend="Choose another folder"
        ) from None
    known = unfinished(out)
    if known is not None:
        differences = plan.differences(known)
        if differences and known.resumable and not overwrite:
            raise ConfigError(
                f"{out} holds an unfinished conversion that differs: {'; '.join(differences)}",
                mend="Run it with the same sources and options to go on, or pass --overwrite to "
                "throw it away",
            )
        return
    if (out / UNFINISHED_NAME).is_file():
        raise ConfigError(
            f"{out} holds an unfinished conversion of an older omr_io",
            mend="Remove the folder, then run again",
        )
    if (out / MANIFEST_NAME).exists():
        _check_replaceable(out, plan, overwrite=overwrite)
        return
    with writing(out):
        try:
            others = [path.name for path in out.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return
    if others:
        raise ConfigError(
            f"{out} is not empty and holds no shard set, for example {min(others)}",
            mend="Choose an empty folder or a new one",
        )


def _check_replaceable(out: Path, plan: ConversionPlan, *, overwrite: bool) -> None:
    if overwrite:
        try:
            read_manifest(out)
        except OmrError as error:
            raise ConfigError(
                f"the set in {out} cannot be replaced, its manifest is broken: {error}",
                mend="Remove the folder yourself, or choose another one",
            ) from None
        return
    raise ConfigError(
        f"{out} already holds a complete shard set",
        mend="Choose another folder, or pass --overwrite to replace it",
    )


def unfinished(out: Path) -> ConversionPlan | None:
    """The plan of the unfinished conversion in a folder, if there is one."""
    if Publication.is_over(out / UNFINISHED_NAME):
        return None
    try:
        return ConversionPlan.from_bytes((out / UNFINISHED_NAME / PLAN_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        with writing(out):
            raise error


def clean_complete(out: Path) -> None:
    """Remove what a run that was killed at its very end left beside a complete set."""
    with writing(out):
        if Publication.is_over(out / UNFINISHED_NAME):
            remove_staging(out)
        _remove_tree(out / TRASH_NAME)


def remove_staging(out: Path) -> None:
    """Remove the hidden folder: in one step from its name, then file by file."""
    with writing(out):
        _remove_tree(out / TRASH_NAME)
        with suppress(FileNotFoundError):
            (out / UNFINISHED_NAME).rename(out / TRASH_NAME)
            fsync_folder(out)
        _remove_tree(out / TRASH_NAME)


def _begin(staging: Staging) -> None:
    """Make the folder ready for this plan; what is there of another one is thrown away."""
    known = unfinished(staging.out)
    publication = Publication.read(staging.folder)
    if known is None:
        is_other = publication is not None  # what another version of omr_io was about to publish
    else:
        is_other = bool(staging.plan.differences(known)) or not staging.plan.resumable
    if is_other:
        if publication is not None:
            publication.withdraw(staging.out)
        with writing(staging.folder):
            # The plan goes last: until then the next run must see what this one throws away.
            for path in staging.folder.iterdir():
                if path.name not in (LOCK_NAME, PLAN_NAME):
                    _remove_tree(path) if path.is_dir() else path.unlink()
            fsync_folder(staging.folder)
            (staging.folder / PLAN_NAME).unlink(missing_ok=True)
        known = None
    with writing(staging.pieces):
        staging.pieces.mkdir(exist_ok=True)
    if known is None:
        # Parts may begin at the same time, each under a name of its own; the same bytes win.
        own = staging.folder / f"plan-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
        write_atomically(own, staging.plan.to_bytes())
        with writing(staging.folder):
            own.replace(staging.folder / PLAN_NAME)
            fsync_folder(staging.folder)
        known = unfinished(staging.out)
        if known != staging.plan:
            raise _other_run(staging.out)


def _lock(descriptor: int, path: Path, *, shared: bool) -> None:
    out = path.parent.parent
    if not lock(descriptor, path, shared=shared):  # nothing that is written relies on it
        raise _other_run(out)
    with suppress(OSError):
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return
    raise _other_run(out)  # it has just ended, and took the lock's file with it


def _other_run(out: Path) -> ConfigError:
    return ConfigError(
        f"another run is writing to {out}", mend="Wait for it, or choose another folder"
    )


def _remove_tree(path: Path) -> None:
    """Remove a folder of ours; that another run removes it at the same time is fine.

    A worker whose parent was killed a moment ago may still add a file, and on NFS a file that is
    open stays under another name until it is closed: both pass.
    """
    for pause in (0.02, 0.1, 0.5, 2.0, None):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            if not path.exists():
                return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY) or pause is None:
                raise
            time.sleep(pause)
        else:
            return
