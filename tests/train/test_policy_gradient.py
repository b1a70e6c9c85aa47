"""train_example.py's updates: every objective, layout and number of ranks against one plain model.

The oracle runs each completion by itself through transformers, and writes the objective down.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omr_io.train.attention import use_varlen
from omr_io.train.objectives import StepCounts
from omr_io.train.ranks import Ranks
from omr_io.train.recipe import RLRecipe
from omr_io.train.rollout import Completion
from omr_io.train.rollout_metrics import Update
from omr_io.train.rollouts import Rollouts
from tests.train import tiny_models as tiny
from tests.train.test_shared_prefix import (
    ASKED,
    COMPLETIONS,
    ENCODER,
    GROUP,
    LENGTHS,
    PROMPTS,
    assert_equal_gradients,
)
from tests.train.thread_ranks import on_ranks
from train_example import old_log_probs, policy_gradient

TEMPERATURE = 0.7
BANNED = (tiny.IMAGE, tiny.VIDEO)
MAX_NEW_TOKENS = 9
ORACLE = tiny.tiny_model("qwen3_vl")
OLD = tiny.tiny_model("qwen3_vl")
with torch.no_grad():  # an old policy near the new one, so that some ratios are clipped
    for parameter in OLD.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        parameter.add_(0.003 * noise)
ADVANTAGES = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(5))
CLIPS = {"grpo": (0.02, 0.03), "dr_grpo": (0.02, 0.03), "gspo": (0.01, 0.01)}


def packed(oracle: Any) -> Any:
    model = copy.deepcopy(oracle)
    use_varlen(model)
    return model


def make_run(model: Any, ranks: Any = None, **options: Any) -> Any:
    clip_low, clip_high = CLIPS[options.get("objective", "grpo")]
    fields = {
        "steps": 1, "lr": 1, "prompts_per_step": 4, "group": GROUP,
        "max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE,
        "clip_low": clip_low, "clip_high": clip_high,
    }  # fmt: skip
    return SimpleNamespace(
        recipe=SimpleNamespace(rl=RLRecipe(**(fields | options)), data=SimpleNamespace(seq_len=80)),
        model=model,
        ids=SimpleNamespace(banned=BANNED, eos=tiny.EOS),
        loader=SimpleNamespace(packs_per_batch=2),
        stopping=SimpleNamespace(check=lambda: None),
        prompts=ENCODER,
        device=torch.device("cpu"),
        ranks=ranks or Ranks(),
    )


def scores_alone(model: Any, number: int) -> torch.Tensor:
    """(n,) log-probabilities of a completion by itself, under the sampler's distribution."""
    prompt, ids = PROMPTS[number // GROUP], torch.from_numpy(COMPLETIONS[number].ids).long()
    whole = torch.cat([prompt.input_ids, ids])
    sample = tiny.Sample(whole, prompt.pixel_values, prompt.image_grid_thw, len(prompt.input_ids))
    logits = tiny.alone(model, sample)[sample.num_prompt_tokens - 1 : -1] / TEMPERATURE
    logits[:, list(BANNED)] = -torch.inf
    return logits.log_softmax(1).gather(1, ids[:, None]).squeeze(1)


with torch.no_grad():
    OLD_SCORES = [scores_alone(OLD, i) for i in range(len(COMPLETIONS))]
    # Another engine's numbers: near the old policy's, and not the same.
    SAMPLED = [
        Completion(
            c.ids,
            (s + 0.4 * torch.randn(len(s), generator=torch.Generator().manual_seed(i))).numpy(),
            c.finished,
        )
        for i, (c, s) in enumerate(zip(COMPLETIONS, OLD_SCORES, strict=True))
    ]


def expected_gradients(
    objective: str, members: list[int], *, corrected: float | None = None
) -> tuple[float, dict[str, Any]]:
    """Plain autograd, a completion at a time."""
    model = copy.deepcopy(ORACLE)
    low, high = CLIPS[objective]
    tokens = sum(LENGTHS[i] for i in members)
    total = 0.0
    for i in members:
        new = scores_alone(model, i)
        old, advantage = OLD_SCORES[i], ADVANTAGES[i]
        weights = torch.ones(len(new))
        if corrected is not None:
            sampled = torch.from_numpy(SAMPLED[i].logprobs)
            weights = (old.exp() / sampled.exp()).clamp(max=corrected)
        ratio = (new - old).exp()
        if objective == "gspo":
            mean = (new - old).mean()
            ratio = mean.exp().detach() * (new - new.detach()).exp() if corrected else mean.exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        terms = (loss * weights).sum()
        divisor = {
            "grpo": tokens,
            "dr_grpo": len(members) * MAX_NEW_TOKENS,
            "gspo": len(members) * len(new),
        }[objective]
        (terms / divisor).backward()
        total += terms.item() / divisor
    return total, gradients_of(model)


def gradients_of(model: Any) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def part_of(
    groups: list[int], *, old: bool = True, completions: list[Completion] = COMPLETIONS
) -> Rollouts:
    members = [g * GROUP + i for g in groups for i in range(GROUP)]
    return Rollouts(
        tuple(ASKED[g] for g in groups),
        tuple(completions[i] for i in members),
        ADVANTAGES[members],
        tuple(OLD_SCORES[i] for i in members) if old else None,
    )


@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "gspo"])
def test_an_update_on_any_groups_is_the_plain_one(objective: str, shared_prefix: bool) -> None:
    """Dropped groups leave a gap; old log-probabilities are given, so the ratio is not 1."""
    for groups in ([0, 1, 2, 3], [0, 2, 3], [1]):
        members = [g * GROUP + i for g in groups for i in range(GROUP)]
        loss, expected = expected_gradients(objective, members)
        model = packed(ORACLE)
        run = make_run(model, objective=objective, shared_prefix=shared_prefix)
        update = policy_gradient(run, None, part_of(groups))
        counts, totals = update.counts, update.totals
        assert counts == StepCounts(sum(LENGTHS[i] for i in members), len(members))
        assert totals["loss"] == pytest.approx(loss, abs=2e-6)
        assert_equal_gradients(gradients_of(model), expected)
        if len(groups) > 1:
            assert 0 < totals["clip_share"] < 1
            assert totals["importance_ratio_max"] > 1.01


