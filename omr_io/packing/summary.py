"""What a plan comes to: steps, packing efficiency, tokens, and the balance of ranks.

Legend: w samples of one window, G packs a step, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from omr_io.errors import ConfigError
from omr_io.packing.epoch import EpochPlan
from omr_io.packing.lengths import Lengths
from omr_io.packing.plan import Plan, check_world
from omr_io.types import Int64Array

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MAX_DEFAULT_WORLD = 64


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How many tokens samples have: nearest-rank percentiles. All 0 where there are no samples."""

    least: int
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    p99: int
    most: int
    mean: float


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly the packs' costs (FLOPs) are spread over the ranks, as max / mean of a step.

    Attributes:
        world_size: ranks.
        packs_a_rank: of a step.
        batches_a_step: micro batches of a rank in a step.
        mean: over all steps.
        worst: of all steps; steps that are filled up with empty packs are the worst.
        worst_full: of the steps without empty packs; None if there is none.
    """

    world_size: int
    packs_a_rank: int
    batches_a_step: int
    mean: float
    worst: float
    worst_full: float | None


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What an epoch's plan comes to.

    Attributes:
        epoch, seq_len, packs_per_step: what was planned.
        windows, steps: of the epoch.
        packs: that hold samples.
        empty_packs: that fill up the last step of each window.
        efficiency: real tokens / capacity, empty packs included.
        samples: in the packs; a repeated one counts each time.
        dropped: samples longer than seq_len.
        tokens, text_tokens, image_tokens, label_tokens: of all packs.
        step_label_tokens: least, mean and most of a step.
        lengths: of the samples in the packs: tokens, text, images, labels.
        balance: an entry a world size.
    """

    epoch: int
    seq_len: int
    packs_per_step: int
    windows: int
    steps: int
    packs: int
    empty_packs: int
    efficiency: float
    samples: int
    dropped: int
    tokens: int
    text_tokens: int
    image_tokens: int
    label_tokens: int
    step_label_tokens: tuple[int, float, int]
    lengths: dict[str, Percentiles]
    balance: tuple[Balance, ...]


def default_world_sizes(packs_per_step: int) -> tuple[int, ...]:
    """1, 2, 4, ... 64, as far as they share the packs of a step evenly."""
    sizes = (1 << power for power in range(_MAX_DEFAULT_WORLD.bit_length()))
    return tuple(size for size in sizes if packs_per_step % size == 0)


