"""A run of the recipe: its folder, its model, and where it stands. Loops are in train_example.py.

    runs/NAME/
        tokenizer/      trained on the shards, unless the recipe names one
        checkpoints/    the newest ones; see omr_io.train.checkpoint
        history.jsonl   one line a step; see omr_io.train.history
        not-finite.json whose samples a loss or gradient was not finite at, if one ever was
        sft-model/, model/   Hugging Face folders: after SFT, and at the end
        report.html

Legend: R tokens with a loss.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.chat import corpus_completion
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, OmrError, ResumeError, Where
from omr_io.images.patches import blank_patches
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.packing import CostModel
from omr_io.sample_set import SampleSet
from omr_io.storage import write_atomically
from omr_io.tokenizer import Tokenizer, train_bpe
from omr_io.train.checkpoint import Checkpoints, export_hf
from omr_io.train.fold import fold_frames
from omr_io.train.gathering import full_weights
from omr_io.train.model import DemoModelConfig, TokenIds, build_demo_model, load_model, model_folder
from omr_io.train.packed import packed_batches
from omr_io.train.parallel import shard
from omr_io.train.parameters import Part, add_lora, cast_weights, freeze, merged_weights
from omr_io.train.ranks import Ranks, environment_ranks, on_first
from omr_io.train.recipe import Recipe
from omr_io.train.rollout import Completion
from omr_io.train.run_checks import check_token_ids, check_vision
from omr_io.train.statistics import majority_letters
from omr_io.train.stopping import Stopping
from omr_io.types import EncodedSample, Int64Array

Phase = Literal["sft", "rl"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands: `step` steps of `phase` are done."""

    phase: Phase
    step: int


@dataclass(frozen=True, slots=True)
class Run:
    """What the loops share.

    Attributes:
        folder: runs/NAME.
        device: where the model is.
        model: a transformers vision-language model; the one thing here that changes.
        ids: the control tokens.
        loader: packs of the training split.
        prompts: the training split sample by sample, for rollouts.
        rl_samples: the numbers of those that RL draws from.
        held_out: the test split, for evaluation.
        checkpoints: in runs/NAME/checkpoints.
        stopping: asked after every step and between micro steps.
        rl_cost: of learning from a sample in RL, for the model that is trained.
        ranks: this process among those of the run.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    model: Any
    ids: TokenIds
    loader: DataLoader
    prompts: SampleEncoder
    rl_samples: Int64Array
    held_out: SampleEncoder
    checkpoints: Checkpoints
    stopping: Stopping
    rl_cost: CostModel = field(default_factory=CostModel)
    ranks: Ranks = field(default_factory=Ranks)

    def text(self, completion: Completion) -> str:
        """A completion as the parser sees it: without the end token that finished it.

        Other control tokens stay. Left out, they would cost a policy nothing: what ends with a
        hundred `<|endoftext|>` would be in the corpus' form.
        """
        return self.held_out.chat.tokenizer.decode(completion.said)

    def export(self, name: str) -> None:
        """Write the model as it is now as a Hugging Face folder of this name.

        Whole, adapters merged, in the dtype that it computes in: what was evaluated.
        """
        dtype = getattr(torch, self.recipe.model.dtype)
        whole = merged_weights(self.model, full_weights(self.model))

        def write() -> None:
            export_hf(
                self.folder / name,
                self.model,
                self.held_out.chat.tokenizer,
                self.recipe.vision,
                weights=cast_weights(whole, dtype),
            )

        on_first(self.ranks, write)


def say(text: str) -> None:
    """A line of progress, at once, also into a pipe; of several ranks the first one's."""
    if environment_ranks()[0] == 0:
        print(text, flush=True)


def get_folder(recipe: Recipe, ranks: Ranks) -> Path | None:
    """The folder of the recipe's model, downloaded by one rank of each machine; None without one.

    Raises:
        ConfigError, SourceError: see `omr_io.train.model.model_folder`.
    """
    if recipe.model.path is None:
        return None
    local_rank = environment_ranks()[2]
    failed: OmrError | None = None
    if local_rank == 0:
        try:
            model_folder(recipe.model.path)
        except OmrError as error:
            failed = error
    for found in ranks.gather(failed):
        if found is not None:
            raise found
    return model_folder(recipe.model.path, download=False)


