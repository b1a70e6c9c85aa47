"""Checkpoints of several ranks: FSDP2 over gloo, and other numbers of ranks afterwards."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # optimisers import it at their first step: once here, not in every rank
import torch.distributed.checkpoint.state_dict
import torch.distributed.tensor._ops
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from omr_io.errors import DiskError, IntegrityError
from omr_io.train.checkpoint import Checkpoints, CheckpointWarning, random_state, storage
from omr_io.train.ranks import Ranks
from tests.train.gloo_ranks import on_ranks


class Net(nn.Module):
    """Shapes that do not divide by the ranks, a weight with one row, tied and frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 5))
        self.gate = nn.Linear(5, 1)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.body[2].bias.requires_grad_(False)
        self.register_buffer("scale", torch.full((2,), 0.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.body(x) * self.gate(x).sigmoid() * self.scale[0]
        return self.head(x)


def make(ranks: Ranks) -> tuple[Net, torch.optim.Optimizer]:
    """A model, sharded if there are several ranks, and its optimiser."""
    torch.manual_seed(0)
    model = Net()
    if ranks.world_size > 1:
        mesh = init_device_mesh("cpu", (ranks.world_size,))
        fully_shard(model.body, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=1e-2)


def train(model: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """The same batch on every rank, so that any number of ranks has (nearly) the same curve."""
    losses = []
    for step in range(first, last):
        ids = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def everything(model: Net, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint must bring back, gathered."""
    tensors = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{number} {name}": whole(tensor).clone() for name, tensor in values.items()}
    return tensors


def run(ranks: Ranks, folder: Path, world_size: int) -> None:
    """Train 3 steps, save, train 3 more; the file has what was saved and the curve after it."""
    model, optimizer = make(ranks)
    train(model, optimizer, 0, 3)
    for draw in (torch.rand, np.random.rand):
        draw(ranks.rank + 1)  # random states differ by rank
    with Checkpoints(folder / "checkpoints", ranks) as checkpoints:
        checkpoints.save(model, optimizer, {"step": 3, "rank 0": torch.arange(3)})
        saved = everything(model, optimizer)
        drawn = float(torch.rand(())), float(np.random.rand()), random.random()
        losses = train(model, optimizer, 3, 6)
    told = ranks.gather(drawn)
    if ranks.is_first:
        torch.save((saved, losses, told), folder / "expected.pt")


def go_on(ranks: Ranks, folder: Path, world_size: int) -> None:
    """Load and compare; with as many ranks as before everything is equal to the bit."""
    saved, losses, drawn = torch.load(folder / "expected.pt")
    model, optimizer = make(ranks)
    train(model, optimizer, 10, 11)  # anything else
    with Checkpoints(folder / "checkpoints", ranks) as checkpoints:
        latest = checkpoints.latest()
    assert latest is not None
    assert latest.world_size == world_size
    assert latest.progress["step"] == 3
    assert latest.progress["rank 0"].tolist() == [0, 1, 2]
    latest.load_model(model)
    latest.load_optimizer(model, optimizer)
    got = everything(model, optimizer)
    assert got.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(got[name], tensor), name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        latest.load_random_state(seed=5)
    mine = float(torch.rand(())), float(np.random.rand()), random.random()
    if ranks.rank < world_size:
        assert mine == drawn[ranks.rank]
    said = [str(w.message) for w in caught]
    if ranks.is_first and ranks.world_size > world_size:
        assert "are seeded anew" in said[0]
    else:
        assert said == []
    everyone = ranks.gather(mine)
    assert len(set(everyone)) == ranks.world_size
    resumed = train(model, optimizer, 3, 6)
    if ranks.world_size == world_size:
        assert resumed == losses
    assert resumed == pytest.approx(losses, rel=1e-5)


SLOW_2_3 = pytest.param(2, 3, marks=pytest.mark.slow)
SLOW_3_2 = pytest.param(3, 2, marks=pytest.mark.slow)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2), SLOW_2_3, SLOW_3_2])
def test_any_number_of_ranks_goes_on(tmp_path: Path, before: int, after: int) -> None:
    on_ranks(before, tmp_path / "before", lambda ranks: run(ranks, tmp_path, before))
    names = {path.name for path in (tmp_path / "checkpoints/checkpoint-000001").iterdir()}
    files = {f"rank-{rank:05d}.safetensors" for rank in range(before)}
    assert names == {"manifest.json", "state.json"} | files
    on_ranks(after, tmp_path / "after", lambda ranks: go_on(ranks, tmp_path, before))


def test_new_ranks_are_seeded_by_the_recipe(tmp_path: Path) -> None:
    on_ranks(1, tmp_path / "before", lambda ranks: run(ranks, tmp_path, 1))

    def first_draws(ranks: Ranks) -> None:
        draws = []
        for seed in (5, 5, 6):
            with Checkpoints(tmp_path / "checkpoints", ranks) as checkpoints:
                latest = checkpoints.latest()
            assert latest is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CheckpointWarning)
                latest.load_random_state(seed=seed)
            draws.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        assert draws[0] == draws[1]
        assert (draws[1] == draws[2]) == (ranks.rank == 0)

    on_ranks(2, tmp_path / "after", first_draws)


def test_a_corrupt_file_of_one_rank_is_seen_by_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        model, optimizer = make(ranks)
        train(model, optimizer, 0, 1)
        with Checkpoints(tmp_path / "checkpoints", ranks) as checkpoints:
            for step in (1, 2):
                checkpoints.save(model, optimizer, {"step": step})
            checkpoints.wait()
            ranks.barrier()
            if ranks.is_first:
                path = tmp_path / "checkpoints/checkpoint-000002/rank-00001.safetensors"
                data = bytearray(path.read_bytes())
                data[-1] ^= 1
                path.write_bytes(data)
            ranks.barrier()
            with pytest.raises(IntegrityError, match="rank-00001"):
                checkpoints.load("checkpoint-000002")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", CheckpointWarning)
                latest = checkpoints.latest()
            assert latest is not None
            assert latest.progress["step"] == 1
            assert len(caught) == ranks.is_first

    on_ranks(2, tmp_path / "ranks", work)


def test_a_rank_that_cannot_write_fails_the_save_on_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        real = storage.write_tensors

        def full(*args: Any) -> Any:
            if ranks.rank == 1:
                raise OSError("no space left on device")
            return real(*args)

        model, optimizer = make(ranks)
        train(model, optimizer, 0, 1)
        with Checkpoints(tmp_path / "checkpoints", ranks) as checkpoints:
            checkpoints.save(model, optimizer, {"step": 1})
            checkpoints.wait()
            storage.write_tensors = full
            checkpoints.save(model, optimizer, {"step": 2})
            with pytest.raises(DiskError, match="on rank 1: no space left"):
                checkpoints.wait()
            storage.write_tensors = real
            latest = checkpoints.latest()
            assert latest is not None
            assert latest.progress["step"] == 1
            checkpoints.save(model, optimizer, {"step": 3})

    on_ranks(2, tmp_path / "ranks", work)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [".lock", "checkpoint-000001", "checkpoint-000002"]


def test_saving_does_not_draw_random_numbers(tmp_path: Path) -> None:
    model, optimizer = make(Ranks())
    train(model, optimizer, 0, 1)
    before = random_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, optimizer, {})
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
