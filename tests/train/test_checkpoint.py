from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError, IntegrityError, TrainingError
from omr_io.train import checkpoint
from omr_io.train.attention import use_varlen
from omr_io.train.checkpoint import (
    CheckpointState,
    CheckpointWarning,
    export_hf,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    set_random_state,
)
from omr_io.train.model import load_model


class Run:
    """A tiny training run whose every step uses all three random generators."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 6))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, amsgrad=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: 0.9**s)
        self.history: list[dict[str, float]] = []
        self.loader = {"epoch": 0, "step": 0, "fingerprint": "abc"}

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.rand(4, 6) * random.random() + float(np.random.rand())
            loss = (self.model(x) - x).pow(2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.loader["step"] = int(self.loader["step"]) + 1
            self.history.append({"loss": loss.item(), "lr": self.schedule.get_last_lr()[0]})

    def state(self) -> CheckpointState:
        return CheckpointState(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            progress={
                "phase": "sft", "history": self.history, "loader": self.loader,
                "schedule": self.schedule.state_dict(),
            },
        )  # fmt: skip

    @classmethod
    def resumed(cls, state: CheckpointState) -> Run:
        run = cls()
        run.model.load_state_dict(dict(state.model))
        run.optimizer.load_state_dict(dict(state.optimizer))
        run.schedule.load_state_dict(state.progress["schedule"])
        run.history = list(state.progress["history"])
        run.loader = dict(state.progress["loader"])
        set_random_state(state.rng)
        return run


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_a_resumed_run_is_equal_bit_for_bit(tmp_path: Path) -> None:
    seed_all(0)
    whole = Run()
    whole.train(4)
    save_checkpoint(tmp_path, whole.state())
    whole.train(5)
    seed_all(99)  # another process would stand anywhere
    state = load_latest(tmp_path)
    assert state is not None
    again = Run.resumed(state)
    again.train(5)
    assert again.history == whole.history
    assert again.loader == whole.loader
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    seed_all(99)
    other = Run.resumed(state)
    seed_all(99)  # without the random state the runs part: the test above can fail
    other.train(5)
    assert other.history != whole.history


def small(step: int) -> CheckpointState:
    return CheckpointState(
        model={"w": torch.full((64,), float(step))},
        optimizer={"state": {0: {"exp_avg": torch.full((64,), float(step))}}, "param_groups": []},
        progress={"step": step},
    )


def step_of(state: CheckpointState | None) -> int | None:
    if state is None:
        return None
    step = int(state.progress["step"])
    # All files are of one checkpoint.
    assert state.model["w"].tolist() == [step] * 64
    assert state.optimizer["state"][0]["exp_avg"].tolist() == [step] * 64
    return step


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tied = nn.Linear(3, 3)
    progress: dict[str, Any] = {
        "tuple": (1, (2.5, None)), "list": [1, "é", True], "int keys": {3: "c", 1: "a"},
        "tag": {"tensor": "not one"}, "empty": {}, "nan": float("nan"), "tiny": 5e-324,
        "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(3), "no": torch.ones(0),
        "views": [shared, shared[2:], shared.view(2, 3).T, shared],
    }  # fmt: skip
    model = {"a.weight": tied.weight, "b.weight": tied.weight, "c": tied.bias}
    save_checkpoint(tmp_path, CheckpointState(model, {}, progress))
    state = load_latest(tmp_path)
    assert state is not None
    got = state.progress
    assert list(got) == list(progress)
    for name in ("tuple", "list", "int keys", "tag", "empty", "tiny"):
        assert got[name] == progress[name]
        assert type(got[name]) is type(progress[name])
    assert np.isnan(got["nan"])
    for name in ("half", "scalar", "no"):
        assert torch.equal(got[name], progress[name])
        assert got[name].dtype == progress[name].dtype
    for mine, theirs in zip(got["views"], progress["views"], strict=True):
        assert torch.equal(mine, theirs)
    assert state.model["a.weight"] is state.model["b.weight"]
    assert torch.equal(state.model["b.weight"], tied.weight)
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "checkpoint-000001/model.safetensors")) == {"a.weight", "c"}


def test_what_would_need_pickle_is_refused(tmp_path: Path) -> None:
    for value in (object(), {1.5: 2}, {("a",): 1}, np.float32(1), lambda: 0, b"bytes", {1, 2}):
        with pytest.raises(ConfigError, match="cannot store"):
            save_checkpoint(tmp_path, CheckpointState({}, {}, {"x": value}))
    assert not list(tmp_path.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") is None
    for step in range(1, 6):
        path = save_checkpoint(tmp_path, small(step), keep=2)
        assert path.name == f"checkpoint-{step:06d}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]
    assert step_of(load_latest(tmp_path)) == 5
    with pytest.raises(ConfigError, match="keep"):
        save_checkpoint(tmp_path, small(6), keep=0)


def test_a_flipped_bit_never_loads(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path / "good", small(1))
    generator = random.Random(0)
    files = sorted(good.iterdir())
    assert len(files) == 4
    for turn in range(240):
        bad = tmp_path / "bad"
        shutil.copytree(good, bad)
        target = bad / files[turn % 4].name
        data = bytearray(target.read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        target.write_bytes(data)
        with pytest.raises(IntegrityError):
            load_checkpoint(bad)
        shutil.rmtree(bad)
    assert step_of(load_checkpoint(good)) == 1


def test_a_corrupt_one_is_named_and_skipped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, small(step), keep=3)
    third = tmp_path / "checkpoint-000003/state.json"
    third.write_text(third.read_text()[:-1])
    with pytest.warns(CheckpointWarning, match="skipped checkpoint-000003"):
        assert step_of(load_latest(tmp_path)) == 2
    (tmp_path / "checkpoint-000002/manifest.json").unlink()
    (tmp_path / "checkpoint-000001/extra").write_text("")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(TrainingError, match="none of the 3 checkpoints is valid"),
    ):
        load_latest(tmp_path)


def test_another_format_is_not_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, small(1)) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 2}, sort_keys=True))
    with pytest.raises(IntegrityError):
        load_checkpoint(path.parent)


def test_a_failure_at_any_point_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before each call that touches the disk, in turn."""
    real = {"fsync": os.fsync, "rename": Path.rename, "write": Path.write_bytes}
    outcomes = []
    for stop in range(12):
        folder = tmp_path / str(stop)
        save_checkpoint(folder, small(1), keep=1)
        calls = 0

        def guarded(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > stop:  # noqa: B023
                    raise OSError("no space left on device")
                return real[name](*args, **kwargs)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", guarded("fsync"))
            patch.setattr(Path, "rename", guarded("rename"))
            patch.setattr(Path, "write_bytes", guarded("write"))
            try:
                save_checkpoint(folder, small(2), keep=1)
                failed = False
            except DiskError:
                failed = True
        outcomes.append((failed, step_of(load_latest(folder))))
        save_checkpoint(folder, small(3), keep=1)  # and the next one succeeds
        assert [p.name for p in folder.iterdir()] == [
            "checkpoint-000003" if outcomes[-1][1] == 2 else "checkpoint-000002"
        ]
    assert outcomes[0] == (True, 1)
    assert outcomes[-1] == (False, 2)
    steps = [step for _, step in outcomes]
    assert steps == sorted(step for step in steps if step)  # always one of the two, in order


def test_kills_leave_whole_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small(1))
    last = 1
    for turn in range(12):
        child = os.fork()
        if child == 0:
            step = last
            while True:
                step += 1
                save_checkpoint(tmp_path, small(step), keep=2)
        time.sleep(0.05 + 0.007 * turn)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = step_of(load_latest(tmp_path))  # a CheckpointWarning would fail the test
        assert found is not None
        assert found >= last
        last = found
    assert last > 3


