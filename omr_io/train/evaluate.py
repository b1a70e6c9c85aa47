"""From scored completions to the figures of a report: pure functions, no model and no files.

Generation belongs to rollout, parsing and rewards to rewards; here items are only counted. An
answer that cannot be parsed counts as wrong, and is counted apart as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from omr_io.errors import ConfigError, Where
from omr_io.train.statistics import (
    Interval,
    PairedDifference,
    cluster_bootstrap,
    paired_difference,
    proportion_interval,
)
from omr_io.types import Option, Record


class ParsedAnswer(Protocol):
    """What `rewards.parse_answer` returns: the letter, or None, and how it was found."""

    @property
    def letter(self) -> str | None:
        """A letter among the row's options, or None when unparsed."""

    @property
    def how(self) -> str:
        """A short slug: which rule found the letter, or why none did."""


Parser = Callable[[str, Sequence[Option]], ParsedAnswer]
"""(completion, options) -> answer; `functools.partial(parse_answer, strict=False)`."""


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One completion to one sample, scored.

    Attributes:
        key: the sample's key; it pairs items of two evaluations.
        cluster: items that are not independent share it: the study, or the image's hash.
        task: the kind of question, for the breakdown; "" if the corpus has none.
        answer: the right letter.
        letter: the letter the completion gives, or None if it was not parsed.
        how: the rule of the parser that found it.
        num_options: how many options the question has.
        completion: the model's text.
        reward: what RL would have given.
    """

    key: str
    cluster: str
    task: str
    answer: str
    letter: str | None
    how: str
    num_options: int
    completion: str
    reward: float

    @property
    def correct(self) -> bool:
        """True if the parsed letter is the right one."""
        return self.letter == self.answer


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Accuracy on one task, with the image and (if it was measured) without."""

    task: str
    accuracy: Interval
    unparsed: int
    blind: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model scores on a held-out split; accuracies in 0..1, 95% intervals by cluster.

    Attributes:
        accuracy: with the image.
        reward: mean reward with the image.
        unparsed: completions without an answer; they count as wrong.
        by_task: one entry a task, in the tasks' alphabetical order.
        majority: accuracy of the train split's most frequent letter (per number of options).
        blind: accuracy of the same model without its image.
        over_majority, over_blind: the model minus the baseline on the same items.
    """

    accuracy: Interval
    reward: Interval
    unparsed: int
    by_task: tuple[TaskScore, ...]
    majority: Interval | None = None
    blind: Interval | None = None
    over_majority: PairedDifference | None = None
    over_blind: PairedDifference | None = None

    @property
    def beats_baselines(self) -> bool:
        """True if the interval lies wholly above those of both baselines, and both were given."""
        if self.majority is None or self.blind is None:
            return False
        return self.accuracy.low > max(self.majority.high, self.blind.high)


@dataclass(frozen=True, slots=True)
class RewardChange:
    """Mean reward on the same prompts before and after RL; `change` is after minus before."""

    start: Interval
    end: Interval
    change: PairedDifference


def score(
    keys: Sequence[str],
    records: Sequence[Record],
    completions: Sequence[str],
    *,
    parse: Parser,
    reward: Callable[[str, Record], float],
    clusters: Sequence[str] | None = None,
    cluster_field: str | None = None,
    task_field: str | None = None,
) -> list[ScoredItem]:
    """Parse and score one completion a record.

    Args:
        keys, records, completions: in the same order.
        parse: the one parser of rewards, bound to strict or not.
        reward: (completion, record) -> the reward RL would give.
        clusters: one a record, such as `omr_io.train.clusters.image_clusters`; for records
            whose images were left unread.
        cluster_field: the field of `record.extra` that names the study; it goes before `clusters`.
            With neither, the SHA-256 of the images that the record holds, or its id if it holds
            none. Crops of one image are not caught so.
        task_field: the field of `record.extra` that names the task; None leaves it "".

    Raises:
        ConfigError: unequal lengths, or a record lacks one of the fields.
    """
    named = keys if clusters is None else clusters
    if not len(keys) == len(records) == len(completions) == len(named):
        raise ConfigError(
            f"{len(keys)} keys, {len(records)} records and {len(completions)} completions"
            f"{'' if clusters is None else f' in {len(clusters)} clusters'}"
        )
    items = []
    for place, (key, record, completion) in enumerate(zip(keys, records, completions, strict=True)):
        parsed = parse(completion, record.options)
        cluster = clusters[place] if clusters is not None else _images_of(record)
        items.append(
            ScoredItem(
                key=key,
                cluster=_extra(key, record, cluster_field) if cluster_field else cluster,
                task=_extra(key, record, task_field) if task_field else "",
                answer=record.answer,
                letter=parsed.letter,
                how=parsed.how,
                num_options=len(record.options),
                completion=completion,
                reward=reward(completion, record),
            )
        )
    return items


def evaluate(
    items: Sequence[ScoredItem],
    *,
    majority: Mapping[int, str] | None = None,
    blind: Sequence[ScoredItem] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Evaluation:
    """Count scored items.

    Args:
        items: with the image, one a key.
        majority: of `statistics.majority_letters` on the *train* split: letter per number of
            options, and under 0 for numbers it has not seen.
        blind: the same samples answered by the same model without its image, in any order.
        seed, resamples: of the bootstrap.

    Raises:
        ConfigError: no items, a key twice, or `blind` has other keys.
    """
    clusters = [item.cluster for item in items]
    _by_key(items)  # checks that keys are unique
    right = [float(item.correct) for item in items]
    paired = _pair(items, blind) if blind is not None else None
    baseline = _answers_of(majority, items) if majority is not None else None
    return Evaluation(
        accuracy=proportion_interval(right, clusters, seed=seed, resamples=resamples),
        reward=cluster_bootstrap(
            [item.reward for item in items], clusters, seed=seed, resamples=resamples
        ),
        unparsed=sum(item.letter is None for item in items),
        by_task=_by_task(items, paired, seed, resamples),
        majority=_proportion(baseline, clusters, seed, resamples),
        blind=_proportion(_right(paired), clusters, seed, resamples),
        over_majority=_difference(right, baseline, clusters, seed, resamples),
        over_blind=_difference(right, _right(paired), clusters, seed, resamples),
    )


def reward_change(
    before: Sequence[ScoredItem],
    after: Sequence[ScoredItem],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> RewardChange:
    """Mean reward before and after RL on the same prompts, by cluster, with p of "no change".

    A key may have several completions (a group); its rewards are averaged first.

    Raises:
        ConfigError: no items, or the keys differ.
    """
    first, second = _mean_rewards(before), _mean_rewards(after)
    if first.keys() != second.keys():
        raise ConfigError("rewards before and after RL are of different samples")
    names = {item.key: item.cluster for item in before}
    clusters = [names[key] for key in first]
    start, end = list(first.values()), [second[key] for key in first]
    return RewardChange(
        start=cluster_bootstrap(start, clusters, seed=seed, resamples=resamples),
        end=cluster_bootstrap(end, clusters, seed=seed, resamples=resamples),
        change=paired_difference(end, start, clusters, seed=seed, resamples=resamples),
    )


def _extra(key: str, record: Record, field: str) -> str:
    if field not in record.extra:
        raise ConfigError(
            f"the record has no field {field!r}",
            where=Where(source=record.source or None, key=key),
            mend="Name a field that all records have, or None",
        )
    return str(record.extra[field])


def _images_of(record: Record) -> str:
    if not record.images:
        return f"id:{record.id}"
    digest = hashlib.sha256()
    for image in record.images:
        digest.update(hashlib.sha256(image.data).digest())
    return digest.hexdigest()


def _by_key(items: Sequence[ScoredItem]) -> dict[str, ScoredItem]:
    by_key = {item.key: item for item in items}
    if len(by_key) != len(items):
        raise ConfigError("a key has more than one item", mend="Evaluate each sample once")
    return by_key


def _pair(items: Sequence[ScoredItem], blind: Sequence[ScoredItem]) -> list[ScoredItem]:
    by_key = _by_key(blind)
    if by_key.keys() != {item.key for item in items}:
        raise ConfigError("the blind items are of other samples than the items with image")
    return [by_key[item.key] for item in items]


def _right(items: Sequence[ScoredItem] | None) -> list[float] | None:
    return None if items is None else [float(item.correct) for item in items]


def _answers_of(letters: Mapping[int, str], items: Sequence[ScoredItem]) -> list[float]:
    return [float(letters.get(item.num_options, letters[0]) == item.answer) for item in items]


def _proportion(
    right: list[float] | None, clusters: Sequence[str], seed: int, resamples: int
) -> Interval | None:
    if right is None:
        return None
    return proportion_interval(right, clusters, seed=seed, resamples=resamples)


def _difference(
    a: list[float], b: list[float] | None, clusters: Sequence[str], seed: int, resamples: int
) -> PairedDifference | None:
    if b is None:
        return None
    return paired_difference(a, b, clusters, seed=seed, resamples=resamples, bounds=(-1.0, 1.0))


def _by_task(
    items: Sequence[ScoredItem], paired: Sequence[ScoredItem] | None, seed: int, resamples: int
) -> tuple[TaskScore, ...]:
    scores = []
    for task in sorted({item.task for item in items}):
        rows = [row for row, item in enumerate(items) if item.task == task]
        own = [items[row] for row in rows]
        clusters = [item.cluster for item in own]
        right = [float(item.correct) for item in own]
        accuracy = proportion_interval(right, clusters, seed=seed, resamples=resamples)
        unparsed = sum(item.letter is None for item in own)
        without = _right([paired[row] for row in rows]) if paired is not None else None
        blind = _proportion(without, clusters, seed, resamples)
        scores.append(TaskScore(task, accuracy, unparsed, blind))
    return tuple(scores)


def _mean_rewards(items: Sequence[ScoredItem]) -> dict[str, float]:
    rewards: dict[str, list[float]] = {}
    for item in items:
        rewards.setdefault(item.key, []).append(item.reward)
    return {key: sum(values) / len(values) for key, values in rewards.items()}