def summarize(
    plan: EpochPlan,
    lengths: Lengths,
    *,
    world_sizes: Sequence[int] = (),
    packs_per_batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PlanSummary:
    """Plan every window once and sum up.

    Args:
        plan: of the epoch.
        lengths: that it was made of.
        world_sizes: to balance for; none: `default_world_sizes`.
        packs_per_batch: packs of a micro batch; None: a rank's packs of a step.
        progress: called with windows done and all windows.

    Raises:
        ConfigError: a world size or packs_per_batch does not divide the packs.
        SampleTooLongError, DataError: as for `EpochPlan.window`.
    """
    sizes = tuple(world_sizes) or default_world_sizes(plan.packs_per_step)
    batches = {size: _batches_a_step(plan.packs_per_step, size, packs_per_batch) for size in sizes}
    sums = _Sums({size: _Spread() for size in sizes})
    for number in range(plan.num_windows):
        sums.add(plan.window(number), lengths)
        progress(number + 1, plan.num_windows)
    balance = tuple(
        Balance(
            world_size=size,
            packs_a_rank=plan.packs_per_step // size,
            batches_a_step=batches[size],
            mean=spread.total / max(spread.steps, 1),
            worst=spread.worst,
            worst_full=spread.worst_full,
        )
        for size, spread in sums.spreads.items()
    )
    totals = {name: histogram.total for name, histogram in sums.lengths.items()}
    capacity = (sums.packs + sums.empty) * plan.seq_len
    label_mean = totals["labels"] / max(sums.steps, 1)
    return PlanSummary(
        epoch=plan.epoch,
        seq_len=plan.seq_len,
        packs_per_step=plan.packs_per_step,
        windows=plan.num_windows,
        steps=plan.num_steps,  # raises where no sample is left
        packs=sums.packs,
        empty_packs=sums.empty,
        efficiency=totals["tokens"] / capacity,
        samples=sums.samples,
        dropped=sums.dropped,
        tokens=totals["tokens"],
        text_tokens=totals["text"],
        image_tokens=totals["images"],
        label_tokens=totals["labels"],
        step_label_tokens=(sums.label_least, label_mean, sums.label_most),
        lengths={name: histogram.percentiles() for name, histogram in sums.lengths.items()},
        balance=balance,
    )


def _batches_a_step(packs_per_step: int, world_size: int, packs_per_batch: int | None) -> int:
    check_world(packs_per_step, 0, world_size)
    share = packs_per_step // world_size
    if packs_per_batch is None:
        return 1
    if packs_per_batch < 1 or share % packs_per_batch:
        raise ConfigError(
            f"packs_per_batch {packs_per_batch} does not divide a rank's {share} packs of a step "
            f"at world_size {world_size}",
            mend="It must divide packs_per_step / world_size",
        )
    return share // packs_per_batch


class _Histogram:
    """Counts of small numbers; memory is that of the largest, not of how many there are."""

    def __init__(self) -> None:
        self._counts = np.zeros(1, np.int64)

    def add(self, values: Int64Array) -> None:
        counts = np.bincount(values, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    @property
    def total(self) -> int:
        return int((self._counts * np.arange(len(self._counts))).sum())

    def percentiles(self) -> Percentiles:
        running = np.cumsum(self._counts)
        count = int(running[-1])
        ranks = [1, *(max(int(np.ceil(share * count)), 1) for share in _SHARES), max(count, 1)]
        found = np.minimum(np.searchsorted(running, ranks), len(running) - 1).tolist()
        least, p5, p25, p50, p75, p95, p99, most = found
        return Percentiles(least, p5, p25, p50, p75, p95, p99, most, self.total / max(count, 1))


@dataclass(slots=True)
class _Spread:
    steps: int = 0
    total: float = 0.0
    worst: float = 1.0
    worst_full: float | None = None

    def add(self, costs_R: Int64Array, *, full: bool) -> None:
        together = int(costs_R.sum())
        spread = int(costs_R.max()) * len(costs_R) / together if together else 1.0
        self.steps += 1
        self.total += spread
        self.worst = max(self.worst, spread)
        if full:
            self.worst_full = max(self.worst_full or 1.0, spread)


@dataclass(slots=True)
class _Sums:
    """What is summed over windows."""

    spreads: dict[int, _Spread]
    steps: int = 0
    packs: int = 0
    empty: int = 0
    samples: int = 0
    dropped: int = 0
    label_least: int = 0
    label_most: int = 0
    lengths: dict[str, _Histogram] = field(
        default_factory=lambda: {n: _Histogram() for n in ("tokens", "text", "images", "labels")}
    )

    def add(self, window: Plan, lengths: Lengths) -> None:
        sizes = np.diff(window.pack_offsets)
        empty = int((sizes == 0).sum())
        ids = window.samples
        self.dropped += len(window.dropped)
        if not window.num_steps:
            return
        self.lengths["tokens"].add(lengths.tokens_of(ids))
        self.lengths["text"].add(lengths.text_tokens[ids])
        self.lengths["images"].add(lengths.image_tokens[ids])
        self.lengths["labels"].add(lengths.label_tokens[ids])
        least, most = int(window.step_label_tokens.min()), int(window.step_label_tokens.max())
        self.label_least = min(self.label_least, least) if self.steps else least
        self.label_most = max(self.label_most, most)
        for size, spread in self.spreads.items():
            for step in range(window.num_steps):
                full = not empty or step + 1 < window.num_steps
                spread.add(window.rank_costs(step, size), full=full)
        self.steps += window.num_steps
        self.packs += window.num_packs - empty
        self.empty += empty
        self.samples += len(ids)
