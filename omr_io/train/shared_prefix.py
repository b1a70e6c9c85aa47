"""Rollouts in packs that hold each prompt, with its images, once a group instead of once a
completion.

    [prompt A][completion 1][completion 2] ... [prompt B][completion 1] ... [padding]

Completions see their prompt and themselves (`omr_io.train.attention.prefixes`), and their positions
go on from the prompt's end, so hidden states are those of the unshared layout. A prompt's last
token predicts the first token of every completion: no row of labels can say so, and rows and
targets are listed instead.

Legend: B packs, T seq_len, R tokens of completions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_io.batches import Batch
from omr_io.batches.boundaries import HostBoundaries
from omr_io.errors import ConfigError, DataError, SampleTooLongError, Where
from omr_io.loader.samples import SampleEncoder
from omr_io.packing.binning import best_fit
from omr_io.train.attention import SharedPrefixes, share_prefixes
from omr_io.train.packed import packed_batches
from omr_io.train.rollout import Completion
from omr_io.types import EncodedSample, Int32Array, Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefixBatch:
    """Packs of groups for one forward pass; `omr_io.train.model.label_log_probs` takes it.

    Attributes:
        batch: tokens, positions and pixels. `num_tokens` counts what is computed; each prompt is
            one of `keys`, once for each of its copies.
        prefixes: which segment sees which.
        label_rows: (R,) int64 places in the flattened B x T of the hidden states that predict a
            token of a completion; a prompt's last row occurs once for each of its completions.
        label_targets: (R,) int64, the tokens they should predict.
    """

    batch: Batch
    prefixes: SharedPrefixes
    label_rows: Tensor
    label_targets: Tensor

    @property
    def labels(self) -> Tensor:
        """(B, T) int64, IGNORE_INDEX all over: `label_rows` and `label_targets` stand for them."""
        return self.batch.labels

    @property
    def num_label_tokens(self) -> int:
        """R."""
        return len(self.label_rows)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward, which must be under our attention.

        There is no cu_seq_lens_q: an attention that does not know shared_prefixes must not take
        completions for samples of their own.
        """
        return self.batch.model_inputs(varlen=False) | {"shared_prefixes": self.prefixes}

    def vision_inputs(
        self, *, window_size: int | None = None, num_position_embeddings: int | None = None
    ) -> dict[str, Any]:
        """See `Batch.vision_inputs`."""
        return self.batch.vision_inputs(
            window_size=window_size, num_position_embeddings=num_position_embeddings
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> SharedPrefixBatch:
        """The batch with all tensors on `device`. Non-blocking copies need `pin_memory` first."""
        return SharedPrefixBatch(
            self.batch.to(device, non_blocking),
            self.prefixes.to(device, non_blocking),
            self.label_rows.to(device, non_blocking=non_blocking),
            self.label_targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> SharedPrefixBatch:
        """The batch with all tensors in page-locked memory; needs a CUDA device."""
        return SharedPrefixBatch(
            self.batch.pin_memory(),
            self.prefixes.pin_memory(),
            self.label_rows.pin_memory(),
            self.label_targets.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """A copy of a prompt and the completions that share it, laid out as if they were one sample.

    Attributes:
        members: the numbers of the completions.
        sample: the prompt's tokens, then those of the completions; its images are the prompt's.
        lengths: tokens of the prompt, then of each completion.
    """

    members: tuple[int, ...]
    sample: EncodedSample
    lengths: tuple[int, ...]


def pack_shared_rollouts(
    prompts: Sequence[EncodedSample],
    completions: Sequence[Completion],
    *,
    group: int,
    seq_len: int,
    packs_per_batch: int,
    encoder: SampleEncoder,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[SharedPrefixBatch, list[int]]]:
    """Pack each prompt once with all its completions, by the loader's own plan.

    The same arguments as `omr_io.train.run.pack_rollouts`, and the same tokens are trained. A group
    that does not fit into seq_len is spread over as few copies of its prompt as will do.

    Args:
        completions: `group` of each prompt, groups together.
        device: where the batches are; to CUDA they go through pinned memory, without waiting.

    Yields:
        a batch, and the completions in it in the order of its targets. All tokens of a completion
        are targets, so they are as many as `label_log_probs` returns.

    Raises:
        ConfigError: completions are not `group` of each prompt.
        SampleTooLongError: a prompt with one of its completions is longer than seq_len.
        DataError: a prompt has no tokens, or a completion holds an image token.
    """
    _check(prompts, completions, group, encoder.chat.image_token_id)
    groups = [
        _Group(members, *_as_one_sample(prompt, [completions[i].ids for i in members]))
        for number, prompt in enumerate(prompts)
        for members in _copies(prompt, completions, number * group, group, seq_len)
    ]
    for batch, numbers in packed_batches(
        [g.sample for g in groups],
        seq_len=seq_len,
        packs_per_batch=packs_per_batch,
        step_label_tokens=sum(len(completion.ids) for completion in completions),
        encoder=encoder,
    ):
        packs = [[groups[i] for i in pack] for pack in numbers]
        shared = _share(batch, packs, seq_len)
        if torch.device(device).type == "cuda":
            shared = shared.pin_memory()
        yield shared.to(device), [i for pack in packs for g in pack for i in g.members]


def _check(
    prompts: Sequence[EncodedSample],
    completions: Sequence[Completion],
    group: int,
    image_token_id: int,
) -> None:
    if group < 1 or len(completions) != group * len(prompts):
        raise ConfigError(
            f"{len(completions)} completions are not {group} of each of {len(prompts)} prompts"
        )
    for prompt in prompts:
        if not len(prompt.input_ids):
            raise DataError("a prompt has no tokens", where=Where(key=prompt.key))
    for number, completion in enumerate(completions):
        if bool((completion.ids == image_token_id).any()):
            raise DataError(
                f"completion {number % group} of its prompt holds an image token without an image",
                where=Where(key=prompts[number // group].key),
                mend="Ban TokenIds.banned when sampling",
            )


def _copies(
    prompt: EncodedSample,
    completions: Sequence[Completion],
    first: int,
    group: int,
    seq_len: int,
) -> list[tuple[int, ...]]:
    """The completions of a prompt, divided so that each part fits into a pack with the prompt."""
    lengths = [len(completions[first + i].ids) for i in range(group)]
    room = seq_len - len(prompt.input_ids)
    if max(lengths) > room:
        raise SampleTooLongError(
            f"a prompt of {len(prompt.input_ids)} tokens and its completion of {max(lengths)} are "
            f"longer than seq_len {seq_len}",
            where=Where(key=prompt.key),
            mend="Raise data: seq_len, or lower rl: max_new_tokens or the pixel budget",
        )
    if sum(lengths) <= room:
        return [tuple(range(first, first + group))]
    order = sorted(range(group), key=lambda i: -lengths[i])
    bins = best_fit([lengths[i] for i in order], room)
    parts: list[list[int]] = [[] for _ in range(max(bins) + 1)]
    for i, number in zip(order, bins, strict=True):
        parts[number].append(first + i)
    return [tuple(sorted(part)) for part in parts]


def _as_one_sample(
    prompt: EncodedSample, completions: Sequence[Int32Array]
) -> tuple[EncodedSample, tuple[int, ...]]:
    parts = [prompt.input_ids, *completions]
    input_ids = np.concatenate(parts).astype(np.int32)
    untrained = np.zeros(len(input_ids), np.bool_)
    sample = dataclasses.replace(prompt, input_ids=input_ids, trained=untrained)
    return sample, tuple(len(part) for part in parts)


def _share(batch: Batch, packs: Sequence[Sequence[_Group]], seq_len: int) -> SharedPrefixBatch:
    """Turn a batch whose samples are whole groups into one whose completions do not see each other.

    All positions count on by one from token to token after a prompt's last image, so a completion's
    are put right by subtracting the tokens that stand between it and its prompt.
    """
    lengths: list[int] = []
    prefixes: list[int | None] = []
    rows: list[Int64Array] = [np.empty(0, np.int64)]
    targets: list[Int32Array] = [np.empty(0, np.int32)]
    between_BT = np.zeros((len(packs), seq_len), np.int64)
    for b, pack in enumerate(packs):
        start = 0
        for g in pack:
            prefix, first = len(lengths), start
            start += g.lengths[0]
            last_of_prompt, end_of_prompt = b * seq_len + start - 1, start
            lengths.append(g.lengths[0])
            prefixes.append(None)
            for length in g.lengths[1:]:
                end = start + length
                between_BT[b, start:end] = start - end_of_prompt
                places = b * seq_len + np.arange(start - 1, end - 1, dtype=np.int64)
                places[:1] = last_of_prompt
                rows.append(places)
                targets.append(g.sample.input_ids[start - first : end - first])
                lengths.append(length)
                prefixes.append(prefix)
                start = end
        lengths.append(seq_len - start)
        prefixes.append(None)
    shared = share_prefixes(lengths, prefixes)
    sizes = np.diff(shared.bounds)
    segment_ids = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    label_rows = np.concatenate(rows)
    batch = dataclasses.replace(
        batch,
        position_ids=batch.position_ids - torch.from_numpy(between_BT),
        segment_ids=torch.from_numpy(segment_ids).view(len(packs), seq_len),
        cu_seqlens=shared.cu_seqlens,
        max_seqlen=shared.max_seqlen,
        boundaries=HostBoundaries((shared.bounds,)),
        num_label_tokens=len(label_rows),
    )
    return SharedPrefixBatch(
        batch,
        shared,
        torch.from_numpy(label_rows),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
    )
