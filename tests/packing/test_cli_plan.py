"""`omr-io plan`: what it prints, and its exit codes."""

import json

import pytest

from omr_io import DataLoader
from omr_io.config import VisionConfig
from tests.packing.test_cost import QWEN3_VL_8B
from tests.test_cli import omr_io  # noqa: F401  # a fixture


@pytest.fixture
def tokens(tokenizer, tmp_path):
    """The tokenizer's folder."""
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def model(tokenizer, vision, tmp_path):
    """A model's folder."""
    folder = tmp_path / "model"
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(QWEN3_VL_8B))
    processor = {
        "patch_size": vision.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": vision.min_pixels,
        "max_pixels": vision.max_pixels,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def options(vision: VisionConfig, tokens, seq_len=160, packs=4) -> list:
    budget = ["--min-pixels", vision.min_pixels, "--max-pixels", vision.max_pixels]
    common = ["--tokenizer", tokens, "--family", "qwen3_vl", *budget]
    return [*common, "--seq-len", seq_len, "--packs-per-step", packs]


def test_it_is_the_loaders_plan(omr_io, shards, tokens, vision, tokenizer):  # noqa: F811
    arguments = [*options(vision, tokens), "--seed", 5, "--epoch", 2, "--window", 10]
    code, out, err = omr_io("plan", shards, *arguments, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    made = report["plan"]
    with DataLoader(
        shards, vision=vision, tokenizer=tokenizer, seq_len=160, packs_per_step=4, seed=5, window=10
    ) as loader:
        loader.set_epoch(2)
        assert made["steps"] == len(loader)
        batches = list(loader)
        lengths = loader.lengths
    assert made["epoch"] == 2
    assert made["windows"] == 4
    assert made["samples"] == len(lengths) == 37
    assert made["tokens"] == lengths.tokens.sum() == sum(batch.num_tokens for batch in batches)
    assert made["image_tokens"] == lengths.image_tokens.sum() > 0
    assert made["label_tokens"] == sum(batch.num_label_tokens for batch in batches)
    assert made["efficiency"] == made["tokens"] / (160 * 4 * made["steps"])
    assert [one["world_size"] for one in made["balance"]] == [1, 2, 4]
    assert (made["dropped"], report["cut_samples"]) == (0, 0)


def test_warnings_are_one_line(omr_io, shards, tokens, vision):  # noqa: F811
    (tokens / "chat_template.jinja").unlink()
    code, _, err = omr_io("plan", shards, *options(vision, tokens))
    assert code == 0
    assert err.startswith("warning: the tokenizer brings no chat template")
    assert err.count("\n") == 1


def test_what_people_see(omr_io, shards, tokens, vision):  # noqa: F811
    layout = ["--world-size", 2, "--packs-per-batch", 1]
    code, out, _ = omr_io("plan", shards, *options(vision, tokens), *layout)
    assert code == 0
    lines = out.splitlines()
    assert any(line.startswith("steps ") and line.endswith("of 4 packs") for line in lines)
    assert any(
        line.startswith("packing efficiency") and "% of 160 tokens" in line for line in lines
    )
    assert any(
        line.startswith("2 ranks") and "2 packs in 2 batches a step" in line for line in lines
    )
    assert "0 longer than 160 tokens" in out
    assert "FLOPs (of Qwen2.5-VL-7B)" in out


def test_a_model_folder_says_all(omr_io, shards, model, vision):  # noqa: F811
    arguments = ["--seq-len", 160, "--packs-per-step", 4, "--json"]
    code, out, _ = omr_io("plan", shards, "--model", model, *arguments)
    assert code == 0
    by_model = json.loads(out)
    assert by_model["cost_of"] == str(model)
    code, out, _ = omr_io("plan", shards, *options(vision, model), "--json")
    by_family = json.loads(out)
    assert by_model["cost"] != by_family["cost"]
    assert {**by_model["plan"], "balance": 0} == {**by_family["plan"], "balance": 0}
    code, out, _ = omr_io("plan", shards, "--model", model, *arguments, "--vision-frozen")
    frozen = json.loads(out)["cost"]
    assert frozen["text_linear"] == 3 * by_model["cost"]["text_linear"]
    assert frozen["vision_linear"] == by_model["cost"]["vision_linear"]


def test_samples_that_are_too_long(omr_io, shards, tokens, vision):  # noqa: F811
    arguments = options(vision, tokens, seq_len=70)
    code, out, err = omr_io("plan", shards, *arguments)
    assert (code, out) == (1, "")
    assert "samples are longer than seq_len 70: " in err
    assert "too_long" in err
    code, out, _ = omr_io("plan", shards, *arguments, "--too-long", "drop", "--json")
    dropped = json.loads(out)
    assert code == 0
    assert dropped["plan"]["dropped"] + dropped["plan"]["samples"] == 37
    assert dropped["plan"]["dropped"] > 0
    cut = ["--truncate", "completion", "--too-long", "drop", "--json"]
    code, out, _ = omr_io("plan", shards, *arguments, *cut)
    report = json.loads(out)
    assert code == 0
    assert report["cut_samples"] > 0
    assert report["plan"]["dropped"] + report["cut_samples"] >= dropped["plan"]["dropped"]
    assert report["plan"]["samples"] > dropped["plan"]["samples"]


def test_usage(omr_io, shards, tokens, model, vision, tmp_path):  # noqa: F811
    plain = ["--seq-len", 160, "--packs-per-step", 4]
    family = ["--family", "qwen3_vl"]
    for arguments, words in (
        ([*plain, "--tokenizer", tokens], "either --model DIR or --family"),
        ([*plain, "--model", model, *family], "either --model DIR or --family"),
        ([*plain, *family], "no tokenizer"),
        ([*plain, "--tokenizer", tokens, "--family", "llava"], "--family llava"),
        ([*options(vision, tokens), "--too-long", "cut"], "--too-long is error or drop"),
        ([*options(vision, tokens), "--world-size", 3], "no multiple of world_size 3"),
        ([*options(vision, tokens), "--packs-per-batch", 3], "does not divide a rank's 4 packs"),
        ([*options(vision, tmp_path)], "tokenizer"),
        ([*options(vision, tokens, seq_len=0)], "seq-len"),
    ):
        code, out, err = omr_io("plan", shards, *arguments)
        assert (code, out) == (2, "")
        assert words in err
    code, _, err = omr_io("plan", tmp_path / "nothing", *options(vision, tokens))
    assert code == 3
