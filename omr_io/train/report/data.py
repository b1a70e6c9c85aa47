"""What a report shows: filled by the training script, drawn by `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omr_io.errors import ConfigError
from omr_io.train.evaluate import Evaluation, RewardChange, ScoredItem
from omr_io.train.history import Row
from omr_io.types import UInt8Array


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast the run was.

    Attributes:
        tokens_per_second: real tokens (padding apart) of SFT over the time of its steps.
        packing_efficiency: real tokens / capacity, 0..1.
        data_wait_share: share of SFT's step time spent waiting for the loader, 0..1.
        seconds: wall-clock seconds of each phase, in order ({"SFT": 210.5, "RL": 93.0}).
    """

    tokens_per_second: float
    packing_efficiency: float
    data_wait_share: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out sample for the grid.

    Attributes:
        item: its scored completion, with the image.
        question: as it stands in the corpus, options inline.
        option_texts: text of each option by its letter.
        pixels: (H, W, 3) uint8 RGB of any size, as decoded; None for a sample without image.
    """

    item: ScoredItem
    question: str
    option_texts: Mapping[str, str]
    pixels: UInt8Array | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that report.html and the terminal summary show.

    Attributes:
        title: name of the run.
        model: one line: architecture, parameters, tokenizer.
        evaluation: of the final model on the held-out split.
        rewards: mean reward before and after RL by set of prompts ("prompts of RL's own",
            "held-out prompts"): what RL trained on, and what carries over; {} without RL.
        history: lines of the metrics log. A chart is drawn for each of these that has two points
            or more: sft loss, held_out_accuracy, tokens_per_second, mfu, packing_efficiency,
            data_wait_share, gradient_norm; rl reward, accuracy, held_out_accuracy,
            completion_tokens, entropy, gradient_norm.
        throughput: of the run.
        config: the run configuration as text (YAML).
        examples: see `choose_items`.
        clusters: what the items' clusters are, in plural: "studies", or "images" by image hash.
        facts: further lines for the end of the page ({"torch": "2.13.0", "seed": "0"}).
    """

    title: str
    model: str
    evaluation: Evaluation
    rewards: Mapping[str, RewardChange]
    history: Sequence[Row]
    throughput: Throughput
    config: str
    examples: Sequence[Example] = ()
    clusters: str = "studies"
    facts: Mapping[str, str] = field(default_factory=dict)


def choose_items(items: Sequence[ScoredItem], count: int, *, seed: int = 0) -> list[ScoredItem]:
    """Draw `count` items for the grid at random, right or wrong, as evenly over tasks as they go.

    Raises:
        ConfigError: count is negative.
    """
    if count < 0:
        raise ConfigError(f"cannot show {count} examples")
    rng = np.random.default_rng(seed)
    queues = []
    for task in sorted({item.task for item in items}):
        own = [item for item in items if item.task == task]
        queues.append([own[index] for index in rng.permutation(len(own))])
    chosen: list[ScoredItem] = []
    while len(chosen) < min(count, len(items)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen
