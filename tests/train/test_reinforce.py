"""RL of the recipe from end to end, with rewards that a random model earns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import train_example
from omr_io.train.rewards import Reward
from tests.train.reinforce_by_rule import by_rule

RECIPE = """
name: {name}
seed: 3
data: {{train: {shards}, test: {shards}, seq_len: 512, packs_per_step: 2, packs_per_batch: 1}}
model: {{vocab_size: 400}}
vision: {{family: qwen3_vl, min_pixels: 1024, max_pixels: 4096}}
sft: {{steps: 1, lr: 1.0e-3, checkpoint_every: 1, evaluate_every: 4}}
rl:
  {{steps: 4, lr: 1.0e-3, prompts_per_step: 4, group: 3, max_new_tokens: 5, checkpoint_every: 1,
   warmup: 0, {options}}}
evaluation: {{max_new_tokens: 2, samples: 2, shown: 2}}
"""


@pytest.fixture(scope="module")
def shards(write_shards: Any, make_records: Any) -> Path:
    path: Path = write_shards([r for r in make_records(40) if len(r.images) == 1])
    return path


def run(folder: Path, name: str, shards: Path, options: str, *, resume: bool = False) -> None:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, shards=shards, options=options))
    train_example.train(path, resume=resume)


def steps_of(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if not key.endswith(("seconds", "bytes"))}
        for row in rows
        if row["phase"] == "rl"
    ]


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_example, "reward", by_rule)
    monkeypatch.setattr(train_example, "report", lambda *_: None)
    monkeypatch.setattr(train_example, "sampled_rewards", lambda *_: {})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            "dynamic_sampling: true, max_draws: 2, updates: 3, shared_prefix: true",
            marks=pytest.mark.slow,
        ),
        "objective: gspo, updates: 2, beta: 0.05, dynamic_sampling: true",
    ],
)
def test_a_stopped_run_goes_on_to_the_bit(
    options: str, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "whole", shards, options)
    expected = steps_of(tmp_path, "whole")
    assert [row["step"] for row in expected] == [1, 2, 3, 4]
    assert any(row["prompts_tried"] > 4 for row in expected)  # some groups were dropped
    for row in expected:
        assert row["prompts_tried"] <= 16
        assert row["groups"] + row["groups_missing"] == 4
        assert row["updates"] == min(int(options.split("updates: ")[1][0]), row["groups"])
        assert 0 < row["entropy"] < math.log(400)
        assert row["rollout_mismatch"] < 1e-4
        assert row["gradient_norm"] > 0
        assert row["old_kl"] > 0  # the later updates are no longer of the old policy
        assert row["importance_ratio_max"] > 1
        assert (row["kl"] is not None) == ("beta" in options)

    generate, calls = train_example.roll_out, [0]

    def stop_in_the_third_step(run: Any, engine: Any, order: Any, step: int, *rest: Any) -> Any:
        calls[0] += 1
        if step == 3:
            raise KeyboardInterrupt
        return generate(run, engine, order, step, *rest)

    monkeypatch.setattr(train_example, "roll_out", stop_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "stopped", shards, options)
    monkeypatch.setattr(train_example, "roll_out", generate)
    assert len(steps_of(tmp_path, "stopped")) == 2
    run(tmp_path, "stopped", shards, options, resume=True)
    assert steps_of(tmp_path, "stopped") == expected
    for part in ("model", "sft-model"):
        a, b = (
            (tmp_path / "runs" / name / part / "model.safetensors").read_bytes()
            for name in ("whole", "stopped")
        )
        assert a == b


def test_both_layouts_learn_the_same(tmp_path: Path, shards: Path) -> None:
    """Several updates on groups of which some were dropped."""
    rows = {}
    for name, layout in (("shared", "true"), ("unshared", "false")):
        options = f"dynamic_sampling: true, updates: 2, shared_prefix: {layout}"
        run(tmp_path, name, shards, options)
        rows[name] = steps_of(tmp_path, name)
    first, other = rows["shared"][0], rows["unshared"][0]
    assert first.keys() == other.keys()
    for key, value in first.items():
        if key not in ("rollout_mismatch", "step", "phase"):
            near = None if value is None else pytest.approx(value, rel=2e-4, abs=2e-6)
            assert other[key] == near, key


def test_a_step_without_a_group_changes_nothing(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_example, "reward", lambda *_: Reward(0.0, 1.0, 0.5))
    run(tmp_path, "nothing", shards, "dynamic_sampling: true, max_draws: 1")
    for row in steps_of(tmp_path, "nothing"):
        assert (row["groups"], row["groups_missing"], row["updates"]) == (0, 4, 0)
        assert row["zero_variance_share_accuracy"] == 1
        assert row["gradient_norm"] is None
        assert row["loss"] is None
    from safetensors.torch import load_file

    folder = tmp_path / "runs" / "nothing"
    before, after = (load_file(folder / p / "model.safetensors") for p in ("sft-model", "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ids_that_no_token_has_are_never_sampled(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen's heads have more rows than their tokenizers have tokens; here half are such rows."""
    make, rows = train_example.get_model, []

    def with_a_larger_head(*arguments: Any) -> Any:
        model = make(*arguments)
        model.resize_token_embeddings(2 * model.config.text_config.vocab_size)
        rows.append(model.config.text_config.vocab_size)
        return model

    monkeypatch.setattr(train_example, "get_model", with_a_larger_head)
    run(tmp_path, "padded", shards, "temperature: 2.0")
    assert len(steps_of(tmp_path, "padded")) == 4
    assert rows[0] > 600


@pytest.mark.slow
def test_more_updates_move_the_policy_away_from_the_rollout(tmp_path: Path, shards: Path) -> None:
    """One update: ratio 1, nothing clipped, no drift. Four: all three are seen."""
    for updates in (1, 4):
        options = f"updates: {updates}, clip_low: 0.001, clip_high: 0.001"
        run(tmp_path, f"updates-{updates}", shards, options)
        moved = steps_of(tmp_path, f"updates-{updates}")
        for row in moved:
            if updates == 1:
                assert (row["importance_ratio_max"], row["clip_share"], row["old_kl"]) == (1, 0, 0)
            else:
                assert row["importance_ratio_max"] > 1.0001
        assert any(row["clip_share"] > 0 for row in moved) == (updates > 1)
