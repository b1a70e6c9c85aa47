"""What is refused once data and model are known."""

import dataclasses

import numpy as np
import pytest
import torch

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.train.model import DemoModelConfig, TokenIds, build_demo_model
from omr_io.train.recipe import load_recipe
from omr_io.train.run_checks import (
    check_engine,
    check_fields,
    check_options,
    check_profile,
    check_samples,
    check_token_ids,
    check_vision,
)
from tests.shard_sets import record, write

VISION = VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64)
RECIPE = """
name: x
data: {train: a, test: b, seq_len: 8, packs_per_step: 1}
sft: {steps: 1, lr: 1}
rl: {steps: %d, lr: 1, prompts_per_step: 1, group: 2, max_new_tokens: 1, engine: %s}
evaluation: {max_new_tokens: 1%s}
"""


def recipe(folder, evaluation="", *, rl_steps=1, engine="transformers"):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE % (rl_steps, engine, evaluation))
    return load_recipe(path)


def test_a_vision_that_is_not_the_models_is_refused() -> None:
    check_vision(VISION, VisionConfig(min_pixels=4096, max_pixels=8192, exif="ignore"))
    with pytest.raises(ConfigError, match=r"patch_size \(recipe 16, model 14\), image_mean"):
        check_vision(VISION, VisionConfig(patch_size=14, image_mean=(0.4, 0.5, 0.5)))


def test_open_ended_samples_are_refused_where_letters_are_compared(tmp_path) -> None:
    open_ended = record(7, options=(), answer="a knee", reasoning="")
    write(tmp_path / "s", [record(0), open_ended, record(2)])
    with ShardSet.open(tmp_path / "s") as opened:
        check_options(opened, [0, 2], "RL")
        check_options(opened, [], "RL")
        with pytest.raises(ConfigError, match=r"1 of 2 samples for RL .* first is case%2E0007"):
            check_options(opened, np.asarray([0, 1]), "RL")


def test_open_ended_training_samples_are_refused_only_where_rl_uses_them(tmp_path) -> None:
    open_ended = [record(n, options=(), answer="a knee", reasoning="") for n in range(3)]
    write(tmp_path / "open", open_ended)
    write(tmp_path / "closed", [record(n) for n in range(3)])
    numbers = np.arange(3)
    with ShardSet.open(tmp_path / "open") as a, ShardSet.open(tmp_path / "closed") as b:
        check_samples(recipe(tmp_path, rl_steps=0), a, b, numbers)
        with pytest.raises(ConfigError, match="3 of 3 samples for RL"):
            check_samples(recipe(tmp_path), a, b, numbers)
        with pytest.raises(ConfigError, match="3 of 3 samples for evaluation"):
            check_samples(recipe(tmp_path), b, a, numbers)


def test_a_field_that_samples_lack_is_refused(tmp_path) -> None:
    write(tmp_path / "s", [record(n) for n in range(3)])
    with ShardSet.open(tmp_path / "s") as opened:
        check_fields(recipe(tmp_path), opened)
        check_fields(recipe(tmp_path, ", cluster_field: study"), opened)
        with pytest.raises(ConfigError, match=r"task_field is 'task', .* It has study; or"):
            check_fields(recipe(tmp_path, ", cluster_field: study, task_field: task"), opened)


def test_vllm_without_vllm_or_a_gpu_is_refused(tmp_path, monkeypatch) -> None:
    cpu = torch.device("cpu")
    check_engine(recipe(tmp_path), cpu)
    check_engine(recipe(tmp_path, rl_steps=0, engine="vllm"), cpu)
    installed = {"vllm": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed[name])
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        check_engine(recipe(tmp_path, engine="vllm"), torch.device("cuda"))
    installed["vllm"] = "a spec"
    check_engine(recipe(tmp_path, engine="vllm"), torch.device("cuda"))
    with pytest.raises(ConfigError, match="this rank computes on cpu"):
        check_engine(recipe(tmp_path, engine="vllm"), cpu)


def test_a_tokenizer_that_is_not_the_models_is_refused() -> None:
    ids = TokenIds(image_pad=1, video_pad=2, vision_start=3, vision_end=4, eos=5, pad=6)
    model = build_demo_model(50, ids, seed=0, config=DemoModelConfig(num_hidden_layers=1))
    check_token_ids(model, ids, 50)
    check_token_ids(model, dataclasses.replace(ids, eos=7), 40)
    with pytest.raises(ConfigError, match="image_token_id is 9 in the tokenizer and 1 in the mod"):
        check_token_ids(model, dataclasses.replace(ids, image_pad=9), 50)
    with pytest.raises(ConfigError, match="51 ids, and the model 50 embeddings"):
        check_token_ids(model, ids, 51)


def test_too_few_steps_to_trace_are_refused() -> None:
    check_profile(4)
    with pytest.raises(ConfigError, match=r"leaves 3 steps of SFT out .* and 3 are left"):
        check_profile(3)
