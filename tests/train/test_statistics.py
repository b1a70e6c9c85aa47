"""Intervals against published values and scipy, coverage by simulation with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from omr_io.errors import ConfigError
from omr_io.train.statistics import (
    Interval,
    PairedItems,
    accuracy_interval,
    cluster_bootstrap,
    majority_letter,
    majority_letters,
    mean_of_means,
    mean_paired_difference,
    paired_difference,
    proportion_interval,
    wilson_interval,
)
from omr_io.train.statistics.student_t import student_t_quantile


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 29), (15, 20), (81, 263), (148, 148)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert ours.mean == successes / n


def test_wilson_equals_newcombe_1998_table() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        ours = wilson_interval(successes, n)
        assert (round(ours.low, 4), round(ours.high, 4)) == (low, high)


@pytest.mark.parametrize("args", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses_what_is_no_proportion(args: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        wilson_interval(*args)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31, 200, 2000, 2001])
def test_t_quantile_equals_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for probability in (0.6, 0.9, 0.975, 0.995):
        expected = stats.t.ppf(probability, freedom)
        tolerance = 1e-9 if freedom <= 2000 else 2e-3
        assert student_t_quantile(probability, freedom) == pytest.approx(expected, rel=tolerance)


def test_bootstrap_mean_is_over_items_not_clusters() -> None:
    values = [1.0, 1.0, 1.0, 0.0]
    assert cluster_bootstrap(values, ["a", "a", "a", "b"], seed=0).mean == 0.75


def test_bootstrap_is_a_function_of_its_seed_and_not_of_the_order_of_items() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.random(80), rng.integers(0, 9, 80)
    first = cluster_bootstrap(values, clusters, seed=3)
    order = rng.permutation(80)
    again = cluster_bootstrap(values[order], clusters[order], seed=3)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)
    other = cluster_bootstrap(values, clusters, seed=4)
    assert (other.low, other.high) != (first.low, first.high)


def test_bootstrap_of_many_single_items_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 1500)
    ours = cluster_bootstrap(values, np.arange(1500), seed=0, resamples=8000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1500)
    assert ours.low == pytest.approx(values.mean() - half, abs=0.02)
    assert ours.high == pytest.approx(values.mean() + half, abs=0.02)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    study_rates = rng.random(15)
    values = (rng.random((15, 40)) < study_rates[:, None]).astype(float).ravel()
    by_study = cluster_bootstrap(values, np.repeat(np.arange(15), 40), seed=0)
    alone = cluster_bootstrap(values, np.arange(600), seed=0)
    assert by_study.high - by_study.low > 3 * (alone.high - alone.low)


def test_one_cluster_says_nothing() -> None:
    one = cluster_bootstrap([1.0, 0.0], ["s", "s"], seed=0)
    assert (one.mean, one.low, one.high) == (0.5, -math.inf, math.inf)
    assert proportion_interval([1, 0], ["s", "s"], seed=0).high == 1.0
    assert proportion_interval([1, 0], ["s", "s"], seed=0).low == 0.0


def test_all_right_is_not_certainty() -> None:
    clusters = np.repeat(np.arange(10), 30)
    ours = proportion_interval(np.ones(300), clusters, seed=0)
    assert ours.high == 1.0
    assert ours.low == pytest.approx(wilson_interval(10, 10).low)  # 10 studies, not 300 items
    none = proportion_interval(np.zeros(300), clusters, seed=0)
    assert (none.low, none.high) == (0.0, pytest.approx(wilson_interval(0, 10).high))


def test_clusters_that_agree_do_not_give_an_interval_of_no_width() -> None:
    values = np.tile([1, 0], 10)
    ours = proportion_interval(values, np.repeat(np.arange(10), 2), seed=0)
    plain = wilson_interval(10, 20)
    assert (ours.low, ours.high) == (plain.low, plain.high)


@pytest.mark.parametrize(
    ("values", "clusters", "options"),
    [
        ([], [], {}),
        ([1.0], ["a", "b"], {}),
        ([math.nan, 1.0], ["a", "b"], {}),
        ([2.0, 1.0], ["a", "b"], {"bounds": (0.0, 1.0)}),
        ([1.0, 0.0], ["a", "b"], {"resamples": 10}),
        ([1.0, 0.0], ["a", "b"], {"confidence": 95.0}),
    ],
)
def test_bootstrap_refuses(values: list[float], clusters: list[str], options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError):
        cluster_bootstrap(values, clusters, seed=0, **options)


def test_proportion_refuses_other_numbers() -> None:
    with pytest.raises(ConfigError, match="zeros and ones"):
        proportion_interval([0.5, 1.0], ["a", "b"], seed=0)


def clustered_sample(
    rng: np.random.Generator, num_clusters: int, rate: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Studies of 5 to 39 items; each study has its own rate, `rate` on average."""
    sizes = rng.integers(5, 40, num_clusters)
    rates = rng.beta(rate * 6, (1 - rate) * 6, num_clusters)
    values = np.concatenate(
        [rng.random(size) < own for size, own in zip(sizes, rates, strict=True)]
    )
    return values.astype(np.float64), np.repeat(np.arange(num_clusters), sizes)


