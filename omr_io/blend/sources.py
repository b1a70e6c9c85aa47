"""What a blend is made of: sources and how often each comes. Options only; nothing is opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from omr_io.blend.columns import BoolArray, IndexColumns
from omr_io.errors import ConfigError
from omr_io.index import ShardSet

ColumnFilter = Callable[[IndexColumns], BoolArray]
"""A filter: from the index of n samples to (n,) bool, True for those that are taken."""

BalanceAnswers = Literal["upsample", "subsample"]

_MAX_DENOMINATOR = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A shard set in a `Blend`, which of its samples are taken, and how often they come.

    Args:
        shards: a shard set's folder or URL, or an open `ShardSet` (which the caller closes).
        repeat: how often each sample comes in an epoch. 1: once. 2.5: each twice, and a half of
            them a third time. 0.5: a half of them. Another half every epoch: the part is taken
            from a seeded order that is walked through from epoch to epoch and begins anew at its
            end, so two epochs of 0.5 hold every sample exactly once, four of 0.25, and counts never
            differ by more than 1. A float means the fraction that it was written for: 1 / 3 is a
            third (the nearest fraction with a denominator of at most a million).
        weight: instead of `repeat`, with `Blend.samples_per_epoch`: the source's share of an
            epoch's samples is weight / sum of weights. Any unit.
        where: which samples are taken: a function of `IndexColumns` to (n,) bool. None: all. It is
            called when the loader starts, on arrays and not on samples, so it costs milliseconds,
            and twice, so that one that gives two answers (by random numbers) is refused: on
            several ranks it would give several epochs.
        balance_answers: make all letters equally often the right one, exactly, in every epoch,
            among questions with the same number of options. (A corpus whose 4-option questions
            have answer A in 77% of cases teaches to answer A.) "upsample": each letter comes as
            often as the commonest, so none is left out and the rarer ones repeat; "subsample": as
            often as the rarest, so none repeats within an epoch, and others follow in later ones.
            With repeat r the counts are r times these. Letters walk through their samples as
            `repeat` does. Open-ended questions are not touched by it.
        name: in reports, errors and keys; None: the last parts of the path that tell the sources
            apart. Not part of the order.

    Raises:
        ConfigError: an option that cannot be right.
    """

    shards: str | Path | ShardSet
    repeat: float | Fraction = 1
    weight: float | Fraction | None = None
    where: ColumnFilter | None = None
    balance_answers: BalanceAnswers | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shards, str | Path | ShardSet):
            raise ConfigError(f"shards is a {type(self.shards).__name__}, not a path or a ShardSet")
        as_fraction("repeat", self.repeat)
        if self.weight is not None:
            as_fraction("weight", self.weight)
            if self.repeat != 1:
                raise ConfigError(
                    f"a source has both repeat {self.repeat} and weight {self.weight}",
                    mend="repeat says how often a sample comes, weight how many samples of an "
                    "epoch are the source's: leave one of them out",
                )
        if self.where is not None and not callable(self.where):
            raise ConfigError(
                f"where is a {type(self.where).__name__}, not a function",
                mend="Give a function of IndexColumns: lambda columns: columns.num_options >= 4",
            )
        if self.balance_answers not in (None, *get_args(BalanceAnswers)):
            raise ConfigError(
                f"balance_answers {self.balance_answers!r}", mend='Use "upsample" or "subsample"'
            )
        if self.name is not None and (not self.name or not isinstance(self.name, str)):
            raise ConfigError(f"the name of a source is {self.name!r}", mend="Use a text, or None")


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """Several shard sets, or parts of them, as the corpus of a `DataLoader`.

    By how often samples come:

        Blend([Source("shards/openmedreason", balance_answers="upsample"),
               Source("shards/pmc-vqa", repeat=0.25, where=lambda c: c.num_options == 4),
               Source("s3://bucket/rare-diseases", repeat=3)])

    or by shares of an epoch of a given size:

        Blend([Source("shards/openmedreason", weight=70), Source("shards/pmc-vqa", weight=30)],
              samples_per_epoch=200_000)

    An epoch is then 140,000 and 60,000 samples, whatever the sets hold: a small set repeats, a
    large one goes on in the next epoch where this one stopped, and counts of its samples never
    differ by more than 1. Shares are rounded to whole samples so that they add up. Where a source
    balances answers, equal letters go before its share: an epoch may then have a few samples more
    or less (fewer than 2 + 3 + 4 + ... over the numbers of options that the source has), which
    evens out over epochs.

    One set may be in several sources, as for another weight for another filter; it is then opened
    and measured once. Where filters overlap, a sample comes as often as all of them say together.

    What an epoch holds is a pure function of the sets, the sources' options and the numbers that
    their filters select, the loader's seed, and the epoch. World size, paths and names are no part
    of it. The order of the sources is.

    Args:
        sources: at least one.
        samples_per_epoch: with a `weight` in every source; None: with `repeat`.

    Raises:
        ConfigError: an option that cannot be right.
    """

    sources: Sequence[Source]
    samples_per_epoch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources or not all(isinstance(source, Source) for source in self.sources):
            raise ConfigError("a blend needs a list of sources", mend='Blend([Source("FOLDER")])')
        weighted = [source.weight is not None for source in self.sources]
        count = self.samples_per_epoch
        if count is None:
            if any(weighted):
                raise ConfigError(
                    f"{sum(weighted)} of {len(weighted)} sources have a weight, and the blend has "
                    "no samples_per_epoch",
                    mend="A weight is a share of samples_per_epoch: give it, or use repeat",
                )
            return
        if type(count) is not int or count < 1:
            raise ConfigError(f"samples_per_epoch {count!r} is no whole number from 1")
        if not all(weighted):
            raise ConfigError(
                f"the blend has samples_per_epoch, and {len(weighted) - sum(weighted)} of "
                f"{len(weighted)} sources have no weight",
                mend="Give every source a weight, or leave samples_per_epoch out and use repeat",
            )


def as_fraction(name: str, value: float | Fraction) -> Fraction:
    """The number as the fraction that it was written for.

    Raises:
        ConfigError: it is not a positive number, or too small for a fraction of millionths.
    """
    wrong = isinstance(value, bool) or not isinstance(value, int | float | Fraction)
    if wrong or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name} is {value!r}", mend="Use a number above 0")
    if isinstance(value, Fraction):
        return value
    made = Fraction(value).limit_denominator(_MAX_DENOMINATOR)
    if made == 0:
        raise ConfigError(f"{name} {value!r} is below a millionth", mend="Use a Fraction")
    return made


def shares(weights: Sequence[Fraction], total: int) -> list[int]:
    """`total` in whole numbers that are to each other as the weights, by largest remainders.

    The sum is `total`, and each is its exact share rounded down or up; ties go to the earlier one.
    """
    exact = [weight * total / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts
