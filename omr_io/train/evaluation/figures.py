"""From lines to figures: accuracies, baselines, differences. Pure functions, no model, no files.

An item counts once: its value is the share of its runs that are right, and its clusters (images
that it shares) are what the bootstrap resamples. Unparsed completions are wrong, and counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from omr_io.errors import ConfigError
from omr_io.train.evaluation.items import ItemSet
from omr_io.train.evaluation.log import Line
from omr_io.train.evaluation.options import EvaluationOptions, Variant
from omr_io.train.statistics import (
    Interval,
    PairedDifference,
    PairedItems,
    accuracy_interval,
    majority_letters,
    mean_of_means,
    mean_paired_difference,
    paired_difference,
    wilson_interval,
)

BENCHMARK = "test"
"""The set of this name is the benchmark; the mean over all others is the VQA average."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scores in one variant of one set.

    Attributes:
        accuracy: of items, 0..1, with the 95% interval by cluster (`accuracy_interval`).
        wilson: the interval if all items were independent: for comparison with what others report.
        completions: how many there are: items times runs.
        unparsed: of these, without an answer that the parser finds; they are wrong.
        cut: of these, cut at max_new_tokens.
        failed_images: of these, with a blank in place of an image that cannot be decoded.
        letters: how often each letter was answered, as it was *shown*; "" is unparsed.
    """

    accuracy: Interval
    wilson: Interval
    completions: int
    unparsed: int
    cut: int
    failed_images: int
    letters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ModelOnSet:
    """A model on a set, against its baselines on the same items.

    Attributes:
        plain, blind, shuffled: see `omr_io.train.evaluation.options.VARIANTS`; None: not measured,
            or no item of the set has it.
        over_majority, over_blind: plain minus the baseline.
        over_shuffled: plain minus shuffled, on the items that can be shuffled.
    """

    model: str
    set: str
    plain: Score
    blind: Score | None
    shuffled: Score | None
    over_majority: PairedDifference
    over_blind: PairedDifference | None
    over_shuffled: PairedDifference | None


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What a set is, and its baseline without a model.

    Attributes:
        items, clusters: that were evaluated.
        open_ended: keys that were left out for lack of options.
        not_shuffled: why, by key, of items whose options cannot be put in another order.
        majority: accuracy of always giving the most frequent letter for the number of options.
        majority_letters: that letter by number of options; 0 is for any other number.
        majority_of: where it is from: the path of a train set, or "the set itself": then no
            guesser that looks at nothing but the number of options can do better, so it is an
            upper bound.
    """

    name: str
    path: str
    fingerprint: str
    items: int
    clusters: int
    open_ended: tuple[str, ...]
    not_shuffled: Mapping[str, str]
    majority: Interval
    majority_letters: Mapping[int, str]
    majority_of: str

    @property
    def majority_is_upper_bound(self) -> bool:
        """Whether the letters are of the very answers that they are scored on."""
        return self.majority_of == OWN_LETTERS


OWN_LETTERS = "the set itself"


@dataclass(frozen=True, slots=True)
class ModelDifference:
    """`second` minus `first` on the same items of a set, or in the mean of several sets.

    `better` items are those on which `second` scores more than `first`, `worse` those with less.
    """

    set: str
    first: str
    second: str
    difference: PairedDifference
    better: int
    worse: int


