"""The batch: what the loader yields and what a model's forward takes."""

from omr_io.batches.batch import (
    Batch,
    Failure,
    as_tensors,
    dummy_patches,
    image_grids,
    join_patches,
    make_batch,
)
from omr_io.batches.transfer import Block

__all__ = [
    "Batch",
    "Block",
    "Failure",
    "as_tensors",
    "dummy_patches",
    "image_grids",
    "join_patches",
    "make_batch",
]