def coverage(num_clusters: int, runs: int) -> float:
    rng = np.random.default_rng(num_clusters)
    hits = 0
    for run in range(runs):
        values, clusters = clustered_sample(rng, num_clusters, 0.7)
        ours = cluster_bootstrap(values, clusters, seed=run, resamples=600, bounds=(0.0, 1.0))
        hits += ours.low <= 0.7 <= ours.high
    return hits / runs


@pytest.mark.parametrize("num_clusters", [3, 10, 30])
def test_coverage_of_a_known_truth(num_clusters: int) -> None:
    assert 0.88 <= coverage(num_clusters, 400) <= 0.99


def test_coverage_without_the_small_cluster_correction_is_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corrected = coverage(8, 400)
    tail = "omr_io.train.statistics.intervals._expanded_tail"
    monkeypatch.setattr(tail, lambda num_clusters, confidence: 0.025)
    assert coverage(8, 400) < corrected - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("num_clusters", [3, 4, 5, 6, 8, 12, 20, 50])
def test_coverage_in_many_runs(num_clusters: int) -> None:
    assert 0.90 <= coverage(num_clusters, 3000) <= 0.97


def test_sign_flip_p_equals_brute_force() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    clusters = rng.integers(0, 7, 60)
    sums = [float((a - b)[clusters == k].sum()) for k in range(7)]
    observed = abs(sum(sums))
    patterns = list(itertools.product((-1, 1), repeat=7))
    hits = sum(
        abs(sum(sign * part for sign, part in zip(pattern, sums, strict=True))) >= observed
        for pattern in patterns
    )
    assert paired_difference(a, b, clusters, seed=0).p == hits / len(patterns)


@pytest.mark.parametrize(
    ("better", "worse", "same"), [(0, 0, 5), (1, 0, 3), (5, 0, 15), (9, 2, 3), (10, 2, 400)]
)
def test_p_of_single_items_is_mcnemars(better: int, worse: int, same: int) -> None:
    """Items on which the two agree change nothing, however many they are."""
    stats = pytest.importorskip("scipy.stats")
    a = [1] * better + [0] * worse + [1] * same
    b = [0] * better + [1] * worse + [1] * same
    told = better + worse
    exact = stats.binomtest(better, told).pvalue if told else 1.0
    ours = paired_difference(a, b, range(len(a)), seed=0, bounds=(-1, 1))
    assert ours.p == pytest.approx(exact, abs=1e-12)


def test_p_does_not_depend_on_the_unit() -> None:
    a, clusters = np.array([3.0, 1.0, 2.0, -1.0, 0.5]), list("abcde")
    one = paired_difference(a, np.zeros(5), clusters, seed=0).p
    assert one == 0.25
    assert paired_difference(1e-12 * a, np.zeros(5), clusters, seed=0).p == one
    assert paired_difference(1e12 * a, np.zeros(5), clusters, seed=0).p == one


