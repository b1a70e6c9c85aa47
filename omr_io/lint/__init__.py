"""What is wrong with a shard set's content though every byte is as it was written.

Names are imported when they are first used, as in `omr_io`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omr_io.lint.findings import RULES, Example, Finding, Rule
    from omr_io.lint.letters import LetterBias
    from omr_io.lint.run import LintOptions, LintReport, lint

__all__ = ["RULES", "Example", "Finding", "LetterBias", "LintOptions", "LintReport", "Rule", "lint"]

_MODULES = {
    "RULES": "findings",
    "Example": "findings",
    "Finding": "findings",
    "LetterBias": "letters",
    "LintOptions": "run",
    "LintReport": "run",
    "Rule": "findings",
    "lint": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'omr_io.lint' has no attribute {name!r}")
    value = getattr(import_module(f"omr_io.lint.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
