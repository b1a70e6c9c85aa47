"""Statistics as a file of JSON lines, to be read while it grows."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omr_io.storage import writing
from omr_io.telemetry.stats import LoaderStats


class JsonlWriter:
    """Appends one JSON object a line; a line is in the file when `write` returns.

    Args:
        path: of the file; what it holds already stays.

    Raises:
        DiskError: it cannot be opened or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, stats: LoaderStats, **more: Any) -> None:
        """A line of `stats.as_dict()`, and of what else is given: a step, a rank, a time."""
        line = json.dumps(more | stats.as_dict())
        with writing(self.path):
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; may be repeated."""
        with writing(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
