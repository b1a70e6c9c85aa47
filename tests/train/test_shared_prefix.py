"""Groups with one copy of their prompt against transformers, each completion by itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.train.attention import use_varlen
from omr_io.train.model import label_log_probs
from omr_io.train.ranks import Ranks
from omr_io.train.recipe import RLRecipe
from omr_io.train.rollout import Completion
from omr_io.train.rollouts import Rollouts
from omr_io.train.run import pack_rollouts
from omr_io.train.shared_prefix import SharedPrefixBatch, pack_shared_rollouts
from omr_io.types import EncodedSample
from tests.train import tiny_models as tiny
from train_example import policy_gradient

GROUP = 3
# One image, two images, none: prompts of 2 words, images and one more word.
PROMPTS = [
    tiny.tiny_sample([(4, 6)], 1, seed=1),
    tiny.tiny_sample([(8, 4), (4, 4)], 2, seed=2),
    tiny.tiny_sample([], 4, seed=3),
    tiny.tiny_sample([(6, 4)], 1, seed=4),
]
LENGTHS = [5, 1, 9, 4, 4, 2, 1, 7, 3, 6, 1, 1]
ENCODER: Any = SimpleNamespace(
    pixel_dtype=torch.float32,
    chat=SimpleNamespace(image_token_id=tiny.IMAGE, pad_token_id=tiny.PAD),
    vision=VisionConfig(patch_size=4),
)


def encoded(sample: tiny.Sample, key: str) -> EncodedSample:
    return EncodedSample(
        key=key,
        input_ids=sample.input_ids.int().numpy(),
        trained=np.zeros(len(sample.input_ids), np.bool_),
        pixel_values=sample.pixel_values.numpy() if len(sample.pixel_values) else None,
        image_grid_thw=sample.image_grid_thw.numpy(),
    )


ASKED = [encoded(sample, f"case-{i}") for i, sample in enumerate(PROMPTS)]


def completions_of(lengths: list[int], seed: int = 0) -> list[Completion]:
    rng = np.random.default_rng(seed)
    return [
        Completion(rng.integers(10, tiny.VOCAB, n).astype(np.int32), np.zeros(n, np.float32), True)
        for n in lengths
    ]


COMPLETIONS = completions_of(LENGTHS)


def shared(**changes: Any) -> list[tuple[SharedPrefixBatch, list[int]]]:
    options: dict[str, Any] = {
        "prompts": ASKED, "completions": COMPLETIONS, "group": GROUP, "seq_len": 80,
        "packs_per_batch": 2, "encoder": ENCODER,
    }  # fmt: skip
    return list(pack_shared_rollouts(**(options | changes)))


ROPE_MODEL = tiny.tiny_model("qwen3_vl")


def models(family: str) -> tuple[Any, Any]:
    oracle = tiny.tiny_model(family)
    model = copy.deepcopy(oracle)
    use_varlen(model)
    return oracle, model


def sample_of(number: int) -> tiny.Sample:
    prompt = PROMPTS[number // GROUP]
    ids = torch.cat([prompt.input_ids, torch.from_numpy(COMPLETIONS[number].ids).long()])
    return tiny.Sample(ids, prompt.pixel_values, prompt.image_grid_thw, len(prompt.input_ids))


def alone(oracle: Any, number: int) -> torch.Tensor:
    """(n, V): logits that predict a completion, by transformers' defaults, without packing."""
    sample = sample_of(number)
    return tiny.alone(oracle, sample)[sample.num_prompt_tokens - 1 : -1]


def logits_of(model: Any, batch: SharedPrefixBatch) -> torch.Tensor:
    logits_BTV = model(**batch.model_inputs()).logits
    return logits_BTV.flatten(0, 1)[batch.label_rows]


def weights_of(members: list[int]) -> torch.Tensor:
    """(R,) a different weight for each token, as advantages are."""
    parts = [torch.randn(LENGTHS[i], generator=torch.Generator().manual_seed(i)) for i in members]
    return torch.cat(parts)


