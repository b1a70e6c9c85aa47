"""How many samples may fail."""

import pytest

from omr_io.batches import Failure
from omr_io.errors import FailureBudgetError
from omr_io.loader import FailureBudget
from omr_io.loader.quarantine import Quarantine
from tests.loader.loaders import epochs


def failures(first, count):
    return tuple(Failure("a.tar", f"k{first + i}", "image-truncated: x") for i in range(count))


@pytest.mark.parametrize(
    ("budget", "seen", "allowed"),
    [
        (FailureBudget(count=3, rate=0.0), 1000, 3),
        (FailureBudget(count=0, rate=0.0), 1000, 0),
        (FailureBudget(count=0, rate=0.29), 100, 29),
        (FailureBudget(count=0, rate=0.001), 1000, 1),
        (FailureBudget(count=0, rate=0.001), 999, 0),
        (FailureBudget(count=2, rate=0.1), 30, 3),
        (FailureBudget(count=4, rate=0.1), 30, 4),
        (FailureBudget(count=0, rate=1.0), 7, 7),
    ],
)
def test_a_budget_is_kept_to_the_last_sample(budget, seen, allowed):
    Quarantine(budget, 10**6).take(failures(0, allowed), seen)
    if allowed < seen:
        with pytest.raises(FailureBudgetError, match=f"{allowed + 1} of {seen} samples failed"):
            Quarantine(budget, 10**6).take(failures(0, allowed + 1), seen)


def test_a_budget_does_not_grow_with_the_epochs(make_loader, write_shards, make_records):
    """A share of the samples: of those that are loaded, not of the set, nor of all times."""
    quarantine = Quarantine(FailureBudget(count=0, rate=0.1), 20)
    for _ in range(100):
        quarantine.take(failures(0, 2), 20)
    with pytest.raises(FailureBudgetError, match="3 of 20 samples"):
        quarantine.take(failures(2, 1), 20)
    shards = write_shards(make_records(10, broken=(0, 1)))
    budget = FailureBudget(count=0, rate=0.5)
    with make_loader(shards=shards, samples=range(4), failure_budget=budget) as loader:
        list(epochs(loader, 5))
        with pytest.raises(FailureBudgetError, match="3 of 4 samples"):
            loader._quarantine.take(failures(0, 1), 4)
