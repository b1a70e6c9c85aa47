"""Metrics of steps: read late, added up over ranks, written in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omr_io.errors import OmrWarning, StoppedError
from omr_io.train.history import History, read_history
from omr_io.train.ranks import Ranks
from omr_io.train.step_log import Most, PhaseSteps, Share, StepLog, Total, step_line
from omr_io.train.trackers import Trackers

ROOT = Path(__file__).parents[2]


class Recorder:
    """A tracker that keeps what it gets, and fails at a step if it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = 0
        self._fails_at = fails_at

    def start(self, name, config) -> None:
        self.started = (name, dict(config))

    def log(self, step, metrics) -> None:
        if step == self._fails_at:
            raise RuntimeError("no space\nsecond line")
        self.rows.append((step, dict(metrics)))

    def close(self, *, failed: bool) -> None:
        self.closed += 1
        self.failed = failed


def open_log(folder: Path, log_every: int = 2, trackers=None, shown=None) -> StepLog:
    phases = {"sft": PhaseSteps(5, log_every), "rl": PhaseSteps(4, 1, first=5)}
    history = History.create(folder / "history.jsonl")
    show = (lambda line: None) if shown is None else shown.append
    return StepLog(Ranks(), history, phases, trackers, show)


def some_steps(log: StepLog) -> None:
    for step in range(1, 6):
        loss = torch.tensor(float(step), dtype=torch.float64)
        log.add(
            "sft",
            step,
            loss=Total(loss),
            efficiency=Share(torch.tensor(3), 4),
            nothing=Share(1.0, 0.0),
            memory=Most(lambda step=step: 10.0 * step),
            rate=torch.tensor(0.5),
            note="text",
            seconds=Share(0.25, 1.0),
        )
    log.add("rl", 1, reward=Share(2.0, 4.0), seconds=2.0)


@pytest.mark.parametrize("log_every", [1, 2, 100])
def test_every_step_has_its_line_however_seldom_it_is_read(tmp_path, log_every):
    with open_log(tmp_path, log_every) as log:
        some_steps(log)
    rows = read_history(tmp_path / "history.jsonl")
    assert [(row["phase"], row["step"]) for row in rows] == [("sft", i) for i in range(1, 6)] + [
        ("rl", 1)
    ]
    assert rows[2] == {
        "phase": "sft", "step": 3, "loss": 3.0, "efficiency": 0.75, "nothing": None,
        "memory": 30.0, "rate": 0.5, "note": "text", "seconds": 0.25,
    }  # fmt: skip
    assert rows[-1] == {"phase": "rl", "step": 1, "reward": 0.5, "seconds": 2.0}


def test_nothing_is_read_before_a_step_is_shown(tmp_path):
    read = []

    def value() -> float:
        read.append(True)
        return 1.0

    log = open_log(tmp_path, log_every=3)
    log.add("sft", 1, a=Total(value))
    log.add("sft", 2, a=Total(value))
    assert not read
    assert (tmp_path / "history.jsonl").read_bytes() == b""
    log.add("sft", 3, a=Total(value))
    assert len(read) == 3
    log.add("sft", 4, a=Total(value))
    log.sync()  # before a checkpoint
    assert [row["step"] for row in read_history(tmp_path / "history.jsonl")] == [1, 2, 3, 4]
    log.close()


def test_a_tensor_that_changes_afterwards_is_logged_as_it_was(tmp_path):
    loss = torch.zeros(())
    with open_log(tmp_path, log_every=5) as log:
        for step in range(1, 4):
            loss += 1
            log.add("sft", step, loss=Total(loss), share=Share(loss, loss), own=loss)
    rows = read_history(tmp_path / "history.jsonl")
    assert [(row["loss"], row["share"], row["own"]) for row in rows] == [
        (i, 1, i) for i in (1, 2, 3)
    ]


def test_lines_are_shown_only_of_steps_that_are_due(tmp_path):
    shown: list[str] = []
    with open_log(tmp_path, 2, shown=shown) as log:
        some_steps(log)
        log.add("rl", 2, held_out_accuracy=0.5)  # no step of its own
    assert shown == [
        "sft 2/5: loss 2.0000, 0.25 s",
        "sft 4/5: loss 4.0000, 0.25 s",
        "rl 1/4: reward 0.500, 2 s",
    ]


