"""A judge of reasoning traces: TraceScore by rubric, and which of two models' traces is better.

Names are imported when they are first used, as in `omr_io`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omr_io.judge.completions import Completion, Completions, read_completions
    from omr_io.judge.endpoint import AskOptions, Endpoint, Prices, key_of
    from omr_io.judge.judge import Estimate, Judge, Usage
    from omr_io.judge.preference import (
        JudgedPair,
        PreferenceReport,
        estimate_preference,
        prefer,
    )
    from omr_io.judge.traces import (
        AxisSummary,
        JudgeError,
        TraceReport,
        estimate_traces,
        score_traces,
    )

__all__ = [
    "AskOptions",
    "AxisSummary",
    "Completion",
    "Completions",
    "Endpoint",
    "Estimate",
    "Judge",
    "JudgeError",
    "JudgedPair",
    "PreferenceReport",
    "Prices",
    "TraceReport",
    "Usage",
    "estimate_preference",
    "estimate_traces",
    "key_of",
    "prefer",
    "read_completions",
    "score_traces",
]

_MODULES = {
    "AskOptions": "endpoint",
    "AxisSummary": "traces",
    "Completion": "completions",
    "Completions": "completions",
    "Endpoint": "endpoint",
    "Estimate": "judge",
    "Judge": "judge",
    "JudgeError": "traces",
    "JudgedPair": "preference",
    "PreferenceReport": "preference",
    "Prices": "endpoint",
    "TraceReport": "traces",
    "Usage": "judge",
    "estimate_preference": "preference",
    "estimate_traces": "traces",
    "key_of": "endpoint",
    "prefer": "preference",
    "read_completions": "completions",
    "score_traces": "traces",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'omr_io.judge' has no attribute {name!r}")
    value = getattr(import_module(f"omr_io.judge.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
