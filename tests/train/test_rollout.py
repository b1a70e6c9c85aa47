from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from omr_io.errors import ConfigError
from omr_io.train.attention import use_varlen
from omr_io.train.model import label_log_probs
from omr_io.train.rollout import Completion, generate
from omr_io.types import EncodedSample
from tests.train import tiny_models as tiny

BANNED = (tiny.IMAGE, tiny.VIDEO, tiny.START, tiny.END)
SAMPLES = [
    tiny.tiny_sample([(4, 6)], 7, 1),
    tiny.tiny_sample([(8, 4), (4, 4)], 2, 2),
    tiny.tiny_sample([], 9, 3),
    tiny.tiny_sample([(4, 4)], 1, 4),
    tiny.tiny_sample([(6, 8)], 12, 5),
]


def prompt(sample: tiny.Sample) -> EncodedSample:
    return EncodedSample(
        key="k",
        input_ids=sample.input_ids.int().numpy(),
        trained=np.zeros(len(sample.input_ids), np.bool_),
        pixel_values=sample.pixel_values.numpy() if len(sample.pixel_values) else None,
        image_grid_thw=sample.image_grid_thw.numpy(),
    )


PROMPTS = [prompt(s) for s in SAMPLES]


def models(family: str) -> tuple[Any, Any]:
    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    return oracle, model


def sample_many(model: Any, **changes: Any) -> list[Completion]:
    options: dict[str, Any] = {"max_new_tokens": 12, "eos": tiny.EOS, "banned": BANNED}
    return generate(model, PROMPTS, **(options | changes))


def same(a: list[Completion], b: list[Completion]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.ids, y.ids) and x.finished == y.finished for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_transformers_one_prompt_at_a_time(family: str) -> None:
    """Left padding, M-RoPE positions and the KV cache against unpadded `model.generate`."""
    oracle, model = models(family)
    got = sample_many(model, temperature=0.0)
    for sample, completion in zip(SAMPLES, got, strict=True):
        inputs: dict[str, Any] = {"input_ids": sample.input_ids[None]}
        if len(sample.image_grid_thw):
            inputs |= {
                "pixel_values": sample.pixel_values,
                "image_grid_thw": sample.image_grid_thw,
                "mm_token_type_ids": sample.mm_token_type_ids[None],
            }
        ids = oracle.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=tiny.EOS, pad_token_id=0,
            suppress_tokens=list(BANNED),
        )[0, len(sample.input_ids) :]  # fmt: skip
        assert completion.ids.tolist() == ids.tolist()
        assert completion.finished == (ids[-1].item() == tiny.EOS)
    assert len({tuple(c.ids.tolist()) for c in got}) > 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_training_forward(family: str, temperature: float) -> None:
    """Sampled step by step with a cache, recomputed in one pass over packs: the ratio is 1."""
    _, model = models(family)
    made = sample_many(model, temperature=temperature, group_size=2, seed=3)
    rows = []
    for place, completion in enumerate(made):
        sample = SAMPLES[place // 2]
        ids = torch.cat([sample.input_ids, torch.from_numpy(completion.ids).long()])
        rows.append(
            tiny.Sample(ids, sample.pixel_values, sample.image_grid_thw, len(sample.input_ids))
        )
    with torch.no_grad():
        batch = tiny.pack(model, [rows[:4], rows[4:]])
        again = label_log_probs(model, batch, temperature=temperature, banned=BANNED).log_probs
    sampled = torch.from_numpy(np.concatenate([c.logprobs for c in made]))
    assert torch.allclose(again, sampled, atol=2e-5)
    assert sampled.std() > 0.3


def test_a_group_shares_its_prefill_and_nothing_else() -> None:
    _, model = models("qwen3_vl")
    calls: list[int] = []
    handle = model.model.visual.register_forward_pre_hook(lambda _m, args: calls.append(1))
    made = sample_many(model, group_size=4, seed=1)
    handle.remove()
    assert calls == [1]  # one pass for all images of all groups
    assert len(made) == 4 * len(PROMPTS)
    for i in range(len(PROMPTS)):
        assert len({tuple(c.ids.tolist()) for c in made[4 * i : 4 * i + 4]}) > 1


def test_seeds_decide_and_batch_size_does_not() -> None:
    _, model = models("qwen3_vl")
    state = torch.get_rng_state()
    one = sample_many(model, group_size=3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, sample_many(model, group_size=3, seed=7))
    assert same(one, sample_many(model, group_size=3, seed=7, batch_size=3))
    assert not same(one, sample_many(model, group_size=3, seed=8))


def test_all_of_a_seed_counts() -> None:
    """torch drops the bits above 32, where RL's later rounds of a step have their number."""
    _, model = models("qwen3_vl")
    seeds = (7, 7 + 2**32, 7 + 2**33, 7 - 2**32)
    made = [sample_many(model, group_size=3, seed=seed) for seed in seeds]
    for i, one in enumerate(made):
        assert same(one, sample_many(model, group_size=3, seed=seeds[i]))
        assert not any(same(one, other) for other in made[:i])


def test_completions_end_at_the_end_token_and_bans_hold() -> None:
    _, model = models("qwen3_vl")
    with torch.no_grad():
        # Make the end token and the image tokens likely.
        model.lm_head.weight[[tiny.EOS, *BANNED]] = 0.5 * model.lm_head.weight[[20, 21, 22, 23, 24]]
    made = sample_many(model, group_size=16, seed=2, max_new_tokens=40, temperature=1.5)
    for c in made:
        assert c.ids.dtype == np.int32
        assert len(c.ids) == len(c.logprobs) <= 40
        assert not set(c.ids.tolist()) & set(BANNED)
        assert (c.logprobs < 0).all()
        assert c.finished == (c.ids[-1] == tiny.EOS)
        assert tiny.EOS not in c.ids[:-1]
        assert c.finished or len(c.ids) == 40
    lengths = {len(c.ids) for c in made}
    assert len(lengths) > 10  # so rows did leave the batch at many places
    assert any(not c.finished for c in made)
    loose = sample_many(model, group_size=16, seed=2, max_new_tokens=40, banned=())
    assert any(set(c.ids.tolist()) & set(BANNED) for c in loose)


def test_the_first_token_follows_the_model() -> None:
    _, model = models("qwen3_vl")
    n = 4000
    prompts = [PROMPTS[3]]
    made = generate(
        model, prompts, max_new_tokens=1, eos=tiny.EOS, banned=BANNED, group_size=n,
        temperature=1.3, batch_size=n,
    )  # fmt: skip
    oracle = tiny.tiny_model("qwen3_vl").eval()
    with torch.no_grad():
        logits = tiny.alone(oracle, SAMPLES[3])[-1] / 1.3
    logits[list(BANNED)] = -torch.inf
    expected = logits.softmax(0).numpy()
    counts = np.bincount([c.ids[0] for c in made], minlength=tiny.VOCAB)
    deviations = (counts - n * expected) / np.sqrt(n * expected * (1 - expected) + 1)
    assert np.abs(deviations).max() < 4.5
    assert (counts > 0).sum() > 20


def test_the_model_is_left_as_it_was() -> None:
    _, model = models("qwen3_vl")
    model.train()
    sample_many(model)
    assert model.training
    assert model.model.language_model.config._attn_implementation == "omr_varlen"
    batch = tiny.pack(model, [SAMPLES[:2]])
    assert label_log_probs(model, batch).log_probs.requires_grad


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": 0.0, "group_size": 2},
        {"max_new_tokens": 0},
        {"eos": tiny.IMAGE},
    ],
)
def test_wrong_options_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        sample_many(None, **wrong)


def test_no_prompts_give_no_completions() -> None:
    _, model = models("qwen3_vl")
    assert generate(model, [], max_new_tokens=3, eos=tiny.EOS, banned=BANNED) == []