def test_a_line_has_what_is_known():
    row = {
        "loss": 1.5, "tokens_per_second": 5120.4, "packing_efficiency": 0.971, "mfu": 0.4123,
        "data_wait_share": 0.004, "gradient_norm": 0.8312, "peak_memory_bytes": 61.2e9,
        "seconds": 0.2, "seconds_p99": 0.25, "other": 3,
    }  # fmt: skip
    assert step_line("sft", 3, 9, row) == (
        "sft 3/9: loss 1.5000, 5,120 tokens/s, packing 97.1%, MFU 41.2%, waiting 0.4%, "
        "gradient 0.831, 61.2 GB, 0.2 s, p99 0.25 s"
    )
    assert step_line("sft", 3, 9, {"loss": None}) == "sft 3/9: "


def test_trackers_get_every_step_of_all_phases_on_one_axis(tmp_path):
    recorder = Recorder()
    with open_log(tmp_path, 2, Trackers({"recorder": recorder})) as log:
        some_steps(log)
    assert [step for step, _ in recorder.rows] == [1, 2, 3, 4, 5, 6]
    assert recorder.rows[0][1] == {
        "sft/loss": 1.0, "sft/efficiency": 0.75, "sft/memory": 10.0, "sft/rate": 0.5,
        "sft/seconds": 0.25,
    }  # fmt: skip
    assert recorder.rows[5][1] == {"rl/reward": 0.5, "rl/seconds": 2.0}
    assert recorder.closed == 1


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path):
    fails, works = Recorder(fails_at=3), Recorder()
    log = open_log(tmp_path, 2, Trackers({"fails": fails, "works": works}))
    with pytest.warns(OmrWarning) as warned:
        some_steps(log)
    log.close()
    assert [str(w.message) for w in warned] == [
        "fails failed and gets no more metrics: no space. The run goes on; history.jsonl has all "
        "of them"
    ]
    assert [step for step, _ in fails.rows] == [1, 2]
    assert [step for step, _ in works.rows] == [1, 2, 3, 4, 5, 6]
    assert (fails.closed, fails.failed) == (1, True)
    assert (works.closed, works.failed) == (1, False)
    assert len(read_history(tmp_path / "history.jsonl")) == 6


@pytest.mark.parametrize(("error", "failed"), [(ZeroDivisionError, True), (StoppedError, False)])
def test_an_error_loses_no_step_that_was_logged(tmp_path, error, failed):
    recorder = Recorder()

    def fail() -> None:
        with open_log(tmp_path, 100, Trackers({"recorder": recorder})) as log:
            log.add("sft", 1, loss=Total(1.0))
            raise error("mine")

    with pytest.raises(error):
        fail()
    assert len(read_history(tmp_path / "history.jsonl")) == 1
    assert recorder.rows == [(1, {"sft/loss": 1.0})]
    assert (recorder.closed, recorder.failed) == (1, failed)


WORKER = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from omr_io.train.history import History
from omr_io.train.ranks import Ranks, environment_ranks
from omr_io.train.step_log import Most, PhaseSteps, Share, StepLog, Total

rank, world_size, _ = environment_ranks()
store = f"file://{sys.argv[1]}/store"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
ranks = Ranks(rank, world_size)
calls = []
original = dist.all_reduce
dist.all_reduce = lambda *a, **k: (calls.append(1), original(*a, **k))[1]
history = History.create(Path(sys.argv[1]) / "history.jsonl") if rank == 0 else None
shown = []
log = StepLog(ranks, history, {"sft": PhaseSteps(4, 2)}, None, shown.append)
try:
    with log:
        for step in range(1, 5):
            log.add("sft", step, loss=Total(torch.tensor(step * (rank + 1.0))),
                    rate=Share(rank + 1.0, 2.0), memory=Most(100.0 - rank), own=7.0 + rank,
                    seconds=Share(1.0 + rank, 1.0))
        made = len(calls)
        if sys.argv[2] == "fails":
            log.add("sft", 5, loss=Total(1.0))
            raise KeyError("stop")
except KeyError:
    pass
print(json.dumps({"rank": rank, "collectives": made, "shown": shown}))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("end", ["ends", "fails"])
def test_ranks_are_added_up_in_one_collective_a_logged_step(tmp_path, end):
    environment = os.environ | {
        "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), end],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [json.loads(w.communicate(timeout=600)[0].splitlines()[-1]) for w in workers]
    assert [w.returncode for w in workers] == [0, 0]
    assert [s["collectives"] for s in said] == [2, 2]
    last = ["metrics of the last 1 steps were not written"] if end == "fails" else []
    lines = [f"sft {step}/4: loss {3 * step:.4f}, 1.5 s" for step in (2, 4)]
    assert said[0]["shown"] == lines + last
    assert said[1]["shown"] == []
    rows = read_history(tmp_path / "history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2] == {
        "phase": "sft", "step": 3, "loss": 9.0, "rate": 0.75, "memory": 100.0, "own": 7.0,
        "seconds": 1.5,
    }  # fmt: skip
