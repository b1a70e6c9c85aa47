"""Pieces converted in this process, or by worker processes: a `Runner` each.

Not concurrent.futures: a worker is started without importing the caller's main module, so a script
needs no `if __name__ == "__main__"`; it ends with its parent, however that ends; and one socket
carries its tasks, its progress and its death.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omr_io.conversion.piece import Job, Task, Tell, convert_piece
from omr_io.errors import ConfigError, OmrError

if TYPE_CHECKING:  # 5 ms to import, and one worker needs neither
    import subprocess
    from multiprocessing.connection import Connection

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from omr_io.conversion.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(frozen=True, slots=True)
class Cores:
    """Runs tasks on this machine; a `Runner`.

    Args:
        workers: processes at most; with 1, or for 1 task, all is done in this process.
        threads: that prepare rows within each; None shares out `workers` cores.
    """

    workers: int
    threads: int | None = None

    def __call__(self, job: Job, tasks: Iterable[Task], count: int, tell: Tell) -> None:
        """Convert the tasks, so many of them.

        Raises:
            OmrError: what a piece raised; a worker that died.
        """
        workers = max(1, min(self.workers, count))
        threads = self.threads or max(1, self.workers // workers)
        if workers > 1:
            with _pool(job, workers, threads) as pool:
                pool.run(iter(tasks), tell)
            return
        for task in tasks:
            record = convert_piece(job, task, threads, tell)
            tell(record.number, record.tally, True)


@contextmanager
def _pool(job: Job, workers: int, threads: int) -> Iterator[_Pool]:
    pool = _Pool()
    try:
        for _ in range(workers):
            pool.start(job, threads)
        yield pool
    finally:
        pool.stop()


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    task: Task | None = None


class _Pool:
    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def start(self, job: Job, threads: int) -> None:
        import socket
        import subprocess
        from multiprocessing.connection import Connection

        if not sys.executable:
            raise ConfigError("this Python cannot start another one", mend="Use workers=1")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
            command = [sys.executable, "-c", _START, path, str(theirs.fileno()), str(os.getpid())]
            with _held_back({signal.SIGINT, signal.SIGTERM}):
                process = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
                worker = _Worker(process, Connection(ours.detach()))
                self._workers.append(worker)
        with suppress(BrokenPipeError, ConnectionResetError):  # `run` will say that it died
            worker.connection.send(("job", job, threads))

    def run(self, tasks: Iterator[Task], tell: Tell) -> None:
        from multiprocessing.connection import wait

        for worker in self._workers:
            self._give(worker, next(tasks, None))
        while busy := {worker.connection: worker for worker in self._workers if worker.task}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # it gives what it was given
                message = self._receive(worker)
                if message[0] == "failed":
                    raise _failure(*message[1:])
                kind, number, tally = message
                tell(number, tally, kind == "done")
                if kind == "done":
                    self._give(worker, next(tasks, None))

    def _give(self, worker: _Worker, task: Task | None) -> None:
        worker.task = task
        if task is not None:
            with suppress(BrokenPipeError, ConnectionResetError):  # told when it is listened to
                worker.connection.send(("task", task))

    def _receive(self, worker: _Worker) -> Any:
        try:
            return worker.connection.recv()
        except (EOFError, ConnectionResetError):
            raise _death(worker) from None

    def stop(self) -> None:
        """End all workers, whatever they are doing: what is half written does not count."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()


@contextmanager
def _held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """Keep signals from a child that is being started, until it ignores them by itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _failure(error: Exception | None, trace: str) -> Exception:
    if isinstance(error, OmrError):
        return error
    found = error or RuntimeError("a worker failed")
    found.add_note(f"in a worker:\n{trace}")
    return found


def _death(worker: _Worker) -> OmrError:
    code = worker.process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    doing = f" at piece {worker.task.piece.number}" if worker.task else ""
    memory = code == -signal.SIGKILL
    return OmrError(
        f"a worker {how}{doing}" + (", most likely since memory ran out" if memory else ""),
        mend="Run again to go on" + (", with fewer workers" if memory else ""),
    )
