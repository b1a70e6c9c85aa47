"""Checkpoints of what lies on a GPU; never run where this was written, which has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from omr_io.train.checkpoint import Checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    """Kernels that were launched before count, those launched after do not."""
    model = nn.Linear(4096, 4096, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(3):  # the second and third use the staging memory again
            model(torch.rand(64, 4096, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            expected = model.weight.detach().clone()
            moment = optimizer.state[model.weight]["exp_avg"].clone()
            drawn_from = torch.cuda.get_rng_state()
            checkpoints.save(model, optimizer, {})
            with torch.no_grad():
                model.weight.mul_(7)
            torch.rand(3, device="cuda")
    again = nn.Linear(4096, 4096, device="cuda")
    state = torch.optim.AdamW(again.parameters(), fused=True)
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    saved.load_model(again)
    saved.load_optimizer(again, state)
    saved.load_random_state(seed=0)
    assert torch.equal(again.weight, expected)
    assert torch.equal(state.state[again.weight]["exp_avg"], moment)
    assert state.state[again.weight]["exp_avg"].device.type == "cuda"
    assert torch.equal(torch.cuda.get_rng_state(), drawn_from)