def get_tokenizer(
    recipe: Recipe,
    train_set: ShardSet,
    folder: Path,
    *,
    source: Path | None = None,
    ranks: Ranks | None = None,
) -> Tokenizer:
    """The recipe's tokenizer, or a byte-level BPE trained on the shards and kept in `folder`.

    Args:
        source: the model's folder, see `get_folder`.
        ranks: the first one trains it.
    """
    if recipe.model.tokenizer or source:
        return Tokenizer.from_pretrained(recipe.model.tokenizer or str(source))
    kept = folder / "tokenizer"

    def make() -> None:
        if not (kept / "tokenizer.json").exists():
            records = (train_set.read_record(i, images=False) for i in range(len(train_set)))
            texts = (text for r in records for text in (r.question, corpus_completion(r)))
            train_bpe(texts, vocab_size=recipe.model.vocab_size).save(kept)

    on_first(ranks or Ranks(), make)
    return Tokenizer.from_pretrained(kept)


def get_token_ids(tokenizer: Tokenizer) -> TokenIds:
    """Qwen's control tokens.

    Raises:
        TokenizerError: one is missing.
    """
    return TokenIds(
        image_pad=tokenizer.token_id("<|image_pad|>"),
        video_pad=tokenizer.token_id("<|video_pad|>"),
        vision_start=tokenizer.token_id("<|vision_start|>"),
        vision_end=tokenizer.token_id("<|vision_end|>"),
        eos=tokenizer.token_id("<|im_end|>"),
        pad=tokenizer.token_id("<|endoftext|>"),
    )


def get_model(
    recipe: Recipe, tokenizer: Tokenizer, ids: TokenIds, source: Path | None = None
) -> Any:
    """The recipe's model on the CPU, its attention set to packs, adapted and frozen as for SFT.

    Its weights are as they are stored: `omr_io.train.parallel.shard` makes masters of them.
    With temporal_patch_size 1 in the recipe's vision the model's patch embedding is folded to take
    one frame; see `omr_io.train.fold`.

    Args:
        source: the model's folder, see `get_folder`.

    Raises:
        ConfigError: the recipe's vision, tokenizer, adapters or frozen parts do not fit the model.
        SourceError: the model cannot be loaded.
    """
    folded = recipe.vision.temporal_patch_size == 1
    vision = _vision_of(recipe, source)
    if folded:
        vision = dataclasses.replace(vision, temporal_patch_size=1)
    check_vision(recipe.vision, vision)
    if source is not None:
        model: Any = load_model(source, "auto")
    else:
        model = build_demo_model(tokenizer.vocab_size, ids, seed=recipe.seed)
    check_token_ids(model, ids, tokenizer.vocab_size)
    if folded and model.config.vision_config.temporal_patch_size != 1:
        model.model.visual.patch_embed.float()  # a bfloat16 sum over frames would be rounded
        fold_frames(model)
    if recipe.model.lora is not None:
        add_lora(model, recipe.model.lora, seed=recipe.seed)
    freeze(model, recipe.sft.freeze)
    return model


def get_cost(source: Path | None, frozen: Collection[Part]) -> CostModel:
    """What learning from a sample costs the model of a folder; None: the demo's, as the default.

    Args:
        frozen: parts that are not trained.
    """
    cost = CostModel() if source is None else CostModel.from_config(source)
    return cost.with_frozen_vision() if "vision" in frozen else cost


def _vision_of(recipe: Recipe, source: Path | None) -> VisionConfig:
    if source is not None:
        return VisionConfig.from_pretrained(source)
    demo = DemoModelConfig()  # its weights know no mean and deviation: those are the recipe's
    return dataclasses.replace(
        recipe.vision,
        family="qwen3_vl",
        patch_size=demo.patch_size,
        merge_size=demo.spatial_merge_size,
        temporal_patch_size=demo.temporal_patch_size,
    )


def get_reference(folder: Path, ranks: Ranks, dtype: torch.dtype) -> Any:
    """A model to compare with, sharded as the one that is trained is, and never trained itself.

    Args:
        folder: a Hugging Face folder, such as what SFT exported.
        dtype: what is computed in, and stored.
    """
    model = load_model(folder, "auto")
    model.requires_grad_(False)
    shard(model, ranks, dtype=dtype)
    return model


