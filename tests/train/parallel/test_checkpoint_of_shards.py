"""Checkpoints of the models that `shard` makes: adapters, bfloat16, tied weights; 1 and 2 ranks."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # here, so that forked ranks need not
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
from torch import Tensor
from torch.distributed.tensor import DTensor

from omr_io.train.checkpoint import Checkpoints, storage
from omr_io.train.gathering import is_sharded
from omr_io.train.parallel import shard
from omr_io.train.parameters import LoRA, add_lora, freeze, new_optimizer
from omr_io.train.ranks import Ranks
from tests.train.gloo_ranks import on_ranks
from tests.train.parallel.cases import make

assert storage  # imported here, so that forked ranks need not


def prepared(ranks: Ranks, lora: bool, dtype: torch.dtype) -> tuple[Any, torch.optim.Optimizer]:
    model = make("qwen3_vl", tied=True)
    if lora:
        add_lora(model, LoRA(rank=2, alpha=4), seed=1)
    freeze(model, ["vision"])
    shard(model, ranks, dtype=dtype)
    return model, new_optimizer(model, lr=1e-2, weight_decay=0.1, beta2=0.99)


def update(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Gradients that are the same for any number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                from torch.distributed.tensor import distribute_tensor

                gradient = distribute_tensor(
                    gradient, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def everything(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    def whole(tensor: Any) -> Tensor:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return full.detach().clone()

    found = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        found |= {f"{number} {name}": whole(tensor) for name, tensor in values.items()}
    return found


def alone(folder: Path, function: Any) -> None:
    """One process without a process group, forked: `shard` makes a group of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(Ranks())
            code = 0
        except BaseException:
            folder.with_suffix(".error").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, folder.with_suffix(".error").read_text()


SLOW = [
    pytest.param(lora, dtype, marks=pytest.mark.slow)
    for lora, dtype in ((False, torch.float32), (True, torch.float32), (False, torch.bfloat16))
]


@pytest.mark.parametrize(("lora", "dtype"), [*SLOW, (True, torch.bfloat16)])
def test_any_number_of_ranks_goes_on(tmp_path: Path, lora: bool, dtype: torch.dtype) -> None:
    def save(ranks: Ranks) -> None:
        model, optimizer = prepared(ranks, lora, dtype)
        assert is_sharded(model)
        update(model, optimizer, 1)
        with Checkpoints(tmp_path / "checkpoints", ranks) as checkpoints:
            checkpoints.save(model, optimizer, {})
            saved = everything(model, optimizer)
            update(model, optimizer, 2)
        later = everything(model, optimizer)
        if ranks.is_first:
            torch.save((saved, later), tmp_path / "expected.pt")

    def load(ranks: Ranks) -> None:
        saved, later = torch.load(tmp_path / "expected.pt")
        model, optimizer = prepared(ranks, lora, dtype)
        with Checkpoints(tmp_path / "checkpoints", ranks) as checkpoints:
            latest = checkpoints.latest()
        assert latest is not None
        latest.load_model(model)
        latest.load_optimizer(model, optimizer)
        for expected in (saved, later):
            got = everything(model, optimizer)
            assert got.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(got[name], tensor), name
            update(model, optimizer, 2)

    on_ranks(2, tmp_path / "save", save)
    on_ranks(2, tmp_path / "load2", load)
    alone(tmp_path / "load1", load)
