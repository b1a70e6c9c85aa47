"""Ranks against one process: losses, gradients, steps, generation. See cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.train.parallel import seed_step, start_ranks
from omr_io.train.ranks import Ranks
from tests.train import tiny_models as tiny
from tests.train.parallel import cases

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5


def launch(out: Path, sizes: tuple[int, ...], names: tuple[str, ...] = ()) -> dict[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.parallel.cases", str(out), *map(str, sizes)],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CASES": ",".join(names)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return {n: torch.load(out / f"{n}.pt", weights_only=False) for n in sizes}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, Any]:
    return launch(tmp_path_factory.mktemp("ranks"), (1, 2))


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Equal relative to the larger tensor's size: single elements may cancel to nothing."""
    scale = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) <= tolerance * scale


def assert_same(got: tuple[float, Any], expected: tuple[float, Any]) -> None:
    assert got[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert close(got[1][name], gradient), name


def oracle(family: str, *, tied: bool = False) -> tuple[float, dict[str, Tensor]]:
    """Every sample alone, by transformers and autograd: no pack, no head of ours, no ranks."""
    model = tiny.tiny_model(family).train()
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    total = 0.0
    for sample in cases.samples():
        log_probs_TV = tiny.alone(model, sample).log_softmax(-1)
        places = (sample.labels[1:] != -100).nonzero().squeeze(1)
        loss = -log_probs_TV[places, sample.labels[places + 1]].sum() / cases.label_count()
        loss.backward()
        total += float(loss.detach())
    named = model.named_parameters()
    return total, {n: p.grad for n, p in named if p.grad is not None}


def test_one_process_gives_the_gradients_of_samples_alone(results: Any) -> None:
    expected = oracle("qwen3_vl")
    for got in results[1]["invariance qwen3_vl"].values():
        assert_same(got, expected)


def test_ranks_accumulation_and_seq_len_change_nothing(results: Any) -> None:
    expected = results[1]["invariance qwen3_vl"]["1/80"]
    found = results[2]["invariance qwen3_vl"]
    assert len(found) == 6
    for got in found.values():
        assert_same(got, expected)


@pytest.mark.slow
def test_nor_do_four_ranks(results: Any, tmp_path: Path) -> None:
    four = launch(tmp_path, (4,))[4]
    expected = results[1]["invariance qwen3_vl"]["1/80"]
    for got in four["invariance qwen3_vl"].values():
        assert_same(got, expected)
    for name in ("qwen2_5_vl", "qwen2_vl", "tied", "frozen tower"):
        assert_same(four[name], results[1][name])
    assert_steps(four["lora"], results[1]["lora"])


def test_a_rank_without_images_waits_for_none_and_changes_nothing(results: Any) -> None:
    """The last of the ranks has only text: with another order of blocks this would hang."""
    rows = cases.packs(80)
    for half, has_images in ((rows[:8], True), (rows[8:], False)):
        assert any(len(s.image_grid_thw) for row in half for s in row) == has_images
    for family in ("qwen2_5_vl", "qwen2_vl"):
        assert_same(results[2][family], results[1][family])
        assert_same(results[2][family], oracle(family))


def test_a_tied_heads_gradient_is_the_embeddings_too(results: Any) -> None:
    assert "lm_head.weight" not in results[2]["tied"][1]
    assert_same(results[2]["tied"], oracle("qwen3_vl", tied=True))


def test_checkpointed_blocks_give_the_same_gradients(results: Any) -> None:
    for size in (1, 2):
        expected = results[1]["invariance qwen3_vl"]["1/80"]
        assert_same(results[size]["checkpointed"], expected)


def test_frozen_parts_get_no_gradient_and_change_no_other(results: Any) -> None:
    everything = results[1]["invariance qwen3_vl"]["1/80"]
    for size in (1, 2):
        loss, found = results[size]["frozen vision"]
        kept = {n: g for n, g in everything[1].items() if "visual" not in n or "merger" in n}
        assert_same((loss, found), (everything[0], kept))
        loss, found = results[size]["frozen tower"]
        whole = results[1]["qwen2_5_vl"]
        assert_same((loss, found), (whole[0], {n: whole[1][n] for n in found}))
        assert not any("visual" in name for name in found)


def test_parts_that_are_frozen_between_steps_get_no_gradient(results: Any) -> None:
    everything = results[1]["invariance qwen3_vl"]["1/80"]
    text = {name: g for name, g in everything[1].items() if "visual" not in name}
    for size in (1, 2):
        assert_same(results[size]["frozen later"], (everything[0], text))


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients(results: Any, tmp_path: Path) -> None:
    """Through autograd's compiler; Inductor's own code is for GPUs and unmeasured."""
    compiled = launch(tmp_path, (1, 2), ("compiled", "compiled batches"))
    for size in (1, 2):
        expected = results[1]["invariance qwen3_vl"]["1/80"]
        assert_same(compiled[size]["compiled"], expected)
        batches = compiled[size]["compiled batches"]
        assert batches["compiled"] == batches["met"][-1]  # none ran as it is
        assert batches["met"][-1] == batches["met"][-4]  # and sizes became symbols
        assert len(batches["breaks"]) == 1
        assert "varlen_attention" in batches["breaks"][0]


def assert_steps(got: Any, expected: Any) -> None:
    assert got["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
    assert got["norms"] == pytest.approx(expected["norms"], rel=TOLERANCE)
    assert got["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        # Adam divides by a gradient's own size: rounding of tiny ones shows in full.
        assert close(got["weights"][name], weight, 1e-3), name


@pytest.mark.parametrize("kind", ["steps", "lora"])
def test_steps_of_two_ranks_are_those_of_one(results: Any, kind: str) -> None:
    one = results[1][kind]
    assert one["losses"][2] < one["losses"][0] - 0.1
    assert_steps(results[2][kind], one)
    weights = results[2][kind]["weights"]
    head, embedding = (
        weights[name] for name in ("lm_head.weight", "model.language_model.embed_tokens.weight")
    )
    assert (head.data_ptr() == embedding.data_ptr()) == (kind == "steps")  # where it is tied


def test_lora_trains_the_mergers_and_the_tower_but_not_the_text_itself(results: Any) -> None:
    start = cases.make("qwen3_vl").state_dict()
    weights = results[2]["lora"]["weights"]
    assert weights.keys() == start.keys()
    changed = {name for name in start if not torch.equal(weights[name], start[name])}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.visual.merger.linear_fc1.weight" in changed
    assert "model.visual.blocks.0.attn.qkv.weight" in changed
    assert not changed & {"lm_head.weight", "model.language_model.embed_tokens.weight"}
    assert not any("norm" in name for name in changed if "language_model" in name)


def test_bfloat16_has_float32_masters(results: Any) -> None:
    exact = results[1]["invariance qwen3_vl"]["1/80"]
    for size in (1, 2):
        found = results[size]["bfloat16"]
        for name, dtype in found["stored"].items():
            frozen = "visual" in name and "merger" not in name
            assert dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert found["gradient_dtypes"] == {torch.float32}
        assert found["loss"] == pytest.approx(exact[0], rel=0.02)
        for name, gradient in found["gradients"].items():
            assert close(gradient, exact[1][name], 0.2), name
        # A step of 1e-6 is lost in bfloat16 weights (0.1 +- 0.0004), and not in the masters.
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        step = (found["after"][name] - found["before"][name]).abs()
        assert 0.5e-6 < float(step.median()) < 1.5e-6


def test_generation_from_a_sharded_model(results: Any) -> None:
    one, two = results[1]["rollouts"], results[2]["rollouts"]
    for when in ("before", "after"):
        assert two[when][0] == one[when][0]
        for got, expected in zip(two[when][1], one[when][1], strict=True):
            torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(expected))
    assert_same((two["loss"], two["gradients"]), (one["loss"], one["gradients"]))


def test_a_reference_model_is_shared_out_and_says_what_it_would_whole(results: Any) -> None:
    """One rank of two has only text here, and the policy's own blocks are gathered in between."""
    one, two = results[1]["reference"], results[2]["reference"]
    assert one["loss"] > 0.1
    assert_same((two["loss"], two["gradients"]), (one["loss"], one["gradients"]))
    assert one["share"] == 1
    assert two["share"] == pytest.approx(0.5, abs=0.05)
    assert not one["trained"]
    assert not two["trained"]


def test_ranks_with_different_weights_are_refused(results: Any) -> None:
    assert results[1]["different weights"] == ""
    assert "TrainingError: ranks 0 and 1 differ in 1 parameters" in results[2]["different weights"]
    assert "model.visual.merger.norm.bias" in results[2]["different weights"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0"}, "lacks WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "contradict"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK, WORLD_SIZE or LOCAL_RANK"),
    ],
)
def test_wrong_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if "LOCAL_RANK" in variables:
        variables = variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), start_ranks():
        pass


def test_what_is_random_in_a_step_follows_from_seed_step_and_rank() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        seed_step(seed, step, Ranks(rank, 4))
        return float(torch.rand(()))

    with torch.random.fork_rng():
        places = [(s, t, r) for s in (0, 1) for t in (1, 2) for r in (0, 3)]
        drawn = [draw(*place) for place in places]
        assert len(set(drawn)) == len(places)
        assert [draw(*place) for place in reversed(places)] == drawn[::-1]


def test_one_process_needs_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with start_ranks() as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert not torch.distributed.is_initialized()
