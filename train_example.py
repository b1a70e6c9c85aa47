"""The full recipe, to be read top to bottom: SFT on packs, GRPO on prompts, evaluation, a report.

    python train_example.py --config recipes/demo.yaml            # a new run in runs/demo
    python train_example.py --config recipes/demo.yaml --resume   # after a stop of any kind
    torchrun --nproc_per_node 8 train_example.py --config recipes/openmedreason_qwen3vl_8b.yaml

Everything random depends on the recipe's seed and the step alone, so a resumed run goes on exactly
as the uninterrupted one would have.

Legend: R tokens with a loss, C completions (prompts_per_step x group).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.chat import ChatFormat
from omr_io.errors import OmrError, TrainingError
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.train.checkpoint import (
    CheckpointState,
    load_latest,
    save_checkpoint,
    set_random_state,
)
from omr_io.train.evaluate import ScoredItem, evaluate, reward_change, score
from omr_io.train.gathering import clip_gradients, full_weights
from omr_io.train.history import History, NoHistory
from omr_io.train.model import label_log_probs, load_model
from omr_io.train.objectives import group_advantages, grpo_loss, sft_loss
from omr_io.train.parallel import seed_step, shard, start_ranks
from omr_io.train.parameters import freeze, new_optimizer
from omr_io.train.ranks import Ranks
from omr_io.train.recipe import (
    RLRecipe,
    SFTRecipe,
    check_recipe,
    load_recipe,
    recipe_fields,
)
from omr_io.train.report import print_summary, write_report
from omr_io.train.rewards import parse_answer, reward
from omr_io.train.rollout import Completion, generate
from omr_io.train.run import (
    Place,
    Run,
    blind,
    cached_json,
    check_options,
    get_folder,
    get_model,
    get_token_ids,
    get_tokenizer,
    on_first,
    pack_rollouts,
    resolve_steps,
    say,
    split_for_rl,
    start_folder,
)
from omr_io.train.shared_prefix import pack_shared_rollouts
from omr_io.train.statistics import majority_letters
from omr_io.train.summary import make_report
from omr_io.train.whole_state import full_optimizer, load_optimizer, load_weights
from omr_io.types import EncodedSample


def main() -> None:
    """Run a recipe; an `OmrError` becomes one line and its exit code."""
    parser = argparse.ArgumentParser(description="SFT, RL and evaluation by one recipe.")
    parser.add_argument("--config", type=Path, required=True, help="a recipe: recipes/*.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    how.add_argument("--overwrite", action="store_true", help="delete an earlier run of this name")
    arguments = parser.parse_args()
    try:
        train(arguments.config, resume=arguments.resume, overwrite=arguments.overwrite)
    except OmrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def train(config: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """The whole recipe; everything it writes is in runs/NAME."""
    recipe = load_recipe(config)
    folder = Path("runs") / recipe.name
    dtype = getattr(torch, recipe.model.dtype)
    with (
        start_ranks(timeout_seconds=60 * recipe.parallel.timeout_minutes) as ranks,
        ShardSet.open(recipe.data.train) as train_set,
        ShardSet.open(recipe.data.test) as test_set,
        closing(make_decoder(recipe.data.decoder, recipe.vision)) as decoder,
    ):
        on_first(ranks, lambda: start_folder(folder, resume=resume, overwrite=overwrite))
        sft_samples, rl_samples = split_for_rl(recipe, len(train_set))
        check_options(train_set, rl_samples, "RL")
        check_options(test_set, range(len(test_set)), "evaluation")
        source = get_folder(recipe, ranks)
        tokenizer = get_tokenizer(recipe, train_set, folder, source=source, ranks=ranks)
        ids = get_token_ids(tokenizer)
        chat = ChatFormat.for_family(recipe.vision.family, tokenizer)
        loader = DataLoader(
            train_set,
            samples=sft_samples,
            chat=chat,
            vision=recipe.vision,
            seq_len=recipe.data.seq_len,
            packs_per_step=recipe.data.packs_per_step,
            packs_per_batch=recipe.data.packs_per_batch,
            decoder=decoder,
            num_threads=recipe.data.num_threads,
            seed=recipe.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            pixel_dtype=dtype,
        )
        recipe = resolve_steps(recipe, loader)
        model = get_model(recipe, tokenizer, ids, source)
        shard(
            model,
            ranks,
            dtype=dtype,
            activation_checkpointing=recipe.parallel.activation_checkpointing,
            compile_blocks=recipe.parallel.compile,
        )
        run = Run(
            recipe=recipe,
            folder=folder,
            device=ranks.device,
            model=model,
            ids=ids,
            loader=loader,
            prompts=SampleEncoder(train_set, chat, recipe.rl_vision, decoder, pixel_dtype=dtype),
            rl_samples=rl_samples,
            held_out=SampleEncoder(test_set, chat, recipe.vision, decoder, pixel_dtype=dtype),
            ranks=ranks,
        )
        saved = load_latest(run.checkpoints) if resume else None
        place = Place("sft", 0)
        if saved is not None:
            check_recipe(saved.progress["recipe"], recipe)
            place = Place(**saved.progress["place"])
            load_weights(model, saved.model)
            loader.load_state_dict(saved.progress["loader"])
            set_random_state(saved.rng)
            say(f"resumed after {place.phase} step {place.step}")
        history = open_history(folder / "history.jsonl", place, ranks)
        with history, loader:
            if place.phase == "sft":
                fine_tune(run, history, place.step, saved)
                place, saved = Place("rl", 0), None
            freeze(model, recipe.rl.freeze)
            before = sampled_rewards(run, "before-rl.json")
            reinforce(run, history, place.step, saved)
            after = sampled_rewards(run, "after-rl.json")
            report(run, config, before, after)


# Supervised fine-tuning


def fine_tune(run: Run, history: History, done: int, saved: CheckpointState | None) -> None:
    """SFT on packs. A step's loss: the sum over its label tokens over their planned number."""
    sft, model, loader = run.recipe.sft, run.model, run.loader
    optimizer = new_optimizer(
        model,
        lr=sft.lr,
        merger_lr=sft.merger_lr,
        vision_lr=sft.vision_lr,
        weight_decay=sft.weight_decay,
        beta2=sft.beta2,
    )
    if saved is not None:
        load_optimizer(optimizer, saved.optimizer)
    batches = endless(loader)
    for step in range(done + 1, sft.steps + 1):
        started, before = time.perf_counter(), loader.stats()
        model.train()
        seed_step(run.recipe.seed, step, run.ranks)
        set_learning_rate(optimizer, step, sft)
        loss, keys = 0.0, []
        for _ in range(loader.micro_steps):
            batch = next(batches).to(run.device)
            labels = label_log_probs(model, batch, row_weights=batch.label_weights)
            part = sft_loss(labels, batch.step_label_tokens)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            keys += [key for pack in batch.keys for key in pack]
        loss = run.ranks.sums([loss])[0]
        gradient_norm = update(optimizer, sft.max_grad_norm, loss, keys)
        seconds, stats = time.perf_counter() - started, loader.stats()
        tokens = stats.tokens - before.tokens
        efficiency = tokens / (stats.capacity - before.capacity)
        history.add(
            "sft",
            step,
            loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=optimizer.param_groups[0]["lr"],
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            packing_efficiency=efficiency,
            data_wait_share=(stats.waited_seconds - before.waited_seconds) / seconds,
        )
        if step % sft.log_every == 0:
            speed = f"{tokens / seconds:,.0f} tokens/s, packing {efficiency:.1%}"
            say(f"sft {step}/{sft.steps}: loss {loss:.4f}, {speed}")
        if step % sft.evaluate_every == 0:
            items = completions_of(run, run.held_out, range(len(run.held_out.shard_set)))
            accuracy = float(np.mean([item.correct for item in items]))
            history.add("sft", step, held_out_accuracy=accuracy)
            say(f"sft {step}/{sft.steps}: held-out accuracy {accuracy:.3f}")
        if step % sft.checkpoint_every == 0 or step == sft.steps:
            history.sync()
            save(run, Place("sft", step), optimizer)
    run.export("sft-model")


