"""Progress and tables for the terminal: bars where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_BAR_SECONDS = 0.1
_LINE_SECONDS = 10.0


def table(rows: list[tuple[str, str]]) -> Text:
    """Two aligned columns; never wrapped or cut, so that pipes and logs get whole lines."""
    width = max((len(name) for name, _ in rows), default=0)
    text = Text()
    for name, value in rows:
        text.append(f"{name:<{width}}  ", style="bold")
        text.append(f"{value}\n")
    text.rstrip()
    return text


def standard_error() -> Console:
    """The console on which progress is shown."""
    return Console(stderr=True)


class Reporter:
    """Shows how far a command is, on standard error.

    On a terminal a bar, elsewhere a line every ten seconds, so that a job's log stays short.

    Args:
        console: of standard error.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        # A log gets no line from a command that is done before the first is due.
        self._next = time.monotonic() + (0 if console.is_terminal else _LINE_SECONDS)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[now]}", markup=False),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)

    def update(self, stage: str, done: int, total: int | None, now: str) -> None:
        """Show `done` of `total` and the words `now`; cheap enough to call for every row."""
        clock = time.monotonic()
        if clock < self._next and done != total:
            return
        if self._bar is None:
            if clock < self._next:
                return  # the summary tells of the end
            self._console.print(f"{stage}: {now}", soft_wrap=True, markup=False, highlight=False)
            self._next = clock + _LINE_SECONDS
            return
        if self._task is None or stage != self._stage:
            self._start(stage, total)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, now=now)
        self._next = clock + _BAR_SECONDS

    def _start(self, stage: str, total: int | None) -> None:
        assert self._bar is not None
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._stage = stage
        self._task = self._bar.add_task(stage, total=total, now="")
        self._bar.start()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
