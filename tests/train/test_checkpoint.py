from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omr_io.errors import ConfigError, DiskError, IntegrityError, ResumeError, TrainingError
from omr_io.train import checkpoint
from omr_io.train.checkpoint import Checkpoints, CheckpointWarning, Saved


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

    def save(self, checkpoints: Checkpoints) -> None:
        progress = {
            "phase": "sft", "history": self.history, "loader": self.loader,
            "schedule": self.schedule.state_dict(),
        }  # fmt: skip
        checkpoints.save(self.model, self.optimizer, progress)

    @classmethod
    def resumed(cls, saved: Saved) -> Run:
        run = cls()
        saved.load_model(run.model)
        saved.load_optimizer(run.model, run.optimizer)
        run.schedule.load_state_dict(saved.progress["schedule"])
        run.history = list(saved.progress["history"])
        run.loader = dict(saved.progress["loader"])
        saved.load_random_state(seed=0)
        return run


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def newest(folder: Path) -> Saved:
    saved = Checkpoints(folder).latest()
    assert saved is not None
    return saved


def test_a_resumed_run_is_equal_bit_for_bit(tmp_path: Path) -> None:
    seed_all(0)
    whole = Run()
    whole.train(4)
    with Checkpoints(tmp_path) as checkpoints:
        whole.save(checkpoints)
        whole.train(5)
    seed_all(99)  # another process would stand anywhere
    again = Run.resumed(newest(tmp_path))
    again.train(5)
    assert again.history == whole.history
    assert again.loader == whole.loader
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    seed_all(99)
    other = Run.resumed(newest(tmp_path))
    seed_all(99)  # without the random state the runs part: the test above can fail
    other.train(5)
    assert other.history != whole.history


class Small:
    """A model and an optimiser that are full of one number."""

    def __init__(self, step: int = 0) -> None:
        self.model = nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=0.9)
        self.fill(step)

    def fill(self, step: int) -> None:
        self.step = step
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(step)
                self.optimizer.state[parameter] = {
                    "momentum_buffer": torch.full_like(parameter, step)
                }

    def save(self, checkpoints: Checkpoints) -> None:
        checkpoints.save(self.model, self.optimizer, {"step": self.step})


def save_small(folder: Path, step: int, *, keep: int = 2) -> None:
    with Checkpoints(folder, keep=keep) as checkpoints:
        Small(step).save(checkpoints)


def step_of(saved: Saved | None) -> int:
    """The step that a checkpoint is of, all parts of it."""
    assert saved is not None
    step = int(saved.progress["step"])
    small = Small(-1)
    saved.load_model(small.model)
    saved.load_optimizer(small.model, small.optimizer)
    for parameter in small.model.parameters():
        assert (parameter == step).all()
        assert (small.optimizer.state[parameter]["momentum_buffer"] == step).all()
    return step


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    progress: dict[str, Any] = {
        "tuple": (1, (2.5, None)), "list": [1, "é", True], "int keys": {3: "c", 1: "a"},
        "tag": {"tensor": "not one"}, "empty": {}, "nan": float("nan"), "tiny": 5e-324,
        "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(3), "no": torch.ones(0),
        "bytes": torch.arange(9, dtype=torch.uint8).view(3, 3).T, "flag": torch.tensor([True]),
        "views": [shared, shared[2:], shared.view(2, 3).T, shared],
        "like": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: shared + 1, "1": shared + 2},
    }  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        small = Small()
        checkpoints.save(small.model, small.optimizer, progress)
    got = newest(tmp_path).progress
    assert list(got) == list(progress)
    for name in ("tuple", "list", "int keys", "tag", "empty", "tiny"):
        assert got[name] == progress[name]
        assert type(got[name]) is type(progress[name])
    assert np.isnan(got["nan"])
    for name in ("half", "scalar", "no", "bytes", "flag"):
        assert torch.equal(got[name], progress[name])
        assert got[name].dtype == progress[name].dtype
    for mine, theirs in zip(got["views"], progress["views"], strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in [(got["like"], progress["like"])]:
        assert torch.equal(mine["a/b"], theirs["a/b"])
        assert torch.equal(mine["a"]["b"], theirs["a"]["b"])
        assert torch.equal(mine[1], theirs[1])
        assert torch.equal(mine["1"], theirs["1"])


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, optimizer, {})
    # safetensors' own reader is the oracle of what we wrote.
    stored = load_file(tmp_path / "checkpoint-000001/rank-00000.safetensors")
    assert [name for name in stored if name.startswith("model/")] == [
        "model/0.weight", "model/0.bias", "model/1.bias",
    ]  # fmt: skip
    assert torch.equal(stored["model/0.weight"], model[0].weight)
    tied, parted = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    for again in (tied, parted):
        newest(tmp_path).load_model(again)
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)


