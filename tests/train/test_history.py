"""The log of a run has one writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from omr_io.errors import ConfigError, DiskError, IntegrityError, TrainingError
from omr_io.train.history import History, read_history
from omr_io.train.ranks import Ranks
from omr_io.train.step_log import PhaseSteps, StepLog


def test_a_log_that_a_run_is_writing_is_not_cut_by_another(tmp_path: Path) -> None:
    """--resume by mistake, while the run goes on: its lines were cut off under it."""
    path = tmp_path / "runs/demo/history.jsonl"
    with History.create(path) as history:
        for step in (1, 2, 3):
            history.add("sft", step, loss=1.0)
        with pytest.raises(ConfigError, match=r"another run is writing .*\. End that run"):
            History.resume(path, phase="sft", step=1)
        history.add("sft", 4, loss=1.0)
    assert [row["step"] for row in read_history(path)] == [1, 2, 3, 4]
    with History.resume(path, phase="sft", step=2), pytest.raises(ConfigError, match="another run"):
        History.resume(path, phase="sft", step=1)
    assert [row["step"] for row in read_history(path)] == [1, 2]


def test_a_log_that_is_refused_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"no metrics\n")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="line 1 is not a metrics line"):
            History.resume(path, phase="sft", step=1)
    path.unlink()
    History.create(path).close()
    History.resume(path, phase="sft", step=0).close()


def test_a_full_disk_is_said_once_and_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    """/dev/full takes no byte; a buffer would try again on closing, and fail without a name."""
    path = tmp_path / "history.jsonl"
    path.symlink_to("/dev/full")
    with path.open("r+b", buffering=0) as full:
        history = History(path, full, ("sft",), (0, 0))
        with pytest.raises(DiskError, match=r"cannot write .*history\.jsonl: No space left"):
            history.add("sft", 1, loss=1.0)
        history.close()
    with path.open("r+b", buffering=0) as full:
        history = History(path, full, ("sft",), (0, 0))

        def run() -> None:
            with StepLog(Ranks(), history, {"sft": PhaseSteps(9, 9)}) as log:
                log.add("sft", 1, loss=1.0)
                raise TrainingError("the loss is not finite")

        with pytest.raises(TrainingError, match="not finite") as raised:
            run()
    assert "No space left" in raised.value.__notes__[0]
