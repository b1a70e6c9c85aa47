"""The recipe's evaluation of a split, of which only a part is held at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import train_example
from tests.train.test_reinforce import RECIPE


def test_completions_do_not_depend_on_how_many_prompts_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_shards: Any, make_records: Any
) -> None:
    shards = write_shards([r for r in make_records(40) if len(r.images) == 1])
    held: list[int] = []
    generate = train_example.generate

    def watched(model: Any, prompts: Any, **options: Any) -> Any:
        held.append(len(prompts))
        return generate(model, prompts, **options)

    made: dict[tuple[int, float, bool], Any] = {}

    def report(run: Any, *_: Any) -> None:
        numbers = range(len(run.held_out.shard_set))
        assert len(numbers) > 4 * 2
        for batch in (2, 64):
            evaluation = dataclasses.replace(run.recipe.evaluation, batch=batch, max_new_tokens=6)
            one = dataclasses.replace(
                run, recipe=dataclasses.replace(run.recipe, evaluation=evaluation)
            )
            for temperature, group, without_image in ((0.0, 1, False), (1.0, 2, True)):
                held.clear()
                made[batch, temperature, without_image] = train_example.completions_of(
                    one,
                    run.held_out,
                    numbers,
                    temperature=temperature,
                    group=group,
                    without_image=without_image,
                )
                assert max(held) == min(len(numbers), 4 * batch // group)
                assert sum(held) == len(numbers)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_example, "generate", watched)
    monkeypatch.setattr(train_example, "report", report)
    path = tmp_path / "parts.yaml"
    path.write_text(
        RECIPE.format(name="parts", shards=shards, options="").replace(
            "rl:\n  {steps: 4", "rl:\n  {steps: 0"
        )
    )
    train_example.train(path)
    assert made[2, 0.0, False] == made[64, 0.0, False]
    assert made[2, 1.0, True] == made[64, 1.0, True]
    assert len(made[2, 1.0, True]) == 2 * len(made[2, 0.0, False])
