"""The metrics of every step, read from the device and added up over the ranks only when shown.

    log.add("sft", step, loss=Total(loss), tokens_per_second=Share(tokens, seconds), ...)

A step's tensors stay where they are. Every `log_every` steps, and before a checkpoint, all that
waits is read in one copy a device, added up in one collective, and written by the first rank: one
JSONL line a step (`omr_io.train.history`), one printed line, one call a step to each tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from omr_io.errors import OmrError, StoppedError
from omr_io.train.history import History
from omr_io.train.ranks import Ranks
from omr_io.train.trackers import Trackers

Value: TypeAlias = "float | Tensor | Callable[[], float]"
"""A number; a tensor of one, read when shown; or what gives it then."""

MOST_WAITING = 1000
"""Steps that may wait to be read: their tensors are of a few bytes each."""


@dataclass(frozen=True, slots=True)
class Total:
    """Added up over the ranks."""

    value: Value


@dataclass(frozen=True, slots=True)
class Share:
    """Added up over the ranks, over another sum: a mean, a rate or a share. None over 0."""

    part: Value
    whole: Value


@dataclass(frozen=True, slots=True)
class Most:
    """The largest of any rank."""

    value: Value


Metric: TypeAlias = "Total | Share | Most | Value | str | None"
"""What is none of the three kinds is the first rank's own."""


@dataclass(frozen=True, slots=True)
class PhaseSteps:
    """A phase of the run: how many steps, shown every so many, after how many of other phases."""

    steps: int
    log_every: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    phase: str
    step: int
    metrics: Mapping[str, Metric]


class StepLog:
    """Where metrics go; a context manager. All ranks make the same calls in the same order.

    Args:
        ranks: of the run; only the first writes and shows.
        history: the first rank's JSONL log; None on the others. Closed here.
        phases: by name, in order.
        trackers: what else gets the metrics; as started. Closed here.
        show: takes a line of text; `print`, or what the caller likes.
    """

    def __init__(
        self,
        ranks: Ranks,
        history: History | None,
        phases: Mapping[str, PhaseSteps],
        trackers: Trackers | None = None,
        show: Callable[[str], None] = print,
    ) -> None:
        self._ranks = ranks
        self._history = history
        self._phases = dict(phases)
        self._trackers = trackers
        self._show = show
        self._waiting: list[_Waiting] = []

    def add(self, phase: str, step: int, **metrics: Metric) -> None:
        """Metrics of a step, which counts from 1 within its phase; read when it is shown.

        A tensor is copied where it is: what is done to it afterwards does not matter.
        """
        self._waiting.append(_Waiting(phase, step, {k: _kept(v) for k, v in metrics.items()}))
        if step % self._phases[phase].log_every == 0 or len(self._waiting) >= MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Read, add up and write all that waits; a collective call."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = _added_up(waiting, self._ranks)
        if not self._ranks.is_first:
            return
        for at, row in zip(waiting, rows, strict=True):
            phase = self._phases[at.phase]
            if self._history is not None:
                self._history.add(at.phase, at.step, **row)
            if self._trackers is not None:
                named = {f"{at.phase}/{name}": value for name, value in row.items()}
                self._trackers.log(phase.first + at.step, named)
            if at.step % phase.log_every == 0 and "seconds" in row:
                self._show(step_line(at.phase, at.step, phase.steps, row))

    def sync(self) -> None:
        """Flush, and force all lines to the disk, before a checkpoint that relies on them."""
        self.flush()
        if self._history is not None:
            self._history.sync()

    def close(self, *, failed: bool = False) -> None:
        """Flush what a single rank has waiting, and close the log and the trackers.

        With several ranks nothing is flushed: another may have failed and not be there to add up.

        Args:
            failed: an error ended the run, as trackers will show.
        """
        try:
            if self._ranks.world_size == 1:
                self.flush()
        finally:
            try:
                if self._history is not None:
                    self._history.close()
            finally:
                if self._trackers is not None:
                    self._trackers.close(failed=failed)

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.flush()
        elif self._waiting and self._ranks.world_size > 1 and self._ranks.is_first:
            self._show(f"metrics of the last {len(self._waiting)} steps were not written")
        try:
            self.close(failed=error is not None and not isinstance(error, StoppedError))
        except OmrError as failed:
            if error is None:
                raise
            error.add_note(f"Besides, {failed}")


