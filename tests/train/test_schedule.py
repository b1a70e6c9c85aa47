"""The learning rate of train_example.py against its formula in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import train_example
from omr_io.train.parameters import new_optimizer
from omr_io.train.recipe import SFTRecipe
from tests.train import tiny_models as tiny


def rates(**fields: Any) -> list[float]:
    phase = SFTRecipe(lr=1.0, **fields)
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)], "lr": 2.0, "base_lr": 2.0}])
    found = []
    for step in range(1, phase.steps + 1):
        train_example.set_learning_rate(optimizer, step, phase)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_it_rises_to_the_groups_own_and_falls_along_a_cosine() -> None:
    found = rates(steps=10, warmup=0.4, min_lr_share=0.25)
    assert found[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert found[6] == pytest.approx(2 * (0.25 + 0.75 / 2))  # half of the way down
    assert found[9] == pytest.approx(2 * 0.25)
    cosine = [2 * (0.25 + 0.75 * (1 + math.cos(math.pi * i / 6)) / 2) for i in range(1, 7)]
    assert found[4:] == pytest.approx(cosine)


def test_there_is_no_step_at_a_rate_of_nothing_but_the_last() -> None:
    assert rates(steps=1) == [2.0]
    assert rates(steps=1, warmup=0.0, min_lr_share=0.0) == [2.0]
    assert rates(steps=2, warmup=1.0) == [1.0, 2.0]
    assert rates(steps=3, warmup=0.0, min_lr_share=0.0) == pytest.approx([2.0, 1.0, 0.0])


def test_it_follows_from_the_step_alone_in_every_group() -> None:
    """A resumed run has other rates in its optimiser, and must not go on from those."""
    model = tiny.tiny_model("qwen3_vl")
    optimizer = new_optimizer(
        model, lr=1e-3, merger_lr=1e-4, vision_lr=1e-5, weight_decay=0.1, beta2=0.99
    )
    phase = SFTRecipe(lr=1e-3, steps=100, warmup=0.1)
    for step in (90, 5):
        train_example.set_learning_rate(optimizer, step, phase)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4, 5e-5, 5e-6}
