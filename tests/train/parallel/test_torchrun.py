"""train_example.py under torchrun, on two CPU processes, against itself on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECIPE = """
name: {name}
seed: 3
data: {{train: {shards}, test: {shards}, seq_len: 512, packs_per_step: 4, packs_per_batch: 1}}
model: {{vocab_size: 400{model}}}
vision: {{family: qwen3_vl, min_pixels: 1024, max_pixels: 4096}}
sft: {{epochs: 5, lr: 1.0e-3, merger_lr: 5.0e-4, checkpoint_every: 3, evaluate_every: 3}}
rl: {{steps: 0, lr: 1.0e-4, prompts_per_step: 3, group: 2, max_new_tokens: 6}}
evaluation: {{max_new_tokens: 6, samples: 2, shown: 2}}
"""
LORA = ", lora: {rank: 4, alpha: 8}"


@pytest.fixture(scope="module")
def one_image_shards(write_shards, make_records):
    return write_shards([r for r in make_records(40) if len(r.images) == 1])


def run(
    folder: Path, name: str, shards: Path, ranks: int, *options: str, model: str = ""
) -> subprocess.CompletedProcess[str]:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, shards=shards, model=model))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    script = [str(ROOT / "train_example.py"), "--config", str(path), *options]
    return subprocess.run(
        [sys.executable, *(start if ranks > 1 else []), *script],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    text = (folder / "runs" / name / "history.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["", LORA])
def test_two_ranks_train_as_one_does(one_image_shards, tmp_path: Path, model: str) -> None:
    import torch
    from safetensors.torch import load_file

    for ranks in (1, 2):
        done = run(tmp_path, f"ranks{ranks}", one_image_shards, ranks, model=model)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report: ") == 1
    one, two = (rows(tmp_path, f"ranks{n}") for n in (1, 2))
    assert len(one) == len(two) >= 4
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)
        assert b["learning_rate"] == a["learning_rate"]
    assert one[-1]["loss"] < one[0]["loss"]
    exported = [load_file(tmp_path / f"runs/ranks{n}/sft-model/model.safetensors") for n in (1, 2)]
    assert exported[0].keys() == exported[1].keys()
    assert not any("lora" in name or "base_layer" in name for name in exported[0])
    for name, weight in exported[0].items():
        torch.testing.assert_close(exported[1][name], weight, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_packs_that_ranks_cannot_share_are_refused(one_image_shards, tmp_path: Path) -> None:
    done = run(tmp_path, "odd", one_image_shards, 3)
    assert done.returncode != 0
    assert "packs_per_step 4" in done.stderr
    assert "error: " in done.stderr