def _kept(metric: Metric) -> Metric:
    """The metric with its tensors copied."""

    def copy(value: Value) -> Value:
        return value.detach().clone() if isinstance(value, Tensor) else value

    if isinstance(metric, Share):
        return Share(copy(metric.part), copy(metric.whole))
    if isinstance(metric, Total | Most):
        return type(metric)(copy(metric.value))
    return copy(metric) if isinstance(metric, Tensor) else metric


def _added_up(waiting: Sequence[_Waiting], ranks: Ranks) -> list[dict[str, Any]]:
    """Each step's metrics over all ranks, in one collective."""
    read = _read([value for at in waiting for metric in at.metrics.values()
                  for value in _values(metric)])  # fmt: skip
    slots: list[float] = []
    numbers = iter(read)
    own: list[Any] = []
    for at in waiting:
        for metric in at.metrics.values():
            values = [next(numbers) for _ in _values(metric)]
            if isinstance(metric, Most):  # a slot a rank: their sum is everyone's value
                slots += [values[0] if r == ranks.rank else 0.0 for r in range(ranks.world_size)]
            elif isinstance(metric, Total | Share):
                slots += values
            else:
                own.append(values[0] if values else metric)
    sums, own_values = iter(ranks.sums(slots) if slots else []), iter(own)
    rows: list[dict[str, Any]] = []
    for at in waiting:
        row: dict[str, Any] = {}
        for name, metric in at.metrics.items():
            if isinstance(metric, Most):
                row[name] = max(next(sums) for _ in range(ranks.world_size))
            elif isinstance(metric, Total):
                row[name] = next(sums)
            elif isinstance(metric, Share):
                part, whole = next(sums), next(sums)
                row[name] = part / whole if whole else None
            else:
                row[name] = next(own_values)
        rows.append(row)
    return rows


def _values(metric: Metric) -> tuple[Value, ...]:
    """What of a metric is a number or becomes one."""
    if isinstance(metric, Share):
        return metric.part, metric.whole
    if isinstance(metric, Total | Most):
        return (metric.value,)
    return (metric,) if isinstance(metric, Tensor) or callable(metric) else ()


def _read(values: Sequence[Value]) -> list[float]:
    """All as numbers: one copy from each device, and only then what waits for it to finish."""
    found: dict[int, float] = {}
    by_device: dict[torch.device, list[int]] = {}
    for number, value in enumerate(values):
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append(number)
    for numbers in by_device.values():
        tensors = [value for n in numbers if isinstance(value := values[n], Tensor)]
        stacked = torch.stack([tensor.detach().double().reshape(()) for tensor in tensors])
        found |= dict(zip(numbers, stacked.tolist(), strict=True))
    for number, value in enumerate(values):
        if not isinstance(value, Tensor):
            found[number] = float(value() if callable(value) else value)
    return [found[number] for number in range(len(values))]


def step_line(phase: str, step: int, steps: int, row: Mapping[str, Any]) -> str:
    """What a step shows on the screen: of its metrics those that are there, in a fixed order."""
    parts = [
        text.format(value * scale)
        for name, text, scale in _LINE
        if isinstance(value := row.get(name), int | float)
    ]
    return f"{phase} {step}/{steps}: {', '.join(parts)}"


_LINE = (
    ("loss", "loss {:.4f}", 1.0),
    ("reward", "reward {:.3f}", 1.0),
    ("accuracy", "accuracy {:.1%}", 1.0),
    ("entropy", "entropy {:.3f}", 1.0),
    ("completion_tokens", "{:.0f} tokens a completion", 1.0),
    ("tokens_per_second", "{:,.0f} tokens/s", 1.0),
    ("packing_efficiency", "packing {:.1%}", 1.0),
    ("mfu", "MFU {:.1%}", 1.0),
    ("data_wait_share", "waiting {:.1%}", 1.0),
    ("gradient_norm", "gradient {:.3g}", 1.0),
    ("peak_memory_bytes", "{:.1f} GB", 1e-9),
    ("seconds", "{:.3g} s", 1.0),
    ("seconds_p99", "p99 {:.3g} s", 1.0),
)
