"""Losses: supervised fine-tuning and GRPO, with one global normaliser.

A loss is a sum over this rank's tokens divided by the number of label tokens of the whole step,
over all ranks and accumulation steps. Gradients then add up to the same however a step is cut.

Legend: R rows that carry a label, G completions of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.train.log_probs import LogProbs


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


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A GRPO loss and what to watch; all are scalars, and all but `loss` are detached.

    The shares and means are sums over this part divided by `global_tokens`: add them over parts.
    """

    loss: Tensor
    clip_share: Tensor
    mean_ratio: Tensor
    kl: Tensor


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
) -> PolicyLoss:
    """Token-level clipped policy loss with a global normaliser.

    The sum over tokens of -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta KL, over
    `global_tokens`; r = exp(logprobs - old_logprobs). Clip-higher and the token-level sum are
    DAPO's (Yu et al. 2025, arXiv:2503.14476); KL is the estimator exp(d) - d - 1 with
    d = reference - policy (Schulman, "Approximating KL divergence", k3).

    Args:
        logprobs, old_logprobs, advantages, mask: one shape, or shapes that broadcast to that of
            `logprobs`. `mask` is True on tokens of completions. `old_logprobs` are detached here.
        global_tokens: completion tokens of the whole optimiser step, all ranks and parts.
        beta: weight of KL; above 0 it needs `reference_logprobs`.

    Raises:
        ConfigError: `beta` and `reference_logprobs` do not fit each other, or a bad count.
    """
    _check_count(global_tokens)
    if (beta > 0) != (reference_logprobs is not None):
        raise ConfigError(
            "beta above 0 needs reference_logprobs, and beta 0 must not have them",
            mend="Give both or neither: a reference model that is not used only costs time",
        )
    keep = mask.expand_as(logprobs).bool()
    # Masked positions may hold anything, even inf: select before the arithmetic, or 0 * inf is NaN.
    log_ratio = torch.where(keep, logprobs - old_logprobs.detach(), 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    weight = torch.where(keep, advantages.expand_as(logprobs), 0.0)
    losses = -torch.minimum(ratio * weight, clipped * weight)
    kl = torch.zeros_like(ratio)
    if reference_logprobs is not None:
        difference = torch.where(keep, reference_logprobs.detach() - logprobs, 0.0)
        kl = difference.exp() - difference - 1
        losses = losses + beta * kl
    changed = keep & (clipped * weight < ratio * weight)
    return PolicyLoss(
        loss=torch.where(keep, losses, 0.0).sum() / global_tokens,
        clip_share=changed.sum() / global_tokens,
        mean_ratio=torch.where(keep, ratio, 0.0).detach().sum() / global_tokens,
        kl=kl.detach().sum() / global_tokens,
    )


def _check_count(tokens: int) -> None:
    if tokens < 1:
        raise ConfigError(
            f"a step must have at least one label token, not {tokens}",
            mend="Skip a step without labels on all ranks",
        )
