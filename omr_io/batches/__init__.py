"""The batch: what the loader yields and what a model's forward takes."""

from omr_io.batches.batch import Batch, Failure, as_tensors, join_patches, make_batch

__all__ = [
    "Batch",
    "Failure",
    "as_tensors",
    "join_patches",
    "make_batch",
]
