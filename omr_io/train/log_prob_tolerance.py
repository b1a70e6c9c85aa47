"""What "as exact as plain torch" means for an implementation of log-probabilities.

On one random problem in bfloat16, plain torch (all logits at once, autograd) and the candidate are
both compared with the truth: the same numbers through plain torch in float32. For each quantity
the candidate's greatest and mean absolute errors may be at most `GREATEST` and `MEAN` times plain
bfloat16's own. So the tolerance follows the problem, and nobody chooses an epsilon.

Legend: R rows, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omr_io.reference.log_probs import plain_log_probs

GREATEST = 1.5
"""The greatest of many errors is one value's luck: room for another rounding in single places."""
MEAN = 1.1
"""No room for another rounding of every value. Measured: another order of the same sums changes
means by 0.1%; a weight's gradient added up in bfloat16 has 1.2 to 1.4 times plain torch's error, an
entropy rounded to bfloat16 3 times."""

Candidate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(hidden_RH, weight_VH, targets_R) -> log-probabilities and, if it has them, entropies."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Inputs in bfloat16, and what comes from above.

    Attributes:
        hidden, weight, targets: (R, H), (V, H) and (R,), as for `log_probs`.
        grad, grad_entropy: (R,) float32, the gradients of the outputs.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    grad: Tensor
    grad_entropy: Tensor


@dataclass(frozen=True, slots=True)
class Error:
    """Absolute errors of one quantity against the float32 truth."""

    greatest: float
    mean: float


def random_problem(
    rows: int,
    vocabulary: int,
    *,
    width: int = 64,
    spread: float = 2.0,
    extreme: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Problem:
    """Logits of standard deviation `spread`; `extreme` adds rows near certainty and huge logits.

    The same seed gives the same problem on all devices.
    """
    g = torch.Generator().manual_seed(seed)
    hidden_RH = torch.randn(rows, width, generator=g)
    weight_VH = torch.randn(vocabulary, width, generator=g) * spread / width**0.5
    targets_R = torch.randint(0, vocabulary, (rows,), generator=g)
    if extreme:
        hidden_RH[::4] *= 100.0  # logits of some hundreds: p is 0 or 1
        hidden_RH[1::4] *= 1e-3  # nearly uniform
        near = slice(2, None, 4)  # the target is by far the likeliest
        hidden_RH[near] = 20.0 * weight_VH[targets_R[near]]
    grads = torch.randn(2, rows, generator=g)
    tensors = (hidden_RH.bfloat16(), weight_VH.bfloat16(), targets_R, grads[0], grads[1])
    return Problem(*(tensor.to(device) for tensor in tensors))


def errors(
    candidate: Candidate, problem: Problem, *, entropy: bool = True
) -> tuple[Mapping[str, Error], Mapping[str, Error]]:
    """Errors of the candidate and of plain bfloat16 torch, by quantity.

    The quantities: "log_probs", "entropy", and the gradients of "hidden" and "weight" of
    sum(grad log_probs + grad_entropy entropy); without `entropy`, of the first term alone.
    """
    truth = _run(plain_log_probs, problem, torch.float32, entropy)
    plain = _run(plain_log_probs, problem, torch.bfloat16, entropy)
    found = _run(candidate, problem, torch.bfloat16, entropy)
    return _differences(found, truth), _differences(plain, truth)


def excess(
    candidate: Candidate, problem: Problem, *, entropy: bool = True
) -> Mapping[str, tuple[Error, Error]]:
    """The quantities beyond the tolerance, each with the candidate's error and plain torch's."""
    found, plain = errors(candidate, problem, entropy=entropy)
    return {
        name: (error, plain[name])
        for name, error in found.items()
        # Not "greater than": an error that is NaN is beyond any tolerance.
        if not (
            error.greatest <= GREATEST * plain[name].greatest
            and error.mean <= MEAN * plain[name].mean
        )
    }


def _run(
    candidate: Candidate, problem: Problem, dtype: torch.dtype, entropy: bool
) -> Mapping[str, Tensor]:
    hidden_RH = problem.hidden.detach().to(dtype).requires_grad_()
    weight_VH = problem.weight.detach().to(dtype).requires_grad_()
    scores_R, entropy_R = candidate(hidden_RH, weight_VH, problem.targets)
    total = (scores_R * problem.grad).sum()
    found = {"log_probs": scores_R}
    if entropy:
        if entropy_R is None:
            raise ValueError("the candidate gives no entropy")
        total = total + (entropy_R * problem.grad_entropy).sum()
        found["entropy"] = entropy_R
    found["hidden"], found["weight"] = torch.autograd.grad(total, (hidden_RH, weight_VH))
    return {name: value.detach().float() for name, value in found.items()}


def _differences(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Mapping[str, Error]:
    gaps = {name: (found[name] - exact).abs() for name, exact in truth.items()}
    return {name: Error(float(gap.max()), float(gap.mean())) for name, gap in gaps.items()}
