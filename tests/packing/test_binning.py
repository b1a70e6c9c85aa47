"""Bins, orders and the balance of ranks: C++ equals the slow oracle, and both do their work."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io import _C
from omr_io.packing.binning import best_fit, fewest_bins
from omr_io.reference import binning as slow
from tests.packing.made import corpus_like

# Many equal lengths, lengths that divide the capacity, and any.
drawn_lengths = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=80),
    st.lists(st.sampled_from([4, 5, 8, 10, 13, 20, 27, 40]), min_size=1, max_size=80),
    st.lists(st.integers(9, 22), min_size=1, max_size=80),
)


@settings(max_examples=100, deadline=None)
@given(drawn_lengths, st.sampled_from([40, 64, 100, 1500]))
def test_each_rule_equals_the_slow_one(lengths, capacity):
    given_ = np.asarray(lengths, np.int64)
    decreasing = sorted(lengths, reverse=True)
    by_rule = {
        "best": (_C.best_fit(given_, capacity), slow.best_fit(lengths, capacity)),
        "early": (_C.drawn_fill(given_, capacity, 6), slow.drawn_fill(lengths, capacity, 6)),
        "late": (_C.drawn_fill(given_, capacity, 5), slow.drawn_fill(lengths, capacity, 5)),
        "fewest": (_C.fewest_bins(given_, capacity), slow.fewest_bins(lengths, capacity)),
    }
    for rule, ((bin_of, count), expected) in by_rule.items():
        assert bin_of.tolist() == expected, rule
        assert count == max(expected) + 1
        used = np.bincount(bin_of, weights=given_)
        assert used.max() <= capacity
        assert used.min() > 0  # no bin number is skipped
    fitted = _C.best_fit(np.asarray(decreasing, np.int64), capacity)[1]
    filled = [by_rule[rule][0][1] for rule in ("early", "late")]
    assert by_rule["fewest"][0][1] == min(fitted, *filled)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(600, 5000))
def test_long_bins_equal_the_slow_ones(seed, capacity):
    """Lengths over 64 and 4096, where the set of lengths has more than one level."""
    lengths = np.random.default_rng(seed).integers(1, capacity + 1, 120)
    assert fewest_bins(lengths, capacity)[0].tolist() == slow.fewest_bins(
        lengths.tolist(), capacity
    )


def test_on_the_corpus_c_plus_plus_equals_the_slow_one():
    lengths = np.random.default_rng(0).permutation(corpus_like(1500).tokens)
    for capacity in (2048, 4096, 8192):
        expected = slow.fewest_bins(lengths.tolist(), capacity)
        assert fewest_bins(lengths, capacity)[0].tolist() == expected


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 4095, 4096, 4097, 2**18 + 1, 2**21])
def test_lengths_at_the_edges_of_words(capacity):
    lengths = np.asarray(sorted({1, capacity // 2 + 1, capacity, max(capacity - 1, 1)}), np.int64)
    for bin_of, count in (_C.fewest_bins(lengths, capacity), _C.best_fit(lengths, capacity)):
        used = np.bincount(bin_of, weights=lengths)
        assert used.max() <= capacity
        assert count == len(used)


def test_best_fit_takes_and_gives_lists():
    assert best_fit([5, 3, 2, 1], 6) == [0, 1, 1, 1]  # the fuller of equal rooms came last
    assert best_fit([], 6) == []
    assert best_fit([8, 3, 0], 10) == slow.best_fit([8, 3, 0], 10) == [0, 1, 0]
    assert best_fit([10, 0, 0], 10) == slow.best_fit([10, 0, 0], 10) == [0, 0, 0]


@pytest.mark.parametrize(
    ("lengths", "capacity"), [([0], 8), ([9], 8), ([-1], 8), ([1], 0), ([1], 2**24 + 1)]
)
def test_lengths_that_no_bin_takes(lengths, capacity):
    given_ = np.asarray(lengths, np.int64)
    for rule in (_C.best_fit, _C.fewest_bins, lambda a, b: _C.drawn_fill(a, b, 5)):
        if rule is _C.best_fit and lengths == [0]:
            continue
        with pytest.raises(ValueError, match="capacity"):
            rule(given_, capacity)
    with pytest.raises(TypeError):
        _C.fewest_bins(given_.astype(np.int32), 8)
    with pytest.raises(ValueError, match="dimension"):
        _C.fewest_bins(given_[None], 8)


def test_nothing_fills_no_bin():
    bin_of, count = fewest_bins(np.empty(0, np.int64), 8)
    assert (bin_of.tolist(), count) == ([], 0)


@pytest.mark.parametrize(
    ("seq_len", "least"), [(2048, 0.96), (4096, 0.999), (8192, 0.999), (16384, 0.999)]
)
def test_efficiency_on_the_corpus_distribution(seq_len, least):
    lengths = np.random.default_rng(0).permutation(corpus_like(50_000).tokens)
    lengths = lengths[lengths <= seq_len]
    _, count = fewest_bins(lengths, seq_len)
    assert lengths.sum() / (count * seq_len) >= least


def hard(name: str, capacity: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return {
        "uniform": rng.integers(1, capacity + 1, 20_000),
        "a fifth to a half": rng.integers(capacity // 5, capacity // 2, 20_000),
        "heavy tail": np.clip(rng.lognormal(np.log(capacity / 8), 1, 20_000), 1, capacity),
        "tiny": rng.integers(1, 50, 20_000),
        "few lengths": rng.choice([capacity // 2, capacity // 4, capacity // 8], 20_000),
    }[name].astype(np.int64)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("uniform", 0.996),
        ("a fifth to a half", 0.985),
        ("heavy tail", 0.999),
        ("tiny", 0.98),
        ("few lengths", 0.999),
    ],
)
def test_efficiency_on_hard_distributions(name, least):
    for seq_len in (4096, 8192, 16384):
        lengths = hard(name, seq_len)
        _, count = fewest_bins(lengths, seq_len)
        assert lengths.sum() / (count * seq_len) >= least


def test_bins_keep_the_mixture_of_lengths_to_the_end():
    lengths = np.random.default_rng(0).permutation(corpus_like(50_000).tokens)
    bin_of, _ = fewest_bins(lengths, 8192)
    halves = [lengths[bin_of < bin_of.max() // 2], lengths[bin_of >= bin_of.max() // 2]]
    assert abs(halves[0].mean() / halves[1].mean() - 1) < 0.02
    assert abs(halves[0].std() / halves[1].std() - 1) < 0.1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60))
def test_shuffling_equals_the_slow_one(words):
    order = _C.shuffled(np.asarray(words, np.uint64))
    assert order.tolist() == slow.shuffled(words)
    assert sorted(order.tolist()) == list(range(len(words)))


def test_every_order_is_as_likely():
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    words = np.random.PCG64(1).random_raw(4 * 24_000).reshape(-1, 4)
    for row in words:
        counts[tuple(_C.shuffled(row).tolist())] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 49.7  # p = 0.001, 23 df


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60))
def test_grouping_equals_the_slow_one(groups):
    indices, sizes = _C.grouped(np.asarray(groups, np.int32), 7)
    assert (indices.tolist(), sizes.tolist()) == slow.grouped(groups, 7)


def test_groups_that_are_none():
    for groups in ([7], [-1]):
        with pytest.raises(ValueError, match="out of range"):
            _C.grouped(np.asarray(groups, np.int32), 7)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6), st.integers(0, 6), st.sampled_from([5, 1000, 10**12]), st.integers(0, 999)
)
def test_balance_equals_the_slow_one(num_ranks, share, most, seed):
    costs = np.random.default_rng(seed).integers(0, most, num_ranks * share)
    rank_of = _C.balanced(costs, num_ranks)
    assert rank_of.tolist() == slow.balanced(costs.tolist(), num_ranks)
    assert np.bincount(rank_of, minlength=num_ranks).tolist() == [share] * num_ranks


def test_costs_that_cannot_be_balanced():
    for costs, ranks in (([1, 2, 3], 2), ([1, 2], 0), ([-1, 2], 2), ([2**61, 2**61, 1], 1)):
        with pytest.raises(ValueError, match=r"divide|negative"):
            _C.balanced(np.asarray(costs, np.int64), ranks)


def best_largest_sum(costs: list[int], num_ranks: int) -> int:
    """The least that the heaviest rank can have, by trying everything."""
    share = len(costs) // num_ranks
    if num_ranks == 1:
        return sum(costs)
    found = sum(costs)
    for first in itertools.combinations(range(1, len(costs)), share - 1):
        taken = {0, *first}
        rest = [cost for i, cost in enumerate(costs) if i not in taken]
        largest = max(sum(costs[i] for i in taken), best_largest_sum(rest, num_ranks - 1))
        found = min(found, largest)
    return found


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([(2, 3), (2, 4), (3, 2), (3, 3)]), st.integers(0, 999))
def test_balance_is_near_the_best(shape, seed):
    """Packs' costs are alike: within 3% of what trying everything finds."""
    num_ranks, share = shape
    costs = np.random.default_rng(seed).integers(900, 1100, num_ranks * share)
    rank_of = _C.balanced(costs, num_ranks)
    largest = max(int(costs[rank_of == rank].sum()) for rank in range(num_ranks))
    assert largest <= 1.03 * best_largest_sum(costs.tolist(), num_ranks)
