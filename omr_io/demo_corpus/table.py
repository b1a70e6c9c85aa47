"""The Parquet file: OpenMedReason's columns, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omr_io.storage import AtomicFile, writing
from omr_io.types import AXES

UNIT_FIELDS = (
    "unit_id",
    "topic",
    "claim",
    "presence_question",
    "correctness_question",
    "source_quote",
    "importance",
)


def schema(*, rubric: bool) -> Any:
    """The pyarrow schema: OpenMedReason's columns, then our own `id`, `study` and `task`."""
    import pyarrow as pa

    units = pa.list_(pa.struct([(name, pa.string()) for name in UNIT_FIELDS]))
    columns = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("reasoning", pa.string()),
        ("answer", pa.string()),
        *([(axis, units) for axis in AXES] if rubric else []),
        ("id", pa.string()),
        ("study", pa.string()),
        ("task", pa.string()),
    ]
    return pa.schema(columns)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, before the work whose result goes there.

    Raises:
        DiskError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], *, rubric: bool) -> None:
    """Write rows; a file of that name is complete.

    Raises:
        DiskError: writing failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = schema(rubric=rubric)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=fields)
    with AtomicFile(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=500)
        file.commit()