def test_a_save_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing is held up while the weights change; a second save waits for the first."""
    real, go = os.fsync, threading.Event()

    def slow(descriptor: int) -> None:
        go.wait(100)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    small = Small(1)
    with Checkpoints(tmp_path) as checkpoints:
        small.save(checkpoints)
        assert not list(tmp_path.glob("checkpoint-*"))  # it came back before the disk did
        small.fill(2)
        assert not go.is_set()
        go.set()
        checkpoints.wait()
        assert step_of(checkpoints.latest()) == 1
        small.save(checkpoints)
        small.fill(3)
        small.save(checkpoints)
    assert step_of(newest(tmp_path)) == 3
    assert step_of(Checkpoints(tmp_path).load("checkpoint-000002")) == 2


def test_a_parameter_without_a_gradient_has_no_state_afterwards(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = make()
    model[0](torch.rand(2, 3)).sum().backward()  # type: ignore[index]
    optimizer.step()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, optimizer, {})
    again, state = make()
    newest(tmp_path).load_optimizer(again, state)
    assert sorted(state.state_dict()["state"]) == [0, 1]
    model, optimizer = make()  # no step at all: torch's own functions would make one up
    with Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(model, optimizer, {})
    again, state = make()
    newest(tmp_path / "new").load_optimizer(again, state)
    assert not optimizer.state
    assert not state.state


def test_what_would_need_pickle_is_refused(tmp_path: Path) -> None:
    small = Small()
    with Checkpoints(tmp_path) as checkpoints:
        values = (object(), {1.5: 2}, {("a",): 1}, np.float32(1), lambda: 0, b"bytes", {1, 2})
        for value in (*values, torch.ones(2, dtype=torch.complex64)):
            with pytest.raises(ConfigError, match="cannot store"):
                checkpoints.save(small.model, small.optimizer, {"x": value})
    assert not list(tmp_path.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() is None
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            Small(step).save(checkpoints)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]
    assert step_of(newest(tmp_path)) == 5
    with pytest.raises(ConfigError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def flip(path: Path, generator: random.Random) -> Callable[[], None]:
    """Flip a bit; returns what puts it back."""
    data = path.read_bytes()
    changed = bytearray(data)
    changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(changed)
    return lambda: path.write_bytes(data) and None


@pytest.mark.filterwarnings("ignore::omr_io.train.checkpoint.CheckpointWarning")
def test_a_flipped_bit_never_loads(tmp_path: Path) -> None:
    """1,000 flips over the files of the newest: each is found, and the one before is taken."""
    for step in (1, 2):
        save_small(tmp_path, step)
    generator = random.Random(0)
    files = sorted((tmp_path / "checkpoint-000002").iterdir())
    assert [f.name for f in files] == ["manifest.json", "rank-00000.safetensors", "state.json"]
    for turn in range(1000):
        put_back = flip(files[turn % 3], generator)
        assert newest(tmp_path).progress["step"] == 1
        put_back()
    assert step_of(newest(tmp_path)) == 2


def test_a_corrupt_one_is_named_and_skipped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_small(tmp_path, step, keep=3)
    third = tmp_path / "checkpoint-000003/state.json"
    third.write_text(third.read_text()[:-1])
    named = r"skipped checkpoint-000003: not what was written: state.json"
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.warns(CheckpointWarning, match=named):
            assert step_of(checkpoints.latest()) == 2
        # A corrupt one is none of the two that are kept.
        Small(4).save(checkpoints)
        checkpoints.wait()
        assert [p.name[-1] for p in sorted(tmp_path.iterdir())] == ["2", "3", "4"]
    (tmp_path / "checkpoint-000004/manifest.json").unlink()
    (tmp_path / "checkpoint-000002/extra").write_text("")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(TrainingError, match="none of the 3 checkpoints is valid"),
    ):
        Checkpoints(tmp_path).latest()


def test_another_format_is_not_loaded(tmp_path: Path) -> None:
    save_small(tmp_path, 1)
    path = tmp_path / "checkpoint-000001/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 1}, sort_keys=True))
    with pytest.raises(IntegrityError, match="its format is 1, this version reads 2"):
        Checkpoints(tmp_path).load(path.parent.name)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_small(tmp_path, 1)
    saved = newest(tmp_path)
    wide, deep = nn.Linear(9, 8), nn.Sequential(nn.Linear(8, 8))
    for model, words in (
        (wide, r"weight is \[8, 8\] float32 there, and \[8, 9\]"),
        (nn.Linear(8, 8).bfloat16(), "float32 there, and .* bfloat16"),
        (deep, "no tensor of the model named 0.weight"),
        (nn.Linear(8, 8, bias=False), "has a tensor of the model named bias"),
    ):
        with pytest.raises(ResumeError, match=words):
            saved.load_model(model)
    model = nn.Linear(8, 8)
    for parameters in ([model.weight], [{"params": [model.weight]}, {"params": [model.bias]}]):
        with pytest.raises(ResumeError, match="optimiser"):
            saved.load_optimizer(model, torch.optim.SGD(parameters, lr=1.0, momentum=0.9))


def test_a_failure_at_any_point_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before each call that touches the disk, in turn."""
    real = {"fsync": os.fsync, "rename": os.rename, "write": os.write, "mkdir": os.mkdir}
    outcomes = []
    for stop in range(26):
        folder = tmp_path / str(stop)
        save_small(folder, 1, keep=1)
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
            for name in real:
                patch.setattr(os, name, guarded(name))
            try:
                save_small(folder, 2, keep=1)
                failed = False
            except DiskError:
                failed = True
        outcomes.append((failed, step_of(newest(folder))))
        save_small(folder, 3, keep=1)  # and the next one succeeds
        assert [p.name for p in folder.iterdir()] == [
            "checkpoint-000003" if outcomes[-1][1] == 2 else "checkpoint-000002"
        ]
    assert outcomes[0] == (True, 1)
    assert outcomes[-1] == (False, 2)
    steps = [step for _, step in outcomes]
    assert steps == sorted(steps)  # always one of the two, in order


