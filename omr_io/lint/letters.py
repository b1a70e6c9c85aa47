"""Whether the answers to multiple-choice questions prefer a letter: Pearson's chi-square test.

Formulas: K. Pearson, Philosophical Magazine 50 (1900) 157; the tail of the distribution in closed
form from M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 26.4.4 and 26.4.5; the
effect size w from J. Cohen, Statistical Power Analysis (1988), chapter 7.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase

_MAX_CHANCE = 1e-3
_MIN_EFFECT = 0.1  # Cohen's "small": with 100,000 samples anything is significant


@dataclass(frozen=True, slots=True)
class LetterBias:
    """The answers of all questions with one number of options.

    Attributes:
        num_options: k.
        samples: n.
        counts: by letter, all k of them.
        letter, share: the most frequent letter and its share of n.
        chi_square: the sum over the letters of (count - n/k)^2 / (n/k).
        p_value: the chance of such a chi_square, or a larger one, if all letters were as likely.
        effect: sqrt(chi_square / n); 0 for equal shares, sqrt(k - 1) for one letter alone.
        biased: p_value below 0.001 and effect at least 0.1.
    """

    num_options: int
    samples: int
    counts: Mapping[str, int]
    letter: str
    share: float
    chi_square: float
    p_value: float
    effect: float
    biased: bool


def letter_bias(num_options: int, answers: Mapping[str, int]) -> LetterBias:
    """Test the letters of the right answers against equal shares.

    Args:
        num_options: k, 2 to 26; the letters are the first k.
        answers: letter → samples; letters beyond the first k are left out.
    """
    counts = {letter: answers.get(letter, 0) for letter in ascii_uppercase[:num_options]}
    n = sum(counts.values())
    expected = n / num_options
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values()) if n else 0.0
    letter = max(counts, key=lambda name: counts[name])
    p_value = chi_square_tail(chi_square, num_options - 1)
    effect = math.sqrt(chi_square / n) if n else 0.0
    biased = p_value < _MAX_CHANCE and effect >= _MIN_EFFECT
    share = counts[letter] / n if n else 0.0
    return LetterBias(num_options, n, counts, letter, share, chi_square, p_value, effect, biased)


def chi_square_tail(x: float, degrees: int) -> float:
    """The chance that a chi-square variable of `degrees` >= 1 degrees of freedom is x or larger.

    With h = x / 2: for even degrees the sum of exp(-h) h^j / j! over j = 0 .. degrees/2 - 1; for
    odd ones erfc(sqrt(h)) plus the sum of exp(-h) h^(j - 1/2) / gamma(j + 1/2) over
    j = 1 .. (degrees - 1)/2.
    """
    half = x / 2
    if half <= 0:
        return 1.0
    if degrees % 2 == 0:
        powers = [float(j) for j in range(degrees // 2)]
        tail = 0.0
    else:
        powers = [j - 0.5 for j in range(1, (degrees + 1) // 2)]
        tail = math.erfc(math.sqrt(half))
    # By logarithms: neither exp(-h) nor h^j may leave the range of a float.
    terms = (math.exp(-half + p * math.log(half) - math.lgamma(p + 1)) for p in powers)
    return min(1.0, tail + math.fsum(terms))


def biases(answers: Mapping[int, Counter[str]]) -> tuple[LetterBias, ...]:
    """`letter_bias` for each number of options, from 2."""
    return tuple(letter_bias(k, answers[k]) for k in sorted(answers) if 2 <= k <= 26)
