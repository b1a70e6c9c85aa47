"""Log-probabilities and entropies of labels, a chunk of rows at a time: for SFT and for RL.

    hidden states, lm_head weight, targets -> log-probability and entropy of each, float32

All logits, (rows, vocabulary), never exist at once. The gradient of a row's log-probability with
respect to its logits z is g (onehot - p), that of its entropy H is -h p (log p + H); g and h are
known in the backward pass only, so two ways are offered:

- Without `row_weights` both outputs are differentiable, whatever is made of them. The backward pass
  computes each chunk's logits again, but for the last one's, which are kept: it would begin with
  them at once. Four products of (rows, vocabulary, width) instead of three; constant memory.
- With `row_weights`, known beforehand as in SFT, only their weighted sum is differentiable. Its
  gradients are computed in the forward pass from the logits at hand: three products, or two when
  the weight is frozen. A trained weight's gradient is then held in float32 from the forward
  pass on.

Legend: N positions, R rows that carry a label, C rows of a chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omr_io.errors import ConfigError, TrainingError
from omr_io.train.chunked_log_probs import Rows, Task, WeightedSum
from omr_io.train.log_prob_backends import Backend, apply_backend, choose_backend


@dataclass(frozen=True, slots=True)
class LogProbs:
    """What `log_probs` gives; all in float32 (float64 for float64 hidden states).

    Attributes:
        log_probs: (R,) of each target; detached if `row_weights` were given.
        entropy: (R,) in nats, of the same distribution; detached if `row_weights` were given. None
            if it was not asked for.
        weighted_sum: the sum of row_weights x log_probs, differentiable once; None without them.
    """

    log_probs: Tensor
    entropy: Tensor | None
    weighted_sum: Tensor | None


def log_probs(
    hidden: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    *,
    rows: Tensor | None = None,
    row_weights: Tensor | float | None = None,
    entropy: bool = False,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
    backend: Backend = "torch",
    chunk: int | None = None,
) -> LogProbs:
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy of that distribution.

    It is the very distribution that `rollout.generate` samples from at this temperature with these
    ids banned. Products are in the dtype of `hidden` (autocast's, where it is on), the softmax in
    float32, as plain torch has them. R may be 0: gradients are then zeros.

    Args:
        hidden: (R, H) the last hidden states of rows that predict a label; or, with `rows`,
            (..., H) all of them.
        weight_VH: (V, H) of the language-model head, which has no bias. It may be an embedding's
            own (tied), and frozen: then no gradient of it is computed.
        targets_R: (R,) int64 token ids, none of them banned. On the CPU that is checked; on CUDA a
            look would sync: there a banned target's log-probability is minus infinity, and an id
            outside the vocabulary is a device-side assertion.
        rows: (R,) int64 places in the flattened positions, which may occur repeatedly (a prompt's
            last one does where completions share it); see
            `Batch.label_rows`.
        row_weights: (R,) float32, or one for all rows: what each row counts in `weighted_sum`.
        entropy: whether to compute it: one more pass over the logits.
        temperature: the sampler's, above 0.
        banned: ids with probability 0, the sampler's.
        backend: "torch", or another package's kernel by name, which refuses what it cannot give.
            "auto" takes a kernel that is installed, can give all that is asked, and was found on
            this GPU to be as exact as plain torch; else "torch".
        chunk: rows at a time, for "torch"; None keeps to MAX_LOGITS numbers.

    Raises:
        ConfigError: an option, shape or dtype that cannot be right; a backend that is not
            installed, cannot give what is asked, or is less exact on this GPU than plain torch.
        TrainingError: a target that is banned or outside the vocabulary (seen on the CPU only); in
            the backward pass, a second derivative, or a second pass through `weighted_sum`.
    """
    if rows is not None:
        hidden = hidden.flatten(0, -2).index_select(0, rows)
    _check(hidden, weight_VH, targets_R, temperature, banned, chunk)
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    weights_R = _row_weights(row_weights, targets_R)
    name = choose_backend(
        backend, hidden, weight_VH, dtype, entropy=entropy, temperature=temperature, banned=banned
    )
    if name != "torch":
        with torch.autocast(device, enabled=False):
            scores_R = apply_backend(
                name, hidden.to(dtype), weight_VH.to(dtype), targets_R, temperature
            )
        if weights_R is None:
            return LogProbs(scores_R, None, None)
        return LogProbs(scores_R.detach(), None, (scores_R * weights_R).sum())
    task = Task.plan(
        (len(targets_R), len(weight_VH)),
        chunk=chunk,
        dtype=dtype,
        temperature=temperature,
        banned=banned,
        entropy=entropy,
    )
    total = None
    run: Any  # torch leaves `apply` without types
    if weights_R is None:
        run = Rows.apply
        scores_R, entropy_R = run(hidden, weight_VH, targets_R, task)
    else:
        run = WeightedSum.apply
        total, scores_R, entropy_R = run(hidden, weight_VH, targets_R, weights_R, task)
    return LogProbs(scores_R, entropy_R if entropy else None, total)


