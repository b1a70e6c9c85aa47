"""What a recipe is refused for once its data and its model are known: before a run begins."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.train.model import TokenIds
from omr_io.train.profiling import WARM_STEPS
from omr_io.train.recipe import Recipe
from omr_io.types import Int64Array


def check_samples(
    recipe: Recipe, train_set: ShardSet, test_set: ShardSet, rl_samples: Int64Array
) -> None:
    """Refuse splits that evaluation or RL could not use. RL counts if it makes steps.

    Raises:
        ConfigError: see `check_options` and `check_fields`; or the test split is empty.
    """
    if not len(test_set):
        raise ConfigError("data: test has no samples", mend="Name a set to evaluate on")
    check_options(test_set, range(len(test_set)), "evaluation")
    check_fields(recipe, test_set)
    if recipe.rl.steps:
        check_options(train_set, rl_samples, "RL")
        check_fields(recipe, train_set)


def check_options(shards: ShardSet, samples: Sequence[int] | Int64Array, purpose: str) -> None:
    """Refuse open-ended samples, whose answers are free text, where a letter is compared.

    Args:
        samples: their numbers.
        purpose: what needs the options, for the error.

    Raises:
        ConfigError: a sample has no options; it names the first.
    """
    numbers = np.asarray(samples, np.int64)
    without = numbers[shards.num_options[numbers] == 0]
    if len(without):
        raise ConfigError(
            f"{len(without)} of {len(numbers)} samples for {purpose} have no options to choose "
            f"from, the first is {shards.key(int(without[0]))}",
            mend="Train and evaluate letters on multiple-choice sets; open-ended ones suit SFT",
        )


def check_fields(recipe: Recipe, shards: ShardSet) -> None:
    """Refuse a cluster_field or task_field that the set's first sample does not have.

    Raises:
        ConfigError: names the fields that it has.
    """
    wanted = {key: getattr(recipe.evaluation, key) for key in ("cluster_field", "task_field")}
    if not any(wanted.values()) or not len(shards):
        return
    extra = shards.read_record(0, images=False).extra
    for key, name in wanted.items():
        if name and name not in extra:
            raise ConfigError(
                f"evaluation: {key} is {name!r}, and {shards.key(0)} has no such field",
                mend=f"It has {', '.join(sorted(extra)) or 'none'}; or leave {key} out",
            )


def check_engine(recipe: Recipe, device: torch.device) -> None:
    """Refuse a rollout engine that cannot be had, which would else be found out after SFT.

    Raises:
        ConfigError: vLLM is not installed, or there is no GPU.
    """
    if not recipe.rl.steps or recipe.rl.engine != "vllm":
        return
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rl: engine is 'vllm', and vLLM is not installed",
            mend="pip install 'omr_io[vllm]', or use engine transformers",
        )
    if device.type != "cuda":
        raise ConfigError(
            f"rl: engine is 'vllm', and this rank computes on {device}",
            mend="Use engine transformers, or a machine with GPUs",
        )


def check_profile(steps: int) -> None:
    """Refuse to trace a run that ends before the first step that would be traced.

    Args:
        steps: of SFT that are left.

    Raises:
        ConfigError: there are too few.
    """
    if steps <= WARM_STEPS:
        raise ConfigError(
            f"--profile leaves {WARM_STEPS} steps of SFT out before it traces, and {steps} are "
            "left",
            mend=f"Give SFT at least {WARM_STEPS + 1} steps, or leave --profile out",
        )


def check_vision(recipe: VisionConfig, model: VisionConfig) -> None:
    """Refuse a recipe whose images would be cut or normalised otherwise than the model's own.

    The bounds on pixels, orientation and pass order are the recipe's to choose.

    Raises:
        ConfigError: names every field that differs.
    """
    chosen = ("min_pixels", "max_pixels", "exif", "pass_order")
    names = [f.name for f in dataclasses.fields(VisionConfig) if f.name not in chosen]
    differing = [
        f"{name} (recipe {getattr(recipe, name)!r}, model {getattr(model, name)!r})"
        for name in names
        if getattr(recipe, name) != getattr(model, name)
    ]
    if differing:
        raise ConfigError(
            f"the recipe's vision is not the model's: {', '.join(differing)}",
            mend="Set these keys of vision to the model's values (temporal_patch_size may be 1)",
        )


def check_token_ids(model: Any, ids: TokenIds, vocab_size: int) -> None:
    """Refuse a tokenizer that is not the model's: another's ids would be other words.

    Args:
        vocab_size: of the tokenizer.

    Raises:
        ConfigError: an image token's id differs, or there are more ids than embeddings.
    """
    mend = "Leave model: tokenizer out, or name the one that the model was trained with"
    names = {
        "image_token_id": ids.image_pad,
        "video_token_id": ids.video_pad,
        "vision_start_token_id": ids.vision_start,
        "vision_end_token_id": ids.vision_end,
    }
    for name, here in names.items():
        there = getattr(model.config, name, here)
        if there != here:
            raise ConfigError(f"{name} is {here} in the tokenizer and {there} in the model",
                              mend=mend)  # fmt: skip
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size > rows:
        raise ConfigError(
            f"the tokenizer has {vocab_size:,} ids, and the model {rows:,} embeddings", mend=mend
        )
