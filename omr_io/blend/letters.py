"""Answers balanced: the same number of samples for every letter of questions of a size."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from omr_io.blend.sources import BalanceAnswers
from omr_io.errors import DataError
from omr_io.types import Int32Array, Int64Array

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True, eq=False)
class LetterGroup:
    """The questions with one number of options, by the letter of their answer.

    Attributes:
        num_options: k; 0 for open-ended questions, which have one entry in `numbers`.
        numbers: for each letter in order the (m,) int64 places of its questions, ascending.
    """

    num_options: int
    numbers: tuple[Int64Array, ...]

    def names(self) -> list[str]:
        """Of the letters' strata."""
        if not self.num_options:
            return ["open-ended"]
        kind = f"{self.num_options} option{'s' if self.num_options > 1 else ''}"
        return [f"{kind}, answer {letter}" for letter in _LETTERS[: self.num_options]]

    def target(self, how: BalanceAnswers) -> int:
        """Samples of each letter in an epoch in which samples come once."""
        sizes = [len(numbers) for numbers in self.numbers]
        return max(sizes) if how == "upsample" else min(sizes)


def letter_groups(
    num_options: Int32Array, answers: NDArray[np.str_], source: str
) -> list[LetterGroup]:
    """The groups of (n,) samples, by their number of options.

    Raises:
        DataError: a letter cannot come as often as others, since no question has it for its answer,
            or a question's answer is none of its options.
    """
    return list(_groups(num_options, answers, source))


def _groups(
    num_options: Int32Array, answers: NDArray[np.str_], source: str
) -> Iterator[LetterGroup]:
    for count in np.unique(num_options).tolist():
        places = np.flatnonzero(num_options == count)
        letters = _LETTERS[:count]
        found = answers[places]
        if not count:
            yield LetterGroup(0, (places,))
            continue
        strange = found[~np.isin(found, list(letters))]
        if len(strange):
            raise DataError(
                f"source {source}: {len(strange)} questions with {count} options have answers that "
                f"are none of them, such as {str(strange[0])!r}, so letters cannot be balanced",
                mend="Leave them out with where=..., or correct the corpus",
            )
        numbers = tuple(places[found == letter] for letter in letters)
        missing = [letter for letter, of in zip(letters, numbers, strict=True) if not len(of)]
        if missing:
            raise DataError(
                f"source {source}: none of {len(places)} questions with {count} options has answer "
                f"{' or '.join(missing)}, so letters cannot be balanced among them",
                mend=f"Leave these questions out with where=lambda columns: columns.num_options "
                f"!= {count}, or put them into a source of their own without balance_answers",
            )
        yield LetterGroup(count, numbers)


def steps_of_share(
    groups: Sequence[LetterGroup], how: BalanceAnswers, total: int
) -> list[Fraction]:
    """For each group, the samples of each of its letters in epochs of `total` samples.

    The groups are to each other as they are when samples come once. Fractions are left to the
    walk, so that a group with less than one of an epoch's samples has its turn in some epochs.
    """
    targets = [group.target(how) for group in groups]
    once = sum(target * len(group.numbers) for group, target in zip(groups, targets, strict=True))
    return [Fraction(total * target, once) for target in targets]
