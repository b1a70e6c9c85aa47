"""Parts, adapters, groups."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from omr_io.errors import ConfigError
from omr_io.train.attention import use_varlen
from omr_io.train.gathering import full_weights
from omr_io.train.model import forward
from omr_io.train.parameters import (
    LoRA,
    add_lora,
    cast_weights,
    freeze,
    merged_weights,
    new_optimizer,
    part_of,
)
from tests.train import tiny_models as tiny

RATES = {"weight_decay": 0.1, "beta2": 0.99}


def trained(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
def test_every_parameter_has_a_part(family: str) -> None:
    model = tiny.tiny_model(family)
    parts: dict[str, set[str]] = {"text": set(), "merger": set(), "vision": set()}
    for name, _ in model.named_parameters():
        parts[part_of(name)].add(name)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= parts["text"]
    assert any("blocks.2" in name for name in parts["vision"])
    assert any("patch_embed" in name for name in parts["vision"])
    assert all("merger" in name for name in parts["merger"])
    assert not any("merger" in name for name in parts["text"] | parts["vision"])
    assert any("deepstack" in name for name in parts["merger"]) == (family == "qwen3_vl")


def test_groups_have_their_own_rates_and_vectors_do_not_decay() -> None:
    model = tiny.tiny_model("qwen3_vl")
    optimizer = new_optimizer(model, lr=3.0, merger_lr=2.0, vision_lr=1.0, **RATES)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            seen.add(name)
            assert group["base_lr"] == group["lr"]
            assert group["lr"] == {"text": 3.0, "merger": 2.0, "vision": 1.0}[part_of(name)]
            assert group["weight_decay"] == (0.1 if p.ndim >= 2 else 0.0)
    assert seen == set(names.values())
    rates = {g["lr"] for g in new_optimizer(model, lr=3.0, **RATES).param_groups}
    assert rates == {3.0}


def test_what_would_train_nothing_is_refused() -> None:
    model = tiny.tiny_model("qwen2_5_vl")
    freeze(model, ["vision"])
    assert trained(model) == {n for n, _ in model.named_parameters() if part_of(n) != "vision"}
    with pytest.raises(ConfigError, match=r"vision_lr is 1\.0, but no parameter of that part"):
        new_optimizer(model, lr=1.0, vision_lr=1.0, **RATES)
    new_optimizer(model, lr=1.0, merger_lr=1.0, **RATES)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model, ["text", "merger"])
    with pytest.raises(ConfigError, match="nothing is trained"):
        new_optimizer(model, lr=1.0, **RATES)


def test_adapters_are_the_same_for_a_seed_and_change_nothing_at_first() -> None:
    models = [tiny.tiny_model("qwen3_vl") for _ in range(3)]
    batch = tiny.pack(models[0], [[tiny.tiny_sample([(4, 4)], 5, 0)]])
    use_varlen(models[0])
    before = forward(models[0], batch)
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        targets = add_lora(model, LoRA(rank=2, alpha=4), seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(targets) == 3 * 7
    assert torch.equal(forward(models[0], batch), before)
    name = "model.language_model.layers.0.mlp.up_proj.lora_A.default.weight"
    a, b, c = (model.get_parameter(name) for model in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    text = {n for n in trained(models[0]) if part_of(n) == "text"}
    assert len(text) == 2 * len(targets)
    assert all("lora_" in n for n in text)
    assert any(part_of(n) == "vision" for n in trained(models[0]))


def test_adapters_may_be_few_or_for_nothing() -> None:
    model = tiny.tiny_model("qwen2_vl")
    freeze(model, ["merger"])
    targets = add_lora(model, LoRA(rank=2, alpha=4, target_modules=("q_proj",)), seed=0)
    assert len(targets) == 3
    assert not any(part_of(n) == "merger" for n in trained(model))
    with pytest.raises(ConfigError, match="adapters already"):
        add_lora(model, LoRA(rank=2, alpha=4), seed=0)
    other = tiny.tiny_model("qwen2_vl")
    with pytest.raises(ConfigError, match=r"qkv, x_proj are no linear layers.*down_proj"):
        add_lora(other, LoRA(rank=2, alpha=4, target_modules=("x_proj", "qkv")), seed=0)
    with pytest.raises(ConfigError, match="rank 0"):
        LoRA(rank=0, alpha=1)


def test_merged_weights_are_those_that_peft_merges() -> None:
    from peft.tuners.lora import LoraLayer

    model = tiny.tiny_model("qwen2_5_vl")
    plain = copy.deepcopy(model).state_dict()
    add_lora(model, LoRA(rank=3, alpha=5), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    merged = merged_weights(model, full_weights(model))
    assert merged.keys() == plain.keys()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            module.merge()
            torch.testing.assert_close(merged[f"{name}.weight"], module.base_layer.weight.detach())
            assert not torch.equal(merged[f"{name}.weight"], plain[f"{name}.weight"])
    for name in plain.keys() - {n for n in plain if "_proj" in n}:
        assert torch.equal(merged[name], plain[name])
    other = tiny.tiny_model("qwen2_5_vl", seed=1)
    other.load_state_dict(merged)


def test_casting_keeps_what_is_tied() -> None:
    weight, count = torch.ones(2), torch.tensor(3)
    cast = cast_weights({"a": weight, "b": weight, "c": count}, torch.bfloat16)
    assert cast["a"] is cast["b"]
    assert (cast["a"].dtype, cast["c"].dtype) == (torch.bfloat16, torch.int64)


def test_an_exported_folder_is_the_merged_model_in_its_dtype(tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    from omr_io.config import VisionConfig
    from omr_io.train.checkpoint import export_hf

    class NoTokenizer:
        def save(self, folder: str | Path) -> None:
            pass

    model = tiny.tiny_model("qwen3_vl")
    add_lora(model, LoRA(rank=3, alpha=5), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    weights = cast_weights(merged_weights(model, full_weights(model)), torch.bfloat16)
    export_hf(tmp_path, model, NoTokenizer(), VisionConfig(patch_size=4), weights=weights)
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[name]), name
