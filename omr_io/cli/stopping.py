"""Being told to stop, by Ctrl-C or a scheduler: what was begun is tidied, one line says more."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stopped(BaseException):
    """Not an Exception: nobody on the way up takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Turn SIGINT and SIGTERM within the block into exit code 130 or 143, and a line of advice."""

    def stop(number: int, _: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)  # tidying up is not to be interrupted
        raise _Stopped(number)

    before = [(one, signal.signal(one, stop)) for one in _SIGNALS]
    try:
        yield
    except _Stopped as stopped:
        name = signal.Signals(stopped.number).name
        print(f"stopped by {name}: {advice}", file=sys.stderr)
        raise typer.Exit(128 + stopped.number) from None
    finally:
        for one, handler in before:
            signal.signal(one, handler)
