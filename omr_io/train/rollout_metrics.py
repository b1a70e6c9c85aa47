"""What to watch in a step of RL, as one dict of numbers for the history.

Legend: R tokens of completions, G completions of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omr_io.train.dynamic_sampling import Drawn
from omr_io.train.objectives import PolicyLoss, StepCounts
from omr_io.train.ranks import Ranks

Metrics = dict[str, float | None]


class Stopwatch:
    """Seconds a phase, added up by name: `with stopwatch("rollout"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase. Work that a GPU has not finished counts where it is waited for."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent


@dataclass(frozen=True, slots=True)
class Update:
    """One update's numbers.

    Attributes:
        counts: what it was divided by.
        loss_here: this rank's part of the loss.
        totals: over all ranks, the loss, shares, means and largest values by name.
    """

    counts: StepCounts
    loss_here: float
    totals: Mapping[str, float]


class PolicyMeter:
    """Adds up an update's parts on the device; nothing waits for it until `total`.

    Args:
        counts: of the whole update.
    """

    _SUMS = ("loss", "clip_share", "importance_ratio_mean", "kl", "old_kl", "entropy")
    _CORRECTION = ("correction_mean", "correction_truncated_share")
    _LARGEST = ("importance_ratio_max", "rollout_mismatch")

    def __init__(self, counts: StepCounts) -> None:
        self._counts = counts
        self._values: dict[str, Tensor] = {}
        self._corrected = False

    def add(
        self,
        policy: PolicyLoss,
        *,
        entropy_R: Tensor,
        old_R: Tensor,
        sampled_R: Tensor,
        importance_R: Tensor | None,
        importance_clip: float,
    ) -> None:
        """Count one part: its loss, and what its tokens were.

        Args:
            entropy_R: of the policy that is trained.
            old_R: log-probabilities of the model before the step's first update.
            sampled_R: the sampler's. The same policy, so the difference is rounding where the
                sampler is the trained model.
            importance_R: weights that correct for the sampler; None if it needs none.
        """
        tokens = self._counts.tokens
        sums = {
            "loss": policy.loss,
            "clip_share": policy.clip_share,
            "importance_ratio_mean": policy.mean_ratio,
            "kl": policy.kl,
            "old_kl": policy.old_kl,
            "entropy": entropy_R.sum().double() / tokens,
        }
        if importance_R is not None:
            self._corrected = True
            truncated_R = importance_R >= importance_clip
            sums["correction_mean"] = importance_R.sum().double() / tokens
            sums["correction_truncated_share"] = truncated_R.sum().double() / tokens
        for name, value in sums.items():
            self._values[name] = self._values.get(name, 0.0) + value.detach().double()
        largest = {
            "importance_ratio_max": policy.max_ratio,
            "rollout_mismatch": _largest(old_R - sampled_R),
        }
        for name, value in largest.items():
            value = value.detach().double()
            self._values[name] = torch.maximum(self._values.get(name, value), value)

    def total(self, ranks: Ranks) -> Update:
        """Sums and largest values over all parts of all ranks. Collective."""
        sums = self._SUMS + (self._CORRECTION if ranks.any(self._corrected) else ())
        here = {name: float(value) for name, value in self._values.items()}
        everywhere = ranks.gather(here)
        totals = {name: sum(one.get(name, 0.0) for one in everywhere) for name in sums}
        for name in self._LARGEST:
            # Of NaN and a number, max() takes either: NaN must come through.
            totals[name] = float(np.max([one.get(name, 0.0) for one in everywhere]))
        return Update(self._counts, here.get("loss", 0.0), totals)


def _largest(difference_R: Tensor) -> Tensor:
    """The largest size; 0 of none, where all completions of a part are empty."""
    return difference_R.abs().max() if len(difference_R) else difference_R.sum()


def update_metrics(updates: Sequence[Update], *, has_reference: bool) -> Metrics:
    """A step's updates as one: means weighted by tokens, the largest of largest values.

    `kl` is None without a reference model; all are None where no group was left to learn from.
    """
    names = list(updates[0].totals) if updates else [*PolicyMeter._SUMS, *PolicyMeter._LARGEST]
    tokens = sum(update.counts.tokens for update in updates)
    metrics: Metrics = {}
    for name in names:
        values = [update.totals[name] for update in updates]
        if not values or (name == "kl" and not has_reference):
            metrics[name] = None
        elif name in PolicyMeter._LARGEST:
            metrics[name] = float(np.max(values))
        else:
            weighted = (u.counts.tokens * v for u, v in zip(updates, values, strict=True))
            metrics[name] = values[0] if len(values) == 1 else sum(weighted) / tokens
    return metrics | {"updates": len(updates)}


def rollout_metrics(drawn: Drawn) -> Metrics:
    """Rewards by part, and lengths, of all that was rolled out, dropped or not.

    `zero_variance_share` counts groups whose rewards are all equal, so that their advantages are
    0; `zero_variance_share_accuracy` those that are all right or all wrong.
    """
    rewards = [reward for group in drawn.tried for reward in group.rewards]
    made = [completion for group in drawn.tried for completion in group.completions]
    totals = torch.tensor([[r.total for r in group.rewards] for group in drawn.tried])
    lengths = [len(completion.ids) for completion in made]
    return {
        "reward": float(totals.mean()),
        "accuracy": float(np.mean([r.accuracy for r in rewards])),
        "format": float(np.mean([r.format for r in rewards])),
        "zero_variance_share": float((totals.amax(1) == totals.amin(1)).float().mean()),
        "zero_variance_share_accuracy": float(np.mean([not g.is_mixed for g in drawn.tried])),
        "completion_tokens": float(np.mean(lengths)),
        "completion_tokens_p95": float(np.percentile(lengths, 95)),
        "unfinished_share": float(np.mean([not c.finished for c in made])),
        "groups": len(drawn.groups),
        "groups_missing": drawn.wanted - len(drawn.groups),
        "prompts_tried": len(drawn.tried),
        "prompts_failed": sum(group.failure is not None for group in drawn.tried),
    }
