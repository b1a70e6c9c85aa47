"""The full recipe, to be read top to bottom: SFT on packs, GRPO on prompts, evaluation, a report.

    python train_example.py --config recipes/demo.yaml            # a new run in runs/demo
    python train_example.py --config recipes/demo.yaml --resume   # after a stop of any kind
    python train_example.py --config recipes/demo.yaml --measure-stall    # what the data costs
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
from omr_io.errors import OmrError, StoppedError
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.train.checkpoint import Checkpoints, Saved, random_state
from omr_io.train.clusters import image_clusters
from omr_io.train.dynamic_sampling import (
    Group,
    PromptOrder,
    Round,
    deal,
    draw_groups,
    minibatches,
)
from omr_io.train.engines import RolloutEngine, SamplingSettings
from omr_io.train.evaluate import ScoredItem, evaluate, reward_change, score
from omr_io.train.finite import check_finite
from omr_io.train.gathering import clip_gradients, gathered
from omr_io.train.meters import peak_memory
from omr_io.train.model import label_log_probs
from omr_io.train.objectives import StepCounts, importance_weights, policy_loss, sft_loss
from omr_io.train.parallel import seed_step, shard, start_ranks
from omr_io.train.parameters import freeze, new_optimizer
from omr_io.train.ranks import on_first
from omr_io.train.recipe import (
    RLRecipe,
    SFTRecipe,
    check_recipe,
    load_recipe,
    recipe_fields,
)
from omr_io.train.report import print_summary, write_report
from omr_io.train.rewards import parse_answer, reward
from omr_io.train.rollout import generate
from omr_io.train.rollout_metrics import (
    PolicyMeter,
    Stopwatch,
    Update,
    rollout_metrics,
    update_metrics,
)
from omr_io.train.rollouts import (
    Rollouts,
    check_prompt_lengths,
    make_engine,
    rollout_batches,
    train_without_dropout,
    update_cost,
)
from omr_io.train.run import (
    Place,
    Run,
    blind,
    cached_json,
    get_cost,
    get_folder,
    get_model,
    get_reference,
    get_token_ids,
    get_tokenizer,
    majority_of,
    resolve_steps,
    say,
    split_for_rl,
)
from omr_io.train.run_checks import check_engine, check_profile, check_samples
from omr_io.train.run_folder import run_folder
from omr_io.train.seen import Synthetic, has_metric, open_log, sft_meter
from omr_io.train.step_log import Most, StepLog, Total
from omr_io.train.stopping import Stopping, stop_signals
from omr_io.train.summary import make_report
from omr_io.train.trackers import check_trackers
from omr_io.types import EncodedSample


def main() -> None:
    """Run a recipe; an `OmrError` becomes one line and its exit code."""
    parser = argparse.ArgumentParser(description="SFT, RL and evaluation by one recipe.")
    parser.add_argument("--config", type=Path, required=True, help="a recipe: recipes/*.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    how.add_argument("--overwrite", action="store_true", help="delete an earlier run of this name")
    parser.add_argument("--profile", action="store_true", help="trace a few steps of SFT")
    kinds = parser.add_mutually_exclusive_group()
    for mode in ("fake-data", "replay", "measure-stall"):
        text = f"only measure time, over so many steps: see {Synthetic.__module__}"
        kinds.add_argument(f"--{mode}", type=int, nargs="?", const=100, metavar="N", help=text)
    arguments = parser.parse_args()
    try:
        train(
            arguments.config,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            profile=arguments.profile,
            synthetic=Synthetic.of(arguments),
        )
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except OmrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def train(
    config: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    synthetic: Synthetic | None = None,
) -> None:
    """The whole recipe; everything it writes is in runs/NAME."""
    synthetic = synthetic or Synthetic()
    recipe = synthetic.renamed(load_recipe(config))
    text = config.read_text(encoding="utf-8")  # now: the file may have changed when the run ends
    check_trackers(recipe.trackers)
    folder = Path("runs") / recipe.name
    dtype = getattr(torch, recipe.model.dtype)
    with (
        stop_signals() as signals,
        start_ranks(timeout_seconds=60 * recipe.parallel.timeout_minutes) as ranks,
        ShardSet.open(recipe.data.train) as train_set,
        ShardSet.open(recipe.data.test) as test_set,
        closing(make_decoder(recipe.data.decoder, recipe.vision)) as decoder,
        run_folder(folder, ranks, resume=resume, overwrite=overwrite) as begin,
    ):
        sft_samples, rl_samples = split_for_rl(recipe, len(train_set))
        check_samples(recipe, train_set, test_set, rl_samples)
        check_engine(recipe, ranks.device)
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
            cost=get_cost(source, recipe.sft.freeze),
            decoder=decoder,
            num_threads=recipe.data.num_threads,
            seed=recipe.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            pixel_dtype=dtype,
        )
        loader.check_ranks(ranks.gather(loader.state_dict()))
        if recipe.rl.steps:
            check_prompt_lengths(recipe, loader, chat, train_set, rl_samples)
        recipe = synthetic.with_steps(resolve_steps(recipe, loader), loader)
        model = get_model(recipe, tokenizer, ids, source)
        ids = ids.for_model(model, tokenizer.vocab_size)
        shard(
            model,
            ranks,
            dtype=dtype,
            activation_checkpointing=recipe.parallel.activation_checkpointing,
            compile_blocks=recipe.parallel.compile,
        )
        checkpoints = Checkpoints(folder / "checkpoints", ranks)
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
            checkpoints=checkpoints,
            stopping=Stopping(signals, checkpoints, ranks),
            rl_cost=get_cost(source, recipe.rl.freeze),
            ranks=ranks,
        )
        saved = checkpoints.latest() if resume else None
        place = Place("sft", 0)
        if saved is not None:
            check_recipe(saved.progress["recipe"], recipe)
            place = Place(**saved.progress["place"])
            saved.load_model(model)
            loader.load_state_dict(saved.progress["loader"])
            saved.load_random_state(seed=recipe.seed)
            say(f"resumed after {place.phase} step {place.step}")
        if profile:
            check_profile(recipe.sft.steps - place.step if place.phase == "sft" else 0)
        history = open_log(run, place)
        with history, loader, checkpoints:
            begin()  # nothing is refused from here on: an earlier run is deleted now
            if place.phase == "sft":
                fine_tune(run, history, place.step, saved, synthetic, profile=profile)
                if synthetic:
                    return
                place, saved = Place("rl", 0), None
            freeze(model, recipe.rl.freeze)
            before = sampled_rewards(run, "before-rl.json")
            reinforce(run, history, place.step, saved)
            after = sampled_rewards(run, "after-rl.json")
            report(run, text, before, after)


# Supervised fine-tuning


def fine_tune(
    run: Run,
    history: StepLog,
    done: int,
    saved: Saved | None,
    synthetic: Synthetic,
    *,
    profile: bool,
) -> None:
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
        saved.load_optimizer(model, optimizer)
    due = done > 0 and done % sft.evaluate_every == 0 and run.ranks.is_first
    if run.ranks.any(due and not has_metric(run, done, "held_out_accuracy")):  # it was interrupted
        held_out_accuracy(run, history, done)
    meter = sft_meter(run, profile=profile)
    batches = meter.watch(synthetic.batches(endless(loader), loader, run.device))
    for step in range(done + 1, sft.steps + 1):
        meter.start()
        model.train()
        seed_step(run.recipe.seed, step, run.ranks)
        set_learning_rate(optimizer, step, sft)
        loss, keys = torch.zeros((), dtype=torch.float64, device=run.device), []
        for _ in range(loader.micro_steps):
            run.stopping.check()
            batch = next(batches).to(run.device)
            labels = label_log_probs(model, batch, row_weights=batch.label_weights)
            part = sft_loss(labels, batch.step_label_tokens)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
            keys += [key for pack in batch.keys for key in pack]
        gradient_norm = update(run, Place("sft", step), optimizer, sft.max_grad_norm, loss, keys)
        history.add(
            "sft",
            step,
            loss=Total(loss),
            gradient_norm=gradient_norm,
            learning_rate=optimizer.param_groups[0]["lr"],
            **meter.finish(),
        )
        if synthetic:
            run.stopping.step_done(lambda: None, due=False)  # a stop is heard; nothing is saved
            continue
        due = step % sft.checkpoint_every == 0 or step == sft.steps
        save(run, history, Place("sft", step), optimizer, due=due)
        if step % sft.evaluate_every == 0:
            held_out_accuracy(run, history, step)
    meter.close()
    if synthetic:
        synthetic.report(run, history)
    else:
        run.export("sft-model")


def held_out_accuracy(run: Run, history: StepLog, step: int) -> None:
    """Evaluate the test split after a step of SFT; interrupted by a stop, it is begun again."""
    items = completions_of(run, run.held_out, range(len(run.held_out.shard_set)))
    accuracy = float(np.mean([item.correct for item in items]))
    history.add("sft", step, held_out_accuracy=accuracy)
    say(f"sft {step}/{run.recipe.sft.steps}: held-out accuracy {accuracy:.3f}")


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


def update(
    run: Run,
    place: Place,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    loss: float | torch.Tensor,
    keys: Sequence[str],
) -> float:
    """Clip and step. A loss or gradient that is not finite stops the run, weights unchanged.

    Args:
        loss: this rank's part, so that the rank whose it is can be named.
    """
    norm = clip_gradients([p for g in optimizer.param_groups for p in g["params"]], max_norm)
    check_finite(
        run.ranks,
        loss=float(loss),
        gradient_norm=norm,
        phase=place.phase,
        step=place.step,
        keys=keys,
        path=run.folder / "not-finite.json",
    )
    run.stopping.before_update()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def save(
    run: Run,
    history: StepLog,
    place: Place,
    optimizer: torch.optim.Optimizer,
    *,
    due: bool,
    prompts: Mapping[str, int] | None = None,
) -> None:
    """After a step: all that the steps after it depend on. Written if due, and before a stop.

    Args:
        prompts: in RL, which of them are used.
    """
    rng = random_state()
    progress = {
        "place": dataclasses.asdict(place),
        "loader": run.loader.state_dict(),
        "prompts": prompts,
        "recipe": recipe_fields(run.recipe),
    }

    def write() -> None:
        history.sync()
        run.checkpoints.save(run.model, optimizer, progress, rng=rng)

    run.stopping.step_done(write, due=due)


# Reinforcement learning


def reinforce(run: Run, history: StepLog, done: int, saved: Saved | None) -> None:
    """GRPO and its kin: groups of completions, advantages within each, one or more updates."""
    rl, model, prompts = run.recipe.rl, run.model, run.prompts
    if done == rl.steps:  # no engine, no reference model: there is nothing to do but to export
        run.export("model")
        return
    optimizer = new_optimizer(model, lr=rl.lr, weight_decay=rl.weight_decay, beta2=rl.beta2)
    order = PromptOrder(run.rl_samples, run.recipe.seed)
    if saved is not None:
        saved.load_optimizer(model, optimizer)
        order.load_state_dict(saved.progress["prompts"])
    reference_model = None
    if rl.beta > 0:
        dtype = getattr(torch, run.recipe.model.dtype)
        reference_model = get_reference(run.folder / "sft-model", run.ranks, dtype)
    engine = make_engine(run)
    for step in range(done + 1, rl.steps + 1):
        started, watch = time.perf_counter(), Stopwatch()
        set_learning_rate(optimizer, step, rl)
        with watch("rollout"):
            engine.update_weights(model)
            asked: dict[int, EncodedSample] = {}
            drawn = draw_groups(
                order,
                partial(roll_out, run, engine, order, step, asked),
                wanted=rl.prompts_per_step,
                only_mixed=rl.dynamic_sampling,
                max_draws=rl.max_draws,
                ranks=run.ranks,
            )
            engine.rest()
        # Each update's groups are the same for any number of ranks; this rank learns from a share.
        parts = [
            Rollouts.of(
                deal(groups, drawn.made_by, run.ranks), asked, prompts, scale=rl.scales_by_std
            )
            for groups in minibatches(drawn.groups, rl.updates)
        ]
        with watch("old_logprobs"):
            # By the model that is trained, not the sampler: the first update's ratio is then 1, and
            # what another engine's numbers differ by is corrected for apart, once.
            if rl.updates > 1:
                parts = [part.with_old(old_log_probs(run, part)) for part in parts]
        updates, norms, here = [], [], Place("rl", step)
        with watch("update"):
            for part in parts:
                updates.append(policy_gradient(run, reference_model, part, exact=engine.exact))
                loss, keys = updates[-1].loss_here, [sample.key for sample in part.asked]
                norms.append(update(run, here, optimizer, rl.max_grad_norm, loss, keys))
        metrics = rollout_metrics(drawn)
        metrics |= update_metrics(updates, has_reference=reference_model is not None)
        metrics |= {f"{phase}_seconds": spent for phase, spent in watch.seconds.items()}
        seconds = time.perf_counter() - started
        history.add(
            "rl",
            step,
            **metrics,
            gradient_norm=float(np.mean(norms)) if norms else None,
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=seconds,
            peak_memory_bytes=Most(peak_memory(run.device)),
        )
        due = step % rl.checkpoint_every == 0 or step == rl.steps
        used = order.state_dict()
        save(run, history, here, optimizer, due=due, prompts=used)
    engine.close()
    run.export("model")


def roll_out(
    run: Run,
    engine: RolloutEngine,
    order: PromptOrder,
    step: int,
    asked: dict[int, EncodedSample],
    draw: Round,
) -> list[Group]:
    """Sample and score this rank's prompts of a round; `asked` keeps them, encoded, by place."""
    rl = run.recipe.rl
    places = [draw.first + i for i in draw.mine]
    asked.update((place, run.prompts.prompt(order.number(place))) for place in places)
    settings = SamplingSettings(
        max_new_tokens=rl.max_new_tokens,
        eos=run.ids.eos,
        banned=run.ids.banned,
        temperature=rl.temperature,
        group=rl.group,
        seed=run.recipe.seed + step + (draw.number << 32),
        places=draw.mine,
        of=draw.count,
        batch=rl.rollout_batch,
    )
    with run.stopping.interruptible() as leave_if_asked:
        prompts = [asked[place] for place in places]
        completions = engine.generate(prompts, settings, between=leave_if_asked)
    groups = []
    for i, place in enumerate(places):
        number = order.number(place)
        record = run.prompts.shard_set.read_record(number, images=False)
        made = tuple(completions[i * rl.group : (i + 1) * rl.group])
        rewards = tuple(reward(run.text(completion), record) for completion in made)
        cost = update_cost(run.rl_cost, asked[place], made, shared=rl.shared_prefix)
        groups.append(Group(place, number, made, rewards, asked[place].failure, cost))
    return groups


