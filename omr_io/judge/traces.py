"""TraceScore of a model's completions: every rubric unit to the judge, and what follows from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omr_io.errors import ConfigError, Where
from omr_io.index import ShardSet
from omr_io.judge.answers import UnitVerdict, unit_verdict
from omr_io.judge.completions import Completion, Completions, file_name, image_hashes
from omr_io.judge.endpoint import Prices
from omr_io.judge.images import data_urls, token_estimate
from omr_io.judge.judge import Answer, Estimate, Judge, Question, Usage
from omr_io.judge.rubric_prompts import SCORES_FORM, prompt_hash, unit_prompt
from omr_io.storage import write_atomically
from omr_io.train.statistics import Interval, cluster_bootstrap
from omr_io.train.trace_score import JudgedUnit, TraceScore, trace_score
from omr_io.types import AXES, Axis, Record, RubricUnit

_NAMED_ERRORS = 20
_EMPTY = UnitVerdict(0, None, "the trace is empty: not asked")


@dataclass(frozen=True, slots=True)
class JudgeError:
    """A question that has no verdict: of which trace, which unit (or order), and why."""

    key: str
    run: int | str
    asked: str
    why: str


@dataclass(frozen=True, slots=True)
class AxisSummary:
    """One axis over all traces; means are over traces that were judged on it.

    Attributes:
        score: mean of presence x correctness with its 95% interval by cluster; None: no trace.
        presence: mean presence.
        correctness: mean correctness of the traces in which something was present; None: none.
        traces: judged on this axis.
        nothing_present: of these, without any unit present: correctness is undefined, the score 0.
        without_units: traces whose record has no unit of this axis: left out of every mean.
        unjudged: traces whose every unit the judge failed on: left out of every mean.
        units, errors: units asked, and those that the judge failed on.
    """

    score: Interval | None
    presence: float | None
    correctness: float | None
    traces: int
    nothing_present: int
    without_units: int
    unjudged: int
    units: int
    errors: int


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What a model's traces score.

    Attributes:
        model, set_name: whose completions to which set.
        judge_model, endpoint: who judged.
        score: mean TraceScore with its 95% interval by cluster; None: no trace has one.
        axes: perception, knowledge, rationale.
        samples: in the set; fewer traces mean that not all were evaluated.
        traces: completions in the file (of variant "plain").
        scored: of these, with a TraceScore.
        without_rubric: of these, whose record has no rubric unit.
        left_out: lines of other variants.
        units, errors, error_share: rubric units asked, and those without a verdict.
        named_errors: the first of them; all are in the file.
        usage: what was sent.
        cost: of that, None without prices.
        prompts: SHA-256 of the prompts of each axis.
        path: the file with a line for each trace.
    """

    model: str
    set_name: str
    judge_model: str
    endpoint: str
    score: Interval | None
    axes: dict[Axis, AxisSummary]
    samples: int
    traces: int
    scored: int
    without_rubric: int
    left_out: int
    units: int
    errors: int
    error_share: float
    named_errors: tuple[JudgeError, ...]
    usage: Usage
    cost: float | None
    prompts: dict[Axis, str]
    path: Path


@dataclass(frozen=True, slots=True)
class _Asked:
    """A unit of a trace, and its question; None where there is nothing to ask."""

    trace: int
    unit: RubricUnit
    question: Question[UnitVerdict] | None


def estimate_traces(judge: Judge, shards: ShardSet, completions: Completions) -> Estimate:
    """What `score_traces` would send; sends nothing.

    Raises:
        ConfigError: no record has a rubric.
    """
    asked = _plan(shards, completions)
    return judge.estimate([one.question for one in asked if one.question is not None])


