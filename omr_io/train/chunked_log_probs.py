"""The chunked torch implementation of `omr_io.train.log_probs`: two autograd functions.

The gradient of a row's log-probability with respect to its logits z is g (onehot - p), that of its
entropy H is -h p (log p + H), where g and h are what comes from above. `Rows` knows them in the
backward pass only; `WeightedSum` knows g beforehand, and h is 0.

Legend: R rows that carry a label, C rows of a chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from omr_io.errors import TrainingError

MAX_LOGITS = 2**26
"""Logits of one chunk, in numbers: 256 MiB of float32. Working memory is twice that (logits and
their exponentials); two and a half times where a 16-bit weight is trained on the CPU."""

_BANNED = -1e30
"""Stands for minus infinity in logits: its exponential is 0, and 0 times it is not NaN."""


@dataclass(frozen=True, slots=True)
class Task:
    """One call's options: where chunks end, the products' dtype, ranges of banned ids.

    `train` is whether a backward pass may follow.
    """

    bounds: tuple[int, ...]
    dtype: torch.dtype
    temperature: float
    banned: tuple[tuple[int, int], ...]
    entropy: bool
    train: bool

    @classmethod
    def plan(
        cls,
        shape: tuple[int, int],
        *,
        chunk: int | None,
        dtype: torch.dtype,
        temperature: float,
        banned: tuple[int, ...],
        entropy: bool,
    ) -> Task:
        """Of (rows, vocabulary) logits; chunks are as few as the limit allows, of like size."""
        rows, vocabulary = shape
        limit = chunk or max(1, MAX_LOGITS // vocabulary)
        count = -(-rows // limit)
        bounds = tuple(rows * i // count for i in range(count + 1)) if count else (0,)
        train = torch.is_grad_enabled()
        return cls(bounds, dtype, temperature, _ranges(banned), entropy, train)

    @property
    def softmax_dtype(self) -> torch.dtype:
        """What exponentials, logarithms and sums are computed in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def chunks(self) -> Iterator[slice]:
        """The chunks of rows, in order."""
        return (slice(start, end) for start, end in pairwise(self.bounds))


