"""The plan of an epoch: which samples share a pack, in which order, on which rank."""

from omr_io.packing.epoch import EpochPlan
from omr_io.packing.plan import (
    CostModel,
    Lengths,
    Plan,
    TooLong,
    check_samples,
    check_world,
    plan_epoch,
)

__all__ = [
    "CostModel",
    "EpochPlan",
    "Lengths",
    "Plan",
    "TooLong",
    "check_samples",
    "check_world",
    "plan_epoch",
]
