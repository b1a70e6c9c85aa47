"""The plan: every sample once, equal steps, nothing lost at the end; bins against a slow oracle."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.packing import CostModel, Lengths, Plan, plan_epoch
from omr_io.packing.binning import best_fit, exact_fill, fewest_bins


def make_lengths(tokens, image_tokens=None, label_tokens=None) -> Lengths:
    tokens = np.asarray(tokens, np.int64)
    images = np.zeros_like(tokens) if image_tokens is None else np.asarray(image_tokens, np.int64)
    labels = tokens // 2 if label_tokens is None else np.asarray(label_tokens, np.int64)
    return Lengths(tokens - images, images, labels, 4 * images)


def corpus_like(count: int, seed: int = 0) -> Lengths:
    """Lengths like those of OpenMedReason, at patch 16 and 256 to 768 tokens."""
    rng = np.random.default_rng(seed)
    question = np.clip(rng.lognormal(np.log(75), 0.35, count), 45, 250).astype(np.int64)
    trace = np.clip(rng.lognormal(np.log(400), 0.295, count), 20, 2000).astype(np.int64)
    area = rng.lognormal(np.log(0.37e6), 0.75, count)
    images = np.clip(area / 1024, 256, 768).astype(np.int64)
    return Lengths(question + trace + 20, images, trace, 4 * images)


def plan(lengths: Lengths, **options) -> Plan:
    settings = {"epoch": 0, "seed": 0, "seq_len": 64, "packs_per_step": 4} | options
    return plan_epoch(lengths, **settings)


plans = st.fixed_dictionaries(
    {
        "tokens": st.lists(st.integers(1, 64), min_size=1, max_size=120),
        "epoch": st.integers(0, 3),
        "seed": st.integers(0, 2**70),
        "window": st.none() | st.integers(1, 50),
        "packs_per_step": st.sampled_from([1, 2, 4, 8, 12]),
    }
)


@settings(max_examples=100, deadline=None)
@given(plans)
def test_every_sample_is_in_exactly_one_pack_that_holds_it(options):
    tokens = options.pop("tokens")
    made = plan(make_lengths(tokens), **options)
    assert sorted(made.samples.tolist()) == list(range(len(tokens)))
    packs = [made.pack(number) for number in range(made.num_packs)]
    assert [sample for pack in packs for sample in pack] == made.samples.tolist()
    used = [sum(tokens[sample] for sample in pack) for pack in packs]
    assert max(used) <= 64
    assert used == made.pack_tokens.tolist()
    assert made.efficiency == sum(tokens) / (64 * len(packs))
    empty = [not pack for pack in packs]
    assert sum(empty) < options["packs_per_step"]
    assert empty == sorted(empty)  # only the last step is filled up


@settings(max_examples=60, deadline=None)
@given(plans)
def test_every_rank_takes_as_many_packs_and_together_they_take_the_step(options):
    tokens = options.pop("tokens")
    made = plan(make_lengths(tokens), **options)
    assert made.num_packs == made.num_steps * options["packs_per_step"]
    for step in range(made.num_steps):
        whole = list(made.step_packs(step))
        for world_size in (w for w in (1, 2, 4) if options["packs_per_step"] % w == 0):
            shares = [made.rank_packs(step, rank, world_size) for rank in range(world_size)]
            assert {len(share) for share in shares} == {options["packs_per_step"] // world_size}
            assert sorted(pack for share in shares for pack in share) == whole
        assert made.step_label_tokens[step] == sum(
            tokens[sample] // 2 for pack in whole for sample in made.pack(pack)
        )


def test_the_plan_is_fixed_for_good():
    """A change here breaks the resume of every run in the field: bump the loader's state format."""
    lengths = make_lengths(300 + np.arange(3000) * 7919 % 1999)
    made = plan(lengths, seq_len=4096, packs_per_step=8, epoch=1, seed=7, window=1000)
    digest = hashlib.sha256(made.samples.tobytes() + made.pack_offsets.tobytes()).hexdigest()
    assert digest[:16] == "c57d38db02bccfca"


