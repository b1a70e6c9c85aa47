"""The oracle of log-probabilities: all logits at once, plain torch, autograd through all of it.

Legend: R rows that carry a label, H hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plain_log_probs(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    *,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and entropy.

    The product is in the dtype of `hidden_RH`, the softmax in float32 (float64 for float64):
    what a transformers model and `log_softmax` do.

    Args:
        hidden_RH, weight_VH: (R, H) and (V, H) of one dtype.
        targets_R: (R,) int64.
        banned: ids whose probability is 0.

    Returns:
        two (R,) float32 (float64) tensors, differentiable; entropy is in nats.
    """
    softmax_dtype = torch.float64 if hidden_RH.dtype == torch.float64 else torch.float32
    logits_RV = (hidden_RH @ weight_VH.T).to(softmax_dtype) / temperature
    allowed_V = torch.ones(len(weight_VH), dtype=torch.bool, device=logits_RV.device)
    allowed_V[list(banned)] = False
    logprobs_RV = logits_RV.masked_fill(~allowed_V, float("-inf")).log_softmax(1)
    # What is banned contributes 0 x -inf, which is 0 here and NaN to autograd.
    terms_RV = logprobs_RV.exp() * logprobs_RV.masked_fill(~allowed_V, 0.0)
    return logprobs_RV.gather(1, targets_R[:, None]).squeeze(1), -terms_RV.sum(1)
