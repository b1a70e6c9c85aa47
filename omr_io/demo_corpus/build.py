"""Split the studies, plan the rows, draw them, and write the two Parquet files."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omr_io.demo_corpus.pictures import STORAGE_SHARES, Drawing, draw
from omr_io.demo_corpus.plan import Row, Split, plan_rows, split_studies
from omr_io.demo_corpus.questions import (
    Fact,
    compose,
    half_fact,
    inversion_fact,
    metadata_fact,
    quadrant_fact,
    rubric,
)
from omr_io.demo_corpus.studies import Progress, Study, collect
from omr_io.demo_corpus.table import make_folder, write_table
from omr_io.errors import ConfigError, DataError

TRIES = 60
"""Crops tried on a study before the next study takes its place."""


@dataclass(frozen=True, slots=True)
class DemoCorpusSummary:
    """What `build` made. The keys of the mappings are "train" and "test".

    Attributes:
        paths: the two Parquet files.
        rows: rows a split.
        studies: the names of the studies in each split.
        tasks: rows a kind of question.
        letters: share of each right letter, 0 to 1.
        modalities: rows a modality; "unknown" where no metadata says it.
        left_out: (file, reason) for each picture that was found and not used.
        seconds: wall clock.
    """

    paths: Mapping[Split, Path]
    rows: Mapping[Split, int]
    studies: Mapping[Split, tuple[str, ...]]
    tasks: Mapping[Split, Mapping[str, int]]
    letters: Mapping[Split, Mapping[str, float]]
    modalities: Mapping[Split, Mapping[str, int]]
    left_out: tuple[tuple[str, str], ...]
    seconds: float


def build(
    out: Path,
    *,
    train_rows: int = 1500,
    test_rows: int = 300,
    seed: int = 0,
    extra: Sequence[Path] = (),
    answer_bias: float | None = None,
    progress: Progress | None = None,
) -> DemoCorpusSummary:
    """Write a corpus in OpenMedReason's schema from real medical images that PyPI packages ship.

    `out` gets the train split, and OUT's stem with "-test" the test split: data/demo.parquet and
    data/demo-test.parquet. Columns: image struct<bytes, path>, question, reasoning, answer, id,
    study, task; on test also perception, knowledge, rationale (list<struct> of rubric units). The
    same arguments and package versions give the same rows. No study is in both splits.

    Args:
        out: the Parquet file of the train split; its folder is made.
        train_rows, test_rows: rows a split, at least 1.
        seed: decides the split and every draw.
        extra: more files or folders of DICOM, NIfTI or images. A DICOM study, a volume, an image
            file is each a study.
        answer_bias: the share of 4-option train rows whose right answer is A, as in the real corpus
            (0.77); None balances the letters.
        progress: called with (stage, done, total); stages are "studies", "train", "test".

    Raises:
        ConfigError: an argument is out of range, or a package of the `demo` extra is missing.
        SourceError: a path of `extra` does not exist.
        DataError: the studies cannot give a question of some kind.
        DiskError: a file cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    _check(out, train_rows, test_rows, answer_bias)
    make_folder(out.parent)
    studies, left_out = collect(extra, progress)
    splits = split_studies(studies, seed)
    paths: dict[Split, Path] = {"train": out, "test": out.with_name(f"{out.stem}-test.parquet")}
    wanted: dict[Split, int] = {"train": train_rows, "test": test_rows}
    used: set[bytes] = set()
    tables: dict[Split, list[dict[str, Any]]] = {}
    for split in ("train", "test"):
        bias = answer_bias if split == "train" else None
        rows = plan_rows(splits, split, wanted[split], seed, bias, STORAGE_SHARES)
        tables[split] = []
        for number, row in enumerate(rows):
            tables[split].append(_make(row, split, number, seed, used))
            if progress:
                progress(split, number + 1, len(rows))
    for split, path in paths.items():
        write_table(path, tables[split], rubric=split == "test")
    return _summary(paths, splits, tables, left_out, time.perf_counter() - started)


def _check(out: Path, train_rows: int, test_rows: int, answer_bias: float | None) -> None:
    if out.suffix != ".parquet":
        raise ConfigError(f"{out} does not end in .parquet")
    if train_rows < 1 or test_rows < 1:
        raise ConfigError(f"train_rows {train_rows} and test_rows {test_rows} must be at least 1")
    if answer_bias is not None and not 0 <= answer_bias <= 1:
        raise ConfigError(f"answer_bias {answer_bias} is not a share", mend="Use 0 to 1, or None")


def _make(row: Row, split: Split, number: int, seed: int, used: set[bytes]) -> dict[str, Any]:
    """Draw a row's image and put its question. `used` keeps every stored image unique."""
    rng = np.random.default_rng((seed, 2, split == "test", number))
    study, drawing = _draw(row, rng, used)
    used.add(hashlib.sha256(drawing.data).digest())
    fact = _fact(row)
    item = compose(fact, row.letter, row.num_options, rng, paren=row.paren)
    name = f"demo-{split}-{number:06d}"
    made: dict[str, Any] = {
        "image": {"bytes": drawing.data, "path": f"{name}.{drawing.suffix}"},
        "question": item.question,
        "reasoning": item.reasoning,
        "answer": item.answer,
        "id": name,
        "study": study.name,
        "task": row.task,
        "modality": study.modality or "unknown",
    }
    return made | (rubric(fact, item, name) if split == "test" else {})


def _draw(row: Row, rng: np.random.Generator, used: set[bytes]) -> tuple[Study, Drawing]:
    for study in row.studies:
        views = study.views
        if row.task == "plane":
            views = tuple(view for view in views if view.plane == row.target)
        for _ in range(TRIES):
            view = views[int(rng.integers(len(views)))]
            drawing = draw(view, row.task, row.target, row.storage, rng)
            if drawing and hashlib.sha256(drawing.data).digest() not in used:
                return study, drawing
    raise DataError(
        f'no study gives an image whose {row.task} is "{row.target}"',
        mend="Add studies with `extra`, or ask for fewer rows",
    )


def _fact(row: Row) -> Fact:
    if row.task == "quadrant":
        return quadrant_fact(row.target)
    if row.task == "half":
        return half_fact(row.target)
    if row.task == "inversion":
        return inversion_fact(row.target == "yes")
    return metadata_fact(row.task, row.target, row.choices)


def _summary(
    paths: Mapping[Split, Path],
    splits: Mapping[Split, Sequence[Study]],
    tables: Mapping[Split, Sequence[Mapping[str, Any]]],
    left_out: tuple[tuple[str, str], ...],
    seconds: float,
) -> DemoCorpusSummary:
    def count(column: str) -> dict[Split, dict[str, int]]:
        return {split: dict(sorted(Counter(row[column] for row in rows).items()))
                for split, rows in tables.items()}  # fmt: skip

    letters = {
        split: {letter: number / len(tables[split]) for letter, number in counts.items()}
        for split, counts in count("answer").items()
    }
    return DemoCorpusSummary(
        paths=paths,
        rows={split: len(rows) for split, rows in tables.items()},
        studies={split: tuple(study.name for study in group) for split, group in splits.items()},
        tasks=count("task"),
        letters=letters,
        modalities=count("modality"),
        left_out=left_out,
        seconds=seconds,
    )
