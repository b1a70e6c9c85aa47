"""GRPO, Dr. GRPO and GSPO against plain Python, their gradients by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError
from omr_io.reference.objectives import (
    plain_advantages,
    plain_dr_grpo,
    plain_grpo,
    plain_gspo,
    plain_gspo_token,
    plain_importance,
    plain_kl,
)
from omr_io.train.objectives import (
    CLIPS,
    StepCounts,
    group_advantages,
    importance_weights,
    policy_loss,
)

MAX_NEW_TOKENS = 9
OBJECTIVES = ("grpo", "dr_grpo", "gspo")


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def rollouts(draw: st.DrawFn) -> dict[str, Any]:
    """Completions of 1 to 5 tokens with log-probabilities of several models."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))

    def tokens(low: float, high: float) -> list[list[float]]:
        return [draw(st.lists(numbers(low, high), min_size=n, max_size=n)) for n in lengths]

    new = tokens(-4, -0.01)
    moved = tokens(-0.5, 0.5)
    return {
        "new": new,
        "old": [
            [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(new, moved, strict=True)
        ],
        "sampled": tokens(-4, -0.01),
        "reference": tokens(-4, -0.01),
        "advantages": draw(st.lists(numbers(-2, 2), min_size=len(lengths), max_size=len(lengths))),
        "clip": (draw(numbers(0.01, 0.3)), draw(numbers(0.01, 0.3))),
    }


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=torch.float64)


def fast(objective: Any, case: dict[str, Any], **options: Any) -> tuple[Any, torch.Tensor]:
    """The loss, and its gradient for each token's log-probability."""
    new_R = flat(case["new"]).requires_grad_()
    lengths = torch.tensor([len(row) for row in case["new"]])
    counts = StepCounts(int(lengths.sum()), len(lengths))
    got = policy_loss(
        new_R,
        flat(case["old"]),
        torch.tensor(case["advantages"], dtype=torch.float64),
        lengths,
        counts,
        objective=objective,
        max_new_tokens=MAX_NEW_TOKENS,
        clip_low=case["clip"][0],
        clip_high=case["clip"][1],
        **options,
    )
    (gradient,) = torch.autograd.grad(got.loss, new_R)
    return got, gradient


def slow(objective: str, case: dict[str, Any], weights: Any = None) -> Callable[[Any], float]:
    """The twin's loss as a function of the log-probabilities."""
    rest = (case["old"], case["advantages"])
    if objective == "grpo":
        return lambda new: plain_grpo(new, *rest, clip=case["clip"], weights=weights)
    if objective == "dr_grpo":
        return lambda new: plain_dr_grpo(
            new, *rest, clip=case["clip"], max_new_tokens=MAX_NEW_TOKENS, weights=weights
        )
    if weights is None:
        return lambda new: plain_gspo(new, *rest, clip=case["clip"])
    return lambda new: plain_gspo_token(
        new, *rest, fixed=case["new"], clip=case["clip"], weights=weights
    )


def is_smooth(objective: str, case: dict[str, Any]) -> bool:
    """Whether no ratio is so near a clip's bound that a finite difference steps over it."""
    for new, old in zip(case["new"], case["old"], strict=True):
        logs = [a - b for a, b in zip(new, old, strict=True)]
        if objective == "gspo":
            logs = [sum(logs) / len(logs)]
        bounds = (1 - case["clip"][0], 1 + case["clip"][1])
        if any(abs(math.exp(x) - bound) < 1e-4 for x in logs for bound in bounds):
            return False
    return True


def differences(loss: Callable[[Any], float], new: list[list[float]]) -> torch.Tensor:
    step, slopes = 1e-6, []
    for i, row in enumerate(new):
        for t in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in new]
                moved[i][t] += sign * step
                values.append(loss(moved))
            slopes.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(case=rollouts())
