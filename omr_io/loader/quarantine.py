"""The samples that failed, and how many may."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from omr_io.batches import Failure
from omr_io.errors import ConfigError, FailureBudgetError, Where


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """How many samples may fail before the run stops: the larger of a number and a share.

    Args:
        count: samples that may fail in any case.
        rate: share of the samples seen so far that may fail, 0 to 1.
    """

    count: int = 10
    rate: float = 0.001

    def __post_init__(self) -> None:
        if self.count < 0 or not 0 <= self.rate <= 1:
            raise ConfigError(f"count {self.count} must be at least 0, rate {self.rate} in 0 to 1")


class Quarantine:
    """The distinct samples that failed in this process, in the order they were met.

    A sample that fails again in a later epoch counts once, so a budget does not run out by time;
    nor does it grow by time: of samples seen again none counts beyond `num_samples`.
    """

    def __init__(self, budget: FailureBudget, num_samples: int) -> None:
        self._budget = budget
        self._num_samples = num_samples
        self._failures: dict[tuple[str, str], Failure] = {}
        self._seen = 0

    @property
    def failures(self) -> list[Failure]:
        """The failures so far."""
        return list(self._failures.values())

    def take(self, failures: tuple[Failure, ...], num_samples: int) -> None:
        """Count a batch of num_samples with these failures.

        Raises:
            FailureBudgetError: more failed than the budget allows.
        """
        self._seen += num_samples
        for failure in failures:
            self._failures.setdefault((failure.shard, failure.key), failure)
        seen, failed = min(self._seen, self._num_samples), len(self._failures)
        # Divided, not multiplied: 29 of 100 is the rate 0.29, but 0.29 x 100 is less than 29.
        if failures and failed > self._budget.count and failed / seen > self._budget.rate:
            raise self._error(failures[-1], seen)

    def _error(self, last: Failure, seen: int) -> FailureBudgetError:
        reasons = Counter(failure.reason.partition(":")[0] for failure in self.failures)
        counted = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        return FailureBudgetError(
            f"{len(self._failures)} of {seen} samples failed ({counted}), more than the failure "
            f"budget of count {self._budget.count} and rate {self._budget.rate}; the last: "
            f"{last.reason}",
            where=Where(shard=last.shard, key=last.key),
            mend="Run `omr-io verify` on the shards, or raise the failure budget",
        )
