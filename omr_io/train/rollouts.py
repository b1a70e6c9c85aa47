"""A rank's share of a step's rollouts, as batches that all ranks go through together.

Legend: C completions, R tokens of completions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_io.batches import Batch
from omr_io.chat import ChatFormat
from omr_io.errors import IntegrityError, SampleTooLongError, Where
from omr_io.images import image_grid_thw, num_image_tokens
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.lengths import image_lengths
from omr_io.loader.samples import SampleEncoder
from omr_io.packing import CostModel
from omr_io.train.dynamic_sampling import Group, in_step
from omr_io.train.engines import RolloutEngine, TransformersEngine, VllmEngine
from omr_io.train.objectives import group_advantages
from omr_io.train.recipe import Recipe
from omr_io.train.rollout import Completion
from omr_io.train.run import Run, pack_rollouts
from omr_io.train.shared_prefix import SharedPrefixBatch, pack_shared_rollouts
from omr_io.types import EncodedSample, Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """Whole groups of one update, on one rank; there may be none.

    Attributes:
        asked: the prompts.
        completions: the same number of each prompt, groups together.
        advantages: (C,) float32 on the CPU.
        old_logprobs: for each completion those of the policy before the step's first update, on the
            device; None if this is the first and only one.
    """

    asked: tuple[EncodedSample, ...]
    completions: tuple[Completion, ...]
    advantages: Tensor
    old_logprobs: tuple[Tensor, ...] | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        encoded: Mapping[int, EncodedSample],
        prompts: SampleEncoder,
        *,
        scale: bool,
    ) -> Rollouts:
        """Groups with their prompts and advantages.

        Args:
            encoded: prompts that are encoded already, by place; others, which another rank rolled
                out, are read.
            scale: whether advantages are divided by the group's standard deviation.

        Raises:
            IntegrityError: an image that was sampled from can no longer be read.
        """
        asked = [encoded.get(g.place) or _read_again(prompts, g.number) for g in groups]
        totals = torch.tensor([[r.total for r in g.rewards] for g in groups])
        advantages = group_advantages(totals, scale_by_std=scale) if groups else totals
        completions = [completion for g in groups for completion in g.completions]
        return cls(tuple(asked), tuple(completions), advantages.flatten())

    def with_old(self, old_logprobs: Sequence[Tensor]) -> Rollouts:
        """The same, with log-probabilities of the old policy."""
        return dataclasses.replace(self, old_logprobs=tuple(old_logprobs))


def _read_again(prompts: SampleEncoder, number: int) -> EncodedSample:
    prompt = prompts.prompt(number)
    if prompt.failure is not None:  # its completions are of the image, not of the blank
        raise IntegrityError(
            f"an image that another rank sampled completions of cannot be read: {prompt.failure}",
            where=Where(shard=prompts.shard_set.shard(number), key=prompt.key),
            mend="Look at this machine's copy of the shards with omr-io verify, then --resume",
        )
    return prompt


def update_cost(
    model: CostModel, prompt: EncodedSample, completions: Sequence[Completion], *, shared: bool
) -> int:
    """What learning from a group costs a model, in the layout of shared prompts or the usual one.

    Where prompts are shared each completion sees its own, which is computed once; one that needs
    several packs counts as if it needed one.
    """
    nothing = np.zeros(1, np.int64)
    prefix = nothing + len(prompt.input_ids)
    alone_C = np.concatenate([prefix + len(completion.ids) for completion in completions])
    again = len(completions) - 1 if shared else 0
    text = model.cost(alone_C, nothing).sum() - again * model.cost(prefix, nothing).sum()
    patches = nothing + int(prompt.image_grid_thw.prod(axis=1).sum())
    return int(text + (len(completions) - again) * model.cost(nothing, patches).sum())


def rollout_batches(
    run: Run, part: Rollouts
) -> Iterator[tuple[Batch | SharedPrefixBatch, list[int]]]:
    """Pack a share of the rollouts by the loader's own plan, in the layout that the recipe says.

    Ranks may hold unequally many packs. One that has run out goes on with an idle batch of a few
    tokens, until all have.

    Yields:
        a batch on the run's device, and the completions in it in the order of its labels; none for
        an idle batch, whose result must count nothing.
    """
    rl = run.recipe.rl
    pack: Any = partial(
        pack_shared_rollouts if rl.shared_prefix else pack_rollouts,
        seq_len=run.recipe.data.seq_len,
        packs_per_batch=run.loader.packs_per_batch,
        encoder=run.prompts,
        device=run.device,
    )

    def idle() -> tuple[Any, list[int]]:
        ids = np.full(1, run.ids.eos, np.int32)
        prompt = EncodedSample(
            key="idle",
            input_ids=ids,
            trained=np.zeros(1, np.bool_),
            pixel_values=None,
            image_grid_thw=np.empty((0, 3), np.int64),
        )
        completion = Completion(ids, np.zeros(1, np.float32), finished=True)
        made: tuple[Any, list[int]] = next(pack([prompt], [completion], group=1))
        return made

    batches = iter(())
    if part.completions:
        batches = pack(part.asked, part.completions, group=rl.group)
    for (batch, members), counts in in_step(batches, idle, run.ranks):
        yield batch.to(run.device), members if counts else []


def train_without_dropout(model: Any) -> None:
    """Training mode, as blocks that recompute activations want it, with every dropout off.

    With dropout (of adapters) the policy that is trained would be none that was sampled from: its
    ratio to the old one would be noise from the first update on.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()


