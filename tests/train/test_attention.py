"""The trap matrix: which ways of giving a pack to transformers are right, which silently wrong."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from omr_io.batches.vision_tower import vision_arrays
from omr_io.errors import ConfigError
from omr_io.train.attention import (
    plan_segments,
    segment_attention,
    text_attention,
    use_varlen,
    varlen_attention,
)
from tests.train import tiny_models as tiny

WRONG = 0.5
"""Leaking packs differ by 2 and more here (logits have a standard deviation of 1)."""


def samples() -> list[tiny.Sample]:
    # Two images of different sizes, one with two images, one without; two of equal length.
    return [
        tiny.tiny_sample([(4, 6)], text=7, seed=1),
        tiny.tiny_sample([(8, 4), (4, 4)], text=5, seed=2),
        tiny.tiny_sample([], text=9, seed=3),
        tiny.tiny_sample([(6, 4)], text=7, seed=4),
    ]


def packed_inputs(model: Any, trap: str) -> dict[str, Any]:
    inputs = tiny.pack(model, [samples()]).model_inputs()
    # transformers' own attention has no use for boundaries: positions must carry them.
    inputs = {k: v for k, v in inputs.items() if not k.startswith(("cu_seq", "max_length"))}
    if trap == "three rows":
        inputs["position_ids"] = inputs["position_ids"][1:]
    elif trap == "two dimensions":
        inputs["position_ids"] = inputs["position_ids"][0]
    elif trap == "mask of ones":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    elif trap == "default use_cache":
        del inputs["use_cache"]
    else:
        assert trap == "none"
    return inputs


@torch.no_grad()
def worst_difference(model: Any, logits_TV: torch.Tensor, oracle: Any = None) -> float:
    expected = torch.cat([tiny.alone(oracle or model, s) for s in samples()])
    assert expected.std() > 0.1  # a model with an opinion
    return float((logits_TV[: len(expected)] - expected).abs().max())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("trap", "right"),
    [
        ("none", True),
        ("three rows", False),
        ("two dimensions", False),
        ("mask of ones", False),
        ("default use_cache", False),
    ],
)
@torch.no_grad()
def test_trap_matrix_on_sdpa(family: str, trap: str, right: bool) -> None:
    model = tiny.tiny_model(family).eval()
    logits = model(**packed_inputs(model, trap)).logits[0]
    difference = worst_difference(model, logits)
    assert difference < 1e-5 if right else difference > WRONG


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@pytest.mark.parametrize("packs", [1, 2])
@torch.no_grad()
def test_registered_attention_is_equal(family: str, packs: int) -> None:
    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    rows = [samples()] if packs == 1 else [samples()[:2], samples()[2:]]
    batch = tiny.pack(model, rows, seq_len=96)
    assert batch.input_ids.shape == (packs, 96)
    assert (batch.input_ids == tiny.PAD).any()
    logits_BTV = model(**batch.model_inputs()).logits
    lengths = [sum(len(s.input_ids) for s in row) for row in rows]
    real = torch.cat([logits_BTV[b, :n] for b, n in enumerate(lengths)])
    assert worst_difference(model, real, oracle) < 1e-5


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_lost_boundary_is_seen(family: str) -> None:
    """The comparison above can fail: merging two samples into one segment changes the logits."""
    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    inputs = tiny.pack(model, [samples()]).model_inputs()
    cu = inputs["cu_seq_lens_q"]
    inputs["cu_seq_lens_q"] = torch.cat([cu[:1], cu[2:]])
    assert worst_difference(model, model(**inputs).logits[0], oracle) > WRONG


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
def test_gradients_packed_equal_unpacked(family: str) -> None:
    oracle = tiny.tiny_model(family)
    model = copy.deepcopy(oracle)
    use_varlen(model)
    batch = tiny.pack(model, [samples()], seq_len=96)
    logits = model(**batch.model_inputs()).logits[0]
    F.cross_entropy(logits[:-1], batch.labels[0, 1:], reduction="sum").backward()
    for s in samples():
        loss = F.cross_entropy(tiny.alone(oracle, s)[:-1], s.labels[1:], reduction="sum")
        loss.backward()
    expected = dict(oracle.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        reference = expected[name].grad
        assert (parameter.grad is None) == (reference is None), name
        if reference is not None and parameter.grad is not None:
            scale = float(reference.abs().max())
            assert torch.allclose(parameter.grad, reference, rtol=1e-3, atol=1e-5 * scale + 1e-6), (
                name
            )
            compared += scale > 0
    # A key bias shifts all scores of a row alike, so its gradient is rounding noise at most.
    assert compared > 0.9 * len(expected)


def planned_vision(model: Any, grids: torch.Tensor) -> dict[str, Any]:
    """The vision tower's metadata as a batch plans it on the host."""
    config = model.config.vision_config
    window = getattr(config, "window_size", None)
    side = getattr(config, "num_position_embeddings", None)
    arrays = vision_arrays(
        [(t, h, w) for t, h, w in grids.tolist()],
        merge_size=2,
        window=None if window is None else window // 2 // config.patch_size,
        side=None if side is None else round(side**0.5),
    )
    return {k: v if isinstance(v, int) else torch.from_numpy(v) for k, v in arrays.items()}


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@pytest.mark.parametrize("planned", [True, False])
@torch.no_grad()
def test_the_vision_tower_makes_one_call_a_layer(
    family: str, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Qwen2.5-VL's layers within windows too, and on the very boundaries that were planned."""
    from transformers import AttentionInterface

    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    calls: list[torch.Tensor] = []
    longest: list[int] = []

    def counting(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["cu_seq_lens_q"])
        longest.append(int(kwargs["max_length_q"]))
        return varlen_attention(module, *args, **kwargs)

    AttentionInterface.register("omr_flash_varlen", counting)
    try:
        batch = tiny.pack(model, [samples()])
        assert batch.image_grid_thw is not None
        arrays = planned_vision(model, batch.image_grid_thw)
        logits = model(**batch.model_inputs(), **(arrays if planned else {})).logits[0]
    finally:
        use_varlen(model)
    assert worst_difference(model, logits, oracle) < 1e-5
    whole = [0, *(h * w for _, h, w in batch.image_grid_thw.tolist())]
    assert len(calls) == 3
    assert calls[-1].tolist() == torch.tensor(whole).cumsum(0).tolist()
    windows = family == "qwen2_5_vl"
    # Windows of 2 x 2 merged patches: 4 x 6, 8 x 4, 4 x 4, 6 x 4 patches have 2, 2, 1 and 2.
    assert [len(cu) - 1 for cu in calls] == ([7, 7, 4] if windows else [4, 4, 4])
    assert longest == ([16, 16, 32] if windows else [32, 32, 32])
    if planned:
        name = "image_cu_window_seqlens" if windows else "image_cu_seqlens"
        assert calls[0] is calls[1] is arrays[name]
        assert calls[2] is arrays["image_cu_seqlens"]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths", [[5], [3, 3, 3], [4, 2, 4, 2, 1], [2, 0, 3], [1, 1, 7, 2, 7, 7, 1]]
)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_segments_equal_a_loop(causal: bool, lengths: list[int], key_heads: int) -> None:
    g = torch.Generator().manual_seed(sum(lengths))
    n = sum(lengths)
    q = torch.randn(n, 4, 8, generator=g)
    k, v = (torch.randn(n, key_heads, 8, generator=g) for _ in range(2))
    cu = (0, *torch.tensor(lengths).cumsum(0).tolist())
    out = segment_attention(q, k, v, cu, causal=causal, scale=0.3)
    for start, end in pairwise(cu):
        for head in range(4):
            kv = head * key_heads // 4
            scores = 0.3 * q[start:end, head] @ k[start:end, kv].T
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            expected = scores.softmax(-1) @ v[start:end, kv]
            assert torch.allclose(out[start:end, head], expected, atol=1e-6)


