"""The state of a sharded model and its optimiser as whole tensors, which every rank has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from omr_io.train.gathering import full_tensor


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Load a whole state dict, which every rank has, into a model that may be sharded."""
    target = model.state_dict()
    model.load_state_dict({n: _placed_like(w, target.get(n)) for n, w in weights.items()})


def full_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state dict, whole, on every rank. Collective."""
    return _map_state(optimizer.state_dict(), lambda _, value: full_tensor(value))


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load what `full_optimizer` gave, which every rank has."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def place(number: int, value: Tensor) -> Tensor:
        like = parameters[number]
        return _placed_like(value, like) if value.shape == like.shape else value

    optimizer.load_state_dict(_map_state(saved, place))


def _map_state(state: Mapping[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    tensors = {
        number: {k: change(number, v) if isinstance(v, Tensor) else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": tensors}


def _placed_like(value: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor, where `like` is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    # Every rank has the whole: no rank need send another its part.
    whole = value.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
