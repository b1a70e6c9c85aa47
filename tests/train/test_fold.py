"""One frame a patch: equal features, a configuration that says so, a file that loads again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omr_io.errors import ConfigError
from omr_io.images.cpu_patches import patches
from omr_io.train.fold import fold_frames, fold_weight
from omr_io.types import PatchLayout, PatchTarget
from tests.train.tiny_models import FAMILIES, tiny_model

GRID = torch.tensor([[1, 4, 6]])


def pixels(frames: int) -> torch.Tensor:
    """An image as patches of so many frames."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 41, 3), dtype=np.uint8)
    table = rng.standard_normal((3, 256)).astype(np.float32)
    return patches([image], [PatchTarget(16, 24, PatchLayout(4, 4, 2, frames))], table)


def features(model: Any, values: torch.Tensor) -> list[torch.Tensor]:
    """All outputs of the vision tower, deepstack's too."""
    with torch.no_grad():
        output = model.model.get_image_features(values, GRID, return_dict=True)
    deep = getattr(output, "deepstack_features", None) or ()
    return [torch.cat(tuple(output.pooler_output)), *(torch.cat(tuple(d)) for d in deep)]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_image_repeated(family: str) -> None:
    model = tiny_model(family)
    whole = pixels(2)
    assert torch.equal(whole.view(-1, 3, 2, 16)[:, :, 0], pixels(1).view(-1, 3, 16))
    expected = features(model, whole)
    fold_frames(model)
    result = features(model, pixels(1))
    assert len(result) == len(expected)
    for one, other in zip(result, expected, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    fold_frames(model)  # once more changes nothing
    assert all(torch.equal(a, b) for a, b in zip(features(model, pixels(1)), result, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_saved_and_loaded_as_such(family: str, tmp_path: Path) -> None:
    from omr_io.train.model import load_model

    model = tiny_model(family)
    fold_frames(model)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config.vision_config.temporal_patch_size == 1
    weight = again.model.visual.patch_embed.proj.weight
    assert torch.equal(weight, model.model.visual.patch_embed.proj.weight)
    for one, other in zip(features(again, pixels(1)), features(model, pixels(1)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_each_frame() -> None:
    """What the docstring says of learning rates."""
    model = tiny_model("qwen3_vl")
    for folded in (False, True):
        if folded:
            fold_frames(model)
        values = pixels(1 if folded else 2)
        output = model.model.get_image_features(values, GRID, return_dict=True)
        model.zero_grad()
        torch.cat(tuple(output.pooler_output)).square().sum().backward()
        gradient = model.model.visual.patch_embed.proj.weight.grad
        if not folded:
            each = gradient.clone()
    torch.testing.assert_close(gradient[:, :, 0], each[:, :, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient[:, :, 0], each[:, :, 1], rtol=1e-4, atol=1e-4)


def test_a_bfloat16_weight_is_rounded_once() -> None:
    weight = torch.randn(4, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (weight[:, :, 0].double() + weight[:, :, 1].double()).float().bfloat16()
    assert torch.equal(fold_weight(weight)[:, :, 0], expected)


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no patch embedding"):
        fold_frames(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="not \\(4, 3\\)"):
        fold_weight(torch.zeros(4, 3))


@pytest.mark.parametrize("saved", [False, True])
def test_a_recipe_folds_by_its_vision(saved: bool, tmp_path: Path) -> None:
    """The demo's model, or one from a folder that has two frames."""
    from omr_io.train.checkpoint import export_hf
    from omr_io.train.model import TokenIds
    from omr_io.train.recipe import load_recipe
    from omr_io.train.run import get_model

    ids = TokenIds(5, 6, 7, 8, 1, 0)
    tokens: Any = SimpleNamespace(vocab_size=99, save=lambda root: None)
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/demo.yaml")
    whole = get_model(recipe, tokens, ids)
    if saved:
        export_hf(tmp_path, whole, tokens, recipe.vision)
        model = dataclasses.replace(recipe.model, path=str(tmp_path))
        recipe = dataclasses.replace(recipe, model=model)
    vision = dataclasses.replace(recipe.vision, temporal_patch_size=1)
    folded = get_model(dataclasses.replace(recipe, vision=vision), tokens, ids)
    weight = folded.model.visual.patch_embed.proj.weight
    assert torch.equal(weight, fold_weight(whole.model.visual.patch_embed.proj.weight))
    assert get_model(recipe, tokens, ids).config.vision_config.temporal_patch_size == 2
