"""The plain loop: its first loss, and runs that are stopped against one that is not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
import torch

from tests.examples.conftest import ROOT, quiet
from tests.examples.steps import OPTIONS, first_step, make_loader, num_steps

FILE = ROOT / "examples/plain_loop.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("plain_loop", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_as_if_it_had_not(
    example, corpus, model_folder, tmp_path, monkeypatch, capsys
):
    steps = num_steps(corpus, model_folder)
    assert steps > 5

    def train(run, stop_after=None):
        def stop(text, **options):
            print(text)
            if text.startswith(f"step {stop_after} of"):
                raise StoppedError

        monkeypatch.setattr(example, "print", stop, raising=False)
        command = ["x", corpus, model_folder, run, *OPTIONS, "--save-steps", 1]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        example.main()

    train(tmp_path / "whole")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed] == [
        f"step {step} of {steps}" for step in range(1, steps + 1)
    ]
    for stop_after in (2, steps - 1):  # in the first epoch and in the second
        with pytest.raises(StoppedError):
            train(tmp_path / "stopped", stop_after)
    train(tmp_path / "stopped")
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    train(tmp_path / "stopped")  # nothing is left to do


def test_the_loss_is_the_mean_over_the_steps_labels(example, corpus, model_folder):
    expected, norm = first_step(corpus, model_folder)
    model = example.AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    example.use_varlen(model)
    total = torch.zeros(())
    with make_loader(corpus, model_folder) as loader:
        for batch in loader:
            if batch.step:
                break
            loss = example.loss_of(model, batch)
            loss.backward()
            total += loss.detach()
    example.sum_gradients(model)  # there is one process
    found = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(found) == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_two_ranks(run, corpus, model_folder, tmp_path):
    """The same global batches on one rank or two: sums differ by rounding alone."""
    options = [*OPTIONS, "--save-steps", 1]
    run(FILE, corpus, model_folder, tmp_path / "whole", *options)
    for attempt in range(5):  # a run may be over before it is killed
        killed = tmp_path / f"killed-{attempt}"
        command = [sys.executable, FILE, corpus, model_folder, killed, *options]
        with subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=quiet(),
        ) as child:  # fmt: skip
            for line in child.stdout:
                if line.startswith("step 3 of"):
                    child.kill()
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
        printed = run(*ranks, FILE, corpus, model_folder, killed, *options)
        numbers = [int(n) for n in re.findall(r"^step (\d+) of", printed, re.MULTILINE)]
        if numbers:
            break
    else:
        pytest.fail("no run could be killed before its end")
    first, last = min(numbers), int(re.findall(r" of (\d+), epoch", printed)[0])
    assert first >= 4
    assert sorted(numbers) == sorted(2 * list(range(first, last + 1)))  # by each rank
    whole, resumed = weights(tmp_path / "whole"), weights(killed)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
