"""The plan of a window of samples: which share a pack, in which order, on which rank.

    plan = pure function of (lengths of the samples, their order, seed, epoch, window, seq_len,
                             packs_per_step)

World size, threads and batch size are not inputs, so a run may go on with other ones. Random
numbers are the raw 64-bit words of NumPy's PCG64, seeded by SHA-256: both are fixed for good, while
`Generator.permutation` may change with a NumPy release (NEP 19).

Legend: n samples, p packs, s steps, G packs a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omr_io import _C
from omr_io.errors import ConfigError, SampleTooLongError
from omr_io.packing.binning import MAX_SEQ_LEN, fewest_bins
from omr_io.packing.cost import CostModel
from omr_io.packing.lengths import Lengths, Rows
from omr_io.types import Int32Array, Int64Array

TooLong = Literal["error", "drop"]
"""What to do with samples of more tokens than seq_len."""

NAMED = 5
"""Samples named in an error that concerns many."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The packs of a window, or of an epoch of one window, in order; see `EpochPlan`.

    Step s takes packs [s G, (s + 1) G).

    Attributes:
        epoch, seq_len, packs_per_step: what it was planned for.
        samples: (n,) int64 sample numbers, pack after pack.
        pack_offsets: (p + 1,) int64; pack j holds samples[pack_offsets[j]:pack_offsets[j + 1]].
            The last step is filled up with empty packs, so p = s x G.
        pack_tokens: (p,) int64 real tokens of each pack.
        pack_costs: (p,) int64, see `CostModel`.
        step_label_tokens: (s,) int64 tokens with a loss in each whole step, over all ranks.
        dropped: (d,) int64 sample numbers left out because they are longer than seq_len.
    """

    epoch: int
    seq_len: int
    packs_per_step: int
    samples: Int64Array
    pack_offsets: Int64Array
    pack_tokens: Int64Array
    pack_costs: Int64Array
    step_label_tokens: Int64Array
    dropped: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_packs(self) -> int:
        """Packs of the epoch, the empty ones that fill up the last step included."""
        return len(self.pack_offsets) - 1

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the epoch: the same on every rank."""
        return self.num_packs // self.packs_per_step

    @property
    def efficiency(self) -> float:
        """Packing efficiency: real tokens / capacity, empty packs included; 0.0 without packs."""
        capacity = self.num_packs * self.seq_len
        return int(self.pack_tokens.sum()) / capacity if capacity else 0.0

    def pack(self, number: int) -> tuple[int, ...]:
        """The sample numbers of a pack, in order."""
        start, stop = self.pack_offsets[number : number + 2]
        return tuple(self.samples[start:stop].tolist())

    def step_packs(self, step: int) -> range:
        """The numbers of a step's packs.

        Raises:
            IndexError: the epoch has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of an epoch of {self.num_steps}")
        return range(step * self.packs_per_step, (step + 1) * self.packs_per_step)

    def rank_packs(self, step: int, rank: int, world_size: int) -> tuple[int, ...]:
        """One rank's packs of a step: packs_per_step / world_size of them, dearest first.

        The step's packs, dearest first, are dealt in rounds of world_size, so that micro batches
        are of like cost on all ranks; swaps within rounds then make the ranks' sums nearly equal
        (csrc/packing/balance.hpp).

        Raises:
            ConfigError: packs_per_step is no multiple of world_size, or there is no such rank.
            IndexError: the epoch has no such step.
        """
        check_world(self.packs_per_step, rank, world_size)
        rank_of, costs = self._dealt(step, world_size)
        mine = np.flatnonzero(rank_of == rank)
        dearest_first = mine[np.argsort(-costs[mine], kind="stable")]
        return tuple((step * self.packs_per_step + dearest_first).tolist())

    def rank_costs(self, step: int, world_size: int) -> Int64Array:
        """(world_size,) int64: what each rank's packs of a step cost together.

        Raises:
            ConfigError, IndexError: as for `rank_packs`.
        """
        check_world(self.packs_per_step, 0, world_size)
        rank_of, costs = self._dealt(step, world_size)
        by_rank = costs[np.argsort(rank_of, kind="stable")].reshape(world_size, -1)
        return np.asarray(by_rank.sum(axis=1), np.int64)

    def _dealt(self, step: int, world_size: int) -> tuple[Int32Array, Int64Array]:
        """The rank and the cost of each pack of a step."""
        packs = self.step_packs(step)
        costs = self.pack_costs[packs.start : packs.stop]
        spare = (int(costs.max()) * len(costs)).bit_length() - 62  # so that sums fit 64 bits
        return _C.balanced(costs >> max(spare, 0), world_size), costs


def check_world(packs_per_step: int, rank: int, world_size: int) -> None:
    """Refuse a world size that cannot share the packs of a step evenly, or a rank outside it.

    Raises:
        ConfigError: as said.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of world_size {world_size} does not exist")
    if packs_per_step % world_size:
        raise ConfigError(
            f"packs_per_step {packs_per_step} is no multiple of world_size {world_size}",
            mend="Every rank takes the same number of packs; choose a multiple, such as "
            f"{-(-packs_per_step // world_size) * world_size}",
        )


def check_options(
    epoch: int, seq_len: int, packs_per_step: int, window: int | None, too_long: str
) -> None:
    """Refuse options that no plan can have.

    Raises:
        ConfigError: names the option.
    """
    if epoch < 0:
        raise ConfigError(f"epoch {epoch} is negative")
    if seq_len < 1 or packs_per_step < 1:
        raise ConfigError(
            f"seq_len {seq_len} and packs_per_step {packs_per_step} must be at least 1"
        )
    if seq_len > MAX_SEQ_LEN:
        raise ConfigError(f"seq_len {seq_len} is over {MAX_SEQ_LEN}")
    if window is not None and window < 1:
        raise ConfigError(f"window {window} must be at least 1 sample, or None")
    if too_long not in ("error", "drop"):
        raise ConfigError(f'too_long must be "error" or "drop", not {too_long!r}')


