"""Losses: supervised fine-tuning, and GRPO, Dr. GRPO and GSPO, with one global normaliser.

A loss is a sum over this rank's tokens divided by the number of label tokens of the whole step,
over all ranks and accumulation steps. Gradients then add up to the same however a step is cut.

Legend: R rows that carry a label, G completions of one prompt, C completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.train.log_probs import LogProbs
from omr_io.train.recipe import Objective


def sft_loss(labels: LogProbs, global_label_tokens: int) -> Tensor:
    """Cross entropy: minus the sum of this part's label log-probabilities over the step's labels.

    Args:
        labels: from `label_log_probs`; R may be 0. With `row_weights` the sum is the weighted one,
            and its gradient costs one product less: `Batch.label_weights`.
        global_label_tokens: label tokens of the whole optimiser step, all ranks and accumulation
            steps together. Under data parallelism that *averages* gradients, multiply the loss by
            the number of ranks.

    Returns:
        A scalar. Summed over all parts it is the mean loss a label token; so are its gradients,
        however the step is cut into parts.
    """
    _check_count(global_label_tokens)
    total = labels.weighted_sum if labels.weighted_sum is not None else labels.log_probs.sum()
    return -total / global_label_tokens


def group_advantages(rewards_G: Tensor, *, scale_by_std: bool = True) -> Tensor:
    """Advantages within a group: reward minus the group's mean, over its standard deviation.

    GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2), with the sample standard deviation
    plus 1e-4; without scaling it is Dr. GRPO's (Liu et al. 2025, arXiv:2503.20783).

    Args:
        rewards_G: (..., G) float; a group along the last axis, G at least 2.

    Returns:
        (..., G); exactly 0 for a group whose rewards are all equal.
    """
    if rewards_G.shape[-1] < 2:
        raise ConfigError(
            "a group needs at least 2 completions", mend="Set group_size to 2 or more"
        )
    # The mean of equal numbers is not always that number in floating point.
    equal = (rewards_G == rewards_G[..., :1]).all(-1, keepdim=True)
    advantages = rewards_G - rewards_G.mean(-1, keepdim=True)
    if scale_by_std:
        advantages = advantages / (rewards_G.std(-1, keepdim=True) + 1e-4)
    return advantages.masked_fill(equal, 0.0)


CLIPS: Mapping[Objective, tuple[float, float]] = MappingProxyType(
    {"grpo": (0.2, 0.28), "dr_grpo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}
)
"""The usual clip_low and clip_high: DAPO's clip-higher (Yu et al. 2025, arXiv:2503.14476), and for
GSPO, whose ratio is a mean over a sequence's tokens, its paper's (Zheng et al. 2025,
arXiv:2507.18071, section 5.1)."""


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one update is divided by: completions and their tokens, of all ranks and parts."""

    tokens: int
    completions: int


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss and what to watch; all are scalars, and all but `loss` are detached.

    The share and the means are sums over this part divided by the step's tokens: add them over
    parts. `max_ratio` is this part's largest (0 without tokens): take the largest of all parts.

    Attributes:
        loss: this part of the step's loss.
        clip_share: tokens whose gradient the clip cut off.
        mean_ratio, max_ratio: the ratio of the policy to the old one; a sequence's for GSPO.
        kl: of the policy against the reference model; 0 without one.
        old_kl: of the policy against the old one, by the same estimator.
    """

    loss: Tensor
    clip_share: Tensor
    mean_ratio: Tensor
    max_ratio: Tensor
    kl: Tensor
    old_kl: Tensor


def policy_loss(
    logprobs_R: Tensor,
    old_logprobs_R: Tensor,
    advantages_C: Tensor,
    lengths_C: Tensor,
    counts: StepCounts,
    *,
    objective: Objective = "grpo",
    max_new_tokens: int | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    beta: float = 0.0,
    reference_logprobs_R: Tensor | None = None,
    importance_R: Tensor | None = None,
) -> PolicyLoss:
    """The clipped policy loss of whole completions, by one of three objectives.

    A token's loss is -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta KL. What differs:

    - "grpo": r is the token's exp(logprob - old_logprob); the sum over tokens is divided by the
      step's number of tokens (DAPO, Yu et al. 2025, arXiv:2503.14476, equation 12).
    - "dr_grpo": the same r; divided by the step's completions times `max_new_tokens`, a constant,
      so that a long wrong completion costs no less a token (Liu et al. 2025, arXiv:2503.20783). Its
      advantages are not scaled: `group_advantages(scale_by_std=False)`.
    - "gspo": r is the sequence's, exp of the mean of its tokens' differences; each completion
      counts as one (Zheng et al. 2025, arXiv:2507.18071, equations 5 to 7). It is computed in the
      form of equations 13 to 14, token by token with the sequence's value, whose loss and gradient
      are the same and which takes a weight a token.

    KL is the estimator exp(d) - d - 1 with d = reference - policy (Schulman, "Approximating KL
    divergence", k3). Log-ratios, and d, count as 20 beyond that.

    Args:
        logprobs_R, old_logprobs_R: (R,) of the tokens of completions, one completion after the
            other. `old_logprobs_R` are detached here.
        advantages_C: (C,) of each completion.
        lengths_C: (C,) int64, tokens of each completion, on the device of the others; sums to R. A
            completion may have none.
        counts: of the whole update.
        max_new_tokens: the sampler's; "dr_grpo" needs it.
        clip_low, clip_high: None for the objective's `CLIPS`.
        beta: weight of KL; above 0 it needs `reference_logprobs_R`.
        importance_R: (R,) weights of the tokens' losses, without gradient:
            `importance_weights`.

    Returns:
        Divided by the counts of the whole update, so it and its gradients add up over parts.

    Raises:
        ConfigError: shapes, `beta` and `reference_logprobs_R`, or counts that do not fit.
    """
    if lengths_C.shape != advantages_C.shape or len(logprobs_R) != len(old_logprobs_R):
        raise ConfigError(
            f"{len(lengths_C)} lengths for {len(advantages_C)} completions, "
            f"{len(old_logprobs_R)} old log-probabilities for {len(logprobs_R)}",
            mend="Give one length and advantage a completion, one log-probability a token",
        )
    low, high = CLIPS[objective]
    rows = len(logprobs_R)
    advantages_R = advantages_C.repeat_interleave(lengths_C, output_size=rows)
    weights_R, log_ratio_R, divisor = importance_R, None, counts.tokens
    if objective == "gspo":
        share_R = (1 / lengths_C.to(logprobs_R.dtype)).repeat_interleave(
            lengths_C, output_size=rows
        )
        log_ratio_R = _of_sequences(logprobs_R, old_logprobs_R, lengths_C)
        weights_R = share_R if importance_R is None else share_R * importance_R
        divisor = counts.completions
    elif objective == "dr_grpo":
        if max_new_tokens is None:
            raise ConfigError("dr_grpo is divided by max_new_tokens", mend="Give max_new_tokens")
        divisor = counts.completions * max_new_tokens
    return grpo_loss(
        logprobs_R,
        old_logprobs_R,
        advantages_R,
        torch.ones_like(logprobs_R, dtype=torch.bool),
        counts.tokens,
        clip_low=low if clip_low is None else clip_low,
        clip_high=high if clip_high is None else clip_high,
        beta=beta,
        reference_logprobs=reference_logprobs_R,
        weights=weights_R,
        divisor=divisor,
        log_ratio=log_ratio_R,
    )


def _of_sequences(logprobs_R: Tensor, old_logprobs_R: Tensor, lengths_C: Tensor) -> Tensor:
    """(R,) log-ratios with the value of the token's sequence and the gradient of the token.

    Equation 14 of GSPO: sg[s] pi / sg[pi].
    """
    difference_R = (logprobs_R - old_logprobs_R).detach()
    numbers_R = torch.arange(len(lengths_C), device=lengths_C.device).repeat_interleave(
        lengths_C, output_size=len(logprobs_R)
    )
    sums_C = difference_R.new_zeros(len(lengths_C)).index_add(0, numbers_R, difference_R)
    means_R = (sums_C / lengths_C.clamp(min=1)).index_select(0, numbers_R)
    return means_R + (logprobs_R - logprobs_R.detach())


def importance_weights(logprobs: Tensor, rollout_logprobs: Tensor, clip: float) -> Tensor:
    """Truncated importance weights of a sampler that is not quite the policy: detached.

    min(exp(logprob - rollout_logprob), clip), a token: another engine's kernels and rounding give
    its samples other probabilities than the policy's (Espeholt et al. 2018, arXiv:1802.01561,
    section 4.1; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training").

    Args:
        logprobs: of the policy before the step's first update, by the model that is trained.
        rollout_logprobs: of the same tokens, as the sampler had them.
        clip: the largest weight, at least 1.

    Raises:
        ConfigError: clip below 1 would shrink every step.
    """
    if clip < 1:
        raise ConfigError(f"importance weights are clipped at {clip}", mend="Use 1 or more")
    return (logprobs - rollout_logprobs).detach().exp().clamp(max=clip)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    global_tokens: int,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    beta: float = 0.0,
    reference_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
    divisor: int | None = None,
    log_ratio: Tensor | None = None,
) -> PolicyLoss:
    """Token-level clipped policy loss with a global normaliser: what `policy_loss` is made of.

    The sum over tokens of w (-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta KL), over
    `divisor`; r = exp(logprobs - old_logprobs).

    Args:
        logprobs, old_logprobs, advantages, mask: one shape, or shapes that broadcast to that of
            `logprobs`. `mask` is True on tokens of completions. `old_logprobs` are detached here.
        global_tokens: completion tokens of the whole update, all ranks and parts.
        beta: weight of KL; above 0 it needs `reference_logprobs`.
        weights: w, without gradient; None: 1.
        divisor: None: `global_tokens`.
        log_ratio: log r, instead of logprobs - old_logprobs; KL still is of those.

    Raises:
        ConfigError: `beta` and `reference_logprobs` do not fit each other, or a bad count.
    """
    divisor = global_tokens if divisor is None else divisor
    _check_count(min(global_tokens, divisor))
    if (beta > 0) != (reference_logprobs is not None):
        raise ConfigError(
            "beta above 0 needs reference_logprobs, and beta 0 must not have them",
            mend="Give both or neither: a reference model that is not used only costs time",
        )
    keep = mask.expand_as(logprobs).bool()
    # Masked positions may hold anything, even inf: select before the arithmetic, or 0 * inf is NaN.
    if log_ratio is None:
        log_ratio = logprobs - old_logprobs.detach()
    ratio = torch.where(keep, log_ratio, 0.0).clamp(max=_MOST).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    weight = torch.where(keep, advantages.expand_as(logprobs), 0.0)
    losses = -torch.minimum(ratio * weight, clipped * weight)
    kl = torch.zeros_like(ratio)
    if reference_logprobs is not None:
        kl = _kl(torch.where(keep, reference_logprobs.detach() - logprobs, 0.0))
        losses = losses + beta * kl
    if weights is not None:
        losses = losses * weights.detach()
    changed = keep & (clipped * weight < ratio * weight)
    old_kl = _kl(torch.where(keep, old_logprobs - logprobs, 0.0).detach())
    kept_ratio = torch.where(keep, ratio, 0.0).detach()
    return PolicyLoss(
        loss=torch.where(keep, losses, 0.0).sum() / divisor,
        clip_share=changed.sum() / global_tokens,
        mean_ratio=kept_ratio.sum() / global_tokens,
        max_ratio=kept_ratio.max() if kept_ratio.numel() else kept_ratio.sum(),
        kl=kl.detach().sum() / global_tokens,
        old_kl=old_kl.sum() / global_tokens,
    )


_MOST = 20.0
"""The largest log-ratio, without a gradient beyond. From 89 on its exponential is infinite, and the
gradient of what the clip cuts off would be 0 times infinity; low temperatures get there."""


def _kl(difference: Tensor) -> Tensor:
    difference = difference.clamp(max=_MOST)
    return difference.exp() - difference - 1


def _check_count(tokens: int) -> None:
    if tokens < 1:
        raise ConfigError(
            f"a step must have at least one label token, not {tokens}",
            mend="Skip a step without labels on all ranks",
        )