@dataclass(frozen=True, slots=True)
class Average:
    """The unweighted mean of a model's accuracies on several sets."""

    model: str
    sets: tuple[str, ...]
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of an evaluation.

    Attributes:
        models: names, in the order given.
        scores: by set, then by model.
        differences: each pair of models on each set: a later model minus an earlier one.
        averages, average_differences: the mean over all sets but the one called "test", if there
            are two or more.
    """

    models: tuple[str, ...]
    sets: tuple[SetFacts, ...]
    scores: tuple[ModelOnSet, ...]
    differences: tuple[ModelDifference, ...]
    averages: tuple[Average, ...]
    average_differences: tuple[ModelDifference, ...]


@dataclass(frozen=True, slots=True)
class TrainAnswers:
    """The answers of a train set: letters, numbers of options, and the path for the reader."""

    path: str
    answers: Sequence[str]
    num_options: Sequence[int]


def figures(
    sets: Sequence[ItemSet],
    lines: Mapping[str, Sequence[Sequence[Line]]],
    options: EvaluationOptions,
    train: TrainAnswers | None = None,
) -> Figures:
    """Count lines.

    Args:
        sets: what was asked.
        lines: for each model, in order, the lines of each set.
        options: seed, runs and resamples.
        train: whose most frequent letters are the baseline; None: each set's own.

    Raises:
        ConfigError: a line is missing or too much: the figures would be of other items.
    """
    facts, scores, differences = [], [], []
    shares: dict[str, dict[str, list[float]]] = {name: {} for name in lines}
    clusters = {of.name: [item.cluster for item in of.items] for of in sets}
    for place, of in enumerate(sets):
        about, guessed = _facts(of, options, train)
        facts.append(about)
        for name in lines:
            right = _shares(of, name, lines[name][place], options)
            shares[name][of.name] = [right["plain"][item.key] for item in of.items]
            scores.append(_on_set(name, of, lines[name][place], right, guessed, options))
        for first, second in combinations(lines, 2):
            before, after = shares[first][of.name], shares[second][of.name]
            found = difference_of(after, before, clusters[of.name], options)
            counts = better_and_worse(after, before)
            differences.append(ModelDifference(of.name, first, second, found, *counts))
    averaged = tuple(of.name for of in sets if of.name != BENCHMARK)
    averages: list[Average] = []
    between: list[ModelDifference] = []
    if len(averaged) > 1:
        accuracies: dict[str, dict[str, Interval]] = {name: {} for name in lines}
        for score in scores:
            accuracies[score.model][score.set] = score.plain.accuracy
        averages, between = _averages(averaged, accuracies, shares, clusters, options)
    return Figures(
        tuple(lines), tuple(facts), tuple(scores), tuple(differences), tuple(averages),
        tuple(between),
    )  # fmt: skip


def _facts(
    of: ItemSet, options: EvaluationOptions, train: TrainAnswers | None
) -> tuple[SetFacts, list[float]]:
    answers = [item.record.answer for item in of.items]
    counts = [len(item.record.options) for item in of.items]
    clusters = [item.cluster for item in of.items]
    if train is None:
        letters = majority_letters(answers, counts)
    else:
        letters = majority_letters(list(train.answers), list(train.num_options))
    guessed = [
        float(letters.get(count, letters[0]) == answer)
        for answer, count in zip(answers, counts, strict=True)
    ]
    return SetFacts(
        name=of.name,
        path=of.path,
        fingerprint=of.shards.fingerprint,
        items=len(of.items),
        clusters=len(set(clusters)),
        open_ended=of.open_ended,
        not_shuffled=of.not_shuffled,
        majority=_accuracy(guessed, clusters, options),
        majority_letters=dict(letters),
        majority_of=OWN_LETTERS if train is None else train.path,
    ), guessed


def _shares(
    of: ItemSet, model: str, lines: Sequence[Line], options: EvaluationOptions
) -> dict[Variant, dict[str, float]]:
    """The share of right runs of each item, by variant."""
    right: dict[Variant, dict[str, list[bool]]] = {variant: {} for variant in options.variants}
    for line in lines:
        right[line.variant].setdefault(line.key, []).append(line.correct)
    for variant, found in right.items():
        wanted = {item.key for item in of.items if item.shown(variant) is not None}
        runs = {len(one) for one in found.values()}
        if found.keys() != wanted or runs - {options.runs}:
            raise ConfigError(
                f"the {variant} completions of {model} on {of.name} are of other items or runs: "
                f"{len(found)} items for {len(wanted)}, {sorted(runs)} runs for {options.runs}"
            )
    return {
        variant: {key: sum(one) / len(one) for key, one in found.items()}
        for variant, found in right.items()
    }


def _on_set(
    model: str,
    of: ItemSet,
    lines: Sequence[Line],
    right: Mapping[Variant, Mapping[str, float]],
    guessed: Sequence[float],
    options: EvaluationOptions,
) -> ModelOnSet:
    clusters = {item.key: item.cluster for item in of.items}
    plain = right["plain"]
    guesses = dict(zip(clusters, guessed, strict=True))

    def score(variant: Variant) -> Score | None:
        if not right.get(variant):
            return None
        own = [line for line in lines if line.variant == variant]
        return _score(own, right[variant], clusters, options)

    def over(baseline: Mapping[str, float] | None) -> PairedDifference | None:
        if not baseline:
            return None
        keys = list(baseline)
        return difference_of(
            [plain[key] for key in keys],
            [baseline[key] for key in keys],
            [clusters[key] for key in keys],
            options,
        )

    with_image, over_majority = score("plain"), over(guesses)
    assert with_image is not None
    assert over_majority is not None
    return ModelOnSet(
        model=model,
        set=of.name,
        plain=with_image,
        blind=score("blind"),
        shuffled=score("shuffled"),
        over_majority=over_majority,
        over_blind=over(right.get("blind")),
        over_shuffled=over(right.get("shuffled")),
    )


def _score(
    lines: Sequence[Line],
    right: Mapping[str, float],
    clusters: Mapping[str, str],
    options: EvaluationOptions,
) -> Score:
    values = list(right.values())
    shown = (
        "" if line.letter is None else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[line.order.index(line.letter)]
        for line in lines
    )
    return Score(
        accuracy=_accuracy(values, [clusters[key] for key in right], options),
        wilson=wilson_interval(min(sum(values), len(values)), len(values)),
        completions=len(lines),
        unparsed=sum(line.letter is None for line in lines),
        cut=sum(not line.finished for line in lines),
        failed_images=sum(line.failure is not None for line in lines),
        letters=dict(sorted(Counter(shown).items())),
    )


def _averages(
    sets: tuple[str, ...],
    accuracies: Mapping[str, Mapping[str, Interval]],
    shares: Mapping[str, Mapping[str, list[float]]],
    clusters: Mapping[str, list[str]],
    options: EvaluationOptions,
) -> tuple[list[Average], list[ModelDifference]]:
    averages = [
        Average(model, sets, mean_of_means([own[name] for name in sets]))
        for model, own in accuracies.items()
    ]
    between = []
    for first, second in combinations(shares, 2):
        paired = [
            PairedItems(shares[second][name], shares[first][name], clusters[name]) for name in sets
        ]
        found = mean_paired_difference(
            paired, seed=options.seed, resamples=options.resamples, bounds=(-1.0, 1.0)
        )
        counts = [better_and_worse(shares[second][name], shares[first][name]) for name in sets]
        better, worse = (sum(column) for column in zip(*counts, strict=True))
        between.append(ModelDifference(", ".join(sets), first, second, found, better, worse))
    return averages, between


def _accuracy(
    shares: Sequence[float], clusters: Sequence[str], options: EvaluationOptions
) -> Interval:
    return accuracy_interval(shares, clusters, seed=options.seed, resamples=options.resamples)


def difference_of(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], options: EvaluationOptions
) -> PairedDifference:
    """a minus b on the same items, of values in 0..1, with the options' seed and resamples."""
    return paired_difference(
        a, b, clusters, seed=options.seed, resamples=options.resamples, bounds=(-1.0, 1.0)
    )


def better_and_worse(a: Sequence[float], b: Sequence[float]) -> tuple[int, int]:
    """How many items have more in `a` than in `b`, and how many less."""
    pairs = list(zip(a, b, strict=True))
    return sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