def check_samples(samples: Int64Array, count: int) -> Int64Array:
    """The numbers of samples to plan, if they are a selection from `count` samples.

    Raises:
        ConfigError: not whole numbers in one dimension, outside the corpus, or one of them twice.
    """
    check_numbers(samples)
    if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < count:
        raise outside(count)
    if len(np.unique(samples)) != len(samples):
        raise ConfigError("samples has a number twice", mend="Every sample comes once an epoch")
    return samples.astype(np.int64)


def check_numbers(samples: Int64Array) -> None:
    """Refuse what is no list of whole numbers.

    Raises:
        ConfigError: another dtype or shape.
    """
    if samples.ndim != 1 or samples.dtype.kind not in "iu":
        raise ConfigError(f"samples is {samples.dtype} of shape {samples.shape}, not (m,) integers")


def outside(count: int) -> ConfigError:
    """The error for numbers that are none of `count` samples."""
    return ConfigError(f"samples has numbers outside 0 to {count - 1}")


def too_long_error(
    count: int,
    wanted: int,
    named: Sequence[tuple[int, int]],
    longest: int,
    seq_len: int,
    keys: Sequence[str] | None,
) -> SampleTooLongError:
    """The error for `count` of `wanted` samples; `named` are the first, (number, tokens) each."""
    names = ", ".join(
        f"{keys[i] if keys is not None else f'sample {i}'} ({tokens} tokens)" for i, tokens in named
    )
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return SampleTooLongError(
        f"{count} of {wanted} samples are longer than seq_len {seq_len}: {names}{more}",
        mend=f"Use seq_len >= {longest}, lower the vision config's max_pixels, or leave these "
        'samples out with too_long="drop"',
    )


class RandomWords:
    """Random 64-bit words for one purpose, a pure function of all that names it."""

    def __init__(self, seed: int, epoch: int, purpose: str) -> None:
        digest = hashlib.sha256(f"omr_io plan 2 seed {seed} epoch {epoch} {purpose}".encode())
        self._words = np.random.PCG64(int.from_bytes(digest.digest(), "little"))

    def order(self, count: int) -> Int64Array:
        """A random order of range(count)."""
        return _C.shuffled(np.asarray(self._words.random_raw(count), np.uint64))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The samples that are planned together, and what their randomness hangs on.

    Attributes:
        lengths: of all samples.
        rows: the window's samples.
        seed, epoch: any integer; from 0.
        place: the window's number in index order, from 0.
        seq_len, packs_per_step, cost: see `EpochPlan`.
    """

    lengths: Lengths
    rows: Rows
    seed: int
    epoch: int
    place: int
    seq_len: int
    packs_per_step: int
    cost: CostModel

    @property
    def ids(self) -> Int64Array:
        """(w,) int64 numbers of the window's samples."""
        if isinstance(self.rows, slice):
            return np.arange(self.rows.start, self.rows.stop, dtype=np.int64)
        return self.rows

    def _bins(self) -> tuple[Int64Array, Int32Array, int, NDArray[np.bool_]]:
        """Places (in the window) of what fits, in random order, their bins, and what fits."""
        tokens_w = self.lengths.tokens_of(self.rows)
        fits_w = tokens_w <= self.seq_len
        kept = np.flatnonzero(fits_w)
        order = kept[self._random("samples").order(len(kept))]
        bin_of, num_bins = fewest_bins(tokens_w[order], self.seq_len)
        return order, bin_of, num_bins, fits_w

    def _random(self, what: str) -> RandomWords:
        return RandomWords(self.seed, self.epoch, f"window {self.place} {what}")

    def num_steps(self) -> int:
        """Steps of the window, by a shorter way than making its plan."""
        return -(-self._bins()[2] // self.packs_per_step)

    def plan(self) -> Plan:
        """Pack the samples, put the packs in random order, fill up the last step, and sum up."""
        order, bin_of, num_bins, fits_w = self._bins()
        place_of_bin = self._random("packs").order(num_bins).astype(np.int32)
        indices, counts = _C.grouped(place_of_bin[bin_of], num_bins)
        placed = order[indices]
        num_steps = -(-num_bins // self.packs_per_step)
        offsets = np.zeros(num_steps * self.packs_per_step + 1, np.int64)
        np.cumsum(counts, out=offsets[1 : num_bins + 1])
        offsets[num_bins + 1 :] = len(placed)
        rows, lengths = self.rows, self.lengths

        def per_pack(values_w: NDArray[np.integer]) -> Int64Array:
            running = np.zeros(len(placed) + 1, np.int64)
            np.cumsum(values_w[placed], out=running[1:])
            return np.diff(running[offsets])

        tokens_w = lengths.tokens_of(rows)
        patches_w = np.asarray(lengths.patches[rows], np.int64)
        labels = per_pack(lengths.label_tokens[rows])
        ids = self.ids
        return Plan(
            epoch=self.epoch,
            seq_len=self.seq_len,
            packs_per_step=self.packs_per_step,
            samples=ids[placed],
            pack_offsets=offsets,
            pack_tokens=per_pack(tokens_w),
            pack_costs=per_pack(self.cost.cost(tokens_w, patches_w)),
            step_label_tokens=labels.reshape(num_steps, self.packs_per_step).sum(axis=1),
            dropped=ids[~fits_w],
        )
