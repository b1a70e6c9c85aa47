"""What a plan comes to, against sums over its packs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.packing import EpochPlan, summarize
from omr_io.packing.summary import default_world_sizes
from tests.packing.made import corpus_like, make_lengths, mapped


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=100),
    st.none() | st.integers(1, 40),
    st.sampled_from([1, 4, 8, 12]),
    st.data(),
)
def test_sums_are_those_of_the_packs(tokens, window, packs_per_step, data):
    images = [data.draw(st.integers(0, length)) for length in tokens]
    lengths = make_lengths(tokens, images)
    samples = np.asarray(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1)))
    plan = EpochPlan(
        lengths, epoch=1, seed=2, seq_len=64, packs_per_step=packs_per_step, window=window,
        samples=samples, too_long="drop",
    )  # fmt: skip
    fit = [i for i in samples.tolist() if tokens[i] <= 64]
    if not fit:
        with pytest.raises(DataError, match="no sample to plan"):
            summarize(plan, lengths)
        return
    made = summarize(plan, lengths)
    windows = [plan.window(number) for number in range(plan.num_windows)]
    packs = [w.pack(number) for w in windows for number in range(w.num_packs)]
    labels = [int(count) for w in windows for count in w.step_label_tokens]
    assert made.windows == len(windows)
    assert made.steps == plan.num_steps == len(packs) / packs_per_step
    assert made.packs == sum(map(bool, packs))
    assert made.empty_packs == len(packs) - made.packs
    assert made.samples == len(fit)
    assert made.dropped == len(samples) - len(fit) == plan.num_dropped
    assert plan.num_wanted == len(samples)
    assert made.tokens == sum(tokens[i] for i in fit)
    assert made.efficiency == made.tokens / (64 * len(packs))
    assert made.image_tokens == sum(images[i] for i in fit)
    assert made.text_tokens == made.tokens - made.image_tokens
    assert made.label_tokens == sum(labels) == sum(tokens[i] // 2 for i in fit)
    assert made.step_label_tokens == (min(labels), sum(labels) / len(labels), max(labels))
    for name, values in (("tokens", tokens), ("images", images)):
        chosen = sorted(values[i] for i in fit)
        of = made.lengths[name]
        for share, got in ((5, of.p5), (25, of.p25), (50, of.p50), (95, of.p95), (99, of.p99)):
            assert got == np.percentile(chosen, share, method="inverted_cdf")
        assert (of.least, of.most) == (chosen[0], chosen[-1])
        assert of.mean == pytest.approx(np.mean(chosen))
    for balance in made.balance:
        spreads, full = [], []
        for w in windows:
            for step in range(w.num_steps):
                loads = [
                    sum(int(w.pack_costs[n]) for n in w.rank_packs(step, r, balance.world_size))
                    for r in range(balance.world_size)
                ]
                assert w.rank_costs(step, balance.world_size).tolist() == loads
                spreads.append(max(loads) / (sum(loads) / len(loads)))
                if all(w.pack(number) for number in w.step_packs(step)):
                    full.append(spreads[-1])
        assert balance.mean == pytest.approx(np.mean(spreads))
        assert balance.worst == pytest.approx(max(spreads))
        assert balance.worst_full == (pytest.approx(max(full)) if full else None)


def test_layouts():
    lengths = corpus_like(600)
    plan = EpochPlan(lengths, epoch=0, seed=0, seq_len=4096, packs_per_step=24)
    made = summarize(plan, lengths, world_sizes=[3, 12], packs_per_batch=2)
    assert [(b.world_size, b.packs_a_rank, b.batches_a_step) for b in made.balance] == [
        (3, 8, 4),
        (12, 2, 1),
    ]
    assert [b.world_size for b in summarize(plan, lengths).balance] == [1, 2, 4, 8]
    assert default_world_sizes(512) == (1, 2, 4, 8, 16, 32, 64)
    with pytest.raises(ConfigError, match="no multiple of world_size 5"):
        summarize(plan, lengths, world_sizes=[5])
    with pytest.raises(ConfigError, match="packs_per_batch 2 does not divide a rank's 1 packs"):
        summarize(plan, lengths, world_sizes=[24], packs_per_batch=2)


def test_windows_of_a_mapped_index_and_progress(tmp_path):
    lengths = corpus_like(900)
    options = {"epoch": 0, "seed": 0, "seq_len": 4096, "packs_per_step": 8, "window": 300}
    told = []
    first = summarize(
        EpochPlan(lengths, **options), lengths, progress=lambda *now: told.append(now)
    )
    other = mapped(lengths, tmp_path)
    assert dataclasses.asdict(summarize(EpochPlan(other, **options), other)) == dataclasses.asdict(
        first
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_too_long_samples_of_a_mapped_index(tmp_path):
    lengths = mapped(make_lengths([10, 80]), tmp_path)
    plan = EpochPlan(lengths, epoch=0, seed=0, seq_len=64, packs_per_step=1)
    with pytest.raises(SampleTooLongError, match="1 of 2"):
        summarize(plan, lengths)