def resolve_steps(recipe: Recipe, loader: DataLoader) -> Recipe:
    """The recipe with its epochs of SFT as steps, by the loader's plan."""
    sft = recipe.sft
    if not sft.epochs:
        return recipe
    steps = loader.num_steps(sft.epochs)
    return dataclasses.replace(recipe, sft=dataclasses.replace(sft, steps=steps, epochs=0))


def split_for_rl(recipe: Recipe, count: int) -> tuple[Int64Array, Int64Array]:
    """The numbers of the training samples that SFT and that RL use; see `RLRecipe.samples`.

    Raises:
        ConfigError: nothing would be left for SFT.
    """
    everything, kept = np.arange(count), recipe.rl.samples
    if kept is None:
        return everything, everything
    if kept >= count:
        raise ConfigError(
            f"rl: samples is {kept}, but the training split has {count}",
            mend="Leave some to SFT, or leave the key out: then both use all",
        )
    return everything[: count - kept], everything[count - kept :]


def majority_of(train_set: SampleSet) -> Mapping[int, str] | None:
    """`majority_letters` of the training split, by its index; None if all of it is open-ended."""
    letters = [
        (answer, count)
        for answer, count in zip(train_set.answers(), train_set.num_options.tolist(), strict=True)
        if count
    ]
    if not letters:
        return None
    answers, counts = zip(*letters, strict=True)
    return majority_letters(answers, counts)


def blind(prompt: EncodedSample, encoder: SampleEncoder) -> EncodedSample:
    """The prompt with a blank for every image, of its size: what the text alone gives away."""
    vision, dtype = encoder.vision, encoder.pixel_dtype
    blanks = [blank_patches(grid, vision, dtype) for grid in prompt.image_grid_thw]
    if not blanks:
        return prompt
    return dataclasses.replace(prompt, pixel_values=np.concatenate(blanks))


def pack_rollouts(
    prompts: Sequence[EncodedSample],
    completions: Sequence[Completion],
    *,
    group: int,
    seq_len: int,
    packs_per_batch: int,
    encoder: SampleEncoder,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Batch, list[int]]]:
    """Pack prompts with their completions by the loader's own plan.

    Args:
        completions: `group` of each prompt, groups together.
        device: where the batches are; see `DataLoader`.

    Yields:
        a batch, and the completions in it in the order of its labels. Every token of a completion
        is a label, so they are as many as `label_log_probs` returns.
    """
    samples = [
        _rollout_sample(prompts[place // group], completion)
        for place, completion in enumerate(completions)
    ]
    for batch, packs in packed_batches(
        samples,
        seq_len=seq_len,
        packs_per_batch=packs_per_batch,
        step_label_tokens=sum(len(completion.ids) for completion in completions),
        encoder=encoder,
        device=device,
    ):
        yield batch, [i for pack in packs for i in pack]


def _rollout_sample(prompt: EncodedSample, completion: Completion) -> EncodedSample:
    trained = np.zeros(len(prompt.input_ids) + len(completion.ids), np.bool_)
    trained[len(prompt.input_ids) :] = True
    input_ids = np.concatenate([prompt.input_ids, completion.ids]).astype(np.int32)
    return dataclasses.replace(prompt, input_ids=input_ids, trained=trained)


def cached_json(
    path: Path,
    make: Callable[[], Any],
    ranks: Ranks | None = None,
    *,
    depends_on: Mapping[str, Any] | None = None,
) -> Any:
    """What `make` gives, kept at `path` so that a resumed run need not make it again.

    With several ranks all make it, or none does, and the first writes it.

    Args:
        depends_on: JSON values that decide what is made; kept with it.

    Raises:
        ResumeError: what is kept was made with others.
    """
    ranks = ranks or Ranks()
    here = dict(depends_on or {})
    if ranks.gather(path.exists())[0]:
        kept = json.loads(path.read_text(encoding="utf-8"))
        there = kept["depends_on"]
        differing = [
            f"{name} (kept {there.get(name)!r}, here {here.get(name)!r})"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        if differing:
            raise ResumeError(
                f"what is kept was made with another recipe: {', '.join(differing)}",
                where=Where(source=str(path)),
                mend="Put the recipe back: of the model as it was then nothing can be made again",
            )
        return kept["made"]
    made = make()
    text = json.dumps({"depends_on": here, "made": made})
    on_first(ranks, lambda: write_atomically(path, text.encode()))
    return made
