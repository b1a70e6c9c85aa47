"""One process works, others wait for it: progress, death, stalling, file systems without locks."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import stat
import time
import warnings
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from omr_io.errors import OmrWarning
from omr_io.loader import turn as turn_module
from omr_io.loader.turn import turn

FORK = multiprocessing.get_context("fork")


def _work(file, log, number, steps):
    with turn(file, lambda done: None) as tell:
        begin = time.monotonic()
        for step in range(steps):
            tell(step)
            time.sleep(0.01)
        log.put((number, begin, time.monotonic()))


def _hold(file, ready, told):
    with turn(file, lambda done: None) as tell:
        tell(told)
        ready.set()
        time.sleep(1000)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder" / ".key.lock"


@pytest.fixture
def holder(file):
    """A process that has the turn and told 17; it is killed at the end."""
    ready = FORK.Event()
    process = FORK.Process(target=_hold, args=(file, ready, 17))
    process.start()
    assert ready.wait(200)
    yield process
    process.kill()
    process.join()


def test_one_at_a_time(file):
    log = FORK.Queue()
    processes = [FORK.Process(target=_work, args=(file, log, n, 8)) for n in range(6)]
    for process in processes:
        process.start()
    spans = sorted((log.get(timeout=300) for _ in processes), key=lambda span: span[1])
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    assert {number for number, _, _ in spans} == set(range(6))
    for (_, _, end), (_, begin, _) in itertools.pairwise(spans):
        assert begin >= end
    assert list(file.parent.iterdir()) == []


def test_who_waits_sees_how_far_the_other_is_and_goes_on_when_it_dies(file, holder):
    seen = []

    def waiting(done):
        seen.append(done)
        if len(seen) == 3:
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with turn(file, waiting) as tell:
            tell(1)
            assert holder.exitcode == -signal.SIGKILL
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert seen == [17, 17, 17]
    assert not file.exists()


def test_a_holder_that_gets_nowhere_is_not_waited_for(file, holder):
    begin = time.monotonic()
    with (
        pytest.warns(OmrWarning, match=r"got no further in 0 s.*only takes longer"),
        turn(file, lambda done: None, stalled=0.35) as tell,
    ):
        tell(3)
    assert 0.35 < time.monotonic() - begin < 500  # the other keeps it for 1000 s
    assert file.exists()  # it is the other's


def test_a_slow_holder_is_waited_for_as_long_as_it_gets_on(file, monkeypatch):
    """It tells something new every 0.9 s of a clock that goes on by waiting alone."""
    clock, seen, holder = [0.0], [], ExitStack()
    passing = SimpleNamespace(
        monotonic=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    )
    tell = holder.enter_context(turn(file, lambda done: pytest.fail("nobody holds it")))
    monkeypatch.setattr(turn_module, "time", passing)

    def waiting(done):
        seen.append(done)
        if len(seen) == 90:
            holder.close()
        elif len(seen) % 9 == 0:
            tell(len(seen) // 9)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with turn(file, waiting, stalled=1.0):
            assert len(seen) == 90
    assert seen == [step // 9 for step in range(90)]


def test_an_error_ends_the_turn(file):
    with pytest.raises(ZeroDivisionError), turn(file, lambda done: None):
        raise ZeroDivisionError
    assert not file.exists()
    with turn(file, lambda done: pytest.fail("nobody holds it")):
        pass


def test_a_lock_that_was_removed_is_made_anew(file):
    file.parent.mkdir()
    with turn(file, lambda done: None):
        file.unlink()  # the cache removes what looks abandoned
    assert not file.exists()
    with turn(file, lambda done: pytest.fail("nobody holds it")):
        assert file.exists()


def test_a_file_system_without_locks(file, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(turn_module.fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with (
        pytest.warns(OmrWarning, match="without locks"),
        turn(file, lambda done: None) as tell,
    ):
        tell(1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    ran = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the cache itself tells of it
        with turn(tmp_path / "file" / "lock", lambda done: None) as tell:
            tell(1)
            ran.append(1)
    assert ran