def test_an_impossible_folder_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="writing a checkpoint failed"):
        save_checkpoint(tmp_path / "file", small(1))


def test_nothing_is_pickled() -> None:
    source = Path(checkpoint.__file__).read_text()
    assert "torch.save" not in source
    assert "torch.load" not in source
    assert "import pickle" not in source


class FakeTokenizer:
    def save(self, folder: str | Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_export_reads_back(family: str, tmp_path: Path) -> None:
    import transformers

    from tests.train import tiny_models as tiny

    model = tiny.tiny_model(family).eval()
    sample = tiny.tiny_sample([(4, 6)], 5, 0)
    with torch.no_grad():
        expected = tiny.alone(model, sample)
    use_varlen(model)
    vision = VisionConfig(family=family, patch_size=4, min_pixels=64, max_pixels=4096)  # type: ignore[arg-type]
    export_hf(tmp_path / "hf", model, FakeTokenizer(), vision)
    assert VisionConfig.from_pretrained(tmp_path / "hf") == vision
    assert "omr_" not in (tmp_path / "hf/config.json").read_text()
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert torch.equal(tiny.alone(plain, sample), expected)
    assert load_model(tmp_path / "hf").config.model_type == family
    processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "hf")
    assert processor.patch_size == 4
    assert processor.size["longest_edge"] == 4096
