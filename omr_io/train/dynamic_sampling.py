"""Which prompts a step of RL learns from: drawn in a seeded order, dealt to ranks, cut up.

All ranks together draw a step's prompts, round by round; each rolls out its share, and everyone is
told every group's completions and rewards (text and numbers, no pixels). So all ranks know the
step's whole list, and what follows from it is the same for any number of ranks: which groups are
dropped, when enough are there, which update a group belongs to. Ranks whose useful groups would
take longer to learn from than those of others give some away: the alternative, cutting all ranks to
the smallest count, throws away rollouts, which are most of a step's time, and makes the global
batch depend on the number of ranks. A group that moves costs one more reading of its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from omr_io.errors import ResumeError
from omr_io.train.ranks import Ranks
from omr_io.train.rewards import Reward
from omr_io.train.rollout import Completion
from omr_io.types import Int64Array

T = TypeVar("T")


class PromptOrder:
    """An endless seeded order of prompts, and how far it has been used: lap after lap of all.

    Args:
        samples: the numbers of RL's samples.
        seed: of the order.
    """

    def __init__(self, samples: Int64Array, seed: int) -> None:
        self._order = np.random.default_rng([seed, 1]).permutation(samples)
        self.used = 0

    def number(self, place: int) -> int:
        """The sample at a place, counted from 0."""
        return int(self._order[place % len(self._order)])

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs, as plain JSON."""
        return {"used": self.used, "samples": len(self._order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ResumeError: it is none, or of another number of samples.
        """
        used, samples = state.get("used"), state.get("samples")
        if type(used) is not int or used < 0 or samples != len(self._order):
            raise ResumeError(
                f"the checkpoint's place in RL's prompts is {dict(state)}, and there are "
                f"{len(self._order)} prompts",
                mend="Resume with the shard set and rl: samples of the run that was saved",
            )
        self.used = used


@dataclass(frozen=True, slots=True)
class Round:
    """Prompts that all ranks roll out together.

    Attributes:
        number: 0 for a step's first.
        first: the place of its first prompt in the order.
        count: how many there are, over all ranks.
        mine: this rank's, as offsets from `first`.
    """

    number: int
    first: int
    count: int
    mine: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt's completions and their rewards.

    Attributes:
        place: in the order of prompts.
        number: of the sample.
        completions, rewards: as many of each as the recipe's group.
        failure: why an image was replaced by a blank, or None: such a group is never learned from.
        cost: of learning from it, in any unit; `deal` evens it out over ranks.
    """

    place: int
    number: int
    completions: tuple[Completion, ...]
    rewards: tuple[Reward, ...]
    failure: str | None = None
    cost: int = 1

    @property
    def is_mixed(self) -> bool:
        """Whether some completions are right and some wrong, whatever else was rewarded."""
        return len({reward.accuracy for reward in self.rewards}) > 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came of drawing for a step, the same on every rank.

    Attributes:
        groups: those to learn from, in the order of prompts; at most `wanted`.
        tried: all that were rolled out, in that order.
        made_by: the rank that rolled out each of `groups`.
        wanted: how many groups a whole step has.
    """

    groups: tuple[Group, ...]
    tried: tuple[Group, ...]
    made_by: Mapping[int, int]
    wanted: int


def draw_groups(
    order: PromptOrder,
    roll_out: Callable[[Round], Sequence[Group]],
    *,
    wanted: int,
    only_mixed: bool,
    max_draws: int,
    ranks: Ranks,
) -> Drawn:
    """Roll out prompts until `wanted` groups are there.

    With `only_mixed`, groups that are all right or all wrong are dropped, and more prompts drawn:
    as many as should yield what is missing, at the rate so far. When `max_draws` x `wanted` prompts
    were tried, the step goes on with the groups it has, maybe none.

    `order.used` ends behind the last group that is learned from, or behind all that were tried if
    those were too few: a prompt that was rolled out in vain, beyond the last group wanted, comes
    again in the next step.

    Args:
        roll_out: this rank's part of a round, in order.
        ranks: collective: every rank draws.
    """
    tried: list[Group] = []
    kept: list[Group] = []
    made_by: dict[int, int] = {}
    start, limit, count, number = order.used, max_draws * wanted, wanted, 0
    while count:
        first = start + len(tried)
        mine = tuple(range(ranks.rank, count, ranks.world_size))
        made = ranks.gather(tuple(roll_out(Round(number, first, count, mine))))
        made_by |= {group.place: rank for rank, groups in enumerate(made) for group in groups}
        news = sorted((group for groups in made for group in groups), key=lambda g: g.place)
        tried += news
        useful = [group for group in news if group.failure is None]
        kept += [group for group in useful if group.is_mixed or not only_mixed]
        expected = math.ceil((wanted - len(kept)) * len(tried) / max(1, len(kept)))
        count = max(0, min(expected, wanted, limit - len(tried)))
        count = count if only_mixed else 0
        number += 1
    groups = tuple(kept[:wanted])
    order.used = groups[-1].place + 1 if len(kept) >= wanted else start + len(tried)
    return Drawn(groups, tuple(tried), made_by, wanted)


def minibatches(groups: Sequence[T], updates: int) -> Iterator[Sequence[T]]:
    """Cut a step's groups into `updates` runs whose sizes differ by at most one; none is empty."""
    count = min(updates, len(groups))
    for i in range(count):
        yield groups[i * len(groups) // count : (i + 1) * len(groups) // count]


def deal(groups: Sequence[Group], made_by: Mapping[int, int], ranks: Ranks) -> list[Group]:
    """This rank's share of an update's groups, in their order.

    Shares cost nearly the same, so that ranks have as many packs to go through. A rank keeps what
    it made but for what evens out the cost.
    """
    costs = np.array([group.cost for group in groups], np.int64)
    makers = np.array([made_by[group.place] for group in groups], np.int64)
    holders = _evened(costs, makers, ranks.world_size)
    return [group for group, rank in zip(groups, holders, strict=True) if rank == ranks.rank]


_WORTH = 100
"""A group moves if that takes a hundredth of a mean share off the dearest one: reading a prompt
again costs some milliseconds, an update seconds."""


def _evened(costs_n: Int64Array, holders_n: Int64Array, world_size: int) -> Int64Array:
    """Who holds each of n groups when the dearest share can no longer be made cheaper.

    Again and again the rank with the dearest share gives a group to another one, or exchanges it
    for a cheaper one: whichever leaves the dearer of the two the cheapest, and then the other one.
    Integers only, and the first of equals, so that all ranks arrive at the same.
    """
    holders_n = holders_n.copy()
    loads = np.zeros(world_size, np.int64)
    np.add.at(loads, holders_n, costs_n)
    least = int(loads.sum()) // (_WORTH * world_size)
    while True:
        dearest = int(loads.argmax())
        own = np.flatnonzero(holders_n == dearest)
        others = np.flatnonzero(holders_n != dearest)
        # What may come back: nothing, from each rank (itself: no gain), or a group of another one.
        givers = np.concatenate([np.arange(world_size), holders_n[others]])
        back = np.concatenate([np.zeros(world_size, np.int64), costs_n[others]])
        moved = costs_n[own, None] - back
        theirs = loads[givers] + moved
        dearer = np.maximum(loads[dearest] - moved, theirs)
        if not dearer.size or loads[dearest] - dearer.min() <= least:
            return holders_n
        best = np.flatnonzero(dearer == dearer.min())
        gift, place = divmod(int(best[theirs.flat[best].argmin()]), len(back))
        loads[dearest] -= moved[gift, place]
        loads[givers[place]] += moved[gift, place]
        holders_n[own[gift]] = givers[place]
        if place >= world_size:
            holders_n[others[place - world_size]] = dearest


def in_step(batches: Iterator[T], idle: Callable[[], T], ranks: Ranks) -> Iterator[tuple[T, bool]]:
    """Batches until no rank has one left, each with whether it counts.

    A rank that has run out gets `idle()`, to be computed and multiplied by 0: forward and backward
    passes of a sharded model are collective.
    """
    while True:
        batch = next(batches, None)
        if not ranks.any(batch is not None):
            return
        yield (idle(), False) if batch is None else (batch, True)
