"""A report with made-up but realistic figures, for tests and for looking at the page.

python -m tests.train.report.fake_report report.html
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from omr_io.train.evaluate import ScoredItem, evaluate, reward_change
from omr_io.train.history import Row
from omr_io.train.report import (
    Example,
    Report,
    Throughput,
    choose_items,
    print_summary,
    write_report,
)
from omr_io.types import UInt8Array

TASKS = {
    "brightest quadrant": (0.72, ("upper left", "upper right", "lower left", "lower right")),
    "modality": (0.93, ("computed tomography", "magnetic resonance", "ultrasound", "radiography")),
    "plane": (0.64, ("axial", "coronal", "sagittal")),
    "contrast inverted": (0.78, ("yes", "no")),
}
QUESTIONS = {
    "brightest quadrant": "Which quadrant of this image is the brightest on average?",
    "modality": "Which modality produced this image?",
    "plane": "In which plane was this slice acquired?",
    "contrast inverted": "Have the grey levels of this image been inverted?",
}


def picture(seed: int, size: tuple[int, int]) -> UInt8Array:
    """A smooth grey blob on black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    image = np.zeros(size)
    for _ in range(7):
        cx, cy, r = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.5)
        image += rng.uniform(0.1, 0.5) * (((x - cx) ** 2 + (y - cy) ** 2) < r * r)
    image += 0.05 * rng.standard_normal(size) * (image > 0)
    return np.repeat((255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def items(seed: int, *, skill: float, count: int = 300) -> list[ScoredItem]:
    """Items of 11 studies; `skill` 1 answers as TASKS says, 0 guesses."""
    truth, draw = np.random.default_rng(0), np.random.default_rng(seed)
    names = list(TASKS)
    made = []
    for number in range(count):
        task = names[number % len(names)]
        rate, options = TASKS[task]
        letters = "ABCDEF"[: len(options)]
        answer = letters[int(truth.integers(len(options)))]
        right = draw.random() < skill * rate + (1 - skill) / len(options)
        others = [letter for letter in letters if letter != answer]
        letter = answer if right else others[int(draw.integers(len(others)))]
        parsed = None if draw.random() < 0.01 else letter
        text = options[letters.index(letter)]
        body = f"<think>The image is a grey slice. Its features point to {text}.</think>"
        completion = f"{body}\n<answer>{letter}</answer>" if parsed else body[: len(body) // 2]
        reward = 0.0 if parsed is None else 0.1 + 0.9 * (parsed == answer)
        made.append(
            ScoredItem(
                f"study{number % 11:02d}-{number:04d}", f"study{number % 11:02d}", task, answer,
                parsed, "answer tag" if parsed else "unparsed", len(options), completion, reward,
            )
        )  # fmt: skip
    return made


def history() -> list[Row]:
    """Curves of 700 SFT and 60 RL steps."""
    rng = np.random.default_rng(3)
    rows: list[Row] = []
    for step in range(1, 701):
        row: dict[str, Any] = {"phase": "sft", "step": step}
        row["loss"] = 0.32 + 7.6 * math.exp(-step / 60) + rng.normal(0, 0.05)
        row["tokens_per_second"] = 5200 + rng.normal(0, 160)
        row["packing_efficiency"] = min(1.0, 0.965 + rng.normal(0, 0.01))
        row["data_wait_share"] = abs(rng.normal(0.008, 0.004))
        row["gradient_norm"] = 1 + 3 * math.exp(-step / 90) + abs(rng.normal(0, 0.2))
        if step % 100 == 0:
            row["held_out_accuracy"] = 0.75 - 0.5 * math.exp(-step / 250)
        rows.append(row)
    for step in range(1, 61):
        reward = 0.68 + 0.1 * step / 60 + rng.normal(0, 0.03)
        rows.append(
            {"phase": "rl", "step": step, "reward": reward, "accuracy": min(1, reward - 0.02)}
        )
    return rows


def fake_report(count: int = 12, **changes: Any) -> Report:
    """The whole report; `changes` replace its fields."""
    final, blind = items(1, skill=1.0), items(2, skill=0.0)
    before = items(3, skill=0.75)
    shown = [
        Example(
            item,
            QUESTIONS[item.task]
            + "".join(f"\n{'ABCDEF'[i]}. {text}" for i, text in enumerate(TASKS[item.task][1])),
            dict(zip("ABCDEF", TASKS[item.task][1], strict=False)),
            None if n == 5 else picture(n, ((128, 128), (180, 256), (512, 300))[n % 3]),
        )
        for n, item in enumerate(choose_items(final, count))
    ]
    fields: dict[str, Any] = {
        "title": "demo",
        "model": "Qwen3-VL architecture, 1.7 M parameters, byte-level BPE of 2,048 entries",
        "evaluation": evaluate(final, majority={0: "A"}, blind=blind),
        "rewards": {"held-out prompts": reward_change(before, final)},
        "history": history(),
        "throughput": Throughput(
            5213.0, 0.965, 0.008, {"SFT": 205.0, "RL": 93.2, "evaluation": 21.0}
        ),
        "config": "model:\n  hidden: 128\n  layers: 4\nsft:\n  steps: 700\n  lr: 1.0e-3\n",
        "examples": shown,
        "facts": {
            "Train samples": "1,500",
            "torch": "2.13.0",
            "Seed": "0",
            "Device": "CPU, 2 threads",
        },
    }
    return Report(**(fields | changes))


if __name__ == "__main__":
    made = fake_report()
    write_report(sys.argv[1], made)
    print_summary(made)
