"""Small Parquet corpora for conversions, and what a tree of files amounts to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.shard_sets import encoded

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("reasoning", pa.string()),
        ("answer", pa.string()),
    ]
)


def row(sample_id: str, image: bytes, answer: str = "A") -> dict[str, object]:
    return {
        "id": sample_id,
        "image": {"bytes": image, "path": f"{sample_id}.jpg"},
        "question": f"Which is {sample_id}?\nA. one\nB. two",
        "reasoning": "<think>So.</think>\n<answer>A</answer>",
        "answer": answer,
    }


def parquet(path: Path, rows: Sequence[dict[str, object]], rows_a_group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def mixed_corpus(folder: Path, rows: int = 40, files: int = 2, rows_a_group: int = 4) -> Path:
    """Samples, images that are cut short, wrong answers, and ids that come again in other files."""
    images = [encoded(seed, size=(24, 32 + seed)) for seed in range(5)]
    for number in range(files):
        made = []
        for place in range(rows // files):
            at = number * (rows // files) + place
            known = at - 13 if at % 5 == 4 and at > 13 else at
            image = images[at % 5][:200] if at % 11 == 5 else images[at % 5]
            made.append(row(f"case {known}", image, "B" if at % 13 == 8 else "A"))
        parquet(folder / f"train-{number}.parquet", made, rows_a_group)
    return folder


def tree_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of everything below a folder, empty folders too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        data = b"folder" if path.is_dir() else path.read_bytes()
        name = str(path.relative_to(folder)).encode()
        digest.update(b"%d %s %d " % (len(name), name, len(data)) + data)
    return digest.hexdigest()
