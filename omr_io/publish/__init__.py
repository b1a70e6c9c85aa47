"""Shard sets for others: the dataset card, and pushing to the Hugging Face Hub."""

from omr_io.publish.card import CardOptions, CardSummary, write_card

__all__ = ["CardOptions", "CardSummary", "write_card"]
