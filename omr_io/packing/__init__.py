"""The plan of an epoch: which samples share a pack, in which order, on which rank."""

from omr_io.packing.cost import CostModel
from omr_io.packing.epoch import EpochPlan, plan_epoch
from omr_io.packing.lengths import Lengths
from omr_io.packing.plan import Plan, TooLong, check_samples, check_world
from omr_io.packing.summary import PlanSummary, summarize

__all__ = [
    "CostModel",
    "EpochPlan",
    "Lengths",
    "Plan",
    "PlanSummary",
    "TooLong",
    "check_samples",
    "check_world",
    "plan_epoch",
    "summarize",
]
