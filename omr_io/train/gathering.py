"""Of a sharded model what is whole: parameters for generation, weights for a file, a norm.

All of it works on a model that is not sharded too, and is collective on one that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omr_io.train.model import FORWARD_METHOD, GATHERED, release_root


def is_sharded(model: Any) -> bool:
    """Whether `shard` went through FSDP2."""
    return hasattr(model, FORWARD_METHOD)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """All parameters whole on every rank, in the dtype of computation, as generation needs them.

    Ranks generate unevenly many tokens, so nothing may be gathered step by step. It takes one
    all-gather of the model (2 bytes a parameter in bfloat16, beside the shards) on entering: 16 GB
    on each GPU for 8 B parameters. Within, the model may be called as if it were not sharded; no
    gradient is computed. It may be nested. A model that is not sharded is left alone.

    Collective: every rank enters.
    """
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if getattr(model, GATHERED, False):
        with torch.no_grad():
            yield
        return
    setattr(model, GATHERED, True)
    try:
        model.set_reshard_after_forward(False)
        for module in modules:
            module.unshard()
        with torch.no_grad():
            yield
    finally:
        for module in modules:
            module.reshard()
            # The root keeps its parameters from the forward to the backward pass.
            module.set_reshard_after_forward(module is not model, recurse=False)
        setattr(model, GATHERED, False)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor whole: gathered if it is sharded (collective), else itself."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def full_weights(model: Any) -> dict[str, Tensor]:
    """A copy of the model's state dict, whole and on the CPU, on the first rank; {} elsewhere.

    One tensor at a time, so a GPU holds no more than its largest beside its own part. Collective.
    """
    first = True
    if is_sharded(model):
        first = dist.get_rank() == 0
        release_root(model)
    weights: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # a tied weight stays one tensor, gathered once on every rank
    for name, value in model.state_dict(keep_vars=True).items():
        known = names.setdefault(id(value), name)
        whole = full_tensor(value.detach()) if known == name else None
        if first:
            weights[name] = weights[known] if whole is None else whole.to("cpu", copy=True)
    return weights


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a norm of at most max_norm over all ranks' parts; returns the norm before.

    Every rank gets the same norm, not finite if any part of any gradient is not. Collective.
    """
    return float(full_tensor(nn.utils.clip_grad_norm_(list(parameters), max_norm)))