def old_log_probs(run: Run, part: Rollouts) -> list[torch.Tensor]:
    """Each completion's log-probabilities by the model as it is now, in float32 on its device."""
    rl = run.recipe.rl
    old_C = [torch.empty(0)] * len(part.completions)
    train_without_dropout(run.model)
    with torch.no_grad():
        for batch, members in rollout_batches(run, part):
            run.stopping.check()
            labels = label_log_probs(
                run.model, batch, temperature=rl.temperature, banned=run.ids.banned
            )
            if members:
                lengths = [len(part.completions[i].ids) for i in members]
                parts = torch.split(labels.log_probs, lengths)
                for i, scores in zip(members, parts, strict=True):
                    old_C[i] = scores
    return old_C


def policy_gradient(
    run: Run, reference_model: Any, part: Rollouts, *, exact: bool = True
) -> Update:
    """Add up the gradient of one update, packed as the loader packs.

    Args:
        part: this rank's share of the update's groups; with log-probabilities of the old policy, or
            without: then the policy is the old one, the ratio is 1 and its gradient is not.
        exact: whether the sampler's log-probabilities are the policy's own but for rounding; if not
            the tokens' losses are weighted by what they are out.
    """
    rl = run.recipe.rl
    score_labels = partial(label_log_probs, temperature=rl.temperature, banned=run.ids.banned)
    lengths = [len(completion.ids) for completion in part.completions]
    tokens, completions = run.ranks.sums([sum(lengths), len(lengths)])
    counts = StepCounts(int(tokens), int(completions))
    meter = PolicyMeter(counts)
    train_without_dropout(run.model)
    for batch, members in rollout_batches(run, part):
        run.stopping.check()
        labels = score_labels(run.model, batch, entropy=True)
        logprobs_R = labels.log_probs
        reference_R = None
        if reference_model is not None:
            with torch.no_grad():
                reference_R = score_labels(reference_model, batch).log_probs
        if not members:  # other ranks are not done: their collectives need this one's
            (0.0 * logprobs_R.sum()).backward()  # type: ignore[no-untyped-call]
            continue
        old_R = logprobs_R.detach()
        if part.old_logprobs is not None:
            old_R = torch.cat([part.old_logprobs[i] for i in members])
        sampled = np.concatenate([part.completions[i].logprobs for i in members])
        sampled_R = torch.from_numpy(sampled).to(run.device)
        importance_R = None if exact else importance_weights(old_R, sampled_R, rl.importance_clip)
        policy = policy_loss(
            logprobs_R,
            old_R,
            part.advantages[members].to(run.device),
            torch.tensor([lengths[i] for i in members], device=run.device),
            counts,
            objective=rl.objective,
            max_new_tokens=rl.max_new_tokens,
            clip_low=rl.clip_low,
            clip_high=rl.clip_high,
            beta=rl.beta,
            reference_logprobs_R=reference_R,
            importance_R=importance_R,
        )
        policy.loss.backward()  # type: ignore[no-untyped-call]
        assert labels.entropy is not None
        meter.add(
            policy,
            entropy_R=labels.entropy,
            old_R=old_R,
            sampled_R=sampled_R,
            importance_R=importance_R,
            importance_clip=rl.importance_clip,
        )
    return meter.total(run.ranks)


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
    """Complete and score samples, on every rank a part; temperature 0 takes the likeliest tokens.

    Returns:
        `group` items of each sample, in their order, on every rank.
    """
    evaluation, ranks = run.recipe.evaluation, run.ranks
    mine = range(ranks.rank, len(numbers), ranks.world_size)
    at_a_time = 4 * max(1, evaluation.batch // group)  # a whole split's pixels may be 100 GB

    def ask(place: int) -> EncodedSample:
        prompt = encoder.prompt(numbers[place])
        return blind(prompt, encoder) if without_image else prompt

    completions = []
    with run.stopping.interruptible() as leave_if_asked, gathered(run.model):
        for first in range(0, len(mine), at_a_time):
            places = mine[first : first + at_a_time]
            completions += generate(
                run.model,
                [ask(place) for place in places],
                max_new_tokens=evaluation.max_new_tokens,
                eos=run.ids.eos,
                banned=run.ids.banned,
                temperature=temperature,
                group_size=group,
                seed=run.recipe.seed,
                batch_size=evaluation.batch,
                between=leave_if_asked,
                places=places,
                of=len(numbers),
            )
    parts = ranks.gather([run.text(completion) for completion in completions])
    texts = [
        parts[i % ranks.world_size][i // ranks.world_size * group + k]
        for i in range(len(numbers))
        for k in range(group)
    ]
    repeated = [i for i in numbers for _ in range(group)]
    return score(
        [encoder.shard_set.key(i) for i in repeated],
        [encoder.shard_set.read_record(i, images=False) for i in repeated],
        texts,
        parse=partial(parse_answer, strict=False),
        reward=lambda completion, record: reward(completion, record).total,
        clusters=image_clusters(encoder.shard_set, repeated),
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
    # Before and after can be compared only if they are of the same prompts, sampled alike.
    names = ("max_new_tokens", "samples", "prompts", "cluster_field", "task_field")
    alike = {f"evaluation.{key}": getattr(run.recipe.evaluation, key) for key in names}
    kept = cached_json(run.folder / name, make, run.ranks, depends_on=alike)
    return {which: [ScoredItem(**fields) for fields in items] for which, items in kept.items()}


def report(
    run: Run,
    recipe_text: str,
    before: Mapping[str, Sequence[ScoredItem]],
    after: Mapping[str, Sequence[ScoredItem]],
) -> None:
    """Evaluate the final model, with its image and blind; print the table, write report.html."""
    recipe, held_out = run.recipe, run.held_out
    started = time.perf_counter()
    everything = range(len(held_out.shard_set))
    items = completions_of(run, held_out, everything)
    blind_items = completions_of(run, held_out, everything, without_image=True)

    def write() -> None:
        evaluation = evaluate(
            items,
            majority=majority_of(run.prompts.shard_set),
            blind=blind_items,
            seed=recipe.seed,
        )
        rewards = {
            which: reward_change(scored, after[which], seed=recipe.seed)
            for which, scored in before.items()
        }
        seconds = time.perf_counter() - started
        page = make_report(run, recipe_text, evaluation, items, rewards, seconds)
        write_report(run.folder / "report.html", page)
        print_summary(page)
        say(f"report: {run.folder / 'report.html'}")

    on_first(run.ranks, write)  # the others wait: a launcher may end a run that a rank has left


if __name__ == "__main__":
    main()
