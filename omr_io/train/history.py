"""The metrics of a run: one JSON object a line, appended and flushed step by step.

    {"phase": "sft", "step": 12, "loss": 3.21, "tokens_per_second": 5120.0}

A run that was killed leaves at most one torn line. On resume the file is cut back to the
checkpoint's step, so that the resumed curve equals the uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import IO, TypeAlias

from omr_io.errors import ConfigError, DiskError, IntegrityError, ResumeError, SourceError, Where
from omr_io.storage import lock, writing

MetricValue: TypeAlias = float | int | str | bool | None
Row: TypeAlias = Mapping[str, MetricValue]

PHASES = ("sft", "rl", "evaluate")
"""Phases in the order in which a run goes through them."""


class History:
    """An append-only log of metrics; use as a context manager.

    Make one with `History.create` (a new run) or `History.resume` (from a checkpoint).
    """

    def __init__(
        self, path: Path, file: IO[bytes], phases: Sequence[str], last: tuple[int, int]
    ) -> None:
        self.path = path
        self._file = file
        self._phases = tuple(phases)
        self._last = last

    @classmethod
    def create(cls, path: str | Path, *, phases: Sequence[str] = PHASES) -> History:
        """Start an empty log of a run that goes through `phases` in that order.

        Raises:
            DiskError: the file exists already, or cannot be written.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb", buffering=0)
            _lock(file, target)
            return cls(target, file, phases, (0, 0))
        except FileExistsError:
            raise DiskError(
                f"{target} exists already", mend="Resume the run, or give it another name"
            ) from None
        except OSError as error:
            raise DiskError(f"cannot write {target}: {error.strerror}") from error

    @classmethod
    def resume(
        cls, path: str | Path, *, phase: str, step: int, phases: Sequence[str] = PHASES
    ) -> History:
        """Go on with a log after the step that a checkpoint was written at.

        Lines of later steps of `phase` and of later phases are cut off, and a torn last line too.

        Args:
            path: the log.
            phase: the checkpoint's phase.
            step: its last finished step; lines of `step` itself stay.
            phases: all phases in order.

        Raises:
            ResumeError: the log does not exist, or `phase` is not one of `phases`.
            ConfigError: another run is writing it.
            IntegrityError: a line before the last is not a metrics line.
            DiskError: the file cannot be written.
        """
        if phase not in phases:
            raise ResumeError(f"phase {phase!r} is none of {', '.join(phases)}")
        target = Path(path)
        last = (phases.index(phase), step)
        try:
            file = target.open("r+b", buffering=0)
        except FileNotFoundError:
            raise ResumeError(
                f"{target} is gone, so the curves before step {step} are lost",
                mend="Put it back, or make an empty file of that name to go on without them",
            ) from None
        except OSError as error:
            raise DiskError(f"cannot write {target}: {error.strerror}") from error
        try:
            _lock(file, target)
            keep = _end_of(target, phases, last)
            with writing(target):
                file.truncate(keep)
                file.seek(keep)
        except BaseException:
            file.close()
            raise
        return cls(target, file, phases, last)

    def add(self, phase: str, step: int, **metrics: object) -> None:
        """Append one line, at once, so that a killed process loses nothing.

        Args:
            phase: one of the log's phases; never one before the last line's.
            step: counted from 1 within the phase, never falling. Several lines of a step are fine.
            metrics: numbers (Python's or NumPy's), short strings, booleans or None. A number that
                is not finite is written as null.

        Raises:
            ConfigError: a metric of another type, such as a tensor; or a phase or step that goes
                back, since `resume` could not tell which lines to keep.
            DiskError: no space, or another input/output error.
        """
        place = (self._phases.index(phase), step) if phase in self._phases else None
        if place is None or place < self._last:
            raise ConfigError(
                f"{phase!r} step {step} cannot follow the last line of {self.path}",
                mend=f"Phases go {', '.join(self._phases)}, and steps never fall",
            )
        row: dict[str, MetricValue] = {"phase": phase, "step": step}
        for name, value in metrics.items():
            row[name] = _plain(name, value)
        line = json.dumps(row, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        left = memoryview(line.encode("ascii") + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]  # it may stop short
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror}") from error
        self._last = place

    def sync(self) -> None:
        """Force all lines to the disk; to be called before a checkpoint that relies on them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _lock(file: IO[bytes], path: Path) -> None:
    if not lock(file.fileno(), path):
        raise ConfigError(
            f"another run is writing {path}",
            mend="End that run, or give this one another name; if a machine that is gone still "
            "holds the file, put a copy of it in its place",
        )


def _end_of(path: Path, phases: Sequence[str], last: tuple[int, int]) -> int:
    """Where, in bytes, the lines up to a place end."""
    end_of_last = 0
    for row, end in _scan(path):
        if row["phase"] not in phases:
            raise ResumeError(f"{path} has a phase {row['phase']!r} of another recipe")
        if (phases.index(str(row["phase"])), row["step"]) > last:
            break
        end_of_last = end
    return end_of_last


def read_history(path: str | Path) -> list[Row]:
    """All lines of a log, in order; a torn last line is left out.

    Raises:
        SourceError: the file cannot be read.
        IntegrityError: a line before the last is not a metrics line.
    """
    return [row for row, _ in _scan(Path(path))]


def curve(rows: Sequence[Row], phase: str, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of one phase; lines without it, or with null, are left out."""
    steps: list[float] = []
    values: list[float] = []
    for row in rows:
        value = row.get(metric)
        if row.get("phase") == phase and isinstance(value, int | float):
            steps.append(float(row["step"] or 0))
            values.append(float(value))
    return steps, values


def _scan(path: Path) -> Iterator[tuple[Row, int]]:
    """Rows, each with the offset in bytes of its end."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    end = 0
    for number, line in enumerate(lines):
        if not line.endswith(b"\n"):
            return  # torn: the process was killed within the write
        row = _parse(line)
        if row is None:
            raise IntegrityError(
                f"{path} line {number + 1} is not a metrics line",
                where=Where(offset=end),
                mend="The file was changed by something else; remove the line to go on",
            )
        end += len(line)
        yield row, end


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("phase"), str):
        return None
    return row if isinstance(row.get("step"), int) else None


def _plain(name: str, value: object) -> MetricValue:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else None
    raise ConfigError(
        f"metric {name!r} is a {type(value).__name__}, not a number",
        mend="Call .item() on tensors where the copy to the host is wanted",
    )
