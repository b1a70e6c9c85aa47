"""Which of two models' traces a judge prefers: each pair in both orders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from omr_io.errors import ConfigError, Where
from omr_io.index import ShardSet
from omr_io.judge.answers import Better, BetterVerdict, better_verdict
from omr_io.judge.completions import Completion, Completions, file_name, image_hashes
from omr_io.judge.endpoint import Prices
from omr_io.judge.images import data_urls, token_estimate
from omr_io.judge.judge import Answer, Estimate, Judge, Question, Usage
from omr_io.judge.rubric_prompts import BETTER_FORM, preference_prompt, prompt_hash
from omr_io.judge.traces import JudgeError
from omr_io.storage import write_atomically
from omr_io.train.statistics import Interval, cluster_bootstrap, paired_difference

Outcome = Literal["a", "b", "tie"]
_NAMED_ERRORS = 20
_WORTH: dict[Outcome, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One pair.

    Attributes:
        key, run: of which sample and run.
        a_first, b_first: what the judge said when A, and when B, stood first; None: a judge error,
            or (with `identical`) not asked.
        outcome: "a" or "b" if that trace was the better one in both orders; "tie" if neither was;
            None if the judge failed in one order.
        agrees: whether both orders say the same.
        identical: both traces are the same text.
    """

    key: str
    run: int | str
    a_first: Better | None
    b_first: Better | None
    outcome: Outcome | None
    agrees: bool
    identical: bool


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """How often A's traces are preferred over B's.

    Attributes:
        a, b: the models. set_name: of the set. judge_model, endpoint: who judged.
        share: (wins of A + ties / 2) / judged pairs, with its 95% interval by cluster; None: no
            pair was judged.
        p: two-sided, of "neither is better": a sign flip of whole clusters; None as above.
        pairs: completions of both files to the same key and run.
        judged: of these, judged in both orders, or identical.
        wins_a, wins_b, ties: of the judged.
        disagreements: of the ties, those where the two orders said different things.
        identical: of the ties, equal texts, which are not asked about.
        first_in_both, second_in_both: of the disagreements, those where the same place won twice.
        first_share: of all answers that named a place, the share of the first; 0.5 has no bias.
        unpaired_a, unpaired_b: completions that the other file has none for.
        errors, error_share, named_errors: pairs without an outcome, and the first of their causes.
        usage, cost: what was sent. prompt: SHA-256 of the prompts. path: the file of all pairs.
    """

    a: str
    b: str
    set_name: str
    judge_model: str
    endpoint: str
    share: Interval | None
    p: float | None
    pairs: int
    judged: int
    wins_a: int
    wins_b: int
    ties: int
    disagreements: int
    identical: int
    first_in_both: int
    second_in_both: int
    first_share: float | None
    unpaired_a: int
    unpaired_b: int
    errors: int
    error_share: float
    named_errors: tuple[JudgeError, ...]
    usage: Usage
    cost: float | None
    prompt: str
    path: Path


Pair = tuple[Completion, Completion]


def estimate_preference(
    judge: Judge, shards: ShardSet, a: Completions, b: Completions, *, images: bool = True
) -> Estimate:
    """What `prefer` would send; sends nothing.

    Raises:
        ConfigError: there is no pair.
    """
    return judge.estimate(_questions(shards, _pairs(a, b), images))