def test_epoch_seed_and_window_change_the_order_and_nothing_else_does():
    lengths = corpus_like(500)
    base = {"seq_len": 4096, "packs_per_step": 4}
    first = plan(lengths, **base)
    np.testing.assert_array_equal(first.samples, plan(lengths, **base).samples)
    for change in ({"epoch": 1}, {"seed": 1}, {"window": 100}):
        other = plan(lengths, **base, **change)
        assert not np.array_equal(first.samples, other.samples)
    regrouped = plan(lengths, seq_len=4096, packs_per_step=8)
    np.testing.assert_array_equal(first.samples, regrouped.samples)


def test_a_window_keeps_reading_near_sequential():
    made = plan(make_lengths(np.full(1000, 16)), window=100)
    blocks = made.samples // 100
    assert np.count_nonzero(np.diff(blocks)) == 9
    assert blocks[::100].tolist() != sorted(blocks[::100].tolist())


def test_ranks_are_balanced_by_cost():
    made = plan(corpus_like(4000), seq_len=8192, packs_per_step=64)
    for step in range(made.num_steps - 1):
        loads = [
            sum(int(made.pack_costs[pack]) for pack in made.rank_packs(step, rank, 8))
            for rank in range(8)
        ]
        dealt = made.pack_costs[list(made.step_packs(step))].reshape(8, 8).sum(axis=1)
        assert max(loads) / min(loads) < min(1.03, dealt.max() / dealt.min())
        costs = made.pack_costs[list(made.rank_packs(step, 0, 8))]
        assert (np.diff(costs) <= 0).all()


def test_ranks_are_dealt_by_the_slow_rule():
    made = plan(corpus_like(900), seq_len=4096, packs_per_step=12)
    for step in range(made.num_steps):
        ranks = [[] for _ in range(3)]
        left = {pack: int(made.pack_costs[pack]) for pack in made.step_packs(step)}
        while left:
            dearest = max(left, key=lambda pack: (left[pack], -pack))
            open_ranks = [r for r in range(3) if len(ranks[r]) < 4]
            loads = [sum(int(made.pack_costs[pack]) for pack in packs) for packs in ranks]
            ranks[min(open_ranks, key=lambda r: (loads[r], r))].append(dearest)
            del left[dearest]
        assert [made.rank_packs(step, r, 3) for r in range(3)] == list(map(tuple, ranks))


def test_cost_model_is_quadratic_in_each_sample():
    cost = CostModel(text_linear=3, text_quadratic=1, vision_linear=10, vision_quadratic=100)
    made = plan(make_lengths([5, 7], [1, 0]), cost=cost, packs_per_step=1)
    assert made.pack_costs.tolist() == [3 * 12 + 25 + 49 + 10 * 4 + 100 * 16]


def test_too_long_samples_are_named_and_counted():
    lengths = make_lengths([10, 65, 64, 90, 70, 71, 72, 73])
    with pytest.raises(SampleTooLongError) as caught:
        plan(lengths, keys=[f"study-{i}" for i in range(8)])
    text = str(caught.value)
    assert "6 of 8 samples" in text
    assert "seq_len 64" in text
    assert "study-1 (65 tokens)" in text
    assert "and 1 more" in text
    assert "seq_len >= 90" in text
    made = plan(lengths, too_long="drop")
    assert made.dropped.tolist() == [1, 3, 4, 5, 6, 7]
    assert sorted(made.samples.tolist()) == [0, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=60), st.data())
def test_a_selection_is_planned_as_if_it_were_the_corpus(tokens, data):
    order = data.draw(st.permutations(range(len(tokens))))
    chosen = order[: len(order) // 2 + 1]
    long = {i for i in chosen if tokens[i] > 64}
    samples, lengths = np.asarray(chosen), make_lengths(tokens)
    if long == set(chosen):
        with pytest.raises(DataError, match="no sample to plan"):
            plan(lengths, samples=samples, too_long="drop")
        return
    made = plan(lengths, samples=samples, too_long="drop")
    assert sorted(made.samples.tolist()) == sorted(set(chosen) - long)
    assert set(made.dropped.tolist()) == long
    alone = plan(make_lengths([tokens[i] for i in chosen]), too_long="drop")
    assert samples[alone.samples].tolist() == made.samples.tolist()
    assert alone.step_label_tokens.tolist() == made.step_label_tokens.tolist()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([0, 0], "twice"),
        ([3], "outside 0 to 2"),
        ([-1], "outside"),
        ([[0]], "shape"),
        ([0.5], "float"),
    ],
)
def test_selections_that_are_none(samples, message):
    with pytest.raises(ConfigError, match=message):
        plan(make_lengths([1, 2, 3]), samples=np.asarray(samples))