def score_traces(
    judge: Judge,
    shards: ShardSet,
    completions: Completions,
    *,
    prices: Prices | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TraceReport:
    """Judge every rubric unit of every completion, and write trace-scores-MODEL-SET.jsonl.

    The file lies beside the completions: a header (prompts, judge, settings, summary), then a line
    for each trace. What was judged is kept in the judge's cache, so that the same call goes on
    where one was stopped.

    Raises:
        ConfigError: no record has a rubric.
        SourceError: the endpoint refuses, or counts as down.
        DiskError: the file cannot be written.
    """
    asked = _plan(shards, completions)
    questions = [one.question for one in asked if one.question is not None]
    told = iter(judge.ask_all(questions, progress))
    answers = [Answer(_EMPTY) if one.question is None else next(told) for one in asked]
    results: list[list[tuple[RubricUnit, Answer[UnitVerdict]]]] = [[] for _ in completions.items]
    for one, answer in zip(asked, answers, strict=True):
        results[one.trace].append((one.unit, answer))
    scores = [trace_score([_judged(unit, answer) for unit, answer in own]) for own in results]
    clusters = [item.cluster for item in completions.items]
    errors = tuple(_errors(completions.items, results))
    units = len(asked)
    folder = completions.path.absolute().parent
    names = f"{file_name(completions.model)}-{file_name(completions.set_name or 'set')}"
    usage = judge.usage
    report = TraceReport(
        model=completions.model,
        set_name=completions.set_name,
        judge_model=judge.endpoint.model,
        endpoint=judge.endpoint.label,
        score=_interval([one.score for one in scores], clusters, seed, resamples),
        axes={axis: _axis(axis, scores, results, clusters, seed, resamples) for axis in AXES},
        samples=len(shards),
        traces=len(scores),
        scored=sum(one.score is not None for one in scores),
        without_rubric=sum(not own for own in results),
        left_out=completions.left_out,
        units=units,
        errors=len(errors),
        error_share=len(errors) / units,
        named_errors=errors[:_NAMED_ERRORS],
        usage=usage,
        cost=(prices or Prices()).cost(usage.prompt_tokens, usage.completion_tokens),
        prompts={axis: prompt_hash(axis) for axis in AXES},
        path=folder / f"trace-scores-{names}.jsonl",
    )
    _write(report, judge, shards, completions, results, scores)
    return report


def _plan(shards: ShardSet, completions: Completions) -> list[_Asked]:
    """A question for each unit of each trace, in order."""
    asked = []
    for place, item in enumerate(completions.items):
        record = shards.read_record(item.number, images=False)
        for unit in record.rubric:
            question = _question(shards, record, item, unit) if item.text.strip() else None
            asked.append(_Asked(place, unit, question))
    if not asked:
        raise ConfigError(
            "no record of these completions has a rubric unit",
            where=Where(source=str(completions.path)),
            mend="Judge the test split, whose rows have perception, knowledge and rationale",
        )
    return asked


def _question(
    shards: ShardSet, record: Record, item: Completion, unit: RubricUnit
) -> Question[UnitVerdict]:
    sees = unit.axis == "perception"
    hashes = image_hashes(shards, item.number) if sees else ()
    return Question(
        name=f"key {item.key}, run {item.run}, {unit.axis} unit {unit.unit_id}",
        prompt=partial(unit_prompt, record, len(hashes), item.text, unit),
        image_hashes=hashes,
        images=partial(data_urls, shards, item.number) if sees else list,
        read=unit_verdict,
        form=SCORES_FORM,
        estimate=token_estimate(shards, item.number) if sees else 0,
    )


def _judged(unit: RubricUnit, answer: Answer[UnitVerdict]) -> JudgedUnit:
    verdict = answer.verdict
    if verdict is None:
        return JudgedUnit(unit.axis, None, None)
    return JudgedUnit(unit.axis, verdict.presence, verdict.correctness)


def _errors(
    items: Sequence[Completion],
    results: Sequence[Sequence[tuple[RubricUnit, Answer[UnitVerdict]]]],
) -> Iterable[JudgeError]:
    for item, own in zip(items, results, strict=True):
        for unit, answer in own:
            if answer.verdict is None:
                asked = f"{unit.axis} unit {unit.unit_id}"
                yield JudgeError(item.key, item.run, asked, answer.error)


def _axis(
    axis: Axis,
    scores: Sequence[TraceScore],
    results: Sequence[Sequence[tuple[RubricUnit, Answer[UnitVerdict]]]],
    clusters: Sequence[str],
    seed: int,
    resamples: int,
) -> AxisSummary:
    own = [one.axes.get(axis) for one in scores]
    there = [one for one in own if one is not None]
    right = [one.correctness for one in there if one.correctness is not None]
    answers = [answer for rows in results for unit, answer in rows if unit.axis == axis]
    unjudged = sum(axis in one.unjudged for one in scores)
    return AxisSummary(
        score=_interval([one.score if one else None for one in own], clusters, seed, resamples),
        presence=sum(one.presence for one in there) / len(there) if there else None,
        correctness=sum(right) / len(right) if right else None,
        traces=len(there),
        nothing_present=len(there) - len(right),
        without_units=len(scores) - len(there) - unjudged,
        unjudged=unjudged,
        units=len(answers),
        errors=sum(answer.verdict is None for answer in answers),
    )


def _interval(
    values: Sequence[float | None], clusters: Sequence[str], seed: int, resamples: int
) -> Interval | None:
    known = [(v, c) for v, c in zip(values, clusters, strict=True) if v is not None]
    if not known:
        return None
    return cluster_bootstrap(
        [value for value, _ in known],
        [cluster for _, cluster in known],
        seed=seed,
        resamples=resamples,
        bounds=(0.0, 1.0),
    )


def _write(
    report: TraceReport,
    judge: Judge,
    shards: ShardSet,
    completions: Completions,
    results: Sequence[Sequence[tuple[RubricUnit, Answer[UnitVerdict]]]],
    scores: Sequence[TraceScore],
) -> None:
    # Without what differs from run to run, so that the same verdicts make the same bytes.
    summary = dataclasses.asdict(report)
    for name in ("usage", "cost", "path"):
        del summary[name]
    header = {
        "header": True,
        "kind": "trace-scores",
        "settings": judge.endpoint.request_settings(),
        "fingerprint": shards.fingerprint,
        "completions": completions.digest,
        **summary,
    }
    lines = [header]
    for item, own, score in zip(completions.items, results, scores, strict=True):
        lines.append(_line(report.model, item, own, score))
    text = "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines)
    write_atomically(report.path, text.encode("utf-8", "replace"))


def _line(
    model: str,
    item: Completion,
    own: Sequence[tuple[RubricUnit, Answer[UnitVerdict]]],
    score: TraceScore,
) -> dict[str, Any]:
    units = []
    for unit, answer in own:
        place: dict[str, Any] = {"axis": unit.axis, "unit_id": unit.unit_id}
        if answer.verdict is None:
            units.append({**place, "presence": None, "correctness": None, "error": answer.error})
        else:
            units.append({**place, **dataclasses.asdict(answer.verdict)})
    return {
        "key": item.key,
        "model": model,
        "run": item.run,
        "score": score.score,
        "axes": {axis: dataclasses.asdict(value) for axis, value in score.axes.items()},
        "units": units,
        "errors": score.judge_errors,
        "unjudged": list(score.unjudged),
    }