def check_prompt_lengths(
    recipe: Recipe, loader: DataLoader, chat: ChatFormat, shards: ShardSet, samples: Int64Array
) -> None:
    """Refuse prompts that a completion of max_new_tokens would not fit into seq_len with.

    Before a run, not at the step that draws the first such prompt: resumed, it would draw it again.

    Args:
        loader: of the same shard set, for the lengths it measured.
        samples: the numbers of RL's.

    Raises:
        SampleTooLongError: names the longest, and how many there are.
    """
    lengths, vision, rl = loader.lengths, recipe.rl_vision, recipe.rl
    images, _ = image_lengths(shards, vision)
    untrained = (lengths.text_tokens - lengths.label_tokens + images)[samples]
    number = int(samples[untrained.argmax()])
    counts = num_image_tokens(image_grid_thw(shards.images(number), vision), vision.merge_size)
    record = shards.read_record(number, images=False)
    prompt = len(chat.encode(record, counts.tolist(), completion=None).input_ids)
    # What stands after a completion is not trained either, and the same for all.
    tokens = untrained - (untrained.max() - prompt)
    over = int((tokens + rl.max_new_tokens > recipe.data.seq_len).sum())
    if over:
        raise SampleTooLongError(
            f"{over} of RL's {len(samples)} prompts have no room for a completion of rl: "
            f"max_new_tokens {rl.max_new_tokens} within data: seq_len {recipe.data.seq_len}; the "
            f"longest has {prompt} tokens",
            where=Where(shard=shards.shard(number), key=shards.key(number)),
            mend="Raise seq_len, or lower rl: max_new_tokens or rl: max_pixels",
        )


def make_engine(run: Run) -> RolloutEngine:
    """The recipe's rollout engine.

    Raises:
        ConfigError: it is not installed, or cannot do what the recipe asks for.
    """
    rl = run.recipe.rl
    if rl.engine == "transformers":
        return TransformersEngine(run.model)
    return VllmEngine(
        run.folder / "sft-model",
        vision=run.prompts.vision,
        image_token_id=run.ids.image_pad,
        vocab_size=run.model.config.get_text_config().vocab_size,
        max_model_len=run.recipe.data.seq_len,
        memory=rl.vllm_memory,
        ranks=run.ranks,
    )
