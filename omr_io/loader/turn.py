"""One process does a piece of work; others that need it wait, and find what it made.

The lock is flock's on a file beside what is made: the system releases it when its process dies,
however it dies. While it works, the holder writes into the file how far it is. So those who wait
can tell, and see whether it still gets on: they wait as long as it does.
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omr_io.errors import OmrWarning

STALLED = 120.0  # seconds without progress after which a process waits no longer
_POLL = 0.1
_DIGITS = 20

Tell = Callable[[int], None]


@contextmanager
def turn(file: Path, waiting: Tell, stalled: float = STALLED) -> Iterator[Tell]:
    """Run the block when no other process is in it, as far as that can be had.

    Where there is no such lock (a folder that cannot be written, a file system without locks), or
    its holder gets nowhere, the block runs all the same, beside the other's: work is then done
    twice, which an `OmrWarning` tells unless the folder's own problem will be told by its user.

    Args:
        file: the lock, in a folder that is made if it is not there. It is removed at the end.
        waiting: called every 0.1 s of waiting with the number that the holder told last.
        stalled: seconds for which the holder may tell nothing new.

    Yields:
        what to call with how far the block's work is, now and then.
    """
    descriptor = _acquire(file, waiting, stalled)
    if descriptor is None:
        yield lambda done: None
        return
    try:
        _write(descriptor, 0)
        yield lambda done: _write(descriptor, done)
    finally:
        if _is_at(descriptor, file):  # while it is held: who waits looks for the result next
            with suppress(OSError):
                file.unlink()
        os.close(descriptor)


def _acquire(file: Path, waiting: Tell, stalled: float) -> int | None:
    seen, since = -1, time.monotonic()
    while True:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, file):
                return descriptor
            os.close(descriptor)
            continue  # its last holder removed it, and another process may hold a new one by now
        except BlockingIOError:
            told = _read(descriptor)
            if told != seen:
                seen, since = told, time.monotonic()
        except OSError as error:
            os.close(descriptor)
            _warn(f"{file.parent} is on a file system without locks ({error.strerror})")
            return None
        os.close(descriptor)
        if time.monotonic() - since > stalled:
            _warn(f"another process that holds {file} got no further in {stalled:.0f} s")
            return None
        waiting(max(seen, 0))
        time.sleep(_POLL)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _read(descriptor: int) -> int:
    with suppress(OSError, ValueError):
        return int(os.pread(descriptor, _DIGITS, 0))
    return 0


def _write(descriptor: int, done: int) -> None:
    with suppress(OSError):  # others see no progress, that is all
        os.pwrite(descriptor, f"{done:0{_DIGITS}d}".encode(), 0)


def _warn(why: str) -> None:
    warnings.warn(
        f"this process does the same work as others beside it, since {why}. The result is the "
        "same; it only takes longer",
        OmrWarning,
        stacklevel=2,
    )
