"""The log of a run has one writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from omr_io.errors import ConfigError, IntegrityError
from omr_io.train.history import History, check_unused, read_history
from omr_io.train.run import start_folder


def test_a_log_that_a_run_is_writing_is_not_cut_by_another(tmp_path: Path) -> None:
    """--resume by mistake, while the run goes on: its lines were cut off under it."""
    path = tmp_path / "runs/demo/history.jsonl"
    check_unused(path)
    with History.create(path) as history:
        for step in (1, 2, 3):
            history.add("sft", step, loss=1.0)
        with pytest.raises(ConfigError, match=r"another run is writing .*\. End that run"):
            History.resume(path, phase="sft", step=1)
        with pytest.raises(ConfigError, match="another run is writing"):
            start_folder(path.parent, resume=False, overwrite=True)
        history.add("sft", 4, loss=1.0)
    assert [row["step"] for row in read_history(path)] == [1, 2, 3, 4]
    with History.resume(path, phase="sft", step=2), pytest.raises(ConfigError, match="another run"):
        History.resume(path, phase="sft", step=1)
    assert [row["step"] for row in read_history(path)] == [1, 2]
    start_folder(path.parent, resume=False, overwrite=True)
    assert not path.exists()


def test_a_log_that_is_refused_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"no metrics\n")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="line 1 is not a metrics line"):
            History.resume(path, phase="sft", step=1)
    path.unlink()
    History.create(path).close()
    History.resume(path, phase="sft", step=0).close()
