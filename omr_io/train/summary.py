"""A run as a report: its log, its scores and some held-out samples."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from omr_io import __version__
from omr_io.train.evaluate import Evaluation, RewardChange, ScoredItem
from omr_io.train.history import Row, curve, read_history
from omr_io.train.report import Example, Report, Throughput, choose_items
from omr_io.train.run import Run


def make_report(
    run: Run,
    config: str,
    evaluation: Evaluation,
    items: Sequence[ScoredItem],
    rewards: Mapping[str, RewardChange],
    evaluation_seconds: float,
) -> Report:
    """Everything that the page shows.

    Args:
        config: the recipe's text.
        evaluation: of `items`, the held-out split's.
        rewards: before and after RL, by set of prompts; {} without RL.
        evaluation_seconds: that the evaluation took.
    """
    rows = read_history(run.folder / "history.jsonl")
    recipe, tokenizer = run.recipe, run.held_out.chat.tokenizer
    parameters = sum(p.numel() for p in run.model.parameters()) / 1e6
    shown = choose_items(items, recipe.evaluation.shown, seed=recipe.seed)
    return Report(
        title=recipe.name,
        model=f"{type(run.model).__name__}, {parameters:.1f} M parameters, "
        f"vocabulary of {tokenizer.vocab_size}",
        evaluation=evaluation,
        rewards=rewards,
        history=rows,
        throughput=_throughput(rows, evaluation_seconds),
        config=config,
        examples=_examples(run, shown),
        clusters=recipe.evaluation.clusters,
        facts={
            "omr_io": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seed": str(recipe.seed),
        },
    )


def _throughput(rows: Sequence[Row], evaluation_seconds: float) -> Throughput:
    def total(phase: str, metric: str) -> float:
        return sum(curve(rows, phase, metric)[1])

    def mean(metric: str) -> float:
        return float(np.mean(curve(rows, "sft", metric)[1]))

    sft, rl = total("sft", "seconds"), total("rl", "seconds")
    return Throughput(
        tokens_per_second=total("sft", "tokens") / sft,
        packing_efficiency=mean("packing_efficiency"),
        data_wait_share=mean("data_wait_share"),
        seconds={"SFT": sft, "RL": rl, "evaluation": evaluation_seconds},
    )


def _examples(run: Run, items: Sequence[ScoredItem]) -> list[Example]:
    encoder, shards = run.held_out, run.held_out.shard_set
    number_of = {shards.key(i): i for i in range(len(shards))}
    examples = []
    for item in items:
        number = number_of[item.key]
        record = shards.read_record(number)
        decoded = encoder.decoder.decode(
            [image.data for image in record.images], shards.images(number)
        )
        pixels = decoded[0] if decoded and isinstance(decoded[0], np.ndarray) else None
        options = {option.letter: option.text for option in record.options}
        examples.append(Example(item, record.question, options, pixels))
    return examples
