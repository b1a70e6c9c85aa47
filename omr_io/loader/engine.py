"""Jobs done ahead on threads: in order, bounded, and shared piece by piece.

A job is a batch to be made. It is divided into units, which the threads take one by one, those of
earlier jobs first: so one large batch is made by all threads, and several small ones by one each.
The thread that ends a job's last unit finishes it. Whoever finds no unit waiting begins the next
job, while the jobs that are begun and not yet taken stay within their number and bytes.

Threads are daemons, so none can keep a process alive for ever, and are stopped and waited for when
their engine is closed or the process ends: C++ that comes back to an interpreter that is gone ends
the process by an abort. Closing gives up on a thread after a second, the end of a process after 30:
on a machine with more to do than cores a unit of 10 ms may take seconds. Threads are counted while
they are at work: of a thread whose `join` a signal's handler leaves by an exception, Python (3.11,
3.12) says from then on that it is not alive.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from omr_io.loader.options import Depth

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

_PATIENCE = 1.0  # seconds that closing waits for a thread at work; it ends by itself later
_LAST_PATIENCE = 30.0  # seconds that the end of the process waits for it


class Job(Protocol[Result_co]):
    """What the engine asks of a job."""

    @property
    def num_bytes(self) -> int:
        """Of memory that it takes from `begin` until its result is taken."""

    @property
    def num_units(self) -> int:
        """Pieces of work; 0 is legal."""

    def begin(self) -> None:
        """Take what the units need; called once, before any of them."""

    def run(self, unit: int) -> Any:
        """Do one unit; on any thread, several at once."""

    def finish(self, parts: list[Any]) -> Result_co:
        """The result, of what the units gave, in order."""

    def describe(self, error: BaseException) -> None:
        """Say in a note of the error what was being made."""


class _Begun(Generic[Result]):
    """A job that is begun and not yet taken."""

    def __init__(self, job: Job[Result]) -> None:
        self.job = job
        self.num_bytes = job.num_bytes
        self.parts: list[Any] = [None] * job.num_units
        self.left = len(self.parts)
        self.is_done = False
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.error_unit = len(self.parts)

    def fail(self, error: BaseException, unit: int) -> None:
        """Note an error; that of the earliest unit stays, whichever thread was faster."""
        self.job.describe(error)
        if self.error is None or unit < self.error_unit:
            self.error, self.error_unit = error, unit


class Engine(Generic[Result]):
    """Does jobs ahead of the consumer; iterating gives their results in order.

    An error of a job, or of `jobs` itself, is raised where its result would have stood; nothing
    comes after it. Use as a context manager, or call `close`.

    Args:
        jobs: what to do, in order; asked by one thread at a time.
        depth: how many threads, and how far ahead. The jobs begun and not taken are at most
            prefetch + 1, and more, up to prefetch + num_threads, only while there is nothing else
            for a thread to do; together at most prefetch_bytes, or one.
        around: what every thread works within.
        interrupt: called when the process ends with threads at work; who waits for the network
            need not wait any longer.
    """

    def __init__(
        self,
        jobs: Iterator[Job[Result]],
        depth: Depth,
        around: Callable[[], AbstractContextManager[Any]],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.pid = os.getpid()
        self._jobs = jobs
        self._depth = depth
        self._around = around
        self._interrupt = interrupt
        # A signal's handler runs in the consumer's thread, wherever that is, and may close or ask.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # threads wait for units or room
        self._done = threading.Condition(self._lock)  # the consumer waits for a result
        self._idle = threading.Condition(self._lock)  # closing waits for threads at work
        self._at_work = 0  # threads that may be in C++
        self._units: deque[tuple[_Begun[Result], int]] = deque()
        self._begun: deque[_Begun[Result]] = deque()
        self._held: Job[Result] | None = None  # the next job, for which there is no room yet
        self._is_asking = False  # a thread asks for the next job
        self._is_last = False  # there is none
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"omr-io-loader-{number}", daemon=True)
            for number in range(depth.num_threads)
        ]
        # First of all: a signal's handler may raise while threads are started. Weakly: a thread
        # holds its engine for as long as it is at work, and a closed engine is to be freed.
        self._at_exit = partial(_end, weakref.ref(self))
        if self._threads:
            atexit.register(self._at_exit)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # of threads that the system refuses, or of a signal
            self.close()
            raise

    # The consumer

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if not self._threads:
            if self._is_closed:
                raise StopIteration
            with self._around():
                return self._make_here()
        with self._lock:
            while not (self._begun and self._begun[0].is_done):
                if self._is_closed or (self._is_last and not self._begun):
                    raise StopIteration
                self._done.wait()
            taken = self._begun.popleft()
            self._work.notify_all()  # there is room
        if taken.error is not None:
            self.close()
            raise taken.error
        # The thread that made it may hold the job for a while yet: its result is the consumer's.
        result, taken.result = taken.result, None
        return result  # type: ignore[return-value]

    def _make_here(self) -> Result:
        job = next(self._jobs)
        try:
            job.begin()
            return job.finish([job.run(unit) for unit in range(job.num_units)])
        except Exception as error:
            job.describe(error)
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it was ended before its time; then there may be jobs that are not done."""
        return self._is_closed

    def ready(self) -> tuple[int, int]:
        """Results that wait to be taken, and their bytes; none in the child of a fork."""
        if os.getpid() != self.pid:
            return 0, 0
        with self._lock:
            done = [begun.num_bytes for begun in self._begun if begun.is_done]
        return len(done), sum(done)

    def close(self) -> None:
        """Stop the threads. Waits for the units at work, but not for one that hangs."""
        if os.getpid() != self.pid:
            return  # the threads are the parent's, and so may be the lock
        self._stop()
        if self._wait(_PATIENCE):
            atexit.unregister(self._at_exit)  # last: a signal's handler may have raised before

    def end(self) -> None:
        """Stop the threads for good: the process ends, and C++ must be over before it does."""
        if os.getpid() != self.pid:
            return
        self._stop()
        if not self._wait(0.0):
            self._interrupt()
            self._wait(_LAST_PATIENCE)

    def _stop(self) -> None:
        with self._lock:
            self._is_closed = True
            self._units.clear()
            self._begun.clear()
            self._work.notify_all()
            self._done.notify_all()

    def _wait(self, seconds: float) -> bool:
        """Wait for the threads; gives whether none is at work any more."""
        deadline = time.monotonic() + seconds
        own = threading.current_thread() in self._threads  # the collector runs in any thread
        with self._lock:
            if not self._idle.wait_for(lambda: self._at_work <= own, seconds):
                return False
        for thread in self._threads:  # what is left of them is over in no time
            # One without ident has not begun, and will find that all is over.
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return True

    # The threads

    def _run(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._at_work += 1
        try:
            with self._around():
                while (unit := self._next_unit()) is not None:
                    self._do(*unit)
        except BaseException as error:
            with self._lock:
                self._fail(error)
        finally:
            with self._lock:
                self._at_work -= 1
                self._idle.notify_all()

    def _next_unit(self) -> tuple[_Begun[Result], int] | None:
        """A unit to do, of the earliest job that has one left; None when all is over."""
        with self._lock:
            while not self._is_closed:
                if self._units:
                    return self._units.popleft()
                if self._is_last and not self._begun:
                    return None
                if self._is_asking or self._is_last or not self._has_room():
                    self._work.wait()
                    continue
                self._begin_next()
        return None

    def _has_room(self) -> bool:
        """Whether the next job may begin; one whose size is not known is asked for."""
        if not self._begun:
            return True
        depth, count = self._depth, len(self._begun)
        ready = sum(begun.is_done for begun in self._begun)
        if count >= depth.prefetch + depth.num_threads or (
            count > depth.prefetch and ready >= max(depth.prefetch, 1)
        ):
            return False
        if self._held is None:
            return True
        begun_bytes = sum(begun.num_bytes for begun in self._begun)
        return begun_bytes + self._held.num_bytes <= depth.prefetch_bytes

    def _begin_next(self) -> None:
        """Ask for the next job, and begin it if there is room. Holds the lock but while it asks."""
        job, error = self._held, None
        if job is None:
            self._is_asking = True
            self._lock.release()
            try:
                job = next(self._jobs, None)
            except BaseException as raised:
                error = raised
            finally:
                self._lock.acquire()
                self._is_asking = False
            self._held = job
            if self._is_closed:
                return
            if error is not None:
                self._fail(error)
                return
            if job is None:
                self._is_last = True
                self._work.notify_all()
                self._done.notify_all()
                return
            if not self._has_room():
                self._work.notify_all()
                return
        self._held = None
        begun = _Begun(job)
        self._begun.append(begun)
        try:
            job.begin()
        except BaseException as raised:
            self._begun.pop()
            job.describe(raised)
            self._fail(raised)
            return
        self._units.extend((begun, unit) for unit in range(len(begun.parts)))
        if not begun.parts:
            self._lock.release()
            try:
                self._finish(begun)
            finally:
                self._lock.acquire()
        self._work.notify_all()

    def _fail(self, error: BaseException) -> None:
        """An error takes the place of the next job, and nothing comes after it."""
        failed: _Begun[Result] = _Begun(_NoJob())
        failed.error, failed.is_done = error, True
        self._begun.append(failed)
        self._is_last = True
        self._work.notify_all()
        self._done.notify_all()

    def _do(self, begun: _Begun[Result], unit: int) -> None:
        try:
            if begun.error is None:  # else what is done for this job is of no use
                begun.parts[unit] = begun.job.run(unit)
        except BaseException as error:
            with self._lock:
                begun.fail(error, unit)
        with self._lock:
            begun.left -= 1
            if begun.left:
                return
        self._finish(begun)

    def _finish(self, begun: _Begun[Result]) -> None:
        try:
            if begun.error is None:
                begun.result = begun.job.finish(begun.parts)
        except BaseException as error:
            begun.fail(error, 0)
        with self._lock:
            begun.is_done = True
            begun.parts = []
            if begun.error is not None:
                self._is_last = True  # what comes after is of no use
            self._done.notify_all()
            self._work.notify_all()


def _end(engine: weakref.ref[Engine[Any]]) -> None:
    found = engine()
    if found is not None:
        found.end()


class _NoJob:
    """Stands where a job could not be had."""

    num_bytes = 0
    num_units = 0

    def begin(self) -> None: ...
    def run(self, unit: int) -> None: ...
    def finish(self, parts: list[Any]) -> Any: ...
    def describe(self, error: BaseException) -> None: ...
