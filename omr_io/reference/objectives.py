"""The oracle of RL's objectives: plain Python on lists of numbers, one completion at a time.

A completion is a list of tokens' log-probabilities. Formulas are written as in their papers, with
nothing shared between the three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def plain_advantages(rewards: Numbers, *, scale_by_std: bool) -> list[float]:
    """Of one group: rewards minus their mean, over their sample standard deviation plus 1e-4."""
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale_by_std:
        return centred
    variance = math.fsum(c * c for c in centred) / (len(rewards) - 1)
    return [c / (math.sqrt(variance) + 1e-4) for c in centred]


def plain_grpo(
    new: Sequence[Numbers],
    old: Sequence[Numbers],
    advantages: Numbers,
    *,
    clip: tuple[float, float],
    weights: Sequence[Numbers] | None = None,
) -> float:
    """DAPO's token-level objective as a loss: the mean over all tokens of all completions."""
    losses = []
    for i, advantage in enumerate(advantages):
        for t in range(len(new[i])):
            ratio = math.exp(new[i][t] - old[i][t])
            losses.append(_weight(weights, i, t) * -_clipped(ratio, advantage, clip))
    return math.fsum(losses) / len(losses)


def plain_dr_grpo(
    new: Sequence[Numbers],
    old: Sequence[Numbers],
    advantages: Numbers,
    *,
    clip: tuple[float, float],
    max_new_tokens: int,
    weights: Sequence[Numbers] | None = None,
) -> float:
    """Dr. GRPO's as a loss: each completion's sum over tokens over a constant, then their mean."""
    sums = []
    for i, advantage in enumerate(advantages):
        terms = [
            _weight(weights, i, t)
            * -_clipped(math.exp(new[i][t] - old[i][t]), advantage, clip)
            / max_new_tokens
            for t in range(len(new[i]))
        ]
        sums.append(math.fsum(terms))
    return math.fsum(sums) / len(sums)


def plain_gspo(
    new: Sequence[Numbers],
    old: Sequence[Numbers],
    advantages: Numbers,
    *,
    clip: tuple[float, float],
) -> float:
    """GSPO as a loss (equations 5, 7): a completion's geometric mean of ratios, clipped."""
    losses = []
    for i, advantage in enumerate(advantages):
        total = math.fsum(a - b for a, b in zip(new[i], old[i], strict=True))
        losses.append(-_clipped(math.exp(total / len(new[i])), advantage, clip))
    return math.fsum(losses) / len(losses)


def plain_gspo_token(
    new: Sequence[Numbers],
    old: Sequence[Numbers],
    advantages: Numbers,
    *,
    fixed: Sequence[Numbers],
    clip: tuple[float, float],
    weights: Sequence[Numbers],
) -> float:
    """GSPO-token's as a loss (equations 13 and 14), where each token's term has a weight.

    Args:
        fixed: what the stopped gradients hold: equal to `new`, and not moved when `new` is.
    """
    losses = []
    for i, advantage in enumerate(advantages):
        total = math.fsum(a - b for a, b in zip(fixed[i], old[i], strict=True))
        ratio = math.exp(total / len(fixed[i]))
        terms = [
            weights[i][t] * -_clipped(ratio * math.exp(new[i][t] - fixed[i][t]), advantage, clip)
            for t in range(len(new[i]))
        ]
        losses.append(math.fsum(terms) / len(terms))
    return math.fsum(losses) / len(losses)


def plain_kl(new: Numbers, reference: Numbers) -> list[float]:
    """A token's estimate of KL(policy || reference): exp(d) - d - 1, d = reference - policy."""
    return [math.exp(r - n) - (r - n) - 1 for n, r in zip(new, reference, strict=True)]


def plain_importance(new: Numbers, sampled: Numbers, clip: float) -> list[float]:
    """min(p / q, clip) of each token: p the policy's probability, q the sampler's."""
    return [min(math.exp(n) / math.exp(s), clip) for n, s in zip(new, sampled, strict=True)]


def _clipped(ratio: float, advantage: float, clip: tuple[float, float]) -> float:
    bounded = max(1 - clip[0], min(1 + clip[1], ratio))
    return min(ratio * advantage, bounded * advantage)


def _weight(weights: Sequence[Numbers] | None, i: int, t: int) -> float:
    return 1.0 if weights is None else weights[i][t]
