"""The benchmark of training's targets, small: its sides agree, and its figures are of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bench_loader, bench_shared_prefix, bench_train, loader_corpus
from omr_io.config import VisionConfig
from omr_io.tokenizer import Tokenizer
from omr_io.train.model import build_demo_model
from omr_io.train.run import get_token_ids

SMALL = VisionConfig(min_pixels=4096, max_pixels=4096)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> loader_corpus.Corpus:
    folder = tmp_path_factory.mktemp("train") / "corpus"
    bench_loader.prepare(folder, 24, median_area=200**2)
    return loader_corpus.Corpus(folder)


@pytest.fixture(scope="module")
def model_and_rows(corpus):
    tokenizer = Tokenizer.from_pretrained(corpus.tokenizer)
    rows = bench_train.rows_of(corpus, SMALL, 2048, 2)
    return build_demo_model(tokenizer.vocab_size, get_token_ids(tokenizer), seed=0), rows


def test_a_pack_and_its_padded_rows_train_the_same(model_and_rows):
    """Loss and gradients; transformers' own forward is the oracle of both."""
    model, made = model_and_rows
    usual = bench_train.padded_model(model)
    assert usual.model.language_model.config._attn_implementation == "sdpa"
    assert len(made) == 2
    rows = max(made, key=lambda rows: len(rows.labels))
    assert len(rows.labels) >= 2
    assert rows.tokens == int(rows.padded["attention_mask"].sum())
    packed = bench_train.step_packed(model, rows)
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    for side in (bench_train.step_padded, bench_train.step_padded_head):
        assert side(usual, rows) == pytest.approx(packed, rel=1e-5)
        for name, parameter in usual.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_rows_that_differ_are_found(model_and_rows):
    model, made = model_and_rows
    rows = made[0]
    changed = rows.padded | {"input_ids": rows.padded["input_ids"].clone()}
    changed["input_ids"][0, int(rows.padded["attention_mask"][0].sum()) - 20] += 1  # in its trace
    wrong = bench_train.Rows(rows.packed, changed, rows.labels, rows.tokens)
    usual = bench_train.padded_model(model)
    assert bench_train.step_padded(usual, wrong) != pytest.approx(
        bench_train.step_padded(usual, rows), rel=1e-5
    )


def test_both_layouts_of_prefix_are_of_the_same_update():
    found = bench_train.prefix(2, image=(2, 3), words=6, completion=5)
    assert found["tokens"] == {"unshared": 8 * (14 + 5), "shared": 14 + 8 * 5}
    assert [len(taken) for taken in found["rounds"].values()] == [2, 2]
    pairs = zip(found["rounds"]["unshared"], found["rounds"]["shared"], strict=True)
    assert found["shared_is_faster_by"] == pytest.approx(sum(a / b for a, b in pairs) / 2)


def test_an_image_of_the_rollout_may_be_wider_than_high():
    asked, made = bench_shared_prefix.rollout(2, 40, 3, 4, columns=5, group=3)
    assert [int((s.input_ids == bench_shared_prefix.IDS.image_pad).sum()) for s in asked] == [
        15
    ] * 2
    assert asked[0].image_grid_thw.tolist() == [[1, 6, 10]]
    assert len(asked[0].pixel_values) == 60
    assert len(made) == 6


def test_the_data_part_is_of_the_example_itself(corpus, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = bench_train.data(corpus, 1)
    assert found["pairs"] == 1
    (pair,) = found["rounds"]
    assert found["times_replayed"] == pytest.approx(
        pair["real_seconds"] / pair["synthetic_seconds"]
    )
    assert found["wait_share"] == pytest.approx(pair["waited_seconds"] / pair["real_seconds"])
    assert not list(Path(tmp_path).iterdir())  # what the run wrote is gone


def test_targets_are_judged_by_their_bounds():
    results = {
        "data": {"wait_share": 0.021, "times_replayed": 1.05},
        "padded": {"small": {"packed_is_faster_by": {"padded": 1.8, "head on labels": 1.6}}},
        "prefix": {"shared_is_faster_by": 2.9},
    }
    rows = bench_train.table(results)
    assert [row["met"] for row in rows] == [False, True, True, False, True]
    assert rows[0]["bound"] == "at most 0.02"
    assert rows[3]["row"] == "packs to head on labels, small"


def test_sides_take_turns():
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = bench_train.alternate(sides, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    made = bench_train.ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, "b")
    assert made == {"a": 1.0}
