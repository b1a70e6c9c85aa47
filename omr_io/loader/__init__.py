"""The loader: planned epochs, read, decoded and packed on threads, resumable at any step."""

from omr_io.loader.data_loader import DataLoader
from omr_io.loader.quarantine import FailureBudget

__all__ = [
    "DataLoader",
    "FailureBudget",
]
