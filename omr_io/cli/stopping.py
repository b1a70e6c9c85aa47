"""Being told to stop, by Ctrl-C or a scheduler: what was begun is tidied, one line says more."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DEAF_SECONDS = 10.0


class _Stopped(BaseException):
    """Not an Exception: nobody on the way up takes it for a failure."""


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Turn SIGINT and SIGTERM within the block into exit code 130 or 143, and a line of advice.

    Tidying up is not interrupted by further signals, for `_DEAF_SECONDS`. After that they count
    again: the first may have come where an exception goes nowhere, such as a finalizer.
    """
    told: list[tuple[int, float]] = []

    def stop(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if told and now - told[-1][1] < _DEAF_SECONDS:
            return
        told.append((number, now))
        raise _Stopped

    before = [(one, signal.signal(one, stop)) for one in _SIGNALS]
    try:
        yield
    except BaseException:
        if not told:
            raise
        # Another error than _Stopped is what a library that was being imported made of it.
        number = told[0][0]
        print(f"stopped by {signal.Signals(number).name}: {advice}", file=sys.stderr)
        raise typer.Exit(128 + number) from None
    finally:
        for one, handler in before:
            signal.signal(one, handler)
