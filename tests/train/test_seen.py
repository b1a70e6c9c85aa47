"""What a run of the recipe shows and measures, in this process."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import train_example
from omr_io.errors import ConfigError, ResumeError
from omr_io.train.history import read_history
from omr_io.train.ranks import Ranks
from omr_io.train.recipe import load_recipe, recipe_fields
from omr_io.train.report import sections
from omr_io.train.run import Place
from omr_io.train.seen import Synthetic, open_log
from omr_io.train.trackers import Trackers

RECIPE = """
name: seen
data: {{train: {shards}, test: {shards}, seq_len: 256, packs_per_step: 1}}
model: {{vocab_size: 400}}
vision: {{family: qwen3_vl, min_pixels: 1024, max_pixels: 4096}}
sft: {{steps: 5, lr: 1.0e-3, checkpoint_every: 3, evaluate_every: 100, log_every: 2}}
rl: {{steps: 0, lr: 1.0e-4, prompts_per_step: 3, group: 2, max_new_tokens: 6}}
evaluation: {{max_new_tokens: 2, shown: 0}}
trackers: [tensorboard]
peak_tflops: 0.05
"""


@pytest.fixture(scope="module")
def shards(write_shards, make_records) -> Path:
    return write_shards([r for r in make_records(20) if len(r.images) == 1])


@pytest.fixture
def recipe(shards, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "seen.yaml"
    path.write_text(RECIPE.format(shards=shards))
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_shows_itself_and_is_compared_with_one_that_only_measures(recipe, capsys):
    pytest.importorskip("tensorboard")
    train_example.train(recipe, profile=True)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("sft ")]
    assert [line.split(":")[0] for line in lines] == ["sft 2/5", "sft 4/5"]
    assert all(
        word in lines[0] for word in ("loss", "tokens/s", "packing", "MFU", "waiting", "GB", "p99")
    )
    folder = Path("runs/seen")
    rows = read_history(folder / "history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    # FLOPs of a step of the demo model: between 2 and 6 times its 1.7 M weights a token.
    work = [row["mfu"] * row["seconds"] * 0.05e12 / row["tokens"] for row in rows]
    assert all(2 * 1.0e6 < flops < 6 * 1.9e6 for flops in work)
    assert all(0 < row["packing_efficiency"] <= 1 for row in rows)
    assert all(0 <= row["data_wait_share"] < 1 for row in rows)
    assert all(
        row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"]) for row in rows
    )
    assert "sft-rank0.trace.json.gz" in files(folder / "profile")
    assert any(name.startswith("events.out") for name in files(folder / "tensorboard"))
    assert {"checkpoints", "sft-model"} <= files(folder)

    train_example.train(recipe, synthetic=Synthetic("fake-data", 4))
    said = capsys.readouterr().out
    assert "learns NOTHING USEFUL" in said
    assert "in the real run" in said
    assert files(Path("runs/seen-fake-data")).isdisjoint({"checkpoints", "sft-model", "model"})
    made = json.loads(Path("runs/seen-fake-data/measured.json").read_text())
    assert made["stall"] == pytest.approx(1 - made["synthetic_seconds"] / made["real_seconds"])
    fake = read_history("runs/seen-fake-data/history.jsonl")
    assert len({row["tokens"] for row in fake}) == 1
    assert len({row["tokens"] for row in rows}) > 1
    assert len(fake) == 4
    assert read_history(folder / "history.jsonl") == rows  # the real run is as it was


def test_replay_repeats_its_first_steps(recipe, capsys):
    train_example.train(recipe, synthetic=Synthetic("replay", 8))
    assert "after a real run of this recipe" in capsys.readouterr().out
    rows = read_history("runs/seen-replay/history.jsonl")
    tokens = [row["tokens"] for row in rows]
    assert tokens == tokens[:2] * 4
    assert set(json.loads(Path("runs/seen-replay/measured.json").read_text())) == {
        "synthetic_seconds"
    }


def test_the_stall_is_measured_in_pairs(recipe, capsys):
    train_example.train(recipe, synthetic=Synthetic("measure-stall", 2))
    said = capsys.readouterr().out
    assert "data stall" in said
    made = json.loads(Path("runs/seen-measure-stall/measured.json").read_text())
    assert made["pairs"] == 1
    (pair,) = made["rounds"]
    assert pair["steps"] == 2
    assert made["stall"] == pytest.approx(1 - pair["synthetic_seconds"] / pair["real_seconds"])
    rows = read_history("runs/seen-measure-stall/history.jsonl")
    half = len(rows) // 2
    tokens = [row["tokens"] for row in rows]
    assert tokens[:half] == tokens[half:]
    assert files(Path("runs/seen-measure-stall")).isdisjoint({"checkpoints", "sft-model"})


def test_what_only_measures_cannot_be_resumed_or_make_no_step():
    with pytest.raises(ConfigError, match="--replay cannot be resumed"):
        Synthetic("replay", 8, resume=True)
    with pytest.raises(ConfigError, match="--fake-data 0 makes no steps"):
        Synthetic("fake-data", 0)
    given = argparse.Namespace(fake_data=None, replay=7, measure_stall=None, resume=False)
    assert Synthetic.of(given).mode == "replay"
    given = argparse.Namespace(fake_data=None, replay=None, measure_stall=None, resume=True)
    assert not Synthetic.of(given)


def test_a_tracker_that_is_missing_ends_the_run_before_any_work(recipe, monkeypatch):
    recipe.write_text(recipe.read_text().replace("[tensorboard]", "[tensorboard, nowhere]"))
    with pytest.raises(ConfigError, match="'nowhere' is unknown"):
        train_example.train(recipe)
    assert not Path("runs").exists()


def test_a_run_that_only_measures_hears_a_signal(recipe):
    script = Path(train_example.__file__)
    process = subprocess.Popen(
        [sys.executable, str(script), "--config", str(recipe), "--fake-data", "100000"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    history = Path("runs/seen-fake-data/history.jsonl")
    deadline = time.monotonic() + 400
    while not (history.exists() and history.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 75, said
    assert files(Path("runs/seen-fake-data")).isdisjoint({"sft-model", "measured.json"})
    assert not list(Path("runs/seen-fake-data").glob("checkpoints/*"))


def test_every_rank_is_told_that_the_first_has_no_log(tmp_path, monkeypatch):
    """Else the others would wait for it in the next collective."""
    told = []

    class Two(Ranks):
        def gather(self, value):
            told.append(value)
            return [ConfigError("wandb cannot start"), None]

    phase = SimpleNamespace(steps=1, log_every=1)
    recipe = SimpleNamespace(name="two", sft=phase, rl=phase, trackers=[])
    second = SimpleNamespace(recipe=recipe, folder=tmp_path, ranks=Two(rank=1, world_size=2))
    with pytest.raises(ConfigError, match="wandb cannot start"):
        open_log(second, Place("sft", 0))
    first = SimpleNamespace(recipe=recipe, folder=tmp_path, ranks=Two(rank=0, world_size=2))
    first.recipe.trackers = ["nowhere"]
    with pytest.raises(ConfigError, match="wandb cannot start"):
        open_log(first, Place("sft", 0))
    assert told[0] is None
    assert "'nowhere' is unknown" in str(told[1])


def test_a_log_that_is_refused_leaves_no_tracker_open(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(
        Trackers,
        "close",
        lambda self, *, failed=False: closed.append((failed, len(self._trackers))),
    )
    phase = SimpleNamespace(steps=9, log_every=1)
    recipe = SimpleNamespace(name="one", sft=phase, rl=phase, trackers=[])
    run = SimpleNamespace(recipe=recipe, folder=tmp_path, ranks=Ranks())
    monkeypatch.setattr("omr_io.train.seen.recipe_fields", lambda recipe: {})
    with pytest.raises(ResumeError, match=r"history\.jsonl is gone"):
        open_log(run, Place("sft", 3))
    assert closed == [(True, 0)]


def test_what_only_shows_a_run_may_change_when_it_goes_on(recipe):
    with_trackers = recipe_fields(load_recipe(recipe))
    text = recipe.read_text().replace("trackers: [tensorboard]", "").replace("0.05", "7")
    recipe.write_text(text)
    assert recipe_fields(load_recipe(recipe)) == with_trackers
    recipe.write_text(text.replace("peak_tflops: 7", "peak_tflops: 0"))
    with pytest.raises(ConfigError, match="peak_tflops is 0"):
        load_recipe(recipe)


def test_the_report_draws_entropy_and_utilisation():
    history = [
        {"phase": phase, "step": step, metric: 0.1 * step}
        for phase, metric in (("rl", "entropy"), ("sft", "mfu"))
        for step in (1, 2, 3)
    ]
    page = str(sections.curves(SimpleNamespace(history=history)))
    assert page.count("<figure") == 2
    assert "RL entropy, nats per token" in page
    assert "SFT model FLOPs utilisation" in page
