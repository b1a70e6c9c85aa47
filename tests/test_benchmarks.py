"""Benchmarks are run by hand: what of them breaks when the library changes, and is quick to see."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_pack, bench_pixels, bench_shared_prefix
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
