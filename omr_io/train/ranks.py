"""What the ranks of a run tell each other: sums, agreements, objects.

One process needs no process group: then every call answers at once. With several, calls are
collective: every rank must make them, in the same order.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from omr_io.errors import OmrError, TrainingError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This rank among those of the run.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: how many there are.
        device: where this rank computes, and where what NCCL sends must be.
        group: the torch.distributed process group they speak through; None for the default one.
        timeout_seconds: how long a rank waits for the others; None: torch.distributed's own.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None
    timeout_seconds: float | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    def on_host(self) -> Ranks:
        """The same ranks by a gloo group of their own, on the CPU. Collective.

        For what must neither wait for a GPU nor get between other calls: agreements of every micro
        step, and what a thread tells other ranks' threads.
        """
        group = None
        if dist.is_initialized():
            seconds = self.timeout_seconds  # a new group does not take the default group's
            timeout = None if seconds is None else datetime.timedelta(seconds=seconds)
            group = dist.new_group(backend="gloo", timeout=timeout)
        return replace(self, device=torch.device("cpu"), group=group)

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64."""
        if self.world_size == 1:
            return [float(value) for value in values]
        # NCCL and gloo both take float64; a sum of counts must not round.
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group)
        return [float(value) for value in total.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sums([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank. For small Python objects."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(self.group)


def on_first(ranks: Ranks, function: Callable[[], object]) -> None:
    """Let the first rank do what is done once, while the others wait for it. Collective.

    Raises:
        OmrError: what it raised, on every rank. Anything else is raised on the first rank, and
            the others end with a TrainingError.
    """
    failed: Exception | None = None
    told: OmrError | None = None
    if ranks.is_first:
        try:
            function()
        except Exception as error:
            failed = error
            told = error if isinstance(error, OmrError) else _of_the_first(error)
    told = ranks.gather(told)[0]
    if failed is not None:
        raise failed
    if told is not None:
        raise told


def _of_the_first(error: Exception) -> TrainingError:
    return TrainingError(
        f"the first rank failed: {type(error).__name__}: {error}", mend="See what it says"
    )


def environment_ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun says; (0, 1, 0) without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world_size, local_rank = (int(os.environ.get(name, 0)) for name in names)
    return rank, max(1, world_size), local_rank
