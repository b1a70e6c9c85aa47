from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from omr_io.train.dynamic_sampling import Drawn, Group
from omr_io.train.objectives import PolicyLoss, StepCounts
from omr_io.train.ranks import Ranks
from omr_io.train.rewards import Reward
from omr_io.train.rollout import Completion
from omr_io.train.rollout_metrics import (
    PolicyMeter,
    Stopwatch,
    Update,
    rollout_metrics,
    update_metrics,
)
from tests.train.thread_ranks import on_ranks


def group(place: int, rewards: list[tuple[int, int]], lengths: list[int], **rest: Any) -> Group:
    completions = tuple(
        Completion(np.zeros(n, np.int32), np.zeros(n, np.float32), n < 9) for n in lengths
    )
    return Group(
        place, place, completions, tuple(Reward(a, f, a + f / 2) for a, f in rewards), **rest
    )


def test_rollouts_are_counted_dropped_or_not() -> None:
    tried = (
        group(0, [(1, 1), (0, 1)], [3, 9]),
        group(1, [(0, 1), (0, 0)], [1, 1]),  # all wrong, but of differing form
        group(2, [(1, 1), (1, 1)], [2, 9]),
        group(3, [(1, 1), (0, 0)], [4, 3], failure="image-truncated"),
    )
    found = rollout_metrics(Drawn(tried[:1], tried, {}, wanted=3))
    lengths = [3, 9, 1, 1, 2, 9, 4, 3]
    assert found == {
        "reward": pytest.approx((1.5 + 0.5 + 0.5 + 0 + 1.5 + 1.5 + 1.5 + 0) / 8),
        "accuracy": pytest.approx(4 / 8),
        "format": pytest.approx(6 / 8),
        "zero_variance_share": pytest.approx(1 / 4),
        "zero_variance_share_accuracy": pytest.approx(2 / 4),
        "completion_tokens": pytest.approx(4.0),
        "completion_tokens_p95": pytest.approx(sorted(lengths)[-1]),
        "unfinished_share": pytest.approx(2 / 8),
        "groups": 1,
        "groups_missing": 2,
        "prompts_tried": 4,
        "prompts_failed": 1,
    }


def part(loss: float, ratio: float, largest: float) -> PolicyLoss:
    def scalar(x: float) -> torch.Tensor:
        return torch.tensor(x)

    return PolicyLoss(
        loss=scalar(loss), clip_share=scalar(0.1), mean_ratio=scalar(ratio),
        max_ratio=scalar(largest), kl=scalar(0.0), old_kl=scalar(0.02),
    )  # fmt: skip


def fill(meter: PolicyMeter, *, loss: float, largest: float, mismatch: float, **rest: Any) -> None:
    meter.add(
        part(loss, 0.5, largest),
        entropy_R=torch.tensor([1.0, 2.0]),
        old_R=torch.tensor([-1.0, -1.0]),
        sampled_R=torch.tensor([-1.0, -1.0 - mismatch]),
        importance_R=rest.get("importance_R"),
        importance_clip=1.5,
    )


def test_parts_and_ranks_add_up() -> None:
    def work(ranks: Any) -> Update:
        meter = PolicyMeter(StepCounts(8, 3))
        if ranks.rank == 0:
            fill(meter, loss=0.25, largest=1.5, mismatch=0.1)
            fill(meter, loss=0.5, largest=1.25, mismatch=0.2)
        elif ranks.rank == 1:
            weights = torch.tensor([1.5, 0.5])
            fill(meter, loss=-2.0, largest=1.75, mismatch=0.05, importance_R=weights)
        return meter.total(ranks)  # the third rank has nothing

    first, *others = on_ranks(3, work)
    for update in others:
        assert update.totals == first.totals
    assert [update.loss_here for update in (first, *others)] == [0.75, -2.0, 0.0]
    assert first.totals == {
        "loss": pytest.approx(-1.25),
        "clip_share": pytest.approx(0.3),
        "importance_ratio_mean": pytest.approx(1.5),
        "kl": 0.0,
        "old_kl": pytest.approx(0.06),
        "entropy": pytest.approx(9 / 8),
        "correction_mean": pytest.approx(2 / 8),
        "correction_truncated_share": pytest.approx(1 / 8),
        "importance_ratio_max": 1.75,
        "rollout_mismatch": pytest.approx(0.2),
    }


def test_a_part_without_tokens_counts_nothing() -> None:
    """All of its completions may be empty."""
    meter, nothing = PolicyMeter(StepCounts(4, 2)), torch.empty(0)
    fill(meter, loss=0.5, largest=1.5, mismatch=0.1)
    meter.add(
        part(0.0, 0.0, 0.0),
        entropy_R=nothing,
        old_R=nothing,
        sampled_R=nothing,
        importance_R=None,
        importance_clip=2.0,
    )
    totals = meter.total(Ranks()).totals
    assert totals["loss"] == 0.5
    assert totals["rollout_mismatch"] == pytest.approx(0.1)


@pytest.mark.parametrize("order", [(math.nan, 1.0), (1.0, math.nan)])
def test_what_is_not_a_number_comes_through(order: tuple[float, float]) -> None:
    """max(1, nan) is 1 in Python: a loss that is not finite must stop the run all the same."""

    def work(ranks: Any) -> Update:
        meter = PolicyMeter(StepCounts(4, 2))
        value = order[ranks.rank]
        fill(meter, loss=value, largest=value, mismatch=value)
        return meter.total(ranks)

    for update in on_ranks(2, work):
        for name in ("loss", "importance_ratio_max", "rollout_mismatch"):
            assert math.isnan(update.totals[name]), name


def test_updates_are_weighted_by_their_tokens() -> None:
    def update(tokens: int, value: float) -> Update:
        names = (*PolicyMeter._SUMS, *PolicyMeter._LARGEST)
        return Update(StepCounts(tokens, 1), 0.0, dict.fromkeys(names, value))

    one = update_metrics([update(10, 0.3)], has_reference=True)
    assert one["loss"] == one["kl"] == 0.3
    two = update_metrics([update(10, 1.0), update(30, 2.0)], has_reference=False)
    assert two["updates"] == 2
    assert two["kl"] is None
    assert two["entropy"] == pytest.approx(1.75)
    assert two["importance_ratio_max"] == 2.0
    none = update_metrics([], has_reference=True)
    assert none["updates"] == 0
    assert {none[name] for name in none if name != "updates"} == {None}
    assert none.keys() == one.keys()


def test_phases_are_timed_and_added_up() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch("rollout"):
            time.sleep(0.01)
    with pytest.raises(ValueError, match="x"), watch("update"):
        raise ValueError("x")
    assert watch.seconds.keys() == {"rollout", "update"}
    assert watch.seconds["rollout"] >= 0.02


def test_a_meter_waits_for_no_device() -> None:
    """Values are kept as tensors until `total`: reading each part would stop a GPU."""
    meter = PolicyMeter(StepCounts(4, 2))
    fill(meter, loss=0.5, largest=1.0, mismatch=0.0)
    assert all(isinstance(value, torch.Tensor) for value in meter._values.values())
    assert meter.total(Ranks()).totals["loss"] == 0.5
