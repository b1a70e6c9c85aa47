"""Progress and tables for the terminal: bars where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
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


class StatusLine:
    """One line that is drawn over on a terminal; elsewhere a line every ten seconds.

    Args:
        console: where to; None: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._is_closed = False
        self._next = time.monotonic() + (0 if self._console.is_terminal else _LINE_SECONDS)

    def is_due(self) -> bool:
        """Whether `show` would show anything now."""
        return not self._is_closed and time.monotonic() >= self._next

    def show(self, text: str) -> None:
        """Show a line in place of the last one, if it is due."""
        if not self.is_due():
            return
        if not self._console.is_terminal:
            self._print(text)
            self._next = time.monotonic() + _LINE_SECONDS
            return
        line = Text(text, overflow="ellipsis", no_wrap=True)
        if self._live is None:
            self._live = Live(line, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(line, refresh=True)
        self._next = time.monotonic() + _BAR_SECONDS

    def close(self, text: str) -> None:
        """Leave this line for good; nothing the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._live is not None:
            self._live.stop()
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
