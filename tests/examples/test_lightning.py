"""Lightning, in an environment of its own: gradients, places, and a run that is resumed."""

from __future__ import annotations

import json

import pytest

from tests.examples.conftest import ROOT
from tests.examples.steps import OPTIONS, first_step, make_loader, num_steps

pytestmark = pytest.mark.slow

PROBE = ROOT / "tests/examples/lightning_probe.py"


@pytest.fixture
def train(run, environment, corpus, model_folder, tmp_path, monkeypatch):
    """A function: options → what the probe found."""

    def start(*options, folder="run"):
        monkeypatch.setenv("PROBE", str(tmp_path / "found.json"))
        command = (PROBE, corpus, model_folder, tmp_path / folder, *OPTIONS, *options)
        run(*command, python=environment)
        return json.loads((tmp_path / "found.json").read_text())

    return start


def places(corpus, model_folder, epochs):
    with make_loader(corpus, model_folder) as loader:
        return [[b.epoch, b.step, b.micro_step] for _ in range(epochs) for b in loader]


def test_a_resumed_run_equals_the_whole(train, corpus, model_folder, tmp_path):
    steps = num_steps(corpus, model_folder)
    whole = train("--steps", steps, "--save-steps", 2)
    expected = places(corpus, model_folder, 2)
    assert whole["places"] == expected
    assert len(whole["norms"]) == steps
    _, norm = first_step(corpus, model_folder)
    assert whole["norms"][0] == pytest.approx(norm, rel=1e-4)

    (saved,) = (tmp_path / "run").glob("*step=2.ckpt")
    resumed = train("--steps", steps, "--resume", saved, folder="resumed")
    assert resumed["places"] == expected[2 * 4 :]
    assert resumed["norms"] == whole["norms"][2:]
    assert resumed["weights"] == whole["weights"]


def test_two_ranks_make_the_same_step(train, corpus, model_folder):
    found = train("--steps", 2, "--devices", 2)
    _, norm = first_step(corpus, model_folder)
    assert found["norms"][0] == pytest.approx(norm, rel=1e-4)
    assert len(found["places"]) == 4
