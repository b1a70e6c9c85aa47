"""A real folder as a model: its prompts, its completions, its fingerprint, what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.loader.samples import SampleEncoder
from omr_io.tokenizer import Tokenizer
from omr_io.train.evaluation.comparison import compare
from omr_io.train.evaluation.items import read_items
from omr_io.train.evaluation.models import (
    Ask,
    FolderModel,
    choose_dtype,
    fingerprint_folder,
    prompt_of,
)
from omr_io.train.evaluation.options import EvaluationOptions, Named
from omr_io.train.evaluation.scoring import Said
from omr_io.train.model import load_model
from omr_io.train.rollout import generate
from omr_io.train.run import blind, get_token_ids
from tests.examples.conftest import model_folder  # noqa: F401 (a fixture)

SHORT = EvaluationOptions(max_new_tokens=6, device="cpu")


@pytest.fixture(scope="module")
def opened(shards):
    with ShardSet.open(shards) as opened:
        yield opened


@pytest.fixture(scope="module")
def encoder(opened, model_folder):  # noqa: F811
    chat = ChatFormat.for_family("qwen3_vl", Tokenizer.from_pretrained(model_folder))
    return SampleEncoder(opened, chat, VisionConfig.from_pretrained(model_folder), CpuDecoder())


def asks(opened, variant, count: int = 8) -> list[Ask]:
    items = read_items(Named("s", ""), opened, EvaluationOptions(limit=count)).items
    return [Ask(item.number, item.key, variant, item.shown(variant).record) for item in items]


def test_prompts_are_the_encoders_own(opened, encoder) -> None:
    for plain, shuffled in zip(asks(opened, "plain"), asks(opened, "shuffled"), strict=True):
        wanted = encoder.prompt(plain.number)
        got = prompt_of(plain, encoder)
        np.testing.assert_array_equal(got.input_ids, wanted.input_ids)
        # Asked in the unchanged order, the text that is encoded anew gives the very same ids.
        same = prompt_of(dataclasses.replace(plain, variant="shuffled"), encoder)
        np.testing.assert_array_equal(same.input_ids, wanted.input_ids)
        assert same.trained.shape == same.input_ids.shape
        assert not same.trained.any()
        moved = prompt_of(shuffled, encoder)
        text = encoder.chat.tokenizer.decode(moved.input_ids)
        assert shuffled.record.question in text
        if wanted.pixel_values is not None:
            np.testing.assert_array_equal(moved.pixel_values, wanted.pixel_values)
            without = prompt_of(dataclasses.replace(plain, variant="blind"), encoder)
            np.testing.assert_array_equal(without.pixel_values, blind(wanted, encoder).pixel_values)
            assert without.pixel_values.std() < 1e-6 < wanted.pixel_values.std()


def test_completions_are_those_of_generate(opened, encoder, model_folder) -> None:  # noqa: F811
    model = FolderModel(Named("m", str(model_folder)), SHORT)
    loaded = load_model(model_folder)
    tokenizer = encoder.chat.tokenizer
    ids = get_token_ids(tokenizer)
    said = model.answer(opened, asks(opened, "plain"), runs=1, seed=0)
    for number, (one,) in enumerate(said):
        (alone,) = generate(
            loaded, [encoder.prompt(number)], max_new_tokens=6, eos=ids.eos, banned=ids.banned,
            temperature=0.0,
        )  # fmt: skip
        text = tokenizer.decode(alone.ids, skip_special_tokens=True)
        assert one == Said(text, alone.finished, None)
    assert len({one.text for (one,) in said}) > 1
    model.close()
    assert model.answer(opened, asks(opened, "plain"), runs=1, seed=0) == said  # loaded again


def test_sampling_follows_from_the_seed_and_not_from_the_batch(opened, model_folder) -> None:  # noqa: F811
    def sampled(seed: int, batch_size: int) -> list[list[Said]]:
        options = dataclasses.replace(SHORT, temperature=1.0, runs=3, batch_size=batch_size)
        model = FolderModel(Named("m", str(model_folder)), options)
        return model.answer(opened, asks(opened, "plain", 5), runs=3, seed=seed)

    first = sampled(1, 16)
    assert [len(one) for one in first] == [3] * 5
    assert sampled(1, 3) == first
    assert sampled(2, 16) != first
    assert len({one.text for own in first for one in own}) > 5


def test_low_precision_runs(opened, model_folder) -> None:  # noqa: F811
    options = dataclasses.replace(SHORT, dtype="bfloat16")
    model = FolderModel(Named("m", str(model_folder)), options)
    assert model.made_by["dtype"] == "bfloat16"
    assert len(model.answer(opened, asks(opened, "plain", 3), runs=1, seed=0)) == 3
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_a_broken_image_is_said(write_shards, make_records, model_folder) -> None:  # noqa: F811
    with ShardSet.open(write_shards(make_records(4, broken=(1,)))) as broken:
        model = FolderModel(Named("m", str(model_folder)), SHORT)
        said = model.answer(broken, asks(broken, "plain", 4), runs=1, seed=0)
        assert [one.failure is not None for (one,) in said] == [False, True, False, False]
        said = model.answer(broken, asks(broken, "blind", 4), runs=1, seed=0)
        assert [one.failure for (one,) in said] == [None] * 4


def test_what_completions_depend_on(model_folder) -> None:  # noqa: F811
    def made_by(**changes):
        options = dataclasses.replace(SHORT, **changes)
        return FolderModel(Named("m", str(model_folder)), options).made_by

    plain = made_by()
    assert made_by() == plain
    assert made_by(num_threads=2, batch_size=3) == plain
    for changes, names in (
        ({"instruction": "Say it."}, {"instruction", "chat"}),
        ({"instructions": {"m": "Say it."}}, {"instruction", "chat"}),
        ({"instructions": {"n": "Say it."}}, set()),
        ({"system": "You see."}, {"system", "chat"}),
        ({"max_pixels": 2048}, {"vision"}),
        ({"dtype": "bfloat16"}, {"dtype"}),
    ):
        other = made_by(**changes)
        assert {name for name in plain if plain[name] != other[name]} == names


def test_the_fingerprint_is_of_weights_and_configuration(model_folder, tmp_path) -> None:  # noqa: F811
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    told: list[tuple[int, int]] = []
    first = fingerprint_folder(copy, lambda done, total: told.append((done, total)))
    assert first == fingerprint_folder(model_folder)
    assert told[-1][0] == told[-1][1] > 1000
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = fingerprint_folder(copy)
    assert changed != first
    config = copy / "config.json"
    config.write_text(config.read_text() + " ")
    assert fingerprint_folder(copy) not in (first, changed)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        fingerprint_folder(copy)
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        fingerprint_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("device", ["cuda:64", "tpu", "meta", "nonsense"])
def test_devices_that_are_not_there(model_folder, device: str) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=device):
        FolderModel(Named("m", str(model_folder)), EvaluationOptions(device=device))


def test_memory_that_is_not_there(opened, model_folder, monkeypatch) -> None:  # noqa: F811
    def full(*_args: object, **_options: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("omr_io.train.evaluation.models.generate", full)
    model = FolderModel(Named("m", str(model_folder)), SHORT)
    with pytest.raises(ConfigError, match=r"too little memory for 16 .* smaller --batch-size"):
        model.answer(opened, asks(opened, "plain", 2), runs=1, seed=0)


def test_a_folder_from_end_to_end(shards, model_folder, tmp_path) -> None:  # noqa: F811
    folder: Path = model_folder
    models = [FolderModel(Named(name, str(folder)), SHORT) for name in ("a", "b")]
    made = compare(models, [Named("s", str(shards))], tmp_path, dataclasses.replace(SHORT, limit=6))
    assert made.figures.differences[0].difference.p == 1  # one model under two names
    assert made.figures.differences[0].difference.interval.mean == 0
    texts = [(tmp_path / f"completions-{name}-s.jsonl").read_text() for name in "ab"]
    assert texts[0].replace('"model":"a"', '"model":"b"') == texts[1]
    assert texts[0].count("\n") == 18


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_what_the_cpu_says(opened, model_folder) -> None:  # noqa: F811
    """float32 on both: greedy texts are equal but for rounding; bfloat16 runs."""
    asked = asks(opened, "plain")
    texts = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        options = dataclasses.replace(SHORT, device=device, dtype=dtype)
        model = FolderModel(Named("m", str(model_folder)), options)
        texts[device, dtype] = model.answer(opened, asked, runs=1, seed=0)
        model.close()
    same = [a == b for a, b in zip(texts["cpu", "float32"], texts["cuda", "float32"], strict=True)]
    assert sum(same) >= len(asked) - 1
    assert len(texts["cuda", "bfloat16"]) == len(asked)
