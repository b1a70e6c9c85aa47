"""OpenMedReason's TraceScore from a judge's words on rubric units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from omr_io.types import AXES, Axis


@dataclass(frozen=True, slots=True)
class JudgedUnit:
    """A judge's word on one rubric unit of one completion.

    Attributes:
        axis: of the unit.
        presence: 2 if the trace makes the claim, 1 if in part, 0 if not; None if the judge failed.
        correctness: 1 right, 0 undecided, -1 wrong; not looked at where presence is 0; None if
            the judge failed.
    """

    axis: Axis
    presence: Literal[0, 1, 2] | None
    correctness: Literal[-1, 0, 1] | None


@dataclass(frozen=True, slots=True)
class AxisScore:
    """One axis; `correctness` is None when nothing was present, and `score` then 0."""

    presence: float
    correctness: float | None
    score: float
    units: int


@dataclass(frozen=True, slots=True)
class TraceScore:
    """The three axes of one trace.

    Attributes:
        axes: those with a judged unit.
        score: the mean of the axes; None without any judged unit, and where `unjudged` names one.
        judge_errors: units whose judge failed.
        unjudged: axes that have units, of which the judge failed on every one.
    """

    axes: Mapping[Axis, AxisScore]
    score: float | None
    judge_errors: int
    unjudged: tuple[Axis, ...] = ()


def trace_score(units: Sequence[JudgedUnit]) -> TraceScore:
    """OpenMedReason's TraceScore of one reasoning trace.

    On each axis, presence = mean(p / 2) over its units, correctness = share of c = +1 among the
    units with p >= 1, and the axis scores presence x correctness; TraceScore is the mean of the
    axes (perception, knowledge, rationale).

    Conventions:
    - Nothing present (all p = 0): correctness is 0/0 and reported as None; the axis scores 0,
      since its presence is 0 whatever correctness were.
    - An axis without units does not exist for this trace: the mean is over the other axes.
    - A unit whose judge failed (p is None, or p >= 1 and c is None) is left out and counted. If
      that leaves an axis that has units without any, the trace has no score: a mean over the other
      axes would not compare with that of traces which were judged on all.
    """
    judged = [unit for unit in units if not _judge_failed(unit)]
    axes: dict[Axis, AxisScore] = {}
    for axis in AXES:
        own = [unit for unit in judged if unit.axis == axis]
        if own:
            axes[axis] = _axis_score(own)
    unjudged = tuple(
        axis for axis in AXES if axis not in axes and any(unit.axis == axis for unit in units)
    )
    total = None
    if axes and not unjudged:
        total = sum(axis.score for axis in axes.values()) / len(axes)
    return TraceScore(axes, total, len(units) - len(judged), unjudged)


def _judge_failed(unit: JudgedUnit) -> bool:
    return unit.presence is None or (unit.presence >= 1 and unit.correctness is None)


def _axis_score(units: Sequence[JudgedUnit]) -> AxisScore:
    presence = sum((unit.presence or 0) / 2 for unit in units) / len(units)
    present = [unit for unit in units if unit.presence]
    if not present:
        return AxisScore(presence, None, 0.0, len(units))
    correctness = sum(unit.correctness == 1 for unit in present) / len(present)
    return AxisScore(presence, correctness, presence * correctness, len(units))
