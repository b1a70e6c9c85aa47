"""The baseline that looks at nothing: the letter that is right most often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from omr_io.errors import ConfigError


def majority_letter(answers: Iterable[str]) -> str:
    """The most frequent letter of the train split; the first in the alphabet if several are.

    Raises:
        ConfigError: there are no answers.
    """
    counts = Counter(answers)
    if not counts:
        raise ConfigError("no train answers to take the majority of")
    return min(counts, key=lambda letter: (-counts[letter], letter))


def majority_letters(answers: Sequence[str], num_options: Sequence[int]) -> Mapping[int, str]:
    """The most frequent letter of the train split for each number of options.

    At least as strong a baseline as one letter for all: with 2 to 6 options, "C" is often the most
    frequent letter where it exists and no option at all elsewhere. Key 0 holds the letter for
    numbers of options that train does not have: the most frequent one overall. Samples without
    options, whose answer is no letter, do not count beside others.

    Raises:
        ConfigError: no answers, or unequal lengths.
    """
    if len(answers) != len(num_options):
        raise ConfigError(f"{len(answers)} answers for {len(num_options)} numbers of options")
    everything = list(zip(answers, num_options, strict=True))
    pairs = [(answer, count) for answer, count in everything if count] or everything
    letters = {0: majority_letter(answer for answer, _ in pairs)}
    for count in sorted({count for _, count in pairs}):
        letters[count] = majority_letter(answer for answer, number in pairs if number == count)
    return MappingProxyType(letters)
