"""RL on two ranks under FSDP2 against one process: the same groups, updates and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Three groups in two updates: of each update one rank has fewer packs than the other, or none.
RECIPE = """
name: {name}
seed: 3
data: {{train: {shards}, test: {shards}, seq_len: 512, packs_per_step: 2, packs_per_batch: 1}}
model: {{vocab_size: 400{model}}}
vision: {{family: qwen3_vl, min_pixels: 1024, max_pixels: 4096}}
sft: {{steps: 1, lr: 1.0e-3, checkpoint_every: 1, evaluate_every: 4}}
rl:
  {{steps: 3, lr: 1.0e-3, prompts_per_step: 3, group: 3, max_new_tokens: 5, checkpoint_every: 1,
   warmup: 0, dynamic_sampling: true, max_draws: 3, updates: 2, {options}}}
evaluation: {{max_new_tokens: 2, samples: 2, shown: 2}}
"""


@pytest.fixture(scope="module")
def shards(write_shards: Any, make_records: Any) -> Path:
    path: Path = write_shards([r for r in make_records(40) if len(r.images) == 1])
    return path


def start(path: Path, ranks: int, stop_at: int, *options: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    script = Path(__file__).with_name("reinforce_by_rule.py")
    return subprocess.run(
        [
            sys.executable, *(torchrun if ranks > 1 else []), str(script), str(path), str(stop_at),
            *options,
        ],
        cwd=path.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )  # fmt: skip


def steps(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "history.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == "rl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [("", "beta: 0.05, shared_prefix: true"), (", lora: {rank: 4, alpha: 8}", "objective: gspo")],
)
def test_two_ranks_learn_as_one_does(
    shards: Path, tmp_path: Path, model: str, options: str
) -> None:
    """The run on two ranks is stopped once, and goes on with one."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    for name in ("one", "two"):
        text = RECIPE.format(name=name, shards=shards, model=model, options=options)
        (tmp_path / f"{name}.yaml").write_text(text)
    alone = start(tmp_path / "one.yaml", 1, 99)
    assert alone.returncode == 0, alone.stderr
    assert start(tmp_path / "two.yaml", 2, 3).returncode != 0
    assert len(steps(tmp_path, "two")) == 2
    resumed = start(tmp_path / "two.yaml", 1, 99, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    one, two = steps(tmp_path, "one"), steps(tmp_path, "two")
    assert len(one) == len(two) == 3
    assert any(row["prompts_tried"] > 3 for row in one)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in ("reward", "accuracy", "groups", "prompts_tried", "updates", "learning_rate"):
            assert b[name] == a[name], name
        for name in ("loss", "entropy", "importance_ratio_max", "old_kl", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), name
    weights = [load_file(tmp_path / f"runs/{n}/model/model.safetensors") for n in ("one", "two")]
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, rtol=0, atol=2e-4)
