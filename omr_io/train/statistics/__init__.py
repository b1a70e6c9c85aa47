"""Intervals and tests for scores whose items come in clusters (items of one study are not alike).

Everything here is NumPy on the host and a pure function of its arguments and seed.
"""

from omr_io.train.statistics.differences import (
    PairedDifference,
    PairedItems,
    mean_paired_difference,
    paired_difference,
)
from omr_io.train.statistics.intervals import (
    Interval,
    accuracy_interval,
    cluster_bootstrap,
    mean_of_means,
    proportion_interval,
    wilson_interval,
)
from omr_io.train.statistics.majority import majority_letter, majority_letters

__all__ = [
    "Interval",
    "PairedDifference",
    "PairedItems",
    "accuracy_interval",
    "cluster_bootstrap",
    "majority_letter",
    "majority_letters",
    "mean_of_means",
    "mean_paired_difference",
    "paired_difference",
    "proportion_interval",
    "wilson_interval",
]