def gradients(model: Any, losses: list[Callable[[], torch.Tensor]]) -> dict[str, Any]:
    model.zero_grad(set_to_none=True)
    for loss in losses:
        loss().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal_gradients(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Within 1e-5 of each parameter's largest gradient, down to 1e-3 of the largest of all.

    A key bias shifts all scores of a row alike: its gradient is rounding noise, far below that.
    """
    assert found.keys() == expected.keys()
    compared = {name: g for name, g in expected.items() if g is not None}
    assert compared.keys() == {name for name, g in found.items() if g is not None}
    scales = {name: float(g.abs().max()) for name, g in compared.items()}
    assert sum(scale > 0 for scale in scales.values()) > 0.9 * len(expected)
    for name, scale in scales.items():
        difference = float((found[name] - compared[name]).abs().max())
        assert difference < 1e-5 * max(scale, 1e-3 * max(scales.values())), name


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@torch.no_grad()
def test_logits_are_those_of_each_completion_alone(family: str) -> None:
    oracle, model = models(family)
    seen: list[int] = []
    for batch, members in shared():
        expected = torch.cat([alone(oracle, i) for i in members])
        assert expected.std() > 0.5  # a model with an opinion
        assert float((logits_of(model, batch) - expected).abs().max()) < 1e-5
        seen += members
    assert sorted(seen) == list(range(len(COMPLETIONS)))


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
def test_gradients_are_those_of_each_completion_alone(family: str) -> None:
    oracle, model = models(family)

    def of_batch(batch: SharedPrefixBatch, members: list[int]) -> torch.Tensor:
        scores_RV = logits_of(model, batch).log_softmax(1)
        scores_R = scores_RV.gather(1, batch.label_targets[:, None]).squeeze(1)
        return (weights_of(members) * scores_R).sum()

    def of_one(number: int) -> torch.Tensor:
        targets = torch.from_numpy(COMPLETIONS[number].ids).long()
        scores = alone(oracle, number).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
        return (weights_of([number]) * scores).sum()

    found = gradients(model, [lambda b=b, m=m: of_batch(b, m) for b, m in shared()])
    expected = gradients(oracle, [lambda i=i: of_one(i) for i in range(len(COMPLETIONS))])
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_unshared_packs(family: str) -> None:
    """Through the functions that the recipe calls, with temperature and bans."""
    _, model = models(family)
    options: dict[str, Any] = {"temperature": 0.7, "banned": (tiny.IMAGE, tiny.VIDEO)}
    scores: dict[str, dict[int, torch.Tensor]] = {"shared": {}, "unshared": {}}

    def of(kind: str, batch: Any, members: list[int]) -> torch.Tensor:
        scores_R = label_log_probs(model, batch, **options).log_probs
        parts = scores_R.detach().split([LENGTHS[i] for i in members])
        scores[kind] |= dict(zip(members, parts, strict=True))
        return (weights_of(members) * scores_R).sum()

    unshared = pack_rollouts(
        ASKED, COMPLETIONS, group=GROUP, seq_len=80, packs_per_batch=2, encoder=ENCODER
    )
    found = gradients(model, [lambda b=b, m=m: of("shared", b, m) for b, m in shared()])
    expected = gradients(model, [lambda b=b, m=m: of("unshared", b, m) for b, m in unshared])
    assert scores["shared"].keys() == scores["unshared"].keys() == set(range(len(COMPLETIONS)))
    for i in range(len(COMPLETIONS)):
        assert torch.allclose(scores["shared"][i], scores["unshared"][i], rtol=0, atol=1e-5)
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_recipes_policy_gradient_is_the_same(beta: float) -> None:
    """train_example.py's own function, with and without the option, against a reference model."""
    _, model = models("qwen3_vl")
    reference_model = tiny.tiny_model("qwen3_vl", seed=1) if beta else None
    if reference_model is not None:
        use_varlen(reference_model)
    results, grads, patches = [], [], [0, 0]

    def count(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        patches[len(results)] += len(arguments[0])

    handle = model.model.visual.register_forward_pre_hook(count)
    for option in (True, False):
        rl = RLRecipe(
            steps=1, lr=1, prompts_per_step=4, group=GROUP, max_new_tokens=9, temperature=0.7,
            beta=beta, shared_prefix=option,
        )  # fmt: skip
        run: Any = SimpleNamespace(
            recipe=SimpleNamespace(rl=rl, data=SimpleNamespace(seq_len=80)),
            model=model,
            ids=SimpleNamespace(banned=(tiny.IMAGE, tiny.VIDEO)),
            loader=SimpleNamespace(packs_per_batch=2),
            stopping=SimpleNamespace(check=lambda: None),
            prompts=ENCODER,
            device=torch.device("cpu"),
            ranks=Ranks(),
        )
        advantages = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(5))
        model.zero_grad(set_to_none=True)
        part = Rollouts(tuple(ASKED), tuple(COMPLETIONS), advantages)
        results.append(policy_gradient(run, reference_model, part).totals)
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    handle.remove()
    assert patches[1] == GROUP * patches[0] > 0
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert abs(results[0]["loss"]) > 1e-3
    assert (results[0]["kl"] > 1e-3) == (beta > 0)
    assert_equal_gradients(*grads)


@pytest.mark.parametrize("seq_len", [24, 33, 80, 200])
@torch.no_grad()
def test_groups_that_do_not_fit_are_spread_over_copies(seq_len: int) -> None:
    oracle, model = models("qwen3_vl")
    seen: list[int] = []
    copies = 0
    for batch, members in shared(seq_len=seq_len):
        assert batch.batch.input_ids.shape[1] == seq_len
        expected = torch.cat([alone(oracle, i) for i in members])
        assert float((logits_of(model, batch) - expected).abs().max()) < 1e-5
        copies += sum(len(keys) for keys in batch.batch.keys)
        seen += members
    assert sorted(seen) == list(range(len(COMPLETIONS)))
    assert (copies > len(PROMPTS)) == (seq_len < 30)


@torch.no_grad()
def test_a_completion_is_not_seen_by_another() -> None:
    _, model = models("qwen3_vl")
    (batch, members), *_ = shared(seq_len=200, packs_per_batch=1)
    before = logits_of(model, batch)
    changed = completions_of(LENGTHS)
    first = members[0]
    changed[first] = completions_of([LENGTHS[first]], seed=9)[0]
    (other, _), *_ = shared(seq_len=200, packs_per_batch=1, completions=changed)
    after = logits_of(model, other)
    own = LENGTHS[first]
    assert own > 1
    assert torch.equal(before[own:], after[own:])
    assert not torch.equal(before[1:own], after[1:own])


@torch.no_grad()
def test_the_comparison_would_see_a_wrong_plan() -> None:
    """Completions that see nothing of their prompt, or too much, differ by far."""
    from omr_io.train.attention import share_prefixes

    oracle, model = models("qwen3_vl")
    batch, members = shared()[0]
    expected = torch.cat([alone(oracle, i) for i in members])
    lengths = np.diff(batch.prefixes.bounds).tolist()
    nothing = share_prefixes(lengths, [None] * len(lengths))
    everything = share_prefixes([sum(lengths)], [None])
    for prefixes in (nothing, everything):
        inputs = batch.model_inputs() | {"shared_prefixes": prefixes}
        logits = model(**inputs).logits.flatten(0, 1)[batch.label_rows]
        assert float((logits - expected).abs().max()) > 0.5


def test_what_a_batch_holds() -> None:
    total = sum(LENGTHS)
    for batch, members in shared():
        inner = batch.batch
        groups = sorted({i // GROUP for i in members})
        asked = [ASKED[g] for g in groups]
        assert sorted(key for keys in inner.keys for key in keys) == [p.key for p in asked]
        assert inner.num_images == sum(len(p.image_grid_thw) for p in asked)
        assert inner.pixel_values.shape[0] == sum(
            p.image_grid_thw.prod(axis=1).sum() for p in asked
        )
        wanted = np.concatenate([COMPLETIONS[i].ids for i in members])
        np.testing.assert_array_equal(batch.label_targets.numpy(), wanted)
        assert (
            inner.num_label_tokens == batch.num_label_tokens == len(batch.label_rows) == len(wanted)
        )
        assert inner.step_label_tokens == total
        tokens = sum(len(p.input_ids) for p in asked) + len(wanted)
        assert inner.num_tokens == tokens
        assert int((inner.input_ids != tiny.PAD).sum()) == tokens
        inputs = batch.model_inputs()
        assert "cu_seq_lens_q" not in inputs
        assert inputs["use_cache"] is False
        moved = batch.to("cpu")
        assert torch.equal(moved.prefixes.key_rows, batch.prefixes.key_rows)


def test_an_empty_completion_has_no_target() -> None:
    made = completions_of([3, 0, 2, *LENGTHS[3:]])
    rows = dict.fromkeys(range(len(made)), 0)
    for batch, members in shared(completions=made):
        assert len(batch.label_rows) == sum(len(made[i].ids) for i in members)
        for i in members:
            rows[i] += 1
    assert set(rows.values()) == {1}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_and_positions_for_any_groups(data: st.DataObject) -> None:
    """Every target's row, position and visible keys against the unshared sequence, spelled out."""
    group = data.draw(st.integers(1, 5))
    numbers = data.draw(st.lists(st.integers(0, len(ASKED) - 1), min_size=1, max_size=4))
    lengths = data.draw(
        st.lists(st.integers(0, 8), min_size=group * len(numbers), max_size=group * len(numbers))
    )
    made = completions_of(lengths)
    seq_len = data.draw(st.integers(30, 120))
    packs_per_batch = data.draw(st.integers(1, 3))
    seen: list[int] = []
    for batch, members in shared(
        prompts=[ASKED[n] for n in numbers], completions=made, group=group, seq_len=seq_len,
        packs_per_batch=packs_per_batch,
    ):  # fmt: skip
        ids = batch.batch.input_ids.flatten()
        positions = batch.batch.position_ids.flatten(1)
        p = batch.prefixes
        assert p.bounds[-1] == len(ids)
        assert p.max_seqlen == max(np.diff(p.bounds))
        assert p.max_key_seqlen == max(np.diff(p.key_bounds))
        place = 0
        for i in members:
            prompt = PROMPTS[numbers[i // group]]
            whole = torch.cat([prompt.input_ids, torch.from_numpy(made[i].ids).long()])
            sample = tiny.Sample(whole, prompt.pixel_values, prompt.image_grid_thw, 0)
            expected = tiny.rope_positions(ROPE_MODEL, sample)
            n, start = len(made[i].ids), len(prompt.input_ids)
            rows = batch.label_rows[place : place + n]
            for j, row in enumerate(rows.tolist()):
                assert ids[row] == whole[start + j - 1]
                assert torch.equal(positions[:, row], expected[:, start + j - 1])
                segment = int(np.searchsorted(p.bounds, row, side="right")) - 1
                keys = p.key_rows[p.key_bounds[segment] : p.key_bounds[segment + 1]]
                visible = keys[: int((keys <= row).sum())]
                assert torch.equal(ids[visible], whole[: start + j])
            place += n
        assert place == len(batch.label_rows)
        seen += members
    assert sorted(seen) == list(range(len(made)))


def test_what_cannot_be_packed_is_an_error() -> None:
    with pytest.raises(ConfigError, match="11 completions are not 3 of each of 4 prompts"):
        shared(completions=COMPLETIONS[:-1])
    with pytest.raises(SampleTooLongError, match=r"11 tokens and its completion of 9.*case-0"):
        shared(seq_len=19)
    bad = completions_of(LENGTHS)
    bad[4].ids[1] = tiny.IMAGE
    with pytest.raises(DataError, match=r"completion 1 .* image token.*case-1"):
        shared(completions=bad)
    nothing = dataclasses.replace(ASKED[2], input_ids=np.empty(0, np.int32))
    with pytest.raises(DataError, match="no tokens"):
        shared(prompts=[*ASKED[:3], nothing])
    with pytest.raises(DataError, match="no sample to plan"):  # as pack_rollouts says
        shared(prompts=[], completions=[])


def test_another_attention_is_refused() -> None:
    oracle, _ = models("qwen3_vl")
    batch, _ = shared()[0]
    with pytest.raises(ConfigError, match="the model has sdpa"):
        label_log_probs(oracle, batch)
