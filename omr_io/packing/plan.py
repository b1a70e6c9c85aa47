"""The plan of an epoch: which samples share a pack, in which order, on which rank. Integers only.

    plan = pure function of (lengths, epoch, seed, seq_len, packs_per_step, window)

World size, threads and batch size are not inputs, so a run may go on with other ones. Random
numbers are the raw 64-bit words of NumPy's PCG64, seeded by SHA-256: both are fixed for good, while
`Generator.permutation` may change with a NumPy release (NEP 19).

Legend: n samples, p packs, s steps, G packs a step.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import ConfigError, DataError, SampleTooLongError, Where
from omr_io.packing.binning import fewest_bins
from omr_io.types import Int64Array

TooLong = Literal["error", "drop"]
"""What to do with samples of more tokens than seq_len."""

_NAMED = 5  # samples named in an error that concerns many


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """What is known of every sample before any pixel is decoded; all (n,) int64.

    Attributes:
        text_tokens: tokens that are not image tokens.
        image_tokens: merged patches of all its images.
        label_tokens: tokens that carry a loss: the trained ones, less the sample's first token.
        patches: patches of all its images before merging; what the vision tower sees.

    Raises:
        DataError: shapes differ, a length is negative, or a sample has no token.
    """

    text_tokens: Int64Array
    image_tokens: Int64Array
    label_tokens: Int64Array
    patches: Int64Array

    def __post_init__(self) -> None:
        columns = (self.text_tokens, self.image_tokens, self.label_tokens, self.patches)
        if len({column.shape for column in columns}) != 1 or self.text_tokens.ndim != 1:
            raise DataError("the columns of Lengths must be one-dimensional and of one length")
        if any(column.dtype != np.int64 for column in columns):
            raise DataError("the columns of Lengths must be int64")
        if any(bool((column < 0).any()) for column in columns):
            raise DataError("a length is negative")
        if bool((self.tokens < 1).any()):
            first = int(np.argmax(self.tokens < 1))
            raise DataError("a sample has no token", where=Where(row=first))

    def __len__(self) -> int:
        return len(self.text_tokens)

    @property
    def tokens(self) -> Int64Array:
        """(n,) int64: what a sample takes of a pack, text and image tokens together."""
        return self.text_tokens + self.image_tokens

    def digest(self) -> str:
        """16 hex digits of SHA-256 over all columns, little-endian: equal lengths, equal plans."""
        sha = hashlib.sha256()
        for column in (self.text_tokens, self.image_tokens, self.label_tokens, self.patches):
            sha.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return sha.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Forward FLOPs of a sample of t tokens and q patches, in units of 10 kFLOP, as integers.

    cost = text_linear t + text_quadratic t^2 + vision_linear q + vision_quadratic q^2

    The defaults are Qwen2.5-VL-7B's. Linear: 2 FLOPs a weight and token, 7.6 G weights of text and
    0.63 G of vision. Quadratic: 4 x width FLOPs a pair of tokens and full-attention layer, halved
    where attention is causal: 28 layers of 3584 in text, 4 of 1280 in vision (its other 28 attend
    within windows, so they are linear). Only the ratios matter: costs decide which rank takes which
    pack of a step, never what is in the step.
    """

    text_linear: int = 1_520_000
    text_quadratic: int = 20
    vision_linear: int = 126_000
    vision_quadratic: int = 2

    def cost(self, tokens_n: Int64Array, patches_n: Int64Array) -> Int64Array:
        """(n,) int64 costs of samples with the given tokens and patches."""
        text = self.text_linear * tokens_n + self.text_quadratic * tokens_n**2
        vision = self.vision_linear * patches_n + self.vision_quadratic * patches_n**2
        return np.asarray(text + vision, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An epoch's packs in order; step s takes packs [s G, (s + 1) G). See `plan_epoch`.

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

        The dearest pack left goes to the rank that has the least cost so far and room for one more
        (Graham's longest-processing-time rule with equal counts). Ties: the earlier pack, the lower
        rank. Dearest first lines up micro batches of like cost across ranks.

        Raises:
            ConfigError: packs_per_step is no multiple of world_size, or there is no such rank.
        """
        check_world(self.packs_per_step, rank, world_size)
        packs = self.step_packs(step)
        share = self.packs_per_step // world_size
        costs = self.pack_costs[packs.start : packs.stop]
        taken: list[list[int]] = [[] for _ in range(world_size)]
        open_ranks = [(0, r) for r in range(world_size)]  # a heap of (cost so far, rank)
        for place in np.argsort(-costs, kind="stable").tolist():
            load, lightest = heapq.heappop(open_ranks)
            taken[lightest].append(packs[place])
            if len(taken[lightest]) < share:
                heapq.heappush(open_ranks, (load + int(costs[place]), lightest))
        return tuple(taken[rank])


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


def plan_epoch(
    lengths: Lengths,
    *,
    epoch: int,
    seed: int,
    seq_len: int,
    packs_per_step: int,
    window: int | None = None,
    too_long: TooLong = "error",
    cost: CostModel | None = None,
    keys: Sequence[str] | None = None,
    samples: Int64Array | None = None,
) -> Plan:
    """Plan one epoch: every sample exactly once, whole, in packs of at most seq_len tokens.

    The samples are taken `window` at a time in index order (so that reading stays near-sequential),
    the windows in a seeded order. A window is shuffled, its samples are packed by the rule of
    `omr_io.packing.binning` that takes fewer packs, and the packs are put in random order.

    Args:
        lengths: of all samples.
        epoch: counts from 0; every epoch is another order.
        seed: any integer.
        seq_len: tokens a pack can hold.
        packs_per_step: G, packs an optimiser step takes over all ranks.
        window: samples packed together; None: the whole corpus.
        too_long: "error", or "drop" to leave out samples of more than seq_len tokens; they are
            listed in `Plan.dropped`.
        cost: what a pack costs a rank; None: `CostModel()`.
        keys: names for samples in errors, one each.
        samples: (m,) the numbers of the samples to plan, each once; None: all of them.

    Raises:
        SampleTooLongError: a sample has more tokens than seq_len (unless too_long is "drop").
        ConfigError: an option that cannot be right.
        DataError: nothing is left to plan.
    """
    _check_options(epoch, seq_len, packs_per_step, window, too_long)
    tokens_n = lengths.tokens
    wanted = np.arange(len(lengths)) if samples is None else check_samples(samples, len(lengths))
    is_long = tokens_n[wanted] > seq_len
    dropped, kept = wanted[is_long], wanted[~is_long]
    if too_long == "error" and len(dropped):
        raise _too_long_error(dropped, len(wanted), tokens_n, seq_len, keys)
    if not len(kept):
        raise DataError(
            f"no sample to plan: {len(wanted)} are wanted, {len(dropped)} of them longer than "
            f"seq_len {seq_len}"
        )
    random = _RandomWords(seed, epoch)
    size = window or len(kept)
    windows = [kept[start : start + size] for start in range(0, len(kept), size)]
    packed = [
        _pack_window(windows[number], tokens_n, seq_len, random)
        for number in random.order(len(windows)).tolist()
    ]
    placed = np.concatenate([ids for ids, _ in packed])
    counts = np.concatenate([counts for _, counts in packed])
    return _finish(
        epoch, seq_len, packs_per_step, lengths, placed, counts, dropped, cost or CostModel()
    )


def _check_options(
    epoch: int, seq_len: int, packs_per_step: int, window: int | None, too_long: str
) -> None:
    if epoch < 0:
        raise ConfigError(f"epoch {epoch} is negative")
    if seq_len < 1 or packs_per_step < 1:
        raise ConfigError(
            f"seq_len {seq_len} and packs_per_step {packs_per_step} must be at least 1"
        )
    if window is not None and window < 1:
        raise ConfigError(f"window {window} must be at least 1 sample, or None")
    if too_long not in ("error", "drop"):
        raise ConfigError(f'too_long must be "error" or "drop", not {too_long!r}')


def check_samples(samples: Int64Array, count: int) -> Int64Array:
    """The numbers of samples to plan, if they are a selection from `count` samples.

    Raises:
        ConfigError: not whole numbers in one dimension, outside the corpus, or one of them twice.
    """
    if samples.ndim != 1 or samples.dtype.kind not in "iu":
        raise ConfigError(f"samples is {samples.dtype} of shape {samples.shape}, not (m,) integers")
    if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < count:
        raise ConfigError(f"samples has numbers outside 0 to {count - 1}")
    if len(np.unique(samples)) != len(samples):
        raise ConfigError("samples has a number twice", mend="Every sample comes once an epoch")
    return samples.astype(np.int64)


def _too_long_error(
    ids: Int64Array, wanted: int, tokens_n: Int64Array, seq_len: int, keys: Sequence[str] | None
) -> SampleTooLongError:
    named = ", ".join(
        f"{keys[i] if keys is not None else f'sample {i}'} ({tokens_n[i]} tokens)"
        for i in ids[:_NAMED].tolist()
    )
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    longest = int(tokens_n[ids].max())
    return SampleTooLongError(
        f"{len(ids)} of {wanted} samples are longer than seq_len {seq_len}: {named}{more}",
        mend=f"Use seq_len >= {longest}, lower the vision config's max_pixels, or leave these "
        'samples out with too_long="drop"',
    )


class _RandomWords:
    """Orders drawn from one PCG64 stream that depends on seed and epoch alone."""

    def __init__(self, seed: int, epoch: int) -> None:
        digest = hashlib.sha256(f"omr_io plan 1 seed {seed} epoch {epoch}".encode()).digest()
        self._words = np.random.PCG64(int.from_bytes(digest, "little"))

    def order(self, count: int) -> NDArray[np.int64]:
        """A random order of range(count): the order that sorts as many random 64-bit words."""
        words = np.asarray(self._words.random_raw(count), np.uint64)
        return np.argsort(words, kind="stable").astype(np.int64)


def _pack_window(
    ids: Int64Array, tokens_n: Int64Array, seq_len: int, random: _RandomWords
) -> tuple[Int64Array, Int64Array]:
    """Pack the samples of one window; (ids pack after pack, samples in each pack)."""
    shuffled = ids[random.order(len(ids))]
    longest_first = shuffled[np.argsort(-tokens_n[shuffled], kind="stable")]
    bin_of = fewest_bins(tokens_n[longest_first].tolist(), random.order(len(ids)).tolist(), seq_len)
    num_bins = max(bin_of) + 1
    rank_of_bin = np.empty(num_bins, np.int64)
    rank_of_bin[random.order(num_bins)] = np.arange(num_bins)
    pack_of = rank_of_bin[np.asarray(bin_of, np.int64)]
    counts = np.bincount(pack_of, minlength=num_bins).astype(np.int64)
    return longest_first[np.argsort(pack_of, kind="stable")], counts


def _finish(
    epoch: int,
    seq_len: int,
    packs_per_step: int,
    lengths: Lengths,
    samples: Int64Array,
    counts: Int64Array,
    dropped: Int64Array,
    cost: CostModel,
) -> Plan:
    """Fill up the last step with empty packs and sum up what each pack and step holds."""
    num_steps = -(-len(counts) // packs_per_step)
    filled = np.zeros(num_steps * packs_per_step, np.int64)
    filled[: len(counts)] = counts
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(filled)])

    def per_pack(values_n: Int64Array) -> Int64Array:
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values_n[samples])])
        return np.asarray(running[offsets[1:]] - running[offsets[:-1]], np.int64)

    return Plan(
        epoch=epoch,
        seq_len=seq_len,
        packs_per_step=packs_per_step,
        samples=samples,
        pack_offsets=offsets,
        pack_tokens=per_pack(lengths.tokens),
        pack_costs=per_pack(cost.cost(lengths.tokens, lengths.patches)),
        step_label_tokens=per_pack(lengths.label_tokens)
        .reshape(num_steps, packs_per_step)
        .sum(axis=1),
        dropped=dropped,
    )