class Rows(torch.autograd.Function):
    """(log_probs, entropy), both differentiable; `entropy` is empty if it is not asked for."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, task: Task
    ) -> tuple[Tensor, Tensor]:
        """Go through the chunks; the last one's logits stay."""
        ctx.set_materialize_grads(False)
        statistics = _Statistics.empty(targets_R, task)
        kept_CV = None
        with torch.autocast(hidden_RH.device.type, enabled=False):
            head_VH = weight_VH.to(task.dtype)
            for part in task.chunks():
                kept_CV = None  # before the next chunk's logits are made
                kept_CV = _logits(hidden_RH[part], head_VH, task)
                statistics.reduce(part, kept_CV, targets_R[part], task)
        ctx.task = task
        # Not by save_for_backward: the backward pass overwrites these logits and lets them go.
        ctx.kept = kept_CV if task.train else None
        ctx.save_for_backward(
            hidden_RH,
            weight_VH,
            targets_R,
            statistics.top,
            statistics.log_total,
            statistics.entropy,
        )
        return statistics.log_probs, statistics.entropy

    @staticmethod
    def backward(
        ctx: Any, grad_R: Tensor | None, grad_entropy_R: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Go through the chunks again, last to first."""
        _refuse_double_backward()
        task: Task = ctx.task
        kept_CV, ctx.kept = ctx.kept, None
        hidden_RH, weight_VH, targets_R, top_R, log_total_R, entropy_R = ctx.saved_tensors
        grad_entropy_R = grad_entropy_R if task.entropy else None
        if grad_R is None:
            grad_R = torch.zeros_like(top_R)
        with torch.autocast(hidden_RH.device.type, enabled=False):
            head_VH = weight_VH.to(task.dtype)
            gradients = _Gradients(hidden_RH, head_VH, task, ctx.needs_input_grad)
            # From the last chunk on, so that the logits that were kept are the first to go.
            for part in reversed(tuple(task.chunks())):
                if kept_CV is None:
                    kept_CV = _logits(hidden_RH[part], head_VH, task).sub_(top_R[part, None])
                logits_CV, kept_CV = kept_CV, None
                gradients.add(
                    part,
                    _logits_gradient(
                        logits_CV.sub_(log_total_R[part, None]),
                        targets_R[part],
                        grad_R[part],
                        None if grad_entropy_R is None else grad_entropy_R[part],
                        entropy_R[part] if task.entropy else None,
                        task,
                    ),
                )
                del logits_CV
        return gradients.hidden, _cast(gradients.weight, weight_VH.dtype), None, None


class WeightedSum(torch.autograd.Function):
    """(sum of row_weights x log_probs, log_probs, entropy); only the sum is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        targets_R: Tensor,
        weights_R: Tensor,
        task: Task,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go through the chunks, gradients and all."""
        statistics = _Statistics.empty(targets_R, task)
        weights_R = weights_R.to(task.softmax_dtype)
        needed = tuple(task.train and need for need in ctx.needs_input_grad[:2])
        with torch.autocast(hidden_RH.device.type, enabled=False):
            head_VH = weight_VH.to(task.dtype)
            gradients = _Gradients(hidden_RH, head_VH, task, needed)
            for part in task.chunks():
                logits_CV = _logits(hidden_RH[part], head_VH, task)
                statistics.reduce(part, logits_CV, targets_R[part], task)
                if any(needed):
                    logits_CV.sub_(statistics.log_total[part, None])
                    gradients.add(
                        part,
                        _logits_gradient(
                            logits_CV, targets_R[part], weights_R[part], None, None, task
                        ),
                    )
                del logits_CV
        # These two alone: `gradients` holds on to the hidden states and to a copy of the weight.
        ctx.gradients = gradients.hidden, gradients.weight
        ctx.weight_dtype = weight_VH.dtype
        ctx.mark_non_differentiable(statistics.log_probs, statistics.entropy)
        total = (statistics.log_probs * weights_R).sum()
        return total, statistics.log_probs, statistics.entropy

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Multiply the gradients by what comes from above."""
        _refuse_double_backward()
        found, ctx.gradients = ctx.gradients, None
        if found is None:
            raise TrainingError(
                "weighted_sum was already differentiated, and its gradients are gone",
                mend="Leave row_weights out where a graph is differentiated more than once",
            )
        hidden_RH, weight_VH = (None if part is None else part.mul_(grad) for part in found)
        return hidden_RH, _cast(weight_VH, ctx.weight_dtype), None, None, None


@dataclass(slots=True)
class _Statistics:
    """(R,) each, filled chunk by chunk: p = exp(z - top - log_total)."""

    log_probs: Tensor
    top: Tensor
    log_total: Tensor
    entropy: Tensor

    @classmethod
    def empty(cls, targets_R: Tensor, task: Task) -> _Statistics:
        def column(length: int) -> Tensor:
            return torch.empty(length, dtype=task.softmax_dtype, device=targets_R.device)

        count = len(targets_R)
        return cls(column(count), column(count), column(count), column(count * task.entropy))

    def reduce(self, part: slice, logits_CV: Tensor, targets_C: Tensor, task: Task) -> None:
        """Fill in a chunk's rows; the logits are left less their row's maximum."""
        top_C1 = logits_CV.amax(1, keepdim=True)
        shares_CV = logits_CV.sub_(top_C1).exp()
        total_C = shares_CV.sum(1)
        log_total_C = total_C.log()
        self.top[part] = top_C1.squeeze(1)
        self.log_total[part] = log_total_C
        scores_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1) - log_total_C
        self.log_probs[part] = scores_C
        if task.banned:
            self.log_probs[part].masked_fill_(scores_C < _BANNED / 2, -math.inf)
        if task.entropy:
            self.entropy[part] = log_total_C - shares_CV.mul_(logits_CV).sum(1) / total_C