def test_equal_segments_share_a_call() -> None:
    plan = plan_segments((0, 4, 8, 12))
    assert plan.groups == ((3, 4, 4),)
    assert plan.order is None
    mixed = plan_segments((0, 4, 6, 10, 12))
    assert mixed.groups == ((2, 2, 2), (2, 4, 4))
    assert mixed.order is not None
    assert mixed.order.tolist() == [4, 5, 10, 11, 0, 1, 2, 3, 6, 7, 8, 9]
    assert plan_segments((0, 2, 6)).order is None  # sorted already
    keys = plan_segments((0, 2, 3, 5), (0, 6, 8, 10))
    assert keys.groups == ((1, 1, 2), (1, 2, 2), (1, 2, 6))
    assert keys.order is not None
    assert keys.key_order is not None
    assert keys.order.tolist() == [2, 3, 4, 0, 1]
    assert keys.key_order.tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]


def test_plans_are_cached_within_bounds() -> None:
    """A plan a step: an unbounded cache would hold every batch of a month's run."""
    assert plan_segments.cache_info().maxsize == 64
    for length in range(1, 100):
        plan_segments((0, length))
    assert plan_segments.cache_info().currsize == 64
    assert plan_segments((0, 99)) is plan_segments((0, 99))


def test_a_plan_made_in_inference_mode_serves_training() -> None:
    q = torch.randn(10, 2, 4)
    with torch.inference_mode():
        segment_attention(q, q, q, (0, 7, 10), causal=True)
    x = q.clone().requires_grad_()
    segment_attention(x, x, x, (0, 7, 10), causal=True).sum().backward()
    assert x.grad is not None


def test_what_it_cannot_do_is_an_error() -> None:
    module = torch.nn.Module()
    q = torch.zeros(1, 2, 6, 4)
    cu = torch.tensor([0, 6], dtype=torch.int32)
    mask = torch.ones(1, 1, 6, 6)
    for key, m, boundaries in ((q, None, None), (q, mask, cu), (torch.zeros(1, 2, 9, 4), None, cu)):
        with pytest.raises(ConfigError, match="no KV cache"):
            varlen_attention(module, q, key, key, m, cu_seq_lens_q=boundaries)
    with pytest.raises(ConfigError, match="end at 5"):
        varlen_attention(module, q, q, q, None, cu_seq_lens_q=torch.tensor([0, 5]))
    with pytest.raises(ConfigError, match="sliding window"):
        varlen_attention(module, q, q, q, None, cu_seq_lens_q=cu, sliding_window=4)
    with pytest.raises(ConfigError, match="never decrease"):
        plan_segments((0, 5, 3))


def test_text_attention_is_put_back() -> None:
    model = tiny.tiny_model("qwen3_vl")
    use_varlen(model)
    config = model.model.language_model.config

    def fail_inside() -> None:
        with text_attention(model, "sdpa"):
            assert config._attn_implementation == "sdpa"
            assert model.model.visual.config._attn_implementation == "omr_flash_varlen"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert config._attn_implementation == "omr_varlen"
