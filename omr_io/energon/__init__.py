"""Metadata by which Megatron Energon reads a shard set; Energon itself is not needed."""

from omr_io.energon.metadata import EnergonSummary, write_energon_metadata

__all__ = ["EnergonSummary", "write_energon_metadata"]
