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
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.chat import corpus_completion
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError, OmrError
from omr_io.images.patches import blank_patches
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.storage import write_atomically
from omr_io.tokenizer import Tokenizer, train_bpe
from omr_io.train.checkpoint import Checkpoints, export_hf
from omr_io.train.fold import fold_frames
from omr_io.train.gathering import full_weights
from omr_io.train.history import check_unused
from omr_io.train.model import TokenIds, build_demo_model, load_model, model_folder
from omr_io.train.packed import packed_batches
from omr_io.train.parameters import add_lora, cast_weights, freeze, merged_weights
from omr_io.train.ranks import Ranks, environment_ranks
from omr_io.train.recipe import Recipe
from omr_io.train.rollout import Completion
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
    ranks: Ranks = field(default_factory=Ranks)

    def text(self, completion: Completion) -> str:
        """A completion as the parser sees it: without control tokens."""
        tokenizer = self.held_out.chat.tokenizer
        return tokenizer.decode(completion.ids, skip_special_tokens=True)

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


def start_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """An empty folder for a new run; an earlier run is never lost without being asked for.

    A tokenizer alone is no run: a recipe that is refused after it was trained leaves it. It is
    removed, since the next recipe may train another.

    Raises:
        ConfigError: there is an earlier run and neither `resume` nor `overwrite`; or it is running.
        DiskError: the folder cannot be made.
    """
    try:
        if overwrite and folder.exists():
            check_unused(folder / "history.jsonl")
            shutil.rmtree(folder)
        held = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if not resume and held == {"tokenizer"}:
            shutil.rmtree(folder / "tokenizer")
        elif not resume and held:
            raise ConfigError(
                f"{folder} holds an earlier run",
                mend="Continue it with --resume, delete it with --overwrite, or rename the recipe",
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make {folder}: {error.strerror}") from error


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
    """
    folded = recipe.vision.temporal_patch_size == 1
    if source is not None:
        vision = VisionConfig.from_pretrained(source)
        if folded:
            vision = dataclasses.replace(vision, temporal_patch_size=1)
        check_vision(recipe.vision, vision)
        model: Any = load_model(source, "auto")
    else:
        model = build_demo_model(tokenizer.vocab_size, ids, seed=recipe.seed)
    if folded and model.config.vision_config.temporal_patch_size != 1:
        model.model.visual.patch_embed.float()  # a bfloat16 sum over frames would be rounded
        fold_frames(model)
    if recipe.model.lora is not None:
        add_lora(model, recipe.model.lora, seed=recipe.seed)
    freeze(model, recipe.sft.freeze)
    return model


def resolve_steps(recipe: Recipe, loader: DataLoader) -> Recipe:
    """The recipe with its epochs of SFT as steps, by the loader's plan."""
    sft = recipe.sft
    if not sft.epochs:
        return recipe
    steps = loader.num_steps(sft.epochs)
    return dataclasses.replace(recipe, sft=dataclasses.replace(sft, steps=steps, epochs=0))


def check_vision(recipe: VisionConfig, model: VisionConfig) -> None:
    """Refuse a recipe whose images would be cut or normalised otherwise than the model's own.

    The bounds on pixels, orientation and pass order are the recipe's to choose.

    Raises:
        ConfigError: names every field that differs.
    """
    chosen = ("min_pixels", "max_pixels", "exif", "pass_order")
    names = [f.name for f in dataclasses.fields(VisionConfig) if f.name not in chosen]
    differing = [
        f"{name} (recipe {getattr(recipe, name)!r}, model {getattr(model, name)!r})"
        for name in names
        if getattr(recipe, name) != getattr(model, name)
    ]
    if differing:
        raise ConfigError(
            f"the recipe's vision is not the model's: {', '.join(differing)}",
            mend="Set these keys of vision to the model's values (temporal_patch_size may be 1)",
        )


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


def check_options(shards: ShardSet, samples: Sequence[int] | Int64Array, purpose: str) -> None:
    """Refuse open-ended samples, whose answers are free text, where a letter is compared.

    Args:
        samples: their numbers.
        purpose: what needs the options, for the error.

    Raises:
        ConfigError: a sample has no options; it names the first.
    """
    numbers = np.asarray(samples, np.int64)
    without = numbers[shards.num_options[numbers] == 0]
    if len(without):
        raise ConfigError(
            f"{len(without)} of {len(numbers)} samples for {purpose} have no options to choose "
            f"from, the first is {shards.key(int(without[0]))}",
            mend="Train and evaluate letters on multiple-choice sets; open-ended ones suit SFT",
        )


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


def on_first(ranks: Ranks, function: Callable[[], object]) -> None:
    """Let the first rank do what is done once, while the others wait for it.

    Raises:
        OmrError: what it raised, on every rank.
    """
    failed: OmrError | None = None
    if ranks.is_first:
        try:
            function()
        except OmrError as error:
            failed = error
    found = ranks.gather(failed)[0]
    if found is not None:
        raise found


def cached_json(path: Path, make: Callable[[], Any], ranks: Ranks | None = None) -> Any:
    """What `make` gives, kept at `path` so that a resumed run need not make it again.

    With several ranks all make it, or none does, and the first writes it.
    """
    ranks = ranks or Ranks()
    if ranks.gather(path.exists())[0]:
        return json.loads(path.read_text(encoding="utf-8"))
    made = make()
    on_first(ranks, lambda: write_atomically(path, json.dumps(made).encode()))
    return made