def test_samples_that_are_too_long_matter_only_when_they_are_wanted():
    lengths = make_lengths([10, 90, 20])
    assert sorted(plan(lengths, samples=np.asarray([0, 2])).samples.tolist()) == [0, 2]
    with pytest.raises(SampleTooLongError, match="1 of 2 samples"):
        plan(lengths, samples=np.asarray([0, 1]))


@pytest.mark.parametrize(
    "options",
    [
        {"seq_len": 0},
        {"packs_per_step": 0},
        {"window": 0},
        {"epoch": -1},
        {"too_long": "cut"},
    ],
)
def test_options_that_cannot_be_right(options):
    with pytest.raises(ConfigError):
        plan(make_lengths([3, 4]), **options)


def test_a_world_size_that_does_not_divide_the_step():
    made = plan(make_lengths([3, 4, 5]))
    with pytest.raises(ConfigError, match="packs_per_step 4 is no multiple of world_size 3"):
        made.rank_packs(0, 0, 3)
    with pytest.raises(ConfigError, match="rank 2"):
        made.rank_packs(0, 2, 2)
    with pytest.raises(IndexError):
        made.rank_packs(1, 0, 1)


def test_lengths_that_are_no_lengths():
    with pytest.raises(DataError, match="no token"):
        make_lengths([3, 0])
    with pytest.raises(DataError, match="negative"):
        make_lengths([3, 4], label_tokens=[-1, 0])
    with pytest.raises(DataError, match="one length"):
        Lengths(*(np.ones(n, np.int64) for n in (2, 2, 2, 3)))
    with pytest.raises(DataError, match="int64"):
        Lengths(*(np.ones(2, np.int32) for _ in range(4)))
    with pytest.raises(DataError, match="no sample"):
        plan(make_lengths([]))
    with pytest.raises(DataError, match="no sample"):
        plan(make_lengths([65]), too_long="drop")


def slow_best_fit(lengths, seq_len):
    """Best fit by its words; `rooms` holds (room, when it got that room, bin)."""
    rooms, bin_of, opened = [], [], 0
    for clock, length in enumerate(lengths, start=1):
        fitting = [entry for entry in rooms if entry[0] >= length]
        if fitting:
            entry = min(fitting, key=lambda entry: (entry[0], -entry[1]))
            rooms.remove(entry)
        else:
            entry = (seq_len, 0, opened)
            opened += 1
        bin_of.append(entry[2])
        rooms.append((entry[0] - length, clock, entry[2]))
    return bin_of


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_best_fit_equals_the_slow_one(lengths):
    assert best_fit(lengths, 40) == slow_best_fit(lengths, 40)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_both_rules_fill_bins_within_capacity(lengths, random):
    lengths = sorted(lengths, reverse=True)
    order = list(range(len(lengths)))
    random.shuffle(order)
    by_rule = {
        "exact": exact_fill(lengths, order, 200),
        "best": best_fit(lengths, 200),
        "fewest": fewest_bins(lengths, order, 200),
    }
    for bin_of in by_rule.values():
        used = np.bincount(bin_of, weights=lengths)
        assert len(bin_of) == len(lengths)
        assert used.max() <= 200
        assert used.min() > 0  # no bin number is skipped
    assert max(by_rule["fewest"]) == min(max(by_rule["exact"]), max(by_rule["best"]))


def test_efficiency_on_the_corpus_distribution():
    lengths = corpus_like(30_000)
    for seq_len, floor in ((4096, 0.98), (8192, 0.995), (16384, 0.995)):
        assert plan(lengths, seq_len=seq_len, packs_per_step=8).efficiency >= floor