def endless(loader: DataLoader) -> Iterator[Batch]:
    """Batches of epoch after epoch, from where the loader stands."""
    while True:
        yield from loader


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, phase: SFTRecipe | RLRecipe
) -> None:
    """Linear warm-up to each group's own lr, then a cosine to `min_lr_share` of it, from step 1."""
    warmup = max(1, round(phase.warmup * phase.steps))
    share = step / warmup
    if step > warmup:
        done = (step - warmup) / max(1, phase.steps - warmup)
        share = phase.min_lr_share + (1 - phase.min_lr_share) * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share


def open_history(path: Path, place: Place, ranks: Ranks) -> History:
    """The metrics log, cut back to `place`: a killed run may have logged past its checkpoint."""
    if not ranks.is_first:
        return NoHistory()
    if place.step == 0 and not path.exists():
        return History.create(path)
    return History.resume(path, phase=place.phase, step=place.step)


def update(
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    loss: float,
    keys: Sequence[str],
) -> float:
    """Clip and step. A loss or gradient that is not finite stops the run, weights unchanged."""
    norm = clip_gradients([p for g in optimizer.param_groups for p in g["params"]], max_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"the loss is {loss} and the gradient norm {norm}; the weights were not changed",
            mend=f"Look at the samples of this step, or lower the learning rate: {', '.join(keys)}",
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def save(run: Run, place: Place, optimizer: torch.optim.Optimizer) -> None:
    """A checkpoint: all that the steps after `place` depend on."""
    state = CheckpointState(
        model=full_weights(run.model),
        optimizer=full_optimizer(optimizer),
        progress={
            "place": dataclasses.asdict(place),
            "loader": run.loader.state_dict(),
            "recipe": recipe_fields(run.recipe),
        },
    )
    on_first(run.ranks, lambda: save_checkpoint(run.checkpoints, state))


# Reinforcement learning


def reinforce(run: Run, history: History, done: int, saved: CheckpointState | None) -> None:
    """GRPO: groups of completions, advantages within each group, one update a rollout."""
    rl, model, prompts, ids = run.recipe.rl, run.model, run.prompts, run.ids
    optimizer = new_optimizer(model, lr=rl.lr, weight_decay=rl.weight_decay, beta2=rl.beta2)
    if saved is not None:
        load_optimizer(optimizer, saved.optimizer)
    reference_model = None
    if rl.beta > 0:
        reference_model = load_model(run.folder / "sft-model")
        reference_model.to(run.device)  # type: ignore[arg-type]  # transformers' wrapper hides it
    order = np.random.default_rng([run.recipe.seed, 1]).permutation(run.rl_samples)
    for step in range(done + 1, rl.steps + 1):
        started = time.perf_counter()
        set_learning_rate(optimizer, step, rl)
        place = (step - 1) * rl.prompts_per_step
        numbers = [int(order[(place + i) % len(order)]) for i in range(rl.prompts_per_step)]
        records = [prompts.shard_set.read_record(i, images=False) for i in numbers]
        asked = [prompts.prompt(i) for i in numbers]
        completions = generate(
            model,
            asked,
            max_new_tokens=rl.max_new_tokens,
            eos=ids.eos,
            banned=ids.banned,
            temperature=rl.temperature,
            group_size=rl.group,
            seed=run.recipe.seed + step,
            batch_size=rl.rollout_batch,
        )
        rewards_C = [
            reward(run.text(completion), records[i // rl.group])
            for i, completion in enumerate(completions)
        ]
        totals = torch.tensor([r.total for r in rewards_C]).view(-1, rl.group)
        advantages_C = group_advantages(totals, scale_by_std=rl.scale_by_std).flatten()
        rollout_seconds = time.perf_counter() - started

        loss, mismatch, entropy = policy_gradient(
            run, reference_model, asked, completions, advantages_C
        )
        keys = [sample.key for sample in asked]
        gradient_norm = update(optimizer, rl.max_grad_norm, loss, keys)
        seconds = time.perf_counter() - started
        history.add(
            "rl",
            step,
            reward=float(totals.mean()),
            accuracy=float(np.mean([r.accuracy for r in rewards_C])),
            format=float(np.mean([r.format for r in rewards_C])),
            zero_variance_share=float((totals.amax(1) == totals.amin(1)).float().mean()),
            completion_tokens=float(np.mean([len(c.ids) for c in completions])),
            unfinished_share=float(np.mean([not c.finished for c in completions])),
            entropy=entropy,
            rollout_mismatch=mismatch,
            gradient_norm=gradient_norm,
            rollout_seconds=rollout_seconds,
            seconds=seconds,
        )
        if step % rl.log_every == 0:
            say(f"rl {step}/{rl.steps}: reward {float(totals.mean()):.3f}, {seconds:.1f} s")
        if step % rl.checkpoint_every == 0 or step == rl.steps:
            history.sync()
            save(run, Place("rl", step), optimizer)
    run.export("model")


def policy_gradient(
    run: Run,
    reference_model: Any,
    asked: Sequence[EncodedSample],
    completions: Sequence[Completion],
    advantages_C: torch.Tensor,
) -> tuple[float, float, float]:
    """Add up the gradient of a whole rollout, packed as the loader packs.

    Returns:
        The loss; the largest difference between a token's log-probability here and in the
        sampler: both are the same policy, so it is rounding and nothing else; and the mean entropy,
        in nats, of the distributions that the tokens were drawn from.
    """
    rl = run.recipe.rl
    score_labels = partial(label_log_probs, temperature=rl.temperature, banned=run.ids.banned)
    tokens = sum(len(completion.ids) for completion in completions)
    loss = mismatch = entropy = 0.0
    run.model.train()
    pack = pack_shared_rollouts if rl.shared_prefix else pack_rollouts
    for packed, members in pack(
        asked,
        completions,
        group=rl.group,
        seq_len=run.recipe.data.seq_len,
        packs_per_batch=run.loader.packs_per_batch,
        encoder=run.prompts,
        device=run.device,
    ):
        batch = packed.to(run.device)
        lengths = torch.tensor([len(completions[i].ids) for i in members])
        labels = score_labels(run.model, batch, entropy=True)
        logprobs_R = labels.log_probs
        reference_R = None
        if reference_model is not None:
            with torch.no_grad():
                reference_R = score_labels(reference_model, batch).log_probs
        policy = grpo_loss(
            logprobs_R,
            logprobs_R.detach(),  # one update a rollout: the ratio is 1, its gradient is not
            advantages_C[members].repeat_interleave(lengths).to(run.device),
            torch.ones_like(logprobs_R, dtype=torch.bool),
            tokens,
            clip_low=rl.clip_low,
            clip_high=rl.clip_high,
            beta=rl.beta,
            reference_logprobs=reference_R,
        )
        policy.loss.backward()  # type: ignore[no-untyped-call]
        loss += float(policy.loss.detach())
        sampled_R = torch.from_numpy(np.concatenate([completions[i].logprobs for i in members]))
        mismatch = max(mismatch, float((logprobs_R.detach().cpu() - sampled_R).abs().max()))
        assert labels.entropy is not None
        entropy += float(labels.entropy.detach().sum()) / tokens
    return loss, mismatch, entropy


# Evaluation


def completions_of(
    run: Run,
    encoder: SampleEncoder,
    numbers: Sequence[int],
    *,
    temperature: float = 0.0,
    group: int = 1,
    without_image: bool = False,
) -> list[ScoredItem]:
    """Complete and score samples; temperature 0 takes the likeliest tokens."""
    evaluation = run.recipe.evaluation
    asked = [encoder.prompt(i) for i in numbers]
    if without_image:
        asked = [blind(prompt, encoder) for prompt in asked]
    completions = generate(
        run.model,
        asked,
        max_new_tokens=evaluation.max_new_tokens,
        eos=run.ids.eos,
        banned=run.ids.banned,
        temperature=temperature,
        group_size=group,
        seed=run.recipe.seed,
        batch_size=evaluation.batch,
    )
    places = [i for i in numbers for _ in range(group)]
    return score(
        [encoder.shard_set.key(i) for i in places],
        [encoder.shard_set.read_record(i, images=False) for i in places],
        [run.text(completion) for completion in completions],
        parse=partial(parse_answer, strict=False),
        reward=lambda completion, record: reward(completion, record).total,
        cluster_field=evaluation.cluster_field,
        task_field=evaluation.task_field,
    )


def sampled_rewards(run: Run, name: str) -> dict[str, list[ScoredItem]]:
    """Completions sampled as RL samples them, of its own prompts and of prompts it never sees.

    Kept in the run's folder: a resumed run must not measure "before" again.
    """
    prompts: dict[str, tuple[SampleEncoder, Sequence[int]]] = {
        "prompts of RL's own": (
            run.prompts,
            run.rl_samples[: run.recipe.evaluation.prompts].tolist(),
        ),
        "held-out prompts": (run.held_out, range(len(run.held_out.shard_set))),
    }

    def make() -> Any:
        sample = partial(
            completions_of,
            run,
            temperature=run.recipe.rl.temperature,
            group=run.recipe.evaluation.samples,
        )
        return {
            which: [dataclasses.asdict(item) for item in sample(encoder, numbers)]
            for which, (encoder, numbers) in prompts.items()
        }

    if not run.recipe.rl.steps:
        return {}
    kept = cached_json(run.folder / name, make, run.ranks)
    return {which: [ScoredItem(**fields) for fields in items] for which, items in kept.items()}


def report(
    run: Run,
    config: Path,
    before: Mapping[str, Sequence[ScoredItem]],
    after: Mapping[str, Sequence[ScoredItem]],
) -> None:
    """Evaluate the final model, with its image and blind; print the table, write report.html."""
    recipe, held_out = run.recipe, run.held_out
    started = time.perf_counter()
    train_set = run.prompts.shard_set
    seen = [train_set.read_record(i, images=False) for i in range(len(train_set))]
    everything = range(len(held_out.shard_set))
    items = completions_of(run, held_out, everything)
    evaluation = evaluate(
        items,
        majority=majority_letters([r.answer for r in seen], [len(r.options) for r in seen]),
        blind=completions_of(run, held_out, everything, without_image=True),
        seed=recipe.seed,
    )
    rewards = {
        which: reward_change(scored, after[which], seed=recipe.seed)
        for which, scored in before.items()
    }
    seconds = time.perf_counter() - started
    text = config.read_text(encoding="utf-8")
    if not run.ranks.is_first:
        return
    page = make_report(run, text, evaluation, items, rewards, seconds)
    write_report(run.folder / "report.html", page)
    print_summary(page)
    say(f"report: {run.folder / 'report.html'}")


if __name__ == "__main__":
    main()
