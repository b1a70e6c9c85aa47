"""omr_io: data loading and tokenization for training medical vision-language models.

Names are imported when they are first used, so `import omr_io` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omr_io.batches import Batch, Failure
    from omr_io.blend import Blend, IndexColumns, Source
    from omr_io.chat import ChatFormat
    from omr_io.config import VisionConfig
    from omr_io.errors import (
        ConfigError,
        DataError,
        DiskError,
        FailureBudgetError,
        ImageError,
        IntegrityError,
        OmrError,
        OmrWarning,
        RecordError,
        ResumeError,
        SampleTooLongError,
        SourceError,
        StoppedError,
        TarError,
        TokenizerError,
        TrainingError,
        Where,
    )
    from omr_io.index import ShardSet
    from omr_io.loader import DataLoader, FailureBudget
    from omr_io.remote_storage import RemoteOptions
    from omr_io.telemetry import LoaderStats
    from omr_io.tokenizer import Tokenizer
    from omr_io.types import IGNORE_INDEX, EncodedSample, Record

__version__ = "0.1.0"

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "Blend",
    "ChatFormat",
    "ConfigError",
    "DataError",
    "DataLoader",
    "DiskError",
    "EncodedSample",
    "Failure",
    "FailureBudget",
    "FailureBudgetError",
    "ImageError",
    "IndexColumns",
    "IntegrityError",
    "LoaderStats",
    "OmrError",
    "OmrWarning",
    "Record",
    "RecordError",
    "RemoteOptions",
    "ResumeError",
    "SampleTooLongError",
    "ShardSet",
    "Source",
    "SourceError",
    "StoppedError",
    "TarError",
    "Tokenizer",
    "TokenizerError",
    "TrainingError",
    "VisionConfig",
    "Where",
    "__version__",
]

_MODULES = {
    "Batch": "batches",
    "Blend": "blend",
    "ChatFormat": "chat",
    "DataLoader": "loader",
    "EncodedSample": "types",
    "Failure": "batches",
    "FailureBudget": "loader",
    "IGNORE_INDEX": "types",
    "IndexColumns": "blend",
    "LoaderStats": "telemetry",
    "Record": "types",
    "RemoteOptions": "remote_storage",
    "ShardSet": "index",
    "Source": "blend",
    "Tokenizer": "tokenizer",
    "VisionConfig": "config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'omr_io' has no attribute {name!r}")
    value = getattr(import_module(f"omr_io.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
