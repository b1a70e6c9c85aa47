"""A checkpoint that was found valid: what it holds, put where it belongs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omr_io.errors import ResumeError, Where
from omr_io.train.checkpoint import folder
from omr_io.train.checkpoint.random_states import seed_random_state, set_random_state
from omr_io.train.checkpoint.tree import from_json, tensor_names
from omr_io.train.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Saved:
    """A verified checkpoint. With several ranks every method is collective.

    Attributes:
        path: its folder.
        progress: what `Checkpoints.save` was given.
        world_size: how many ranks wrote it.
    """

    path: Path
    progress: Mapping[str, Any]
    world_size: int
    _ranks: Ranks
    _tree: Mapping[str, Any]
    _tensors: Mapping[str, Any]

    @classmethod
    def of(
        cls, path: Path, ranks: Ranks, tree: Mapping[str, Any], tensors: Mapping[str, Any]
    ) -> Saved:
        """The checkpoint in a folder, by what its state.json says."""
        saved = cls(path, {}, len(tree["rng"]), ranks, tree, tensors)
        progress = saved._plain(tree["progress"])
        return cls(path, progress, len(tree["rng"]), ranks, tree, tensors)

    def load_model(self, model: nn.Module) -> None:
        """Put the model's tensors back, in place, however they are sharded now.

        Raises:
            ResumeError: the model has other tensors, shapes or dtypes; it names one.
        """
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
            set_model_state_dict,
        )

        present: Any = get_model_state_dict(model)
        stored: dict[str, str] = from_json(self._tree["model"], lambda name: name)
        self._same("tensor of the model", present.keys(), stored.keys())
        targets: dict[str, Tensor] = {}
        for name, tensor in present.items():
            what = self._tensors[stored[name]]
            now = f"{list(tensor.shape)} {_dtype_name(tensor)}"
            then = f"{what['shape']} {what['dtype']}"
            if now != then:
                raise self._refusal(f"{name} is {then} there, and {now} in this model")
            targets.setdefault(stored[name], tensor)
        self._read(targets)
        for name, tensor in present.items():  # two that were one when they were saved
            if targets[stored[name]] is not tensor:
                tensor.copy_(targets[stored[name]])
        set_model_state_dict(model, present)

    def load_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the optimiser's state back. `optimizer` is of the model's parameters as they are now.

        Raises:
            ResumeError: it is of other parameters, or of another kind.
        """
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        if self._tree["optimizer"] is None:
            return  # saved before its first step
        parameters: Any = get_model_state_dict(model)
        like: dict[str, Tensor] = {}
        # Which parameter a tensor belongs to decides how it is sharded.
        names = from_json(self._tree["optimizer"], lambda name: name)
        for parameter, values in names["state"].items():
            for name in values.values():
                if name in self._tensors and parameter in parameters:
                    like[name] = parameters[parameter]
        tensors = {
            name: _empty(self._tensors[name], like.get(name))
            for name in tensor_names(self._tree["optimizer"])
        }
        self._read(tensors)
        state = from_json(self._tree["optimizer"], tensors.__getitem__)
        saved_groups = [list(group["params"]) for group in state["param_groups"]]
        self._check_kind(optimizer, state["param_groups"])
        try:
            # Not strict: a parameter that never had a gradient has no state.
            options = StateDictOptions(strict=False)
            set_optimizer_state_dict(model, optimizer, state, options=options)
            present: Any = get_optimizer_state_dict(model, optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise self._refusal(f"its optimiser is not this one: {error}") from error
        groups = [group["params"] for group in present["param_groups"]]
        for group, saved in zip(groups, saved_groups, strict=False):
            self._same("parameter of an optimiser's group", group, saved)
        if len(saved_groups) != len(groups):
            raise self._refusal(f"its optimiser has {len(saved_groups)} groups, not {len(groups)}")

    def _check_kind(self, optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
        """Refuse another kind of optimiser, whose state torch would put in and never look at."""
        now, then = set(optimizer.param_groups[0]), set(saved[0])
        # Both ways: a torch of another version may know an option more, or a scheduler adds one.
        unknown, missing = then - now - {"initial_lr"}, optimizer.defaults.keys() - then
        if unknown and missing:
            raise self._refusal(
                f"its optimiser is of another kind than {type(optimizer).__name__}: it has "
                f"{', '.join(sorted(unknown))}, and not {', '.join(sorted(missing))}"
            )

    def load_random_state(self, *, seed: int) -> None:
        """Put this rank's random state back.

        A rank that had none, since there were fewer, is seeded anew from the run's seed and its
        number; a CheckpointWarning says so.
        """
        states = self._tree["rng"]
        if self._ranks.rank < len(states):
            set_random_state(self._plain(states[self._ranks.rank]))
        else:
            self._plain([])  # all ranks take part
            seed_random_state(seed, self._ranks.rank)
        if self._ranks.is_first and self._ranks.world_size > len(states):
            warnings.warn(
                f"{self.path.name} was saved by {len(states)} ranks; the random states of the "
                f"other {self._ranks.world_size - len(states)} are seeded anew",
                folder.CheckpointWarning, stacklevel=2,
            )  # fmt: skip

    def _plain(self, tree: Any) -> Any:
        """A part of the tree that every rank has whole, on the host."""
        tensors = {name: _empty(self._tensors[name], None) for name in tensor_names(tree)}
        self._read(tensors)
        return from_json(tree, tensors.__getitem__)

    def _read(self, tensors: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        from omr_io.train.checkpoint.storage import Reader, load_tensors

        try:
            with torch.no_grad():
                load_tensors(dict(tensors), Reader(self.path, self._tensors), self._ranks.group)
        except CheckpointException as failed:
            rank, (error, _) = next(iter(failed.failures.items()))
            raise self._refusal(f"reading it failed on rank {rank}: {error}") from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise self._refusal(f"reading it failed: {error}") from error

    def _same(self, kind: str, present: Any, saved: Any) -> None:
        for name in present:
            if name not in saved:
                raise self._refusal(f"it has no {kind} named {name}")
        for name in saved:
            if name not in present:
                raise self._refusal(f"it has a {kind} named {name}, and this run has none")

    def _refusal(self, what: str) -> ResumeError:
        return ResumeError(
            f"the checkpoint does not fit: {what}", where=Where(source=str(self.path)),
            mend="Go on with the recipe and the model that it was written with",
        )  # fmt: skip


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _empty(what: Mapping[str, Any], like: Tensor | None) -> Tensor:
    """A tensor for what is stored: sharded as its parameter is, if it has that shape."""
    from omr_io.train.checkpoint.storage import dtype_of

    if isinstance(like, DTensor) and list(like.shape) == what["shape"]:
        return torch.empty_like(like, dtype=dtype_of(what))
    return torch.empty(what["shape"], dtype=dtype_of(what))