@pytest.mark.parametrize("num_clusters", [2, 5, 20])
def test_a_difference_on_which_clusters_agree_has_a_width(num_clusters: int) -> None:
    """Each cluster's mean is 1/2, but not each item's: no resample would show another."""
    a, clusters = np.tile([1, 0], num_clusters), np.repeat(np.arange(num_clusters), 2)
    ours = paired_difference(a, 0 * a, clusters, seed=0, bounds=(-1, 1)).interval
    unseen = wilson_interval(0, num_clusters).high
    assert (ours.low, ours.high) == pytest.approx((0.5 - 1.5 * unseen, 0.5 + 0.5 * unseen))
    thirds = cluster_bootstrap([0.1 + 0.2, 0.3] * 8, np.arange(16), seed=0, bounds=(0, 1))
    assert thirds.low < 0.25 < 0.35 < thirds.high  # equal but for rounding


def test_sampled_p_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.2, 1, 120), rng.normal(0, 1, 120)
    clusters = rng.integers(0, 12, 120)
    exact = paired_difference(a, b, clusters, seed=0).p
    monkeypatch.setattr("omr_io.train.statistics.differences.EXACT_CLUSTERS", 0)
    drawn = paired_difference(a, b, clusters, seed=0, resamples=20000).p
    assert drawn == pytest.approx(exact, abs=0.015)


def test_p_is_small_for_a_real_difference_and_one_for_none() -> None:
    clusters = np.repeat(np.arange(20), 10)
    better = paired_difference(np.ones(200), np.zeros(200), clusters, seed=0, bounds=(-1, 1))
    assert better.p == 1 / 2001  # never 0
    assert better.interval.mean == 1.0
    same = paired_difference(np.ones(200), np.ones(200), clusters, seed=0, bounds=(-1, 1))
    assert same.p == 1.0
    assert same.interval.low == -same.interval.high  # unseen studies may differ
    assert same.interval.high > 0


def test_p_under_no_difference_is_uniform() -> None:
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(10), 12)
    hits = 0
    for _ in range(300):
        a, b = rng.integers(0, 2, (2, 120)).astype(float)
        hits += paired_difference(a, b, clusters, seed=0, resamples=100).p <= 0.05
    assert hits <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_pairs_need_equal_lengths() -> None:
    with pytest.raises(ConfigError, match="paired"):
        paired_difference([1.0], [1.0, 0.0], ["a", "b"], seed=0)


def test_majority_letter_breaks_ties_by_the_alphabet() -> None:
    assert majority_letter("BACAB") == "A"
    assert majority_letter("CCA") == "C"
    with pytest.raises(ConfigError):
        majority_letter([])


def test_majority_letters_follow_the_number_of_options() -> None:
    letters = majority_letters(["A", "D", "D", "D", "B", "B"], [2, 4, 4, 4, 2, 2])
    assert dict(letters) == {0: "D", 2: "B", 4: "D"}  # 0: D 3 times, B 2
    with_open_ended = majority_letters(["yes", "A", "yes", "yes"], [0, 2, 0, 0])
    assert dict(with_open_ended) == {0: "A", 2: "A"}
    with pytest.raises(ConfigError):
        majority_letters(["A"], [])


def test_wilson_holds_what_the_score_test_does_not_refuse() -> None:
    """The definition, searched by brute force: |p - q| <= z sqrt(q (1 - q) / n)."""
    shares_q = np.linspace(0, 1, 200_001)
    for successes, n in ((3, 10), (7.5, 10), (0, 5), (5, 5), (40, 41), (0.25, 3)):
        p, z = successes / n, 1.959963984540054
        kept = shares_q[np.abs(p - shares_q) <= z * np.sqrt(shares_q * (1 - shares_q) / n) + 1e-12]
        ours = wilson_interval(successes, n)
        assert ours.low == pytest.approx(kept.min(), abs=1e-5)
        assert ours.high == pytest.approx(kept.max(), abs=1e-5)


