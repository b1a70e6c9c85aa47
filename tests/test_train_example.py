"""train_example.py as a user runs it: in a process of its own, killed, resumed, refused."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = """
name: {name}
seed: 3
data: {{train: {shards}, test: {shards}, seq_len: 512, packs_per_step: 2, packs_per_batch: 1}}
model: {{vocab_size: 400}}
vision: {{family: qwen3_vl, min_pixels: 1024, max_pixels: 4096}}
sft: {{steps: 8, lr: 1.0e-3, checkpoint_every: 3, evaluate_every: 4, log_every: 1}}
rl: {{steps: 3, lr: 1.0e-4, prompts_per_step: 3, group: 2, max_new_tokens: 6, checkpoint_every: 2}}
evaluation: {{max_new_tokens: 6, samples: 2, shown: 2}}
"""
TIMES = {
    "seconds", "seconds_p50", "seconds_p99", "tokens_per_second", "data_wait_share",
    "rollout_seconds", "old_logprobs_seconds", "update_seconds", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def one_image_shards(write_shards, make_records):
    return write_shards([r for r in make_records(40) if len(r.images) == 1])


def recipe(folder: Path, name: str, shards: Path, edit: tuple[str, str] = ("", "")) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, shards=shards).replace(*edit))
    return path


def command(path: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_example.py"), "--config", str(path), *options]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(folder: Path, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *options),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )


def lines(folder: Path, name: str) -> list[dict[str, object]]:
    """The metrics log without what a clock says."""
    path = folder / "runs" / name / "history.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")] if path.exists() else []  # fmt: skip
    return [{key: row[key] for key in row.keys() - TIMES} for row in rows]


def kill_after(
    folder: Path,
    path: Path,
    name: str,
    count: int,
    *options: str,
    number: signal.Signals = signal.SIGKILL,
) -> tuple[int, str, str]:
    """Start the run and send it a signal once its log has `count` lines.

    Returns:
        Its exit code, stdout and stderr.
    """
    process = subprocess.Popen(
        command(path, *options),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 900
    while len(lines(folder, name)) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=900)
    return process.returncode, stdout, stderr


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(one_image_shards, tmp_path) -> None:
    whole = run(tmp_path, recipe(tmp_path, "whole", one_image_shards))
    assert whole.returncode == 0, whole.stderr
    assert "report: runs/whole/report.html" in whole.stdout
    expected = lines(tmp_path, "whole")
    steps = [(row["phase"], row["step"]) for row in expected if "gradient_norm" in row]
    assert steps == [("sft", i) for i in range(1, 9)] + [("rl", i) for i in range(1, 4)]

    entropies = [row["entropy"] for row in expected if "rollout_mismatch" in row]
    assert len(entropies) == 3
    assert all(0 < entropy < math.log(400) for entropy in entropies)

    path = recipe(tmp_path, "killed", one_image_shards)
    kill_after(tmp_path, path, "killed", 2)  # before the first checkpoint
    kill_after(tmp_path, path, "killed", 6, "--resume")  # in the second half of SFT
    kill_after(tmp_path, path, "killed", 12, "--resume")  # in RL
    resumed = run(tmp_path, path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after" in resumed.stdout
    assert lines(tmp_path, "killed") == expected
    for name in ("before-rl.json", "after-rl.json"):
        a, b = ((tmp_path / "runs" / run / name).read_bytes() for run in ("whole", "killed"))
        assert a == b

    again = run(tmp_path, path)
    assert again.returncode == 2
    assert "holds an earlier run" in again.stderr
    assert lines(tmp_path, "killed") == expected


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(
    one_image_shards, tmp_path
) -> None:
    whole = run(tmp_path, recipe(tmp_path, "whole", one_image_shards))
    assert whole.returncode == 0, whole.stderr
    expected = lines(tmp_path, "whole")
    path = recipe(tmp_path, "stopped", one_image_shards)
    options: tuple[str, ...] = ()
    for count, number in ((2, signal.SIGUSR1), (5, signal.SIGTERM), (11, signal.SIGUSR1)):
        code, stdout, stderr = kill_after(tmp_path, path, "stopped", count, *options, number=number)
        assert code == 75, stderr
        assert stderr.strip().splitlines()[-1] == (
            f"stopped by {number.name}. All is saved: the same command with --resume goes on"
        )
        assert ("resumed after" in stdout) == bool(options)
        done = lines(tmp_path, "stopped")
        assert count <= len(done) < len(expected)
        assert done == expected[: len(done)]  # no step is lost, none is half done
        options = ("--resume",)
    resumed = run(tmp_path, path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after {done[-1]['phase']} step {done[-1]['step']}" in resumed.stdout
    assert lines(tmp_path, "stopped") == expected


STOPPED_IN_AN_EVALUATION = """
import os, signal, sys
import train_example

