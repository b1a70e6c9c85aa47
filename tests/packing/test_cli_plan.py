"""`omr-io plan`: what it prints, and its exit codes."""

import json

import pytest
import yaml

from omr_io import DataLoader
from omr_io.blend import Blend, Source
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


@pytest.fixture
def more(write_shards, make_records):
    """Another set."""
    return write_shards(make_records(23))


def test_a_blend_is_the_loaders(omr_io, shards, more, tokens, tokenizer, vision, tmp_path):  # noqa: F811
    """A file, and the blend of the same values in a script."""
    document = {
        "samples_per_epoch": 50,
        "sources": [
            {"shards": str(shards), "weight": 3, "name": "first", "balance_answers": "subsample"},
            {"shards": str(more), "weight": 1, "name": "second"},
        ],
    }
    (tmp_path / "blend.json").write_text(json.dumps(document))
    (tmp_path / "blend.yaml").write_text(yaml.safe_dump(document))
    blend = Blend(
        [
            Source(shards, weight=3, name="first", balance_answers="subsample"),
            Source(more, weight=1, name="second"),
        ],
        samples_per_epoch=50,
    )
    given = {"vision": vision, "tokenizer": tokenizer, "seq_len": 160, "packs_per_step": 4}
    with DataLoader(blend, seed=5, **given) as loader:
        for epoch in (0, 3):
            found = []
            for name in ("blend.json", "blend.yaml"):
                arguments = [*options(vision, tokens), "--seed", 5, "--epoch", epoch, "--json"]
                code, out, err = omr_io("plan", "--blend", tmp_path / name, *arguments)
                assert (code, err) == (0, "")
                found.append(json.loads(out))
            assert found[0] == found[1]
            made, sources = found[0]["plan"], found[0]["sources"]
            loader.set_epoch(epoch)
            numbers = loader.samples_of(epoch)
            assert made["steps"] == len(loader)
            assert made["samples"] == len(numbers) == sum(one["drawn"] for one in sources)
            assert made["tokens"] == loader.lengths.tokens[numbers].sum()
            assert [one["name"] for one in sources] == ["first", "second"]
            assert [one["shards"] for one in sources] == [str(shards), str(more)]
            counts = [(numbers < 37).sum(), (numbers >= 37).sum()]
            assert [one["drawn"] for one in sources] == counts
            assert [bool(one["strata"]) for one in sources] == [True, False]
            assert sum(one["drawn"] for one in sources[0]["strata"]) == counts[0]


def test_several_sets_once_each(omr_io, shards, more, tokens, vision):  # noqa: F811
    arguments = options(vision, tokens)
    code, out, _ = omr_io("plan", shards, more, *arguments)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"source {more.parent.name}/set 23 of 23 samples" in lines
    assert "samples 60" in lines
    code, out, _ = omr_io("plan", shards, more, *arguments, "--json")
    both = json.loads(out)
    assert [one["drawn"] for one in both["sources"]] == [37, 23]
    assert both["plan"]["samples"] == 60


def test_sources_as_people_see_them(omr_io, shards, more, tokens, vision, tmp_path):  # noqa: F811
    document = {"sources": [{"shards": str(shards), "repeat": 0.5}, {"shards": str(more)}]}
    (tmp_path / "blend.json").write_text(json.dumps(document))
    code, out, _ = omr_io("plan", "--blend", tmp_path / "blend.json", *options(vision, tokens))
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"source {shards.parent.name}/set 18 of 37 samples (0.49 times)" in lines


def test_how_far_it_is_is_shown_while_texts_are_counted(
    omr_io,  # noqa: F811
    shards,
    tokens,
    vision,
    monkeypatch,
):
    """Elsewhere than on a terminal as lines; those every ten seconds are had at once here."""
    monkeypatch.setattr("omr_io.terminal._LINE_SECONDS", 0.0)
    monkeypatch.setattr("omr_io.loader.lengths._TELL_SECONDS", 0.0)
    monkeypatch.setenv("OMR_IO_CACHE_DIR", "")
    code, out, err = omr_io("plan", shards, *options(vision, tokens), "--json")
    assert code == 0
    lines = err.splitlines()
    assert lines[0] == "counting tokens: 0 of 37 texts"
    assert lines[-1] == "plan: 1 of 1 windows"
    json.loads(out)  # the result alone


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
        ([*options(vision, tokens), "--blend", tmp_path / "b.yaml"], "not both"),
        ([*options(vision, tokens), "--remote-cache-bytes", -1], "remote-cache-bytes"),
        ([*options(vision, tokens, seq_len=0)], "seq-len"),
    ):
        code, out, err = omr_io("plan", shards, *arguments)
        assert (code, out) == (2, "")
        assert words in err
    code, _, err = omr_io("plan", *options(vision, tokens))
    assert (code, "give shard sets or --blend FILE" in err) == (2, True)
    code, _, err = omr_io("plan", "--blend", tmp_path / "b.yaml", *options(vision, tokens))
    assert (code, "the blend file cannot be read" in err) == (2, True)
    code, _, err = omr_io("plan", tmp_path / "nothing", *options(vision, tokens))
    assert code == 3