def test_accuracy_of_one_run_is_a_proportion() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 60).astype(float)
    clusters = rng.integers(0, 20, 60)
    assert accuracy_interval(right, clusters, seed=3) == proportion_interval(
        right, clusters, seed=3
    )
    for bad in ([0.5, 1.1], [-0.1, 0.5]):
        with pytest.raises(ConfigError, match="outside"):
            accuracy_interval(bad, ["a", "b"], seed=0)


def test_runs_are_no_further_items() -> None:
    """All items right in half of their runs: the bootstrap sees no spread, Wilson's floor does."""
    ours = accuracy_interval([0.5] * 30, range(30), seed=0)
    plain = wilson_interval(15, 30)
    assert (ours.low, ours.high) == (
        min(plain.low, cluster_bootstrap([0.5] * 30, range(30), seed=0, bounds=(0, 1)).low),
        max(plain.high, cluster_bootstrap([0.5] * 30, range(30), seed=0, bounds=(0, 1)).high),
    )
    assert ours.high - ours.low > 0.3


def test_bootstrap_draws_in_parts_are_the_draws_of_one_call(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    values, clusters = rng.normal(size=90), rng.integers(0, 30, 90)
    whole = cluster_bootstrap(values, clusters, seed=1)
    paired = paired_difference(values, values[::-1], clusters, seed=1)
    monkeypatch.setattr("omr_io.train.statistics.clustered._MOST_DRAWN", 1000)
    assert cluster_bootstrap(values, clusters, seed=1) == whole
    assert paired_difference(values, values[::-1], clusters, seed=1) == paired


def test_mean_of_means_against_sums_of_independent_normals() -> None:
    """Parts with symmetric ends m ± 1.96 s: the mean's is 1.96 sqrt(sum s²) / k."""
    parts = [Interval(m, m - 1.96 * s, m + 1.96 * s, 10, 5) for m, s in ((0.2, 0.1), (0.6, 0.05))]
    ours = mean_of_means(parts)
    half = 1.96 * np.hypot(0.1, 0.05) / 2
    assert (ours.mean, ours.n, ours.clusters) == (pytest.approx(0.4), 20, 10)
    assert (ours.low, ours.high) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))
    assert mean_of_means(parts[:1]).low == pytest.approx(parts[0].low)
    with pytest.raises(ConfigError, match="no means"):
        mean_of_means([])


@pytest.mark.slow
def test_mean_of_means_covers_the_true_mean() -> None:
    """Three sets of 40, 80 and 200 independent items: nominal 95 %."""
    rng = np.random.default_rng(7)
    truth, sizes, hits = (0.2, 0.5, 0.85), (40, 80, 200), 0
    for run in range(300):
        parts = [
            accuracy_interval(rng.random(n) < p, range(n), seed=run, resamples=400)
            for p, n in zip(truth, sizes, strict=True)
        ]
        ours = mean_of_means(parts)
        hits += ours.low <= np.mean(truth) <= ours.high
    assert 0.92 <= hits / 300 <= 0.99


def test_difference_over_sets_against_every_sign_pattern() -> None:
    rng = np.random.default_rng(9)
    sets = [
        PairedItems(rng.integers(0, 2, n), rng.integers(0, 2, n), np.arange(n) // 2)
        for n in (6, 10)
    ]
    ours = mean_paired_difference(sets, seed=0, bounds=(-1, 1))
    # By hand: 3 and 5 clusters, each mean over its own set, all 2^8 patterns.
    sums = [
        (np.asarray(one.a) - np.asarray(one.b)).reshape(-1, 2).sum(1) / len(one.a) for one in sets
    ]
    effects = np.concatenate(sums)
    assert ours.interval.mean == pytest.approx(effects.sum() / 2)
    extreme = 0
    for pattern in itertools.product((-1, 1), repeat=8):
        extreme += abs(np.dot(pattern, effects)) >= abs(effects.sum()) - 1e-9
    assert ours.p == extreme / 2**8
    alone = mean_paired_difference(sets[:1], seed=0, bounds=(-1, 1))
    assert alone.p == paired_difference(sets[0].a, sets[0].b, sets[0].clusters, seed=0).p