@settings(max_examples=40, deadline=None)
def test_loss_and_gradient_are_the_twins(objective: str, case: dict[str, Any]) -> None:
    got, gradient = fast(objective, case)
    loss = slow(objective, case)
    assert got.loss.item() == pytest.approx(loss(case["new"]), abs=1e-9)
    if is_smooth(objective, case):
        assert torch.allclose(gradient, differences(loss, case["new"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(case=rollouts(), clip=numbers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_samplers_tokens_are_corrected(objective: str, case: dict[str, Any], clip: float) -> None:
    """Weights are those of p over q, cut off at the clip, and have no gradient of their own."""
    weights = [
        plain_importance(o, s, clip) for o, s in zip(case["old"], case["sampled"], strict=True)
    ]
    importance_R = importance_weights(flat(case["old"]), flat(case["sampled"]), clip)
    assert torch.allclose(importance_R, flat(weights), rtol=1e-9)
    assert importance_R.max() <= clip
    got, gradient = fast(objective, case, importance_R=importance_R)
    loss = slow(objective, case, weights)
    assert got.loss.item() == pytest.approx(loss(case["new"]), abs=1e-9)
    if is_smooth(objective, case):
        assert torch.allclose(gradient, differences(loss, case["new"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(case=rollouts(), beta=numbers(0.01, 1))
@settings(max_examples=20, deadline=None)
def test_kl_is_added_token_by_token(objective: str, case: dict[str, Any], beta: float) -> None:
    got, gradient = fast(objective, case, beta=beta, reference_logprobs_R=flat(case["reference"]))

    def of_completion(i: int, new: Any) -> float:
        total = math.fsum(plain_kl(new[i], case["reference"][i]))
        tokens = sum(len(row) for row in new)
        share = {
            "grpo": 1 / tokens,
            "dr_grpo": 1 / (MAX_NEW_TOKENS * len(new)),
            "gspo": 1 / (len(new[i]) * len(new)),
        }[objective]
        return beta * total * share

    plain = slow(objective, case)

    def loss(new: Any) -> float:
        return plain(new) + math.fsum(of_completion(i, new) for i in range(len(new)))

    assert got.loss.item() == pytest.approx(loss(case["new"]), rel=1e-9, abs=1e-9)
    mean = math.fsum(
        kl for n, r in zip(case["new"], case["reference"], strict=True) for kl in plain_kl(n, r)
    ) / sum(len(row) for row in case["new"])
    assert got.kl.item() == pytest.approx(mean, rel=1e-9, abs=1e-12)
    if is_smooth(objective, case):
        assert torch.allclose(gradient, differences(loss, case["new"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(case=rollouts())
@settings(max_examples=20, deadline=None)
def test_what_is_watched(objective: str, case: dict[str, Any]) -> None:
    got, _ = fast(objective, case)
    ratios, clipped, kls = [], 0, []
    for new, old, advantage in zip(case["new"], case["old"], case["advantages"], strict=True):
        logs = [a - b for a, b in zip(new, old, strict=True)]
        kls += plain_kl(new, old)
        if objective == "gspo":
            logs = [math.fsum(logs) / len(logs)] * len(logs)
        for ratio in map(math.exp, logs):
            ratios.append(ratio)
            high, low = ratio > 1 + case["clip"][1], ratio < 1 - case["clip"][0]
            clipped += (high and advantage > 0) or (low and advantage < 0)
    assert got.mean_ratio.item() == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)
    assert got.max_ratio.item() == pytest.approx(max(ratios), abs=1e-9)
    assert got.old_kl.item() == pytest.approx(math.fsum(kls) / len(kls), abs=1e-9)
    if is_smooth(objective, case):
        assert got.clip_share.item() == pytest.approx(clipped / len(ratios))
    assert not got.clip_share.requires_grad
    assert not got.old_kl.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(case=rollouts(), cut=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_parts_add_up(objective: Any, case: dict[str, Any], cut: int) -> None:
    """However completions are cut into batches: each divides by the counts of the whole update."""
    whole, gradient = fast(objective, case)
    counts = StepCounts(sum(map(len, case["new"])), len(case["new"]))
    new_R = flat(case["new"]).requires_grad_()
    total, place = 0.0, 0
    for rows in (slice(0, cut), slice(cut, None)):
        lengths = [len(row) for row in case["new"][rows]]
        here = slice(place, place + sum(lengths))
        place = here.stop
        part = policy_loss(
            new_R[here],
            flat(case["old"])[here],
            torch.tensor(case["advantages"][rows], dtype=torch.float64),
            torch.tensor(lengths, dtype=torch.int64),
            counts,
            objective=objective,
            max_new_tokens=MAX_NEW_TOKENS,
            clip_low=case["clip"][0],
            clip_high=case["clip"][1],
        )
        part.loss.backward()
        total += part.loss.item()
    assert total == pytest.approx(whole.loss.item(), abs=1e-12)
    assert new_R.grad is not None
    assert torch.allclose(new_R.grad, gradient, atol=1e-12)


def test_the_three_differ_where_they_should() -> None:
    """A long and a short completion: what a token of each weighs, at a ratio of 1."""
    case = {"new": [[-1.0] * 6, [-1.0] * 2], "advantages": [-1.0, 1.0], "clip": (0.2, 0.28)}
    case["old"] = case["new"]
    weights = {name: fast(name, case)[1].abs() for name in OBJECTIVES}
    assert torch.allclose(weights["grpo"], torch.full((8,), 1 / 8, dtype=torch.float64))
    assert torch.allclose(weights["dr_grpo"], torch.full((8,), 1 / 18, dtype=torch.float64))
    long, short = weights["gspo"][0].item(), weights["gspo"][-1].item()
    assert (long, short) == pytest.approx((1 / 12, 1 / 4))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_beyond_all_bounds_is_finite(objective: Any, advantage: float) -> None:
    """exp(199.9) is infinite in float32; what is clipped has no gradient, and not 0 x infinity."""
    new_R = torch.tensor([-0.1, -0.1, -1.0], requires_grad=True)
    got = policy_loss(
        new_R,
        torch.tensor([-200.0, -200.0, -1.0]),
        torch.tensor([advantage, 1.0]),
        torch.tensor([2, 1]),
        StepCounts(3, 2),
        objective=objective,
        max_new_tokens=2,
        beta=0.1,
        reference_logprobs_R=torch.tensor([-0.1, -0.1, -1.0]) + torch.tensor([0.0, 150.0, 0.0]),
    )
    got.loss.backward()
    assert torch.isfinite(got.loss)
    assert new_R.grad is not None
    assert torch.isfinite(new_R.grad).all()
    assert new_R.grad[2] < 0  # the other completion learns
    if advantage >= 0:
        assert (new_R.grad[:2] == 0).all()
    else:
        assert got.max_ratio == pytest.approx(math.exp(20.0))


def test_clips_are_the_objectives_own_unless_given() -> None:
    assert CLIPS["grpo"] == (0.2, 0.28)
    new_R = torch.tensor([math.log(0.5), math.log(0.5)])
    arguments = (torch.tensor([1.0]), torch.tensor([2]), StepCounts(2, 1))
    for ratio, objective, clipped in (
        (1.27, "grpo", 0), (1.29, "grpo", 1), (1.001, "gspo", 1), (1.0003, "gspo", 0),
    ):  # fmt: skip
        old_R = new_R - math.log(ratio)
        got = policy_loss(new_R, old_R, *arguments, objective=objective, max_new_tokens=2)
        assert got.clip_share.item() == clipped, (ratio, objective)
    wide = policy_loss(new_R, new_R - math.log(1.5), *arguments, objective="gspo", clip_high=0.6)
    assert wide.clip_share.item() == 0


@given(st.lists(st.lists(numbers(0, 1.5), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_advantages_are_the_twins(rewards: list[list[float]]) -> None:
    for scale in (True, False):
        got = group_advantages(torch.tensor(rewards, dtype=torch.float64), scale_by_std=scale)
        for group, found in zip(rewards, got.tolist(), strict=True):
            assert found == pytest.approx(plain_advantages(group, scale_by_std=scale), abs=1e-9)


def test_arguments_that_do_not_fit_are_errors() -> None:
    x, one = torch.zeros(2), torch.ones(1)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        policy_loss(x, x, one, torch.tensor([2]), StepCounts(2, 1), objective="dr_grpo")
    with pytest.raises(ConfigError, match="2 lengths for 1"):
        policy_loss(x, x, one, torch.tensor([1, 1]), StepCounts(2, 1))
    with pytest.raises(ConfigError, match="3 old log-prob"):
        policy_loss(x, torch.zeros(3), one, torch.tensor([2]), StepCounts(2, 1))
    with pytest.raises(ConfigError, match="at least one label"):
        policy_loss(x, x, one, torch.tensor([2]), StepCounts(2, 0), objective="gspo")
    with pytest.raises(ConfigError, match=r"clipped at 0\.5"):
        importance_weights(x, x, 0.5)
