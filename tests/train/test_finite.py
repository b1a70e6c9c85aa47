from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omr_io.errors import TrainingError
from omr_io.train.finite import check_finite
from omr_io.train.ranks import Ranks
from tests.train.gloo_ranks import on_ranks


def step(ranks: Ranks, path: Path, bad: float | None, number: int, model: nn.Module) -> None:
    """A step of data-parallel training; `bad` goes into this rank's input."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x = torch.ones(2, 3) * (ranks.rank + 1)
    if bad is not None:
        x[0, 0] = bad
    loss = model(x).pow(2).sum()
    loss.backward()
    if ranks.world_size > 1:
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    keys = [f"rank {ranks.rank} sample {i}" for i in range(12)]
    check_finite(
        ranks, loss=loss.item(), gradient_norm=norm.item(), phase="sft", step=number,
        keys=keys, path=path,
    )  # fmt: skip
    optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_rank_that_is_not_finite_stops_all(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "not-finite.json"

    def work(ranks: Ranks) -> None:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        step(ranks, path, None, 6, model)
        before = [p.detach().numpy().tobytes() for p in model.parameters()]
        with pytest.raises(TrainingError) as stopped:
            step(ranks, path, bad if ranks.rank == 1 else None, 7, model)
        assert [p.detach().numpy().tobytes() for p in model.parameters()] == before
        assert path.exists()  # for every rank, before it ends
        words = str(stopped.value)
        assert "sft step 7" in words
        assert "on rank 1; no weight was changed" in words
        assert "rank 1 sample 0, " in words
        assert "rank 0" not in words

    on_ranks(2, tmp_path / "ranks", work)
    told = json.loads(path.read_text())
    assert (told["phase"], told["step"]) == ("sft", 7)
    (row,) = told["ranks"]
    assert row["rank"] == 1
    assert row["loss"] in ("nan", "inf")
    assert row["gradient_norm"] in ("nan", "inf")
    assert row["keys"] == [f"rank 1 sample {i}" for i in range(12)]


def check(path: Path, loss: float, norm: float) -> None:
    check_finite(
        Ranks(), loss=loss, gradient_norm=norm, phase="rl", step=1, keys=["a", "b"], path=path
    )


def test_a_gradient_alone_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "not-finite.json"
    check(path, 1e300, 0.0)
    assert not path.exists()
    with pytest.raises(TrainingError, match=r"loss is 0\.5 and the gradient norm inf on rank 0"):
        check(path, 0.5, math.inf)
    (row,) = json.loads(path.read_text())["ranks"]
    assert row == {"rank": 0, "loss": 0.5, "gradient_norm": "inf", "keys": ["a", "b"]}


def test_what_cannot_be_written_does_not_hide_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(ranks: Ranks) -> None:
        with pytest.raises(TrainingError, match="loss is nan") as stopped:
            check_finite(
                ranks, loss=math.nan, gradient_norm=1.0, phase="rl", step=1,
                keys=["a"], path=tmp_path / "file/not-finite.json",
            )  # fmt: skip
        assert "not-finite.json failed: " in str(stopped.value)

    on_ranks(2, tmp_path / "ranks", work)
