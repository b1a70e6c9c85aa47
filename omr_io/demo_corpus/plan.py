"""Which study goes to which split, and what each row asks: decided before any image is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from omr_io.demo_corpus.pictures import Storage
from omr_io.demo_corpus.questions import (
    DARK_BACKGROUND,
    HALVES,
    LETTERS,
    QUADRANTS,
    SHARES,
    TASKS,
    Task,
    values,
)
from omr_io.demo_corpus.studies import Study
from omr_io.errors import ConfigError

T = TypeVar("T")

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

TEST_SHARE = 0.3
PAREN_SHARE = 0.06
"""Share of the rows whose options are marked `A)` and not `A.`."""

_METADATA: tuple[Task, ...] = ("modality", "plane", "body_part")
_DEALS = 64
_MOST_OPTIONS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """What a row asks and how it is stored.

    Attributes:
        task: the kind of question.
        target: the right answer's text.
        choices: the texts that may stand as options.
        studies: to be tried in this order for an image.
        num_options: 2 to 5.
        letter: of the right option.
        paren: options are marked `A)`.
        storage: how the image is stored.
    """

    task: Task
    target: str
    choices: tuple[str, ...]
    studies: tuple[Study, ...]
    num_options: int
    letter: str
    paren: bool
    storage: Storage


def split_studies(studies: Sequence[Study], seed: int) -> dict[Split, tuple[Study, ...]]:
    """Deal the studies into train and test.

    Of each modality with at least two studies about TEST_SHARE go to test, at least one; a single
    one goes to train. Of _DEALS shuffles the one wins that leaves the most answers to metadata
    questions in both splits, for only those can be asked.

    Raises:
        ConfigError: no modality has two studies.
    """
    groups: dict[str, list[Study]] = {}
    for study in studies:
        groups.setdefault(study.modality or "unknown", []).append(study)
    if max((len(group) for group in groups.values()), default=0) < 2:
        raise ConfigError("no modality has two studies: there is nothing to hold out")
    best: dict[Split, tuple[Study, ...]] = {}
    most = -1
    for deal in range(_DEALS):
        rng = np.random.default_rng((seed, 0, deal))
        held: set[str] = set()
        for name in sorted(groups):
            group = groups[name]
            number = min(len(group) - 1, max(1, round(TEST_SHARE * len(group))))
            held.update(group[int(at)].name for at in rng.permutation(len(group))[:number])
        splits: dict[Split, tuple[Study, ...]] = {
            "train": tuple(study for study in studies if study.name not in held),
            "test": tuple(study for study in studies if study.name in held),
        }
        covered = sum(len(shared_values(splits, task)) for task in _METADATA)
        if covered > most:
            best, most = splits, covered
    return best


def shared_values(splits: Mapping[Split, Sequence[Study]], task: Task) -> tuple[str, ...]:
    """The answers to a metadata question that both splits have studies for, sorted."""
    train, test = (
        {value for study in splits[split] for value in values(task, study)} for split in SPLITS
    )
    return tuple(sorted(train & test))


def plan_rows(
    splits: Mapping[Split, Sequence[Study]],
    split: Split,
    num_rows: int,
    seed: int,
    answer_bias: float | None,
    storage_shares: Mapping[Storage, float],
) -> tuple[Row, ...]:
    """The rows of one split, shuffled: answers, letters and studies as even as they can be."""
    rng = np.random.default_rng((seed, 1, split == "test"))
    targets = {task: _targets(splits, split, task) for task in TASKS}
    shares = {task: SHARES[task] for task in TASKS if len(targets[task]) >= 2}
    drafts: list[tuple[Task, str, tuple[str, ...], tuple[Study, ...], int]] = []
    for task, number in _portions(shares, num_rows).items():
        turn: dict[str, int] = {}
        for target in _deck(tuple(targets[task]), number, rng):
            able = targets[task][target]
            turn[target] = turn.get(target, int(rng.integers(len(able)))) + 1
            first = able[turn[target] % len(able)]
            others = tuple(able[int(at)] for at in rng.permutation(len(able)))
            order = (first, *(study for study in others if study is not first))
            choices = _choices(task, target, tuple(targets[task]))
            most = min(_MOST_OPTIONS, len(choices))
            options = int(rng.integers(3, most + 1)) if task == "modality" and most > 3 else most
            drafts.append((task, target, choices, order, options))
    letters = _letters([draft[-1] for draft in drafts], answer_bias, rng)
    rest: dict[Storage, float] = {"jpeg": 1.0 - sum(storage_shares.values()), **storage_shares}
    storages = _spread(_portions(rest, len(drafts)), rng)
    parens = _spread(_portions({False: 1 - PAREN_SHARE, True: PAREN_SHARE}, len(drafts)), rng)
    rows = [
        Row(*draft, letter=letter, paren=paren, storage=storage)
        for draft, letter, paren, storage in zip(drafts, letters, parens, storages, strict=True)
    ]
    return tuple(rows[int(at)] for at in rng.permutation(len(rows)))


def _targets(
    splits: Mapping[Split, Sequence[Study]], split: Split, task: Task
) -> dict[str, tuple[Study, ...]]:
    """Each possible answer, and the studies of the split that can give it."""
    own = tuple(splits[split])
    if task == "quadrant":
        return dict.fromkeys(QUADRANTS, own)
    if task == "half":
        return dict.fromkeys(HALVES, own)
    if task == "inversion":
        able = {at: tuple(s for s in splits[at] if s.modality in DARK_BACKGROUND) for at in SPLITS}
        return dict.fromkeys(("yes", "no"), able[split]) if all(able.values()) else {}
    return {
        value: tuple(study for study in own if value in values(task, study))
        for value in shared_values(splits, task)
    }


def _choices(task: Task, target: str, every: tuple[str, ...]) -> tuple[str, ...]:
    if task == "half":
        return HALVES[:2] if target in HALVES[:2] else HALVES[2:]
    return every


def _portions(shares: Mapping[T, float], total: int) -> dict[T, int]:
    """Whole numbers in proportion to the shares that add up to `total` (largest remainders)."""
    whole = sum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _spread(counts: Mapping[T, int], rng: np.random.Generator) -> list[T]:
    """Each name as often as its count, shuffled."""
    names = [name for name, count in counts.items() for _ in range(count)]
    return [names[int(at)] for at in rng.permutation(len(names))]


def _deck(names: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """`number` names, each as often as the others (to within one), shuffled."""
    start = int(rng.integers(len(names)))
    dealt = [names[(start + at) % len(names)] for at in range(number)]
    return [dealt[int(at)] for at in rng.permutation(number)]


def _letters(
    options: Sequence[int], answer_bias: float | None, rng: np.random.Generator
) -> list[str]:
    """A right letter for each row: even among rows with as many options, or biased to A."""
    letters = [""] * len(options)
    for count in sorted(set(options)):
        rows = [at for at, number in enumerate(options) if number == count]
        if answer_bias is not None and count == 4:
            first = round(answer_bias * len(rows))
            dealt = ["A"] * first + _deck(LETTERS[1:4], len(rows) - first, rng)
            dealt = [dealt[int(at)] for at in rng.permutation(len(rows))]
        else:
            dealt = _deck(LETTERS[:count], len(rows), rng)
        for at, letter in zip(rows, dealt, strict=True):
            letters[at] = letter
    return letters
