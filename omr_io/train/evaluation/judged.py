"""What `omr-io judge` left beside the completions: trace scores and preferences, read if there.

    trace-scores-*.jsonl   a header ({"header": true, "model", "set_name", "judge_model",
                           "fingerprint", ...}), then a line a trace: {"key", "run", "model",
                           "score", "axes": {"perception": {"score", ...}, ...}, "errors", ...}
    preference-*.json      {"a", "b", "set_name", "judge_model", "fingerprint", "completions_a",
                           "completions_b", "share", "p", "judged", "wins_a", "wins_b", "ties",
                           "errors", ...}

`completions` is `completions_digest` of what was judged: made again since, they are others.
Scores are those of `omr_io.train.trace_score`; null is a trace that the judge gave none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from omr_io.errors import IntegrityError
from omr_io.train.completions_digest import completions_digest
from omr_io.train.evaluation.figures import ModelDifference, better_and_worse, difference_of
from omr_io.train.evaluation.items import ItemSet
from omr_io.train.evaluation.log import Line
from omr_io.train.evaluation.options import EvaluationOptions
from omr_io.train.statistics import Interval, cluster_bootstrap
from omr_io.types import AXES

Values = dict[str, float]  # key -> mean over its runs


@dataclass(frozen=True, slots=True)
class JudgedTraces:
    """A model's traces on a set.

    Attributes:
        score: mean TraceScore of items, 0..1, with its 95% interval by cluster; None: no trace has
            one.
        axes: the same of each axis that any trace was judged on.
        traces, scored: completions in the file, and those with a TraceScore.
        errors: rubric units that the judge failed on.
    """

    model: str
    set: str
    judge_model: str
    score: Interval | None
    axes: Mapping[str, Interval]
    traces: int
    scored: int
    errors: int


@dataclass(frozen=True, slots=True)
class JudgedPreference:
    """How often the traces of `a` were preferred over those of `b`; ties count half."""

    a: str
    b: str
    set: str
    judge_model: str
    share: Interval | None
    p: float | None
    judged: int
    wins_a: int
    wins_b: int
    ties: int
    errors: int


@dataclass(frozen=True, slots=True)
class Judged:
    """All that a judge said of these models on these sets.

    Attributes:
        differences: of TraceScores on the items that both models have one for.
        passed_over: files that are of other models, sets or completions, and why.
    """

    traces: tuple[JudgedTraces, ...] = ()
    differences: tuple[ModelDifference, ...] = ()
    preferences: tuple[JudgedPreference, ...] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def read_judged(
    folder: Path,
    sets: Sequence[ItemSet],
    lines: Mapping[str, Sequence[Sequence[Line]]],
    options: EvaluationOptions,
) -> Judged:
    """Read what a judge said, and compare models on the items that it scored for both.

    Args:
        folder: of the evaluation.
        sets: what was asked.
        lines: for each model, in order, the lines of each set.
        options: seed and resamples.

    Raises:
        IntegrityError: a file cannot be read, or is not of the form above.
    """
    by_name, models = {of.name: of for of in sets}, list(lines)

    @cache
    def digest(model: str, of: str) -> str:
        own = lines[model][[one.name for one in sets].index(of)]
        plain = (line for line in own if line.variant == "plain")
        return completions_digest((line.key, line.run, line.completion) for line in plain)

    traces: list[JudgedTraces] = []
    scores: dict[tuple[str, str], Values] = {}
    passed_over: dict[str, str] = {}
    for path in sorted(folder.glob("trace-scores-*.jsonl")):
        rows = _json_lines(path)
        head = rows[0]
        named = {_get(path, head, "model", str): head.get("completions")}
        why = _foreign(head, named, models, by_name, path, digest)
        if why:
            passed_over[path.name] = why
            continue
        of = by_name[head["set_name"]]
        found, values = _traces(path, head, rows[1:], of, options)
        if (found.model, found.set) in scores:
            raise IntegrityError(f"{path} is of {found.model} on {found.set}, and so is another")
        scores[found.model, found.set] = values
        traces.append(found)
    preferences = []
    for path in sorted(folder.glob("preference-*.json")):
        head = _json(path)
        named = {_get(path, head, name, str): head.get(f"completions_{name}") for name in "ab"}
        why = _foreign(head, named, models, by_name, path, digest)
        if why:
            passed_over[path.name] = why
        else:
            preferences.append(_preference(path, head))
    differences = _differences(scores, by_name, models, options)
    return Judged(tuple(traces), differences, tuple(preferences), passed_over)


def _foreign(
    head: Mapping[str, Any],
    named: Mapping[str, object],
    models: Sequence[str],
    sets: Mapping[str, ItemSet],
    path: Path,
    digest: Callable[[str, str], str],
) -> str:
    """Why a file is not of these models, sets and completions; "" if it is.

    Args:
        named: the digest of its completions, by model.
        digest: (model, set) -> of the completions that there are now.
    """
    unknown = [name for name in named if name not in models]
    if unknown:
        return f"it is of the model {unknown[0]}"
    name = _get(path, head, "set_name", str)
    if name not in sets:
        return f"it is of the set {name}"
    if head.get("fingerprint") != sets[name].shards.fingerprint:
        return f"the set {name} was another one when it was judged"
    for model, judged in named.items():
        if judged != digest(model, name):
            return f"the completions of {model} are others than it judged: run omr-io judge again"
    return ""


def _traces(
    path: Path,
    head: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    of: ItemSet,
    options: EvaluationOptions,
) -> tuple[JudgedTraces, Values]:
    clusters = {item.key: item.cluster for item in of.items}
    own = [line for line in lines if _get(path, line, "key", str) in clusters]
    scores: dict[str, list[float]] = {}
    axes: dict[str, dict[str, list[float]]] = {axis: {} for axis in AXES}
    for line in own:
        _collect(scores, line["key"], _get(path, line, "score", (int, float, type(None))), path)
        for axis, one in _get(path, line, "axes", dict).items():
            if axis not in axes or not isinstance(one, dict):
                raise IntegrityError(f"{path}: an axis is called {axis!r}")
            value = _get(path, one, "score", (int, float, type(None)))
            _collect(axes[axis], line["key"], value, path)
    means = _means(scores)
    found = JudgedTraces(
        model=head["model"],
        set=of.name,
        judge_model=_get(path, head, "judge_model", str),
        score=_interval(means, clusters, options),
        axes={
            axis: interval
            for axis, values in axes.items()
            if (interval := _interval(_means(values), clusters, options)) is not None
        },
        traces=len(own),
        scored=sum(line["score"] is not None for line in own),
        errors=sum(_get(path, line, "errors", int) for line in own),
    )
    return found, means


def _preference(path: Path, head: Mapping[str, Any]) -> JudgedPreference:
    share = _get(path, head, "share", (dict, type(None)))
    try:
        interval = None if share is None else Interval(**share)
    except TypeError as error:
        raise IntegrityError(f"{path}: the share is no interval: {error}") from error
    p = _get(path, head, "p", (int, float, type(None)))
    shares = [] if interval is None else [interval.mean, interval.low, interval.high]
    for name, value in [*(("share", one) for one in shares), ("p", p)]:
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise IntegrityError(f"{path}: {name!r} is {value!r}, not 0 to 1")
    counts = {
        name: _get(path, head, name, int)
        for name in ("judged", "wins_a", "wins_b", "ties", "errors")
    }
    judge = _get(path, head, "judge_model", str)
    return JudgedPreference(head["a"], head["b"], head["set_name"], judge, interval, p, **counts)


def _differences(
    scores: Mapping[tuple[str, str], Values],
    sets: Mapping[str, ItemSet],
    models: Sequence[str],
    options: EvaluationOptions,
) -> tuple[ModelDifference, ...]:
    found = []
    for name, of in sets.items():
        clusters = {item.key: item.cluster for item in of.items}
        for first, second in combinations(models, 2):
            a, b = scores.get((first, name), {}), scores.get((second, name), {})
            keys = [key for key in clusters if key in a and key in b]
            if keys:
                after, before = [b[key] for key in keys], [a[key] for key in keys]
                difference = difference_of(after, before, [clusters[key] for key in keys], options)
                counts = better_and_worse(after, before)
                found.append(ModelDifference(name, first, second, difference, *counts))
    return tuple(found)


def _interval(
    values: Values, clusters: Mapping[str, str], options: EvaluationOptions
) -> Interval | None:
    if not values:
        return None
    return cluster_bootstrap(
        list(values.values()),
        [clusters[key] for key in values],
        seed=options.seed,
        resamples=options.resamples,
        bounds=(0.0, 1.0),
    )


def _means(values: Mapping[str, Sequence[float]]) -> Values:
    return {key: sum(one) / len(one) for key, one in values.items()}


def _collect(into: dict[str, list[float]], key: str, value: float | None, path: Path) -> None:
    if value is None:
        return
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise IntegrityError(f"{path}: a score of {key} is {value}, not 0 to 1")
    into.setdefault(key, []).append(float(value))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} is no JSON object")
    return found


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The header and the lines."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows) or not rows[0].get("header"):
        raise IntegrityError(
            f"{path} does not begin with a header", mend="Make it again with `omr-io judge`"
        )
    return rows


def _get(path: Path, row: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = row.get(name, ...)
    if not isinstance(value, kind) or isinstance(value, bool):
        shown = "missing" if value is ... else repr(value)[:60]
        raise IntegrityError(
            f"{path}: {name!r} is {shown}", mend="Make it again with `omr-io judge`"
        )
    return value
