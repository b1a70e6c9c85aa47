"""The engine alone, with jobs made of integers: order, bounds, errors, ends."""

import contextlib
import gc
import itertools
import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError
from omr_io.loader import engine as engine_module
from omr_io.loader.engine import Engine
from omr_io.loader.options import Depth


@dataclass
class Log:
    """What jobs did, from all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    begun: list = field(default_factory=list)
    taken: int = 0
    most_bytes: int = 0
    held: int = 0

    def begin(self, job):
        with self.lock:
            self.begun.append(job.number)
            self.held += job.num_bytes
            self.most_bytes = max(self.most_bytes, self.held)

    def take(self, num_bytes):
        with self.lock:
            self.held -= num_bytes


class Job:
    def __init__(self, number, units, num_bytes, log, work=lambda number, unit: None):
        self.number, self.num_units, self.num_bytes = number, units, num_bytes
        self._log, self._work = log, work

    def begin(self):
        self._log.begin(self)

    def run(self, unit):
        self._work(self.number, unit)
        return self.number, unit

    def finish(self, parts):
        assert parts == [(self.number, unit) for unit in range(self.num_units)]
        self._work(self.number, None)
        return self.number

    def describe(self, error):
        error.add_note(f"job {self.number}")


def jobs(log, count=10**9, units=2, num_bytes=1, **more):
    return (Job(number, units, num_bytes, log, **more) for number in itertools.islice(
        itertools.count(), count))  # fmt: skip


def engine(source, threads=2, prefetch=2, prefetch_bytes=10**9):
    return Engine(source, Depth(threads, prefetch, prefetch_bytes), contextlib.nullcontext)


def our_threads():
    return [t for t in threading.enumerate() if t.name.startswith("omr-io-loader")]


def until(true):
    """Wait until something is so, whatever the machine is busy with."""
    deadline = time.monotonic() + 100
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=20),
    st.integers(0, 8),
    st.integers(0, 4),
    st.integers(0, 300),
)
def test_results_come_in_order_whatever_the_depth(shapes, threads, prefetch, prefetch_bytes):
    log = Log()
    source = (Job(n, units, size, log) for n, (units, size) in enumerate(shapes))
    working = engine(source, threads, prefetch, prefetch_bytes)
    found = []
    for number in working:
        found.append(number)
        log.take(shapes[number][1])
    assert found == list(range(len(shapes)))
    assert next(working, None) is None
    working.close()
    if threads:
        largest = max((size for _, size in shapes), default=0)
        # The one that was just taken is still counted here while the next begins.
        assert log.most_bytes <= max(prefetch_bytes, largest) + largest


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (1, 3), (2, 3), (4, 0), (8, 2)])
def test_what_is_begun_is_bounded(threads, prefetch):
    log = Log()
    working = engine(jobs(log), threads, prefetch)
    for expected in range(30):
        assert next(working) == expected
        time.sleep(0.001)
        assert len(log.begun) <= expected + 1 + prefetch + threads
    until(lambda: working.ready()[0] >= max(prefetch, 1))
    time.sleep(0.05)  # for more than are allowed
    ready, num_bytes = working.ready()
    assert ready == num_bytes
    assert max(prefetch, 1) <= ready <= prefetch + threads
    working.close()
    assert working.ready() == (0, 0)


def test_bytes_bound_what_waits_and_one_job_is_always_made():
    log = Log()
    working = engine(jobs(log, num_bytes=40), threads=3, prefetch=10, prefetch_bytes=100)
    assert next(working) == 0
    until(lambda: len(log.begun) >= 3)
    time.sleep(0.05)  # for more than are allowed
    assert len(log.begun) == 3  # the one that was taken, and two of 40 bytes within 100
    working.close()
    large = engine(jobs(Log(), count=5, num_bytes=1000), prefetch_bytes=100)
    assert list(large) == list(range(5))


def test_the_units_of_one_job_are_shared_by_all_threads():
    met = threading.Barrier(4)
    working = engine(jobs(Log(), count=1, units=4, work=lambda number, unit: (
        met.wait(100) if unit is not None else None)), threads=4)  # fmt: skip
    assert list(working) == [0]  # a barrier for four opens only if four work at once


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("unit", [0, 1, None])
def test_an_error_is_raised_where_its_result_would_have_stood(threads, unit):
    def work(number, which):
        if number == 5 and which == unit:
            raise KeyError("mine")

    working = engine(jobs(Log(), work=work), threads)
    found = []
    with pytest.raises(KeyError, match="mine") as caught:
        found.extend(working)
    assert found == list(range(5))
    assert caught.value.__notes__ == ["job 5"]
    assert any("work" in str(entry) for entry in caught.traceback)
    if threads:
        assert next(working, None) is None
    working.close()
    assert not our_threads()


def test_of_several_errors_in_a_job_the_first_unit_s_is_raised():
    first_began, second_failed = threading.Event(), threading.Event()

    def work(number, unit):
        if unit == 0:
            first_began.set()
            second_failed.wait(100)
            raise KeyError("the first")
        if unit == 1:
            first_began.wait(100)
            try:
                raise KeyError("the second")
            finally:
                threading.Timer(0.02, second_failed.set).start()

    with pytest.raises(KeyError, match="the first"):
        next(engine(jobs(Log(), work=work), threads=2))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_planning_reaches_the_consumer(threads):
    def source():
        yield from jobs(Log(), count=3)
        raise RuntimeError("no plan")

    working, found = engine(source(), threads), []
    with pytest.raises(RuntimeError, match="no plan"):
        found.extend(working)
    assert found == [0, 1, 2]


def test_a_thread_that_cannot_work_reaches_the_consumer():
    @contextlib.contextmanager
    def around():
        raise OSError("no device")
        yield

    with pytest.raises(OSError, match="no device"):
        next(Engine(jobs(Log()), Depth(2, 2, 100), around))


def test_closing_waits_for_work_and_ends_the_threads():
    working = engine(jobs(Log(), work=lambda number, unit: time.sleep(0.01)), threads=3)
    next(working)
    assert len(our_threads()) == 3
    working.close()
    working.close()
    assert not our_threads()
    assert next(working, None) is None


def test_closing_does_not_wait_for_work_that_hangs(monkeypatch):
    monkeypatch.setattr(engine_module, "_PATIENCE", 0.1)
    begun, release = threading.Event(), threading.Event()

    def work(number, unit):
        begun.set()
        release.wait(300)

    working = engine(jobs(Log(), work=work), threads=2)
    assert begun.wait(100)
    working.close()
    assert our_threads()  # still at work, which has not been let go
    release.set()
    for thread in our_threads():
        thread.join(100)
    assert not our_threads()


def test_an_engine_may_be_closed_by_its_own_threads_while_the_lock_is_held():
    """The collector frees a forgotten iteration in whichever thread it happens to run."""
    closed = threading.Event()

    class Closing(Job):
        def begin(self):  # called with the lock held
            working.close()
            closed.set()

    started = threading.Event()

    def source():
        assert started.wait(30)
        yield Closing(0, 1, 1, Log())

    working = engine(source(), threads=1)
    started.set()
    assert closed.wait(30)
    assert next(working, None) is None
    working.close()
    assert not our_threads()


def test_the_child_of_a_fork_may_ask_an_engine_whose_lock_was_held():
    working = engine(jobs(Log()), threads=1)
    held, go = threading.Event(), threading.Event()

    def hold():
        with working._lock:
            held.set()
            go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(working.ready() != (0, 0))
    go.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
    working.close()


def test_a_thread_that_the_system_refuses_leaves_none_behind(monkeypatch):
    start, started = threading.Thread.start, []

    def refuse(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        engine(jobs(Log()), threads=3)
    assert len(started) == 2
    assert not our_threads()


def test_a_result_is_the_consumers_alone():
    """Whatever the thread does that made it: here it waits for room, and for its next job."""

    class Result: ...

    class Making(Job):
        def finish(self, parts):
            return Result()

    log = Log()
    working = engine((Making(number, 1, 1, log) for number in range(2)), threads=1)
    until(lambda: working.ready()[0] == 2)
    results = [weakref.ref(next(working)), weakref.ref(next(working))]
    assert [result() for result in results] == [None, None]
    working.close()


def test_nothing_is_kept_after_the_end():
    log = Log()
    working = engine(jobs(log, count=3), threads=1)
    assert list(working) == [0, 1, 2]
    working.close()
    gone = weakref.ref(working)
    del working
    gc.collect()
    assert gone() is None


def test_depths_that_cannot_be():
    for values in ((-1, 0, 0), (0, -1, 0), (0, 0, -1)):
        with pytest.raises(ConfigError, match=">= 0"):
            Depth(*values)