@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_empty_completions_teach_nothing(objective: str, shared_prefix: bool) -> None:
    """A batch may hold nothing else; GSPO counts them, as completions, all the same."""
    empty = Completion(np.empty(0, np.int32), np.empty(0, np.float32), finished=False)
    made = [empty if i // GROUP == 1 else c for i, c in enumerate(COMPLETIONS)]
    members = [i for i in range(len(made)) if i // GROUP != 1]
    loss, expected = expected_gradients(objective, members)
    share = 1.0 if objective == "grpo" else len(members) / len(made)
    model = packed(ORACLE)
    run = make_run(model, objective=objective, shared_prefix=shared_prefix)
    run.loader.packs_per_batch = 1
    run.recipe.data.seq_len = 64
    part = part_of([0, 1, 2, 3], completions=made)
    old = [s[: len(c.ids)] for s, c in zip(OLD_SCORES, made, strict=True)]
    update = policy_gradient(run, None, part.with_old(old))
    assert update.counts == StepCounts(sum(len(c.ids) for c in made), len(made))
    assert update.totals["loss"] == pytest.approx(loss * share, abs=2e-6)
    scaled = {name: None if g is None else g * share for name, g in expected.items()}
    assert_equal_gradients(gradients_of(model), scaled)


@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "gspo"])
def test_another_engines_tokens_are_corrected(objective: str, shared_prefix: bool) -> None:
    loss, expected = expected_gradients(objective, list(range(len(COMPLETIONS))), corrected=1.3)
    model = packed(ORACLE)
    run = make_run(model, objective=objective, shared_prefix=shared_prefix, importance_clip=1.3)
    part = part_of([0, 1, 2, 3], completions=SAMPLED)
    totals = policy_gradient(run, None, part, exact=False).totals
    assert totals["loss"] == pytest.approx(loss, abs=2e-6)
    assert_equal_gradients(gradients_of(model), expected)
    assert 0.05 < totals["correction_truncated_share"] < 0.6
    assert 0.8 < totals["correction_mean"] < 1.3
    differences = [
        np.abs(s.numpy() - c.logprobs).max() for s, c in zip(OLD_SCORES, SAMPLED, strict=True)
    ]
    assert totals["rollout_mismatch"] == pytest.approx(max(differences), abs=1e-5)


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_old_log_probs_are_those_of_each_completion_alone(shared_prefix: bool) -> None:
    model = packed(OLD)
    run = make_run(model, shared_prefix=shared_prefix)
    found = old_log_probs(run, part_of([0, 2, 3], old=False))
    members = [g * GROUP + i for g in (0, 2, 3) for i in range(GROUP)]
    assert len(found) == len(members)
    for scores, i in zip(found, members, strict=True):
        assert not scores.requires_grad
        assert torch.allclose(scores, OLD_SCORES[i], rtol=0, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_the_first_update_of_several_is_the_only_one_of_one(shared_prefix: bool) -> None:
    """Old log-probabilities by the training model: the ratio is 1 to the bit."""
    grads, results = [], []
    for several in (False, True):
        model = packed(ORACLE)
        run = make_run(model, shared_prefix=shared_prefix, updates=2 if several else 1)
        part = part_of([0, 1, 2, 3], old=False)
        if several:
            part = part.with_old(old_log_probs(run, part))
        results.append(policy_gradient(run, None, part).totals)
        grads.append(gradients_of(model))
    assert results[0] == results[1]
    assert results[1]["importance_ratio_max"] == 1.0
    assert results[1]["old_kl"] == 0.0
    for name, gradient in grads[0].items():
        assert gradient is None or torch.equal(gradient, grads[1][name])


def test_dropout_is_off() -> None:
    """An adapter's would make the ratio noise: here it has weight, and a dropout of a half."""
    peft = pytest.importorskip("peft")
    model = packed(ORACLE)
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj"])
    peft.inject_adapter_in_model(config, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    run = make_run(model)
    part = part_of([0, 1, 2, 3], old=False)
    part = part.with_old(old_log_probs(run, part))
    assert model.training
    totals = policy_gradient(run, None, part).totals
    assert totals["importance_ratio_max"] == 1.0
    assert totals["old_kl"] == 0.0


@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("shares", [[[0], [1, 2, 3]], [[0, 1], [2], [3]], [[0, 1, 2, 3], [], []]])
def test_ranks_add_up_to_one(shares: list[list[int]], shared_prefix: bool) -> None:
    """Whatever share a rank has, none included: its gradients are a part of the global mean's."""
    reference = tiny.tiny_model("qwen3_vl", seed=1)
    alone = packed(ORACLE)
    options = {"objective": "gspo", "shared_prefix": shared_prefix, "beta": 0.1}
    expected = policy_gradient(
        make_run(alone, **options), packed(reference), part_of([0, 1, 2, 3])
    ).totals

    def work(ranks: Any) -> tuple[Update, dict[str, Any]]:
        model = packed(ORACLE)
        run = make_run(model, ranks, **options)
        part = part_of(shares[ranks.rank])
        old = old_log_probs(run, part)
        assert len(old) == len(part.completions)
        return policy_gradient(run, packed(reference), part), gradients_of(model)

    done = on_ranks(len(shares), work)
    for update, _ in done:
        assert update.totals == pytest.approx(expected, rel=1e-5, abs=1e-7)
    parts_of_loss = [update.loss_here for update, _ in done]
    assert sum(parts_of_loss) == pytest.approx(expected["loss"], rel=1e-5)
    summed = {}
    for name in done[0][1]:
        parts = [grads[name] for _, grads in done if grads[name] is not None]
        # Every rank has a gradient for every parameter that has one anywhere: FSDP2 reduces all.
        assert len(parts) in (0, len(shares)), name
        summed[name] = sum(parts) if parts else None
    assert_equal_gradients(summed, gradients_of(alone))
