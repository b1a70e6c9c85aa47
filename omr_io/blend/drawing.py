"""What an epoch of a blend holds: whole numbers, drawn without replacement from epoch to epoch.

Legend: m samples of a stratum, d samples of an epoch, with repetition.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from omr_io.errors import ConfigError, DataError
from omr_io.random_words import RandomWords
from omr_io.types import Int64Array

DRAWING_FORMAT = "omr_io blend 1"
"""Raise its number when the same blend would draw something else."""


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """Samples that are drawn alike: those of a source, or those of one of its letters.

    They lie in a seeded order, a circle that is walked through from epoch to epoch, `step` samples
    in each. Any m steps in a row meet every sample once, so counts never differ by more than 1, in
    an epoch or over several from the first.

    Attributes:
        source: place of its source in the blend.
        name: "" for a whole source, else "4 options, answer A".
        numbers: (m,) int64 of its samples, ascending, m >= 1.
        step: samples of an epoch, on average over epochs.
    """

    source: int
    name: str
    numbers: Int64Array
    step: Fraction

    def window(self, epoch: int) -> tuple[int, int]:
        """Where on the walk an epoch begins and ends; the next begins where it ends."""
        return math.floor(self.step * epoch), math.floor(self.step * (epoch + 1))

    def size(self, epoch: int) -> int:
        """Samples that it gives to an epoch."""
        begin, end = self.window(epoch)
        return end - begin


@dataclass(frozen=True, slots=True)
class Drawn:
    """How many samples of a source, or of a letter in it, an epoch holds.

    Attributes:
        source: the source's name.
        stratum: "" for a source that balances nothing, else "4 options, answer A".
        samples: that it has, after the filter.
        drawn: that the epoch holds, with repetition.
    """

    source: str
    stratum: str
    samples: int
    drawn: int


class Drawing:
    """Which samples an epoch holds, and how often. Picklable; safe to use from several threads.

    Made by `OpenBlend.drawing`.

    Args:
        strata: at least one.
        names: of the sources.
        num_samples: n, of all sets together.

    Attributes:
        strata: as given.
        fingerprint: 16 hex digits of all that `draw` depends on besides epoch and seed: the
            selected numbers and how often they come. What they are the numbers of is said by the
            sets' fingerprint.

    Raises:
        DataError: no epoch would hold a sample.
    """

    def __init__(self, strata: Sequence[Stratum], names: Sequence[str], num_samples: int) -> None:
        self.strata = tuple(strata)
        self.num_samples = num_samples
        self.fingerprint = _digest(self.strata)
        self._names = tuple(names)
        self._orders: dict[tuple[int, int], Int64Array] = {}
        if not sum(stratum.step for stratum in self.strata):
            raise DataError("no epoch of the blend holds a sample")

    @property
    def is_everything(self) -> bool:
        """True: every epoch holds the n samples once each, in their order, so none is drawn."""
        [first, *others] = self.strata
        return not others and first.step == len(first.numbers) == self.num_samples

    def numbers(self) -> Int64Array:
        """The samples that any epoch may hold, each once, ascending, int64."""
        return np.unique(np.concatenate([stratum.numbers for stratum in self.strata]))

    def size(self, epoch: int) -> int:
        """d, samples of an epoch; by a fraction of a sample it differs from epoch to epoch."""
        return sum(stratum.size(epoch) for stratum in self.strata)

    def counts(self, epoch: int) -> tuple[Drawn, ...]:
        """How many samples of each source, and of each balanced letter, an epoch holds."""
        return tuple(
            Drawn(
                self._names[stratum.source],
                stratum.name,
                len(stratum.numbers),
                stratum.size(epoch),
            )
            for stratum in self.strata
        )

    def draw(self, epoch: int, seed: int) -> Int64Array:
        """The samples of an epoch.

        A pure function of the blend, the sets, the epoch and the seed. The seed decides which
        samples are taken where not all of them are, or not equally often.

        Args:
            epoch: counts from 0.
            seed: any integer.

        Returns:
            (d,) int64 numbers of samples; one that comes twice stands twice. They are in an order
            for reading and for cutting into windows, which is not yet random: any run of it holds
            of each source, and of each balanced letter, its share to within a few samples, in
            ascending order; and a sample that comes several times stands as far apart as can be.

        Raises:
            ConfigError: the epoch is negative.
            DataError: this epoch holds no sample.
        """
        if epoch < 0:
            raise ConfigError(f"epoch {epoch} is negative")
        parts = [self._part(place, epoch, seed) for place in range(len(self.strata))]
        numbers = _mixed([part for part in parts if len(part)])
        if not len(numbers):
            raise DataError(
                f"epoch {epoch} of the blend holds no sample", mend="Raise `repeat` of its sources"
            )
        return numbers

    def _part(self, place: int, epoch: int, seed: int) -> Int64Array:
        """What a stratum gives to an epoch: whole laps, then a part of one, each ascending."""
        stratum = self.strata[place]
        count = len(stratum.numbers)
        begin, end = stratum.window(epoch)
        laps, rest = divmod(end - begin, count)
        if not rest:
            return np.tile(stratum.numbers, laps)
        walk = np.arange(begin, begin + rest) % count
        part = np.sort(stratum.numbers[self._order(place, seed)[walk]])
        return np.concatenate([np.tile(stratum.numbers, laps), part])

    def _order(self, place: int, seed: int) -> Int64Array:
        """The order in which a stratum is walked through; the same in every epoch, so it is kept.

        An order of its own for every lap would have to keep apart the end of one and the beginning
        of the next, or an epoch that holds both could hold a sample twice and another not at all.
        """
        order = self._orders.get((place, seed))
        if order is None:
            stratum = self.strata[place]
            label = f"{DRAWING_FORMAT} seed {seed} source {stratum.source} {stratum.name}"
            order = RandomWords(label).order(len(stratum.numbers))
            for old in [key for key in list(self._orders) if key[1] != seed]:
                self._orders.pop(old, None)
            self._orders[place, seed] = order
        return order

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_orders": {}}


def _mixed(parts: Sequence[Int64Array]) -> Int64Array:
    """All of them, each in its order and evenly spread from the first to the last place.

    Number j of k has its place at (2 j + 1) / 2 k of the whole; earlier parts go first at ties.
    """
    if len(parts) < 2:
        return parts[0] if parts else np.empty(0, np.int64)
    places = [
        (np.arange(1, 2 * len(part), 2, dtype=np.uint64) << np.uint64(31)) // np.uint64(len(part))
        for part in parts
    ]
    order = np.argsort(np.concatenate(places), kind="stable")  # merges: the parts are in order
    return np.concatenate(parts)[order]


def _digest(strata: Sequence[Stratum]) -> str:
    sha = hashlib.sha256(DRAWING_FORMAT.encode())
    for stratum in strata:
        count = len(stratum.numbers)
        sha.update(f"|{stratum.source}|{stratum.name}|{stratum.step}|{count}|".encode())
        sha.update(np.ascontiguousarray(stratum.numbers, dtype="<i8").tobytes())
    return sha.hexdigest()[:16]
