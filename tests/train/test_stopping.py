from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from omr_io.errors import ConfigError, DiskError, StoppedError
from omr_io.train.checkpoint import Checkpoints, storage
from omr_io.train.ranks import Ranks
from omr_io.train.stopping import SIGNALS, Stopping, StopSignals, stop_signals
from tests.train.gloo_ranks import on_ranks

assert storage  # imported here, so that forked ranks need not


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_a_flag_and_nothing_else(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_signals() as stop:
        assert (stop.requested, stop.name) == (False, None)
        signal.raise_signal(number)
        assert (stop.requested, stop.name) == (True, number.name)
        with pytest.raises(AttributeError):
            stop.requested = False  # type: ignore[misc]
        with pytest.raises(AttributeError):
            stop.more = 1  # type: ignore[attr-defined]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_handlers_before_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with stop_signals(together_seconds=0) as stop:
            signal.raise_signal(signal.SIGUSR1)
            assert seen == []
            signal.raise_signal(signal.SIGUSR1)  # the second one
            assert seen == [signal.SIGUSR1]
        with pytest.raises(ValueError, match="mine"), stop_signals() as stop:
            raise ValueError("mine")
        assert not stop.requested
        signal.raise_signal(signal.SIGUSR1)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_signal_ends_the_process_at_once() -> None:
    for first, second in ((signal.SIGUSR1, signal.SIGTERM), (signal.SIGUSR1, signal.SIGUSR1)):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            with stop_signals(together_seconds=0) as stop:
                os.write(told, b"r")
                while True:
                    time.sleep(0.001)
                    if stop.requested:
                        os.write(told, b"1")
        os.close(told)
        assert os.read(ready, 1) == b"r"
        os.kill(child, first)
        assert os.read(ready, 1) == b"1"
        os.kill(child, second)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -second
        os.close(ready)


def test_signals_that_come_together_are_one() -> None:
    """As from Slurm and from torchrun: the second must not end what the first asks for."""
    with stop_signals(together_seconds=60) as stop:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.name == "SIGUSR1"


def test_generating_is_left_between_batches() -> None:
    from omr_io.train.rollout import generate
    from tests.train import tiny_models as tiny

    model = tiny.tiny_model("qwen3_vl").eval()
    prompts = [tiny.tiny_sample([(4, 6)], 5, seed) for seed in range(3)]
    calls = []

    def between() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("left")

    def sample(count: int) -> None:
        generate(
            model, prompts[:count], max_new_tokens=2, eos=3, banned=(), group_size=2,
            batch_size=2, between=between,
        )  # fmt: skip

    sample(2)
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(KeyError, match="left"):
        sample(3)
    assert not model.training


def test_only_the_main_thread_can(recwarn: pytest.WarningsRecorder) -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with stop_signals():
                pass
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


class Run:
    """A model whose weight counts its updates."""

    def __init__(self, folder: Path, signals: StopSignals, ranks: Ranks | None = None) -> None:
        ranks = ranks or Ranks()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=0.1)
        self.checkpoints = Checkpoints(folder, ranks)
        self.stopping = Stopping(signals, self.checkpoints, ranks)

    def update(self) -> None:
        self.stopping.before_update()
        with torch.no_grad():
            self.model.weight += 1

    def done(self, step: int, *, due: bool = False) -> None:
        def write() -> None:
            self.checkpoints.save(self.model, self.optimizer, {"step": step})

        self.stopping.step_done(write, due=due)


def saved_step(folder: Path, ranks: Ranks | None = None) -> int | None:
    saved = Checkpoints(folder, ranks).latest()
    if saved is None:
        return None
    model = nn.Linear(1, 1, bias=False)
    saved.load_model(model)
    assert model.weight.item() == saved.progress["step"]  # weights of that very step
    return int(saved.progress["step"])


def test_a_step_that_has_begun_is_given_up(tmp_path: Path) -> None:
    with stop_signals() as signals:
        run = Run(tmp_path, signals)
        for step in (1, 2):
            run.stopping.check()
            run.update()
            run.stopping.check()
            run.done(step, due=step == 1)
        run.checkpoints.wait()
        assert saved_step(tmp_path) == 1
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM.*--resume") as stopped:
            run.stopping.check()
        assert stopped.value.exit_code == 75
    assert saved_step(tmp_path) == 2


def test_within_an_update_nothing_stops(tmp_path: Path) -> None:
    with stop_signals() as signals:
        run = Run(tmp_path, signals)
        run.done(0)
        signal.raise_signal(signal.SIGUSR1)
        run.update()
        run.stopping.check()  # as an evaluation after the update would
        with run.stopping.interruptible() as leave:
            leave()
            finished = True
        assert finished
        assert saved_step(tmp_path) is None
        with pytest.raises(StoppedError):
            run.done(1)
    assert saved_step(tmp_path) == 1


def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path) -> None:
    with stop_signals() as signals:
        run = Run(tmp_path / "checkpoints", signals)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(StoppedError):
            run.stopping.check()
    assert not (tmp_path / "checkpoints").exists()


def test_a_rollout_is_left_between_batches(tmp_path: Path) -> None:
    batches = []
    with stop_signals() as signals:
        run = Run(tmp_path, signals)
        run.update()
        run.done(1)

        def roll_out() -> None:
            with run.stopping.interruptible() as leave:
                for batch in range(10):
                    leave()
                    batches.append(batch)
                    if batch == 3:
                        signal.raise_signal(signal.SIGUSR1)
            raise AssertionError("what the block did not finish would be used")

        with pytest.raises(StoppedError):
            roll_out()
    assert batches == [0, 1, 2, 3]
    assert saved_step(tmp_path) == 1


def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    """Rank 1 alone is asked to, in its own rollout, of which it has more than rank 0."""

    def work(ranks: Ranks) -> None:
        done: list[tuple[int, int]] = []

        def train(run: Run) -> None:
            for step in range(1, 6):
                with run.stopping.interruptible() as leave:
                    for batch in range(3 + 2 * ranks.rank):
                        leave()
                        if (ranks.rank, step, batch) == (1, 4, 2):
                            signal.raise_signal(signal.SIGUSR1)
                        done.append((step, batch))
                run.update()
                run.done(step)

        name = "SIGUSR1" if ranks.rank else "a signal to another rank"
        with (
            stop_signals() as signals,
            pytest.raises(StoppedError, match=f"stopped by {name}"),
        ):
            train(Run(tmp_path / "checkpoints", signals, ranks))
        assert done[-1] == (4, 2)  # rank 0 did all its three, rank 1 three of five
        assert saved_step(tmp_path / "checkpoints", ranks) == 3

    on_ranks(2, tmp_path / "ranks", work)


def test_a_failed_save_ends_the_run_at_the_next_check(tmp_path: Path) -> None:
    """Not when the next checkpoint is due: until then everything would be lost as well."""

    def work(ranks: Ranks) -> None:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        if ranks.rank == 1:

            def full(*args: object) -> None:
                raise OSError("no space left on device")

            storage.write_tensors = full  # type: ignore[assignment]
        checkpoints = Checkpoints(tmp_path / "checkpoints", ranks)
        stopping = Stopping(StopSignals(), checkpoints, ranks)
        save = partial(checkpoints.save, model, optimizer, {"step": torch.arange(9)})
        stopping.step_done(lambda: None, due=False)
        stopping.before_update()

        def train() -> None:
            stopping.step_done(save, due=True)
            while True:
                stopping.check()

        with pytest.raises(DiskError, match="on rank 1: no space left on device"):
            train()

    on_ranks(2, tmp_path / "ranks", work)
