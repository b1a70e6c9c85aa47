from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError
from omr_io.train.log_probs import LogProbs, log_probs
from omr_io.train.objectives import group_advantages, grpo_loss, sft_loss


def head(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=g, dtype=torch.float32)
    weight = torch.randn(11, 6, generator=g)
    return hidden, weight, torch.randint(4, 11, (rows,), generator=g)


@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_sft_loss_is_the_mean_however_it_is_cut(row_weights: float | None) -> None:
    hidden, weight, targets = head(12)
    hidden.requires_grad_()
    mean = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    (expected,) = torch.autograd.grad(mean, hidden)
    for cuts in ([12], [5, 7], [1, 0, 3, 8], [1] * 12):
        hidden.grad = None
        total = 0.0
        for h, t in zip(hidden.split(cuts), targets.split(cuts), strict=True):
            loss = sft_loss(log_probs(h, weight, t, row_weights=row_weights), 12)
            loss.backward()
            total += loss.item()
        assert total == pytest.approx(mean.item(), abs=1e-6)
        assert hidden.grad is not None
        assert torch.allclose(hidden.grad, expected, atol=1e-7)


def test_a_mean_of_means_would_be_wrong() -> None:
    """The test above can fail: averaging each part's mean gives another loss."""
    hidden, weight, targets = head(12)
    logprobs = log_probs(hidden, weight, targets).log_probs
    parts = logprobs.split([1, 11])
    assert abs(-sum(p.mean() for p in parts) / 2 + logprobs.mean()) > 0.05


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.5]), min_size=2, max_size=9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_advantages_equal_a_loop(rewards: list[float], scale: bool) -> None:
    got = group_advantages(torch.tensor(rewards), scale_by_std=scale).tolist()
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    for advantage, reward in zip(got, rewards, strict=True):
        expected = (reward - mean) / ((std + 1e-4) if scale else 1.0)
        assert advantage == pytest.approx(expected, abs=2e-5)
    if len(set(rewards)) == 1:
        assert got == [0.0] * len(rewards)


def test_advantages_of_many_groups_are_those_of_each() -> None:
    rewards = torch.rand(3, 4)
    together = group_advantages(rewards)
    assert torch.equal(together, torch.stack([group_advantages(r) for r in rewards]))
    with pytest.raises(ConfigError, match="at least 2"):
        group_advantages(torch.ones(3, 1))


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_loss_equals_a_loop(beta: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(3, 5, generator=g)
    old = logprobs + 0.6 * torch.randn(3, 5, generator=g)
    reference = logprobs + 0.3 * torch.randn(3, 5, generator=g)
    advantages = torch.randn(3, 1, generator=g)
    mask = torch.rand(3, 5, generator=g) < 0.7
    old[~mask] = -torch.inf  # padding may hold anything
    logprobs.requires_grad_()
    got = grpo_loss(
        logprobs, old, advantages, mask, 40,
        beta=beta, reference_logprobs=reference if beta else None,
    )  # fmt: skip
    losses, clips, ratios, kls = [], 0, [], []
    for i in range(3):
        for j in range(5):
            if not mask[i, j]:
                continue
            ratio = torch.exp(logprobs[i, j] - old[i, j])
            a = advantages[i, 0]
            free, clipped = ratio * a, min(max(ratio.item(), 0.8), 1.28) * a
            bounded = clipped < free
            d = reference[i, j] - logprobs[i, j]
            kl = torch.exp(d) - d - 1
            losses.append(-(clipped if bounded else free) + beta * kl)
            clips += int(bounded)
            ratios.append(ratio.item())
            kls.append(kl.item())
    slow = torch.stack(losses).sum() / 40
    assert 0 < clips < len(losses)
    assert got.loss.item() == pytest.approx(slow.item(), abs=1e-6)
    assert got.clip_share.item() == pytest.approx(clips / 40)
    assert got.mean_ratio.item() == pytest.approx(sum(ratios) / 40, abs=1e-6)
    assert got.kl.item() == pytest.approx(sum(kls) / 40 if beta else 0.0, abs=1e-6)
    (fast,) = torch.autograd.grad(got.loss, logprobs, retain_graph=True)
    (expected,) = torch.autograd.grad(slow, logprobs)
    assert torch.allclose(fast, expected, atol=1e-6)
    assert (fast[~mask] == 0).all()


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    """With old = current, the gradient is -A / tokens, clipped nowhere."""
    logprobs = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 2.0])
    result = grpo_loss(logprobs, logprobs, advantages, torch.ones(3), 3)
    result.loss.backward()
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, -advantages / 3)
    assert result.clip_share.item() == 0


def test_bad_arguments_are_errors() -> None:
    x = torch.zeros(2)
    with pytest.raises(ConfigError, match="reference_logprobs"):
        grpo_loss(x, x, x, x, 2, beta=0.1)
    with pytest.raises(ConfigError, match="reference_logprobs"):
        grpo_loss(x, x, x, x, 2, reference_logprobs=x)
    with pytest.raises(ConfigError, match="at least one label"):
        sft_loss(LogProbs(x, None, None), 0)