generate, calls = train_example.generate, []

def stopping(*arguments, **options):
    calls.append(1)
    if len(calls) == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return generate(*arguments, **options)

train_example.generate = stopping
train_example.main()
"""


@pytest.mark.slow
def test_a_held_out_evaluation_that_was_interrupted_begins_again(
    one_image_shards, tmp_path
) -> None:
    """Of one more step no checkpoint was due: it is written for the stop."""
    whole = run(tmp_path, recipe(tmp_path, "whole", one_image_shards))
    assert whole.returncode == 0, whole.stderr
    expected = lines(tmp_path, "whole")
    path = recipe(tmp_path, "stopped", one_image_shards)
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_AN_EVALUATION, "--config", path],
        cwd=tmp_path, capture_output=True, text=True,
        env=environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert stopped.returncode == 75, stopped.stderr
    done = lines(tmp_path, "stopped")
    assert done == expected[: len(done)]
    assert not any("held_out_accuracy" in row for row in done)
    assert "held_out_accuracy" in expected[len(done)]
    resumed = run(tmp_path, path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert lines(tmp_path, "stopped") == expected


@pytest.mark.slow
def test_the_exported_model_is_one_that_transformers_loads(one_image_shards, tmp_path) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    from omr_io.config import VisionConfig
    from omr_io.tokenizer import Tokenizer

    against_sft = ("steps: 3, lr: 1.0e-4", "steps: 2, lr: 1.0e-4, beta: 0.1")
    done = run(tmp_path, recipe(tmp_path, "short", one_image_shards, against_sft))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/short/model"
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert VisionConfig.from_pretrained(folder).max_pixels == 4096
    text = "Which region is brightest?"
    theirs = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert Tokenizer.from_pretrained(folder).encode(text).tolist() == theirs


@pytest.mark.parametrize(
    ("edit", "code", "message"),
    [
        (("seq_len: 512", "seq_len: 40"), 1, "longer than seq_len 40"),
        (("vocab_size: 400", "tokenizer: nowhere"), 2, "nowhere"),
        (("group: 2", "group: 1"), 2, "rl: group is 1. It must be at least 2"),
        (("train: ", "train: /nowhere"), 3, "/nowhere"),
        (("vocab_size: 400", "lora: {rank: 1, alpha: 1, target_modules: [x]}"), 2, "x are no lin"),
    ],
)
def test_bad_recipes_end_with_one_line_and_a_code(
    one_image_shards, tmp_path, edit: tuple[str, str], code: int, message: str
) -> None:
    earlier = tmp_path / "runs" / "bad" / "report.html"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("a month of work")
    done = run(tmp_path, recipe(tmp_path, "bad", one_image_shards, edit), "--overwrite")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert earlier.read_text() == "a month of work"
    assert list((tmp_path / "runs").rglob("*")) == [earlier.parent, earlier]


def test_an_update_that_is_not_finite_changes_no_weight(tmp_path) -> None:
    import importlib.util
    from types import SimpleNamespace

    import torch

    from omr_io.errors import TrainingError
    from omr_io.train.ranks import Ranks
    from omr_io.train.run import Place

    spec = importlib.util.spec_from_file_location("train_example", ROOT / "train_example.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    updates = []
    model = torch.nn.Linear(3, 1)
    run = SimpleNamespace(
        model=model,
        ranks=Ranks(),
        folder=tmp_path,
        stopping=SimpleNamespace(before_update=lambda: updates.append(1)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]

    def step(x: float, keys: list[str]) -> None:
        loss = model(torch.tensor([[1.0, 2.0, x]])).sum()
        loss.backward()
        example.update(run, Place("sft", 4), optimizer, 1.0, loss.item(), keys)

    with pytest.raises(TrainingError, match=r"sft step 4: the loss is nan .*: k1, k2"):
        step(math.nan, ["k1", "k2"])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert json.loads((tmp_path / "not-finite.json").read_text())["ranks"][0]["keys"] == [
        "k1",
        "k2",
    ]
    assert updates == []
    optimizer.zero_grad()
    step(1.0, ["k3"])
    assert updates == [1]
    assert not torch.equal(model.weight, before[0])
