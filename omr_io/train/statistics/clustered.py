"""Items in clusters, as intervals and tests need them: sums and sizes, drawn in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from omr_io.errors import ConfigError

Float64Array = NDArray[np.float64]

_MOST_DRAWN = 4_000_000
"""Random numbers held at a time: 32 MB."""


def by_cluster(
    values: ArrayLike, clusters: Sequence[str] | NDArray[np.generic]
) -> tuple[Float64Array, Float64Array]:
    """Sums and sizes of each cluster, both (K,); clusters in sorted order.

    Raises:
        ConfigError: no items, unequal lengths, or a value is not finite.
    """
    items = np.asarray(values, np.float64)
    labels = np.asarray(clusters)
    if items.ndim != 1 or items.shape != labels.shape or len(items) == 0:
        raise ConfigError(f"values {items.shape} and clusters {labels.shape} must be (n,), n >= 1")
    if not np.isfinite(items).all():
        raise ConfigError("a value is not finite")
    names, index = np.unique(labels, return_inverse=True)
    sums = np.bincount(index, weights=items, minlength=len(names)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def drawn_in_parts(resamples: int, num_clusters: int) -> Iterator[int]:
    """How many resamples to draw at a time, so that memory is bounded.

    The draws are those of one call: a generator's rows follow one another.
    """
    rows = max(1, _MOST_DRAWN // num_clusters)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)
