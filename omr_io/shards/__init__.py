"""Records → a shard set on disk; checking and describing one.

Names are imported when they are first used: the index needs the layout alone, without the writer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omr_io.shards.conversion import convert, write_shard_set
    from omr_io.shards.description import Description, Spread, describe
    from omr_io.shards.options import ConvertOptions
    from omr_io.shards.progress import ConvertProgress
    from omr_io.shards.summary import ConvertSummary
    from omr_io.shards.verification import Problem, VerifyReport, verify

__all__ = [
    "ConvertOptions",
    "ConvertProgress",
    "ConvertSummary",
    "Description",
    "Problem",
    "Spread",
    "VerifyReport",
    "convert",
    "describe",
    "verify",
    "write_shard_set",
]

_MODULES = {
    "ConvertOptions": "options",
    "ConvertProgress": "progress",
    "ConvertSummary": "summary",
    "Description": "description",
    "Problem": "verification",
    "Spread": "description",
    "VerifyReport": "verification",
    "convert": "conversion",
    "describe": "description",
    "verify": "verification",
    "write_shard_set": "conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'omr_io.shards' has no attribute {name!r}")
    value = getattr(import_module(f"omr_io.shards.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