def train_until_killed(folder: Path, saves: int) -> None:
    """What a process does that a cluster starts again and again: go on, and save every step."""
    with Checkpoints(folder) as checkpoints:
        saved = checkpoints.latest()
        if saved is None:
            seed_all(0)
        run = Run() if saved is None else Run.resumed(saved)
        while len(run.history) < saves:
            run.train(1)
            run.save(checkpoints)


def kill_again_and_again(folder: Path, kills: int) -> list[dict[str, float]]:
    """SIGKILL at random moments, and after the last kill to the end; gives the loss curve."""
    generator, never_less, died = random.Random(1), 0, 0
    while died < kills or never_less < 5:
        child = os.fork()
        if child == 0:
            # A CheckpointWarning is an error here, as in all tests: nothing may be corrupt.
            code = 1
            try:
                train_until_killed(folder, 10**9)
                code = 0
            finally:
                os._exit(code)
        # On a slow machine, long enough for some steps in the end.
        time.sleep(generator.uniform(0.0, 0.3 + 0.01 * died))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        died += 1
        saved = Checkpoints(folder).latest()
        steps = 0 if saved is None else len(saved.progress["history"])
        assert steps >= never_less
        never_less = steps
    train_until_killed(folder, never_less + 3)
    return list(newest(folder).progress["history"])


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_change_nothing(tmp_path: Path, kills: int) -> None:
    curve = kill_again_and_again(tmp_path, kills)
    seed_all(0)
    whole = Run()
    whole.train(len(curve))
    assert curve == whole.history  # bit for bit


def test_an_impossible_folder_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="writing a checkpoint failed"):
        save_small(tmp_path / "file", 1)


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def run() -> None:
        with Checkpoints(tmp_path / "file") as checkpoints:
            Small(1).save(checkpoints)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as raised:
        run()
    assert "writing a checkpoint failed" in raised.value.__notes__[0]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    for path in Path(checkpoint.__file__).parent.glob("*.py"):
        source = path.read_text()
        for word in ("torch.save", "torch.load", "import pickle", "FileSystemReader"):
            assert word not in source
    save_small(tmp_path, 1)
    import pickle

    folder = tmp_path / "checkpoint-000001"
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"}
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((folder / "rank-00000.safetensors").read_bytes())
