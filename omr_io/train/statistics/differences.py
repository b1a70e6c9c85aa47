"""Differences of two on the same items: intervals by bootstrap, p by flipping signs of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from omr_io.errors import ConfigError
from omr_io.train.statistics.clustered import Float64Array, by_cluster, drawn_in_parts
from omr_io.train.statistics.intervals import Interval, cluster_bootstrap, mean_of_means

EXACT_CLUSTERS = 14
"""If the two differ in up to so many, p is of all 2^K sign patterns; beyond, they are drawn."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of a - b with its interval, and the two-sided p of "a and b do not differ"."""

    interval: Interval
    p: float


@dataclass(frozen=True, slots=True)
class PairedItems:
    """The same items answered by two, of one of several independent sets.

    Attributes:
        a, b: (n,) numbers, paired by position.
        clusters: (n,) labels.
    """

    a: ArrayLike
    b: ArrayLike
    clusters: Sequence[str] | NDArray[np.generic]


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[str] | NDArray[np.generic],
    *,
    resamples: int = 2000,
    seed: int,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> PairedDifference:
    """Mean of a - b over the same items: bootstrap interval, and p of a sign-flip test by cluster.

    If a and b did not differ, swapping them in a whole cluster would change nothing; so p is the
    share of sign patterns over clusters whose |mean difference| is at least the observed one. All
    2^K patterns are taken where a and b differ in up to `EXACT_CLUSTERS` clusters (p is then at
    least 2 / 2^K, and of single right or wrong items McNemar's exact one), beyond that `resamples`
    random ones, with (1 + hits) / (1 + resamples), so that p is never 0.

    Args:
        a, b: (n,) numbers, paired by position.
        clusters, resamples, seed, confidence: as in `cluster_bootstrap`.
        bounds: lowest and highest possible a - b, (-1, 1) for right or wrong.

    Raises:
        ConfigError: as `cluster_bootstrap`.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ConfigError(f"{first.shape} and {second.shape} values cannot be paired")
    difference = first - second
    interval = cluster_bootstrap(
        difference,
        clusters,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
        bounds=bounds,
    )
    sums_K, _ = by_cluster(difference, clusters)
    return PairedDifference(interval, _sign_flip_p(sums_K, resamples, seed))


def mean_paired_difference(
    sets: Sequence[PairedItems],
    *,
    resamples: int = 2000,
    seed: int,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> PairedDifference:
    """The unweighted mean over sets of mean a - b, with p of "a and b do not differ".

    The interval is `mean_of_means` of the sets' own. For p, the sign-flip test of
    `paired_difference` flips the clusters of all sets, which are weighted as in the mean: by
    1 / (items of their set).

    Args:
        sets: of items; clusters of two sets are different ones even if they are called the same.
        resamples, seed, confidence, bounds: as in `paired_difference`.

    Raises:
        ConfigError: no set, and as `paired_difference`.
    """
    parts, weighted = [], []
    for one in sets:
        found = paired_difference(
            one.a, one.b, one.clusters,
            resamples=resamples, seed=seed, confidence=confidence, bounds=bounds,
        )  # fmt: skip
        difference = np.asarray(one.a, np.float64) - np.asarray(one.b, np.float64)
        sums_K, sizes_K = by_cluster(difference, one.clusters)
        parts.append(found.interval)
        weighted.append(sums_K / sizes_K.sum())
    mean = mean_of_means(parts)
    return PairedDifference(mean, _sign_flip_p(np.concatenate(weighted), resamples, seed))


def _sign_flip_p(sums_K: Float64Array, resamples: int, seed: int) -> float:
    sums_K = sums_K[sums_K != 0]  # the others are 0 with either sign
    num_clusters = len(sums_K)
    # Ties must count as hits although their sums are rounded in another order.
    threshold = abs(sums_K.sum()) - 1e-9 * np.abs(sums_K).sum()
    if num_clusters <= EXACT_CLUSTERS:
        patterns = np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters) & 1
        return float((np.abs((2.0 * patterns - 1.0) @ sums_K) >= threshold).mean())
    # A stream of its own, so that p and the interval do not share their draws.
    rng, hits = np.random.default_rng((seed, 1)), 0
    for count in drawn_in_parts(resamples, num_clusters):
        signs = 2.0 * rng.integers(0, 2, size=(count, num_clusters)) - 1.0
        hits += int((np.abs(signs @ sums_K) >= threshold).sum())
    return (1 + hits) / (1 + resamples)