def _row_weights(row_weights: Tensor | float | None, targets_R: Tensor) -> Tensor | None:
    if row_weights is None:
        return None
    if not isinstance(row_weights, Tensor):
        return torch.full(targets_R.shape, float(row_weights), device=targets_R.device)
    if row_weights.shape != targets_R.shape or row_weights.requires_grad:
        raise ConfigError(
            f"row_weights is {tuple(row_weights.shape)} for targets {tuple(targets_R.shape)}, "
            f"requires_grad {row_weights.requires_grad}",
            mend="Give one weight a row, detached: weighted_sum has no gradient for them",
        )
    return row_weights


def _check(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    temperature: float,
    banned: tuple[int, ...],
    chunk: int | None,
) -> None:
    shapes = f"hidden {tuple(hidden_RH.shape)}, weight {tuple(weight_VH.shape)}, targets " + str(
        tuple(targets_R.shape)
    )
    if not (hidden_RH.ndim == weight_VH.ndim == 2 and targets_R.ndim == 1 and len(weight_VH)):
        raise ConfigError(f"{shapes} should be (R, H), (V, H) and (R,)")
    if hidden_RH.shape != (len(targets_R), weight_VH.shape[1]):
        raise ConfigError(f"{shapes} do not fit each other: (R, H), (V, H) and (R,) are needed")
    if targets_R.dtype != torch.int64 or not (
        hidden_RH.is_floating_point() and weight_VH.is_floating_point()
    ):
        raise ConfigError(
            f"hidden is {hidden_RH.dtype}, weight {weight_VH.dtype}, targets {targets_R.dtype}",
            mend="Hidden states and weight must be floating point (not quantised), targets int64",
        )
    if not hidden_RH.device == weight_VH.device == targets_R.device:
        raise ConfigError(
            f"hidden is on {hidden_RH.device}, weight on {weight_VH.device}, targets on "
            f"{targets_R.device}"
        )
    if hasattr(weight_VH, "placements"):
        raise ConfigError(
            "the lm_head weight is a DTensor: this process holds a part of it",
            mend="Gather it first (FSDP2: unshard the module that owns lm_head)",
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"temperature must be above 0, not {temperature}")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk must be at least 1 row, not {chunk}")
    if any(not 0 <= i < len(weight_VH) for i in banned) or len(set(banned)) == len(weight_VH):
        raise ConfigError(
            f"banned ids {banned} must lie inside a vocabulary of {len(weight_VH)}, not all of it"
        )
    if targets_R.is_cpu:
        _check_targets(targets_R, len(weight_VH), banned)


def _check_targets(targets_R: Tensor, vocabulary: int, banned: tuple[int, ...]) -> None:
    outside = (targets_R < 0) | (targets_R >= vocabulary)
    for i in banned:
        outside |= targets_R == i
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise TrainingError(
            f"the target of row {row} is {int(targets_R[row])}, which is banned or not one of "
            f"{vocabulary} ids",
            mend="Banned ids are never sampled, so they cannot be labels: look at labels and bans",
        )
