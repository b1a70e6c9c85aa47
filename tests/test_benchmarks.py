"""Benchmarks are run by hand: what of them breaks when the library changes, and is quick to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    bench_loader,
    bench_pack,
    bench_pixels,
    bench_shared_prefix,
    loader_corpus,
    loader_floors,
    loader_runs,
    loader_sides,
)
from omr_io.index import ShardSet
from omr_io.ops import pack_implementation
from omr_io.train.run import pack_rollouts
from omr_io.train.shared_prefix import pack_shared_rollouts


def test_both_layouts_of_shared_prompts_train_the_same_tokens() -> None:
    asked, made = bench_shared_prefix.rollout(2, 40, 2, 8)
    plain = bench_shared_prefix.batches(pack_rollouts, asked, made, 512)
    shared = bench_shared_prefix.batches(pack_shared_rollouts, asked, made, 512)

    def targets(side: list) -> list[int]:
        return sorted(torch.cat([batch.label_targets for batch in side]).tolist())

    assert targets(plain) == targets(shared)
    assert sum(b.batch.num_tokens for b in shared) == 2 * (40 + 16 * 8)
    assert sum(b.num_tokens for b in plain) == 2 * 16 * (40 + 8)


@pytest.mark.parametrize("side", ["omr_io-cpu", "padding-free"])
def test_the_sides_of_pack_agree(side: str) -> None:
    packs = bench_pack.corpus_packs()[:1]
    bench_pack.SIDES[side](packs)()  # the peer's side compares itself with ours
    made = pack_implementation("cpu")(packs, **bench_pack.OPTIONS)
    assert made.num_tokens > 0.99 * bench_pack.SEQ_LEN


def test_pictures_of_the_pixels_benchmark_are_seeded() -> None:
    first, second = (bench_pixels.picture(64, 80, 3) for _ in range(2))
    assert first.size == (80, 64)
    assert first.tobytes() == second.tobytes()


@pytest.fixture(scope="module")
def loader_corpus_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "corpus"
    bench_loader.prepare(folder, 12, median_area=200**2)
    return folder


def test_images_of_the_loader_corpus_have_the_sizes_of_openmedreason() -> None:
    rng = np.random.default_rng(3)
    sizes = np.array([loader_corpus.image_size(rng) for _ in range(20_000)])
    areas = sizes.prod(axis=1)
    assert abs(np.median(areas) / 0.37e6 - 1) < 0.02
    assert 0.7 < np.std(np.log(areas)) < 0.76  # a little less than drawn: short sides have a least
    assert sizes.min() >= 224
    assert (sizes.max(axis=1) <= 3 * sizes.min(axis=1)).all()
    assert loader_corpus.picture(1, 3, 200**2) == loader_corpus.picture(1, 3, 200**2)
    assert loader_corpus.picture(1, 3, 200**2) != loader_corpus.picture(1, 4, 200**2)


@pytest.fixture(scope="module")
def samples_of_ours(loader_corpus_folder: Path) -> bench_loader.Samples:
    made = loader_sides.kept(loader_sides.Side("omr_io", loader_corpus_folder, 12))
    assert len(made) == 12
    return made


@pytest.mark.parametrize(
    "name", ["omr_io-2-bfloat16", "plain-ring", "usual-hf", "usual-wds", "dali"]
)
def test_the_sides_of_loader_agree(
    name: str, loader_corpus_folder: Path, samples_of_ours: bench_loader.Samples
) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    made = loader_sides.kept(loader_sides.Side(name, loader_corpus_folder, 12))
    assert set(made) == set(samples_of_ours)
    found = bench_loader.differences(name, made, samples_of_ours)
    assert found["levels"] == 0 or name in ("plain-ring", "dali")


@pytest.mark.parametrize("field", ["input_ids", "labels", "position_ids", "pixel_values"])
def test_a_side_of_loader_that_gives_something_else_is_found(
    field: str, samples_of_ours: bench_loader.Samples
) -> None:
    other = {key: {name: a.copy() for name, a in s.items()} for key, s in samples_of_ours.items()}
    other[max(other)][field][..., -1] += 1
    with pytest.raises(AssertionError, match=max(other) if field != "pixel_values" else "levels"):
        bench_loader.differences("usual-wds", other, samples_of_ours)


def test_floors_and_rates_are_of_all_samples(loader_corpus_folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        side = loader_sides.Side(f"omr_io-{dtype}", loader_corpus_folder, 12)
        pairs = loader_floors.share(side, 2)
        assert len(pairs) == 2
        for pair in pairs:
            floors = pair["floors"]
            assert floors["samples"] == 12
            assert floors["seconds"] == pytest.approx(sum(floors["parts"].values()))
            assert min(floors["parts"].values()) > 0
            assert pair["share"] == pytest.approx(floors["seconds"] / pair["seconds"])
    timed = loader_sides.timed(loader_sides.Side("omr_io", loader_corpus_folder, 12), warm=0)
    assert timed["samples"] == 12
    plain = loader_sides.timed(loader_sides.Side("plain", loader_corpus_folder, 12), warm=0)
    assert plain["tokens"] == timed["tokens"]
    later = loader_sides.timed(loader_sides.Side("plain", loader_corpus_folder, 12), warm=1)
    assert 0 < later["samples"] < 12
    with pytest.raises(RuntimeError, match="12 of 13 samples"):
        loader_sides.timed(loader_sides.Side("plain", loader_corpus_folder, 13))


def test_a_repeated_set_reads_like_the_first(loader_corpus_folder: Path, tmp_path: Path) -> None:
    many = loader_corpus.repeat(loader_corpus_folder / "shards", tmp_path / "many", 36, 12)
    with ShardSet.open(many) as repeated, ShardSet.open(loader_corpus_folder / "shards") as first:
        assert len(repeated) == 36
        assert len({repeated.key(i) for i in range(36)}) == 36
        assert len(repeated.shard_names) == 3
        want = sorted(first.read_record(i).question for i in range(12))
        assert sorted(repeated.read_record(i).question for i in range(36)) == sorted(want * 3)


def test_the_runs_of_loader(loader_corpus_folder: Path, tmp_path: Path) -> None:
    drift = loader_runs.drift(loader_corpus_folder, 20, every=10)
    assert set(drift["bytes"]) == {10, 20}
    assert drift["at_first"] > 0
    state = tmp_path / "state.json"
    fresh = loader_runs.start(loader_corpus_folder, None, state)
    again = loader_runs.start(loader_corpus_folder, state, None)
    assert (fresh["samples"], fresh["step"]) == (12, 0)
    assert again["seconds"]["in_all"] > 0
    held = loader_runs.held(loader_corpus_folder, 2)
    assert 0 < held["over_imports"] < 2**31
    waits = loader_runs.wait(loader_corpus_folder, loader_runs.WARM + 3)
    assert waits["batches"] == 3
    assert 0 <= waits["wait_share"] < 1
    with pytest.raises(ValueError, match="do not count"):
        loader_runs.wait(loader_corpus_folder, loader_runs.WARM)
