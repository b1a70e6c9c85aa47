"""Shard sets for others: the dataset card, and pushing to the Hugging Face Hub."""

from omr_io.publish.card import CardOptions, CardSummary, write_card
from omr_io.publish.pushing import PushedFile, PushOptions, PushSummary, push

__all__ = [
    "CardOptions",
    "CardSummary",
    "PushOptions",
    "PushSummary",
    "PushedFile",
    "push",
    "write_card",
]