def prefer(
    judge: Judge,
    shards: ShardSet,
    a: Completions,
    b: Completions,
    *,
    images: bool = True,
    prices: Prices | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreferenceReport:
    """Ask which trace is better, for every key and run that both files have, in both orders.

    Writes preference-A-B-SET.json beside A's completions. A trace wins if it is the better one in
    both orders. Anything else is a tie; where the orders disagree that is counted apart.

    Args:
        images: whether the judge sees the sample's images.

    Raises:
        ConfigError: there is no pair, or the two models cannot be told apart.
        SourceError: the endpoint refuses, or counts as down.
        DiskError: the file cannot be written.
    """
    pairs = _pairs(a, b)
    name_a, name_b = _names(a, b)
    answers = iter(judge.ask_all(_questions(shards, pairs, images), progress))
    judged: list[JudgedPair] = []
    errors: list[JudgeError] = []
    for one, other in pairs:
        if one.text == other.text:
            judged.append(JudgedPair(one.key, one.run, None, None, "tie", True, True))
            continue
        told = next(answers), next(answers)
        judged.append(_outcome(one, *told))
        for order, answer in zip(("A first", "B first"), told, strict=True):
            if answer.verdict is None:
                errors.append(JudgeError(one.key, one.run, order, answer.error))
    folder = a.path.absolute().parent
    names = "-".join(file_name(name) for name in (name_a, name_b, a.set_name or "set"))
    usage = judge.usage
    clusters = [one.cluster for one, _ in pairs]
    share, p = _share(judged, clusters, seed, resamples)
    failed = sum(one.outcome is None for one in judged)
    report = PreferenceReport(
        a=name_a,
        b=name_b,
        set_name=a.set_name,
        judge_model=judge.endpoint.model,
        endpoint=judge.endpoint.label,
        share=share,
        p=p,
        pairs=len(pairs),
        judged=len(pairs) - failed,
        **_counts(judged),
        first_share=_first_share(judged),
        unpaired_a=len(a.items) - len(pairs),
        unpaired_b=len(b.items) - len(pairs),
        errors=failed,
        error_share=failed / len(pairs),
        named_errors=tuple(errors[:_NAMED_ERRORS]),
        usage=usage,
        cost=(prices or Prices()).cost(usage.prompt_tokens, usage.completion_tokens),
        prompt=prompt_hash("preference"),
        path=folder / f"preference-{names}.json",
    )
    digests = {"completions_a": a.digest, "completions_b": b.digest}
    _write(report, judge, shards, judged, errors, images, digests)
    return report


def _pairs(a: Completions, b: Completions) -> list[Pair]:
    others = {(item.key, item.run): item for item in b.items}
    pairs = [
        (item, others[item.key, item.run]) for item in a.items if (item.key, item.run) in others
    ]
    if not pairs:
        raise ConfigError(
            f"{a.path} and {b.path} have no key and run in common",
            mend="Give completions of two models to the same set",
        )
    return pairs


def _names(a: Completions, b: Completions) -> tuple[str, str]:
    """The models' names, or the files' where both are of one model."""
    for names in ((a.model, b.model), (a.path.stem, b.path.stem), (str(a.path), str(b.path))):
        if names[0] != names[1]:
            return names
    raise ConfigError("A and B are the same file", where=Where(source=str(a.path)))


def _questions(
    shards: ShardSet, pairs: Sequence[Pair], images: bool
) -> list[Question[BetterVerdict]]:
    """Two for each pair of different texts: A first, then B first."""
    questions = []
    for one, other in pairs:
        if one.text == other.text:
            continue
        record = shards.read_record(one.number, images=False)
        hashes = image_hashes(shards, one.number) if images else ()
        for order, (first, second) in (("A", (one, other)), ("B", (other, one))):
            questions.append(
                Question(
                    name=f"key {one.key}, run {one.run}, {order} first",
                    prompt=partial(preference_prompt, record, len(hashes), first.text, second.text),
                    image_hashes=hashes,
                    images=partial(data_urls, shards, one.number) if images else list,
                    read=better_verdict,
                    form=BETTER_FORM,
                    estimate=token_estimate(shards, one.number) if images else 0,
                )
            )
    return questions


def _outcome(
    item: Completion, a_first: Answer[BetterVerdict], b_first: Answer[BetterVerdict]
) -> JudgedPair:
    one = None if a_first.verdict is None else a_first.verdict.better
    two = None if b_first.verdict is None else b_first.verdict.better
    if one is None or two is None:
        return JudgedPair(item.key, item.run, one, two, None, False, False)
    as_first: dict[Better, Outcome] = {"first": "a", "second": "b", "tie": "tie"}
    as_second: dict[Better, Outcome] = {"first": "b", "second": "a", "tie": "tie"}
    agrees = as_first[one] == as_second[two]
    outcome = as_first[one] if agrees else "tie"
    return JudgedPair(item.key, item.run, one, two, outcome, agrees, False)


def _counts(judged: Sequence[JudgedPair]) -> dict[str, int]:
    known = [one for one in judged if one.outcome is not None]
    places = [(one.a_first, one.b_first) for one in known]
    return {
        "wins_a": sum(one.outcome == "a" for one in known),
        "wins_b": sum(one.outcome == "b" for one in known),
        "ties": sum(one.outcome == "tie" for one in known),
        "disagreements": sum(not one.agrees for one in known),
        "identical": sum(one.identical for one in known),
        "first_in_both": places.count(("first", "first")),
        "second_in_both": places.count(("second", "second")),
    }


def _first_share(judged: Sequence[JudgedPair]) -> float | None:
    """Over pairs that were judged in both orders, so that each trace stood first as often."""
    told = [
        word for one in judged if one.outcome is not None for word in (one.a_first, one.b_first)
    ]
    firsts, seconds = told.count("first"), told.count("second")
    return firsts / (firsts + seconds) if firsts + seconds else None


def _share(
    judged: Sequence[JudgedPair], clusters: Sequence[str], seed: int, resamples: int
) -> tuple[Interval | None, float | None]:
    known = [
        (_WORTH[one.outcome], cluster)
        for one, cluster in zip(judged, clusters, strict=True)
        if one.outcome is not None
    ]
    if not known:
        return None, None
    worth, of = [value for value, _ in known], [cluster for _, cluster in known]
    share = cluster_bootstrap(worth, of, seed=seed, resamples=resamples, bounds=(0.0, 1.0))
    # Swapping A and B in a pair turns its worth w into 1 - w.
    rest = [1 - value for value in worth]
    return share, paired_difference(worth, rest, of, seed=seed, resamples=resamples).p


def _write(
    report: PreferenceReport,
    judge: Judge,
    shards: ShardSet,
    judged: Sequence[JudgedPair],
    errors: Sequence[JudgeError],
    images: bool,
    digests: Mapping[str, str],
) -> None:
    summary = dataclasses.asdict(report)
    for name in ("usage", "cost", "path", "named_errors"):
        del summary[name]
    whole = {
        "kind": "preference",
        **summary,
        "settings": judge.endpoint.request_settings(),
        "images": images,
        "fingerprint": shards.fingerprint,
        **digests,
        "judge_errors": [dataclasses.asdict(error) for error in errors],
        "items": [dataclasses.asdict(one) for one in judged],
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False, default=str)
    write_atomically(report.path, f"{text}\n".encode("utf-8", "replace"))
