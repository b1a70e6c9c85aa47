"""Hugging Face's Trainer, in an environment with accelerate."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from omr_io.errors import ConfigError, DataError
from omr_io.integrations import hf
from omr_io.integrations.hf import TrainerDataset, collate
from tests.examples.conftest import ROOT
from tests.examples.steps import OPTIONS, first_step, make_loader, num_steps

FILE = ROOT / "examples/hf_trainer.py"


@pytest.fixture
def loader(corpus, model_folder):
    with make_loader(corpus, model_folder) as made:
        yield made


def test_the_dataset_goes_on_from_epoch_to_epoch(loader, corpus, model_folder):
    count = len(loader) + 3
    inner = torch.utils.data.DataLoader(TrainerDataset(loader), batch_size=None, collate_fn=collate)
    stream = iter(inner)
    found = [next(stream) for _ in range(count)]
    # Nothing is fetched ahead: the state is that of what was taken.
    assert loader.state_dict()["epoch"] == 1
    with make_loader(corpus, model_folder) as other:
        expected = [batch for _ in range(2) for batch in other][:count]
        other.load_state_dict(loader.state_dict())
        assert torch.equal(next(stream)["input_ids"], next(iter(other)).input_ids)
    for inputs, batch in zip(found, expected, strict=True):
        own = {"logits_to_keep", "targets", "step_label_tokens"}
        assert inputs.keys() == batch.model_inputs().keys() | own
        assert inputs["step_label_tokens"] == batch.step_label_tokens
        assert torch.equal(inputs["input_ids"], batch.input_ids)


@pytest.mark.parametrize("packs", [1, 2, 4])
def test_the_targets_are_the_labels(corpus, model_folder, packs):
    options = {"packs_per_batch": packs, "samples": np.arange(29)}  # the last step has empty packs
    with make_loader(corpus, model_folder, **options) as loader:
        batches = list(loader)
    assert packs > 1 or not batches[-1].num_label_tokens
    for batch in batches:
        inputs = collate(batch)
        columns, targets = inputs["logits_to_keep"], inputs["targets"]
        assert targets.shape == (packs, len(columns))
        found = torch.full_like(batch.labels, -100)
        found[:, columns + 1] = targets
        assert torch.equal(found, batch.labels)


def test_a_batch_without_images_is_refused_where_it_would_hang(loader):
    batch = next(iter(loader))
    bare = dataclasses.replace(batch, has_dummy_image=True)
    assert "pixel_values" in collate(batch, need_images=True)
    assert "pixel_values" not in collate(bare)
    with pytest.raises(DataError, match="no sample of step 0"):
        collate(bare, need_images=True)


def test_workers_are_refused(loader):
    inner = torch.utils.data.DataLoader(
        TrainerDataset(loader), batch_size=None, collate_fn=collate, num_workers=1
    )
    with pytest.raises(ConfigError, match="dataloader_num_workers=0"):
        next(iter(inner))


class Arguments:
    """What `_check_arguments` reads; the real ones need accelerate."""

    def __init__(self, **changes):
        fields = {
            "gradient_accumulation_steps": 4, "ignore_data_skip": True, "max_steps": 8, "n_gpu": 0,
            "auto_find_batch_size": False, "dataloader_num_workers": 0,
            "world_size": 1, "process_index": 0,
        }  # fmt: skip
        self.__dict__.update(fields | changes)


def test_the_arguments_are_those_of_transformers():
    assert all(hasattr(TrainingArguments, name) for name in vars(Arguments()))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=1, not 4"),
        ({"ignore_data_skip": False}, "ignore_data_skip=False, not True"),
        ({"world_size": 2, "process_index": 1}, "world_size=2, not 1; process_index=1, not 0"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"dataloader_num_workers": 4}, "dataloader_num_workers=4, not 0"),
        ({"max_steps": -1}, "num_steps"),
        ({"n_gpu": 2}, "torchrun"),
    ],
)
def test_arguments_that_do_not_fit_are_named(loader, changes, what):
    hf._check_arguments(Arguments(), loader)
    with pytest.raises(ConfigError, match=what):
        hf._check_arguments(Arguments(**changes), loader)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_resumed_run_equals_the_whole(run, environment, corpus, model_folder, tmp_path):
    steps = num_steps(corpus, model_folder)
    command = (FILE, corpus, model_folder, tmp_path / "run", *OPTIONS, "--save-steps", 2)
    run(*command, python=environment)
    whole = weights(tmp_path / "run" / f"checkpoint-{steps}")
    state = json.loads((tmp_path / "run" / f"checkpoint-{steps}/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    assert len(logged) == steps
    loss, norm = first_step(corpus, model_folder)
    assert logged[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert logged[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert logged[-1]["epoch"] == 2.0
    assert sorted(entry["epoch"] for entry in logged) == [entry["epoch"] for entry in logged]

    for folder in (tmp_path / "run").glob("checkpoint-*"):
        if folder.name != "checkpoint-2":
            shutil.rmtree(folder)
    assert json.loads((tmp_path / "run/checkpoint-2/loader.json").read_text())["step"] == 2
    run(*command, "--resume", python=environment)
    again = weights(tmp_path / "run" / f"checkpoint-{steps}")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())

    for folder in (tmp_path / "run").glob("checkpoint-*"):
        (folder / "loader.json").unlink()
    with pytest.raises(AssertionError, match=r"has no loader\.json"):
        run(*command, "--resume", python=environment)


@pytest.mark.slow
def test_two_ranks_make_the_same_steps(run, environment, corpus, model_folder, tmp_path):
    steps = num_steps(corpus, model_folder)
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    run(*ranks, FILE, corpus, model_folder, tmp_path / "two", *OPTIONS, python=environment)
    state = json.loads((tmp_path / "two" / f"checkpoint-{steps}/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    loss, norm = first_step(corpus, model_folder)
    assert len(logged) == steps
    assert logged[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert logged[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