class _Gradients:
    """Gradients of hidden states and weight, added up over chunks; None where none is needed.

    Over several chunks a 16-bit weight's gradient is added up in float32: adding in bfloat16 loses
    whatever a chunk contributes below 1/256 of the sum so far. It is rounded once, at the end, as
    the single product of plain torch is.
    """

    def __init__(
        self, hidden_RH: Tensor, head_VH: Tensor, task: Task, needed: tuple[bool, ...]
    ) -> None:
        self._hidden_RH, self._head_VH = hidden_RH, head_VH
        self._dtype = task.dtype
        self.hidden = torch.empty_like(hidden_RH) if needed[0] else None
        self.weight: Tensor | None = None
        self._one_chunk = len(task.bounds) == 2
        if needed[1]:
            kind = task.dtype if self._one_chunk else task.softmax_dtype
            self.weight = torch.zeros_like(head_VH, dtype=kind)

    def add(self, part: slice, logits_gradient_CV: Tensor) -> None:
        """Add what the rows of a chunk contribute, by their logits' gradient."""
        gradient_CV = logits_gradient_CV.to(self._dtype)
        if self.hidden is not None:
            self.hidden[part] = gradient_CV @ self._head_VH
        if self.weight is None:
            return
        hidden_CH = self._hidden_RH[part].to(self._dtype)
        if self._one_chunk:
            torch.mm(gradient_CV.T, hidden_CH, out=self.weight)
        else:
            _add_product(self.weight, gradient_CV, hidden_CH)


def _add_product(sum_VH: Tensor, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
    """sum += gradient.T @ hidden, without rounding the product to 16 bits on the way."""
    if sum_VH.dtype == gradient_CV.dtype:
        sum_VH.addmm_(gradient_CV.T, hidden_CH)
        return
    if not (gradient_CV.is_cuda and hasattr(torch.ops.aten.mm, "dtype")):
        sum_VH.addmm_(gradient_CV.T.to(sum_VH.dtype), hidden_CH.to(sum_VH.dtype))
        return
    # From torch 2.8 on, CUDA's product of 16-bit factors may have a float32 result. A slice of the
    # vocabulary at a time, so that the product stays small before it is added.
    step = max(1, MAX_LOGITS // sum_VH.shape[1])
    for start in range(0, len(sum_VH), step):
        columns_VC = gradient_CV[:, start : start + step].T
        product_VH = torch.mm(columns_VC, hidden_CH, out_dtype=sum_VH.dtype)
        sum_VH[start : start + step].add_(product_VH)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _logits(hidden_CH: Tensor, head_VH: Tensor, task: Task) -> Tensor:
    """The sampler's logits of a chunk, (C, V), in a new tensor."""
    logits_CV = (hidden_CH.to(task.dtype) @ head_VH.T).to(task.softmax_dtype)
    if task.temperature != 1.0:
        logits_CV.div_(task.temperature)
    for start, end in task.banned:  # by slices: an index tensor would have to be copied to CUDA
        logits_CV[:, start:end] = _BANNED
    return logits_CV


def _logits_gradient(
    log_p_CV: Tensor,
    targets_C: Tensor,
    grad_C: Tensor,
    grad_entropy_C: Tensor | None,
    entropy_C: Tensor | None,
    task: Task,
) -> Tensor:
    """The gradient with respect to hidden @ weight.T, (C, V); `log_p_CV` is overwritten."""
    grad_C = grad_C / task.temperature
    if grad_entropy_C is None or entropy_C is None:
        gradient_CV = log_p_CV.exp_().mul_(-grad_C[:, None])
    else:
        p_CV = log_p_CV.exp()
        of_entropy_C = grad_entropy_C / task.temperature
        gradient_CV = log_p_CV.add_(entropy_C[:, None]).mul_(of_entropy_C[:, None])
        gradient_CV = gradient_CV.add_(grad_C[:, None]).mul_(p_CV).neg_()
    return gradient_CV.scatter_add_(1, targets_C[:, None], grad_C[:, None])


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise TrainingError(
            "log_probs has no second derivative, and create_graph=True asks for one",
            mend="Leave create_graph out, or use omr_io.reference.log_probs on small problems",
        )


def _ranges(ids: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Ids as ascending (start, end) of neighbours."""
    ranges: list[tuple[int, int]] = []
    for i in sorted(set(ids)):
        if ranges and ranges[-1][1] == i:
            ranges[-1] = (ranges[-1][0], i + 1)
        else:
            ranges.append((i, i + 1))
    return tuple(ranges)
