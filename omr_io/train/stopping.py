"""Stopping a run from outside: a signal, then a checkpoint within the grace period, then exit 75.

A cluster says by SIGTERM or SIGUSR1 that a job's time is up. The signal sets a flag and nothing
else. Ranks ask each other after every micro step, between the batches of a rollout and after every
step, whether it is set on any of them; they all stop at the same place. A step that has begun is
given up: until its update the weights are those of the step before, whose checkpoint is written.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from omr_io.errors import ConfigError, StoppedError
from omr_io.train.checkpoint import Checkpoints
from omr_io.train.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What Slurm sends when a job is out of time, and what `#SBATCH --signal=USR1@120` sends before."""


class StopSignals:
    """Whether this process was asked to stop; made by `stop_signals`."""

    __slots__ = ("_name",)

    def __init__(self) -> None:
        self._name: str | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._name is not None

    @property
    def name(self) -> str | None:
        """The signal's name; None before it comes."""
        return self._name


@contextmanager
def stop_signals(
    signals: Sequence[signal.Signals] = SIGNALS, *, together_seconds: float = 5.0
) -> Iterator[StopSignals]:
    """Within the block the first of these signals only sets a flag.

    A second one does what it did before the block: as a rule it ends the process at once.

    Args:
        signals: which.
        together_seconds: what comes so soon after the first is the same request: a cluster may
            signal a process that its launcher then signals, too.

    Raises:
        ConfigError: not in the main thread, the only one that Python lets handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("signals can be handled in the main thread only")
    before = {number: signal.getsignal(number) for number in signals}
    stop = StopSignals()

    def restore() -> None:
        for number, handler in before.items():
            # None: a handler that was not installed from Python, and that it cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop._name is None:
            stop._name, first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - first >= together_seconds:
            restore()
            signal.raise_signal(number)

    for number in signals:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


class _LeftError(Exception):
    """An interruptible block was left."""


class Stopping:
    """Where a run can be stopped, and what is written then.

    With several ranks `step_done` and `check` are collective.

    Args:
        signals: of this rank.
        checkpoints: what is waited for before the run ends.
        ranks: who has to agree; by a gloo group of their own, so that no GPU is waited for.
    """

    def __init__(self, signals: StopSignals, checkpoints: Checkpoints, ranks: Ranks) -> None:
        self._signals = signals
        self._checkpoints = checkpoints
        self._ranks = ranks.on_host()
        # Nothing to write yet: a new run has done nothing, a resumed one has its checkpoint.
        self._write: Callable[[], None] | None = None
        self._updating = False

    def before_update(self) -> None:
        """From here to `step_done` the weights are of no step: `check` lets the run go on."""
        self._updating = True

    def step_done(self, write: Callable[[], None], *, due: bool) -> None:
        """A step is done, all of it.

        Args:
            write: begins the checkpoint of this step. It is called now if one is `due`, and
                otherwise if the run is stopped before the next update.

        Raises:
            StoppedError: as `check`.
        """
        self._updating = False
        self._write = write
        if due:
            self._save()
        self.check()

    def check(self) -> None:
        """Go on, or save the last step's checkpoint and stop, if any rank was asked to.

        Raises:
            StoppedError: the checkpoint is on the disk.
            DiskError: it, or the one before it, could not be written.
        """
        if self._updating:
            return
        mine = (self._signals.requested, self._checkpoints.failed)
        asked, failed = self._ranks.sums([float(flag) for flag in mine])
        if failed:  # now, not when the next checkpoint is due: all from here on would be lost too
            self._checkpoints.wait()
        if not asked:
            return
        self._save()
        self._checkpoints.wait()
        raise StoppedError(
            f"stopped by {self._signals.name or 'a signal to another rank'}",
            mend="All is saved: the same command with --resume goes on",
        )

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], None]]:
        """A block in which ranks do not wait for each other, such as sampling completions.

        Gives a function to call now and then, which leaves the block on a rank that was asked to
        stop. At the end of the block ranks agree as in `check`, so what the block did not finish is
        never used.

        Raises:
            StoppedError: as `check`.
        """

        def leave() -> None:
            if self._signals.requested and not self._updating:
                raise _LeftError

        with suppress(_LeftError):
            yield leave
        self.check()

    def _save(self) -> None:
        write, self._write = self._write, None
        if write is not None:
            write()
