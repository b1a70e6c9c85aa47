"""train_example.py with rewards that a random model earns, and a stop at a step: for torchrun.

python reinforce_by_rule.py RECIPE STOP_AT [--resume]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import train_example
from omr_io.train.rewards import Reward


def by_rule(text: str, _record: Any) -> Reward:
    """Right if an even number of characters are no letters; in form by the length."""
    accuracy = float(sum(not c.isalpha() for c in text) % 2 == 0)
    form = float(len(text) % 3 == 0)
    return Reward(accuracy, form, accuracy + 0.5 * form)


def main(recipe: str, stop_at: str, *options: str) -> None:
    roll_out = train_example.roll_out

    def stopping(run: Any, engine: Any, order: Any, step: int, *rest: Any) -> Any:
        if step == int(stop_at):
            sys.exit("stopped")
        return roll_out(run, engine, order, step, *rest)

    patched: Any = train_example
    patched.reward = by_rule
    patched.roll_out = stopping
    patched.report = lambda *_: None
    patched.sampled_rewards = lambda *_: {}
    train_example.train(Path(recipe), resume="--resume" in options)


if __name__ == "__main__":
    main(*sys.argv[1:])
