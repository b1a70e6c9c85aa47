"""train_example.py on two CPU ranks, stopped through one of them, resumed by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.parallel.cases import free_port
from tests.train.parallel.test_torchrun import RECIPE, ROOT, rows

STEPS = (
    "sft: {{epochs: 5, lr: 1.0e-3, merger_lr: 5.0e-4, checkpoint_every: 3, evaluate_every: 3}}",
    "sft: {{steps: 30, lr: 1.0e-3, checkpoint_every: 7, evaluate_every: 100}}",
)


@pytest.fixture(scope="module")
def one_image_shards(write_shards, make_records):
    return write_shards([r for r in make_records(40) if len(r.images) == 1])


def start(
    folder: Path, name: str, shards: Path, ranks: int, *options: str
) -> list[subprocess.Popen[str]]:
    """As srun does: a process a rank, no torchrun between."""
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.replace(*STEPS).format(name=name, shards=shards, model=""))
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = []
    for rank in range(ranks):
        own = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, ROOT / "train_example.py", "--config", path, *options],
                cwd=folder, env=environment | (own if ranks > 1 else {}), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    ended = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=1500)
        ended.append((process.returncode, stdout, stderr))
    return ended


@pytest.mark.slow
def test_one_rank_is_asked_and_all_stop(one_image_shards, tmp_path: Path) -> None:
    ((code, _, stderr),) = finish(start(tmp_path, "whole", one_image_shards, 1))
    assert code == 0, stderr
    whole = rows(tmp_path, "whole")
    asked = start(tmp_path, "stopped", one_image_shards, 2)
    log = tmp_path / "runs/stopped/history.jsonl"
    deadline = time.monotonic() + 900
    while not log.exists() or log.read_bytes().count(b"\n") < 4:
        assert all(p.poll() is None for p in asked)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    asked[1].send_signal(signal.SIGUSR1)
    ended = finish(asked)
    assert [code for code, _, _ in ended] == [75, 75], [stderr for _, _, stderr in ended]
    assert "stopped by a signal to another rank" in ended[0][2]
    assert "stopped by SIGUSR1" in ended[1][2]
    done = len(rows(tmp_path, "stopped"))
    assert 4 <= done < 30
    ((code, stdout, stderr),) = finish(start(tmp_path, "stopped", one_image_shards, 1, "--resume"))
    assert code == 0, stderr
    assert f"resumed after sft step {done}" in stdout
    losses = [row["loss"] for row in rows(tmp_path, "stopped")]
    assert losses == pytest.approx([row["loss"] for row in whole], rel=1e-5)
