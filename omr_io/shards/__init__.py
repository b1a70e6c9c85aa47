"""What a shard set is on disk; describing and verifying one.

Names are imported when they are first used: the index is made of `layout` and `sample_json`, while
`description`, `shard_check` and `verification` read sets through the index.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omr_io.shards.description import Description, Spread, describe
    from omr_io.shards.verification import Problem, VerifyReport, verify

__all__ = ["Description", "Problem", "Spread", "VerifyReport", "describe", "verify"]

_MODULES = {
    "Description": "description",
    "Problem": "verification",
    "Spread": "description",
    "VerifyReport": "verification",
    "describe": "description",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'omr_io.shards' has no attribute {name!r}")
    value = getattr(import_module(f"omr_io.shards.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
