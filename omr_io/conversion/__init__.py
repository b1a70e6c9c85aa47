"""A corpus → one shard set: planned in pieces, made by workers, named at the very end.

`run` is the stage's front; `plan`, `piece`, `staging`, `merging` and `publishing` are its steps.
"""

from omr_io.conversion.options import ConvertOptions
from omr_io.conversion.progress import ConvertProgress
from omr_io.conversion.run import convert, write_shard_set
from omr_io.conversion.summary import ConvertSummary

__all__ = [
    "ConvertOptions",
    "ConvertProgress",
    "ConvertSummary",
    "convert",
    "write_shard_set",
]
