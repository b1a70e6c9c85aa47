"""The folder of a run, runs/NAME: a run that is refused leaves it as it was.

    runs/NAME            the new run, from the start
    runs/.NAME.earlier   what was there before, until the new run has begun
    runs/.NAME.lock      while a run goes on: one at a time

Only a new run that nothing can refuse any more deletes an earlier one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from omr_io.errors import ConfigError, DiskError
from omr_io.storage import lock
from omr_io.train.ranks import Ranks, on_first


@contextmanager
def run_folder(
    folder: Path, ranks: Ranks, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Callable[[], None]]:
    """An empty folder for a new run, or the one to resume. Collective.

    Gives a function to call when the run begins: it deletes the earlier run. If the block is left
    before that, all that was written is removed and the earlier run is back; after a SIGKILL within
    the block the next run of this name brings it back.

    Args:
        resume: go on in a folder that holds something; an empty one is a new run's.
        overwrite: what the folder holds is to be deleted.

    Raises:
        ConfigError: there is an earlier run and neither `resume` nor `overwrite`; or it goes on.
        DiskError: the folder cannot be made.
    """
    folder = folder.resolve()  # of a link to a larger disk: there
    with ExitStack() as held:
        on_first(ranks, lambda: held.enter_context(_one_at_a_time(folder)))
        on_first(ranks, lambda: _prepare(folder, resume=resume, overwrite=overwrite))
        try:
            yield lambda: on_first(ranks, lambda: _delete_earlier(folder))
        finally:
            if ranks.is_first:
                with suppress(OSError):  # or the next run of this name does it
                    _bring_back(folder)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    path = _beside(folder, "lock")
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if not lock(file.fileno(), path) or not _is_at(path, file.fileno()):
            raise ConfigError(
                f"another run in {folder} goes on",
                mend="End that run, or give this recipe another name; if its machine is gone, "
                f"delete {path}",
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still there: the run that had it may have ended, and removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _prepare(folder: Path, *, resume: bool, overwrite: bool) -> None:
    with _disk_errors(folder):
        _bring_back(folder)
        _remove(_beside(folder, "deleted"))
        held = folder.exists() and any(folder.iterdir())
        if held and resume:
            return
        if held and not overwrite:
            raise ConfigError(
                f"{folder} holds an earlier run",
                mend="Continue it with --resume, delete it with --overwrite, or rename the recipe",
            )
        folder.mkdir(parents=True, exist_ok=True)
        folder.rename(_beside(folder, "earlier"))
        folder.mkdir()


def _delete_earlier(folder: Path) -> None:
    earlier, deleted = _beside(folder, "earlier"), _beside(folder, "deleted")
    with _disk_errors(folder):
        if earlier.exists():
            earlier.rename(deleted)  # at once: half an earlier run must never come back
            _remove(deleted)


def _bring_back(folder: Path) -> None:
    earlier = _beside(folder, "earlier")
    if earlier.exists():
        _remove(folder)
        earlier.rename(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")  # no recipe's name begins with a dot


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot make {folder}: {error.strerror}",
            mend="It must be a plain folder, which may be renamed, in one that may be written to",
        ) from error
