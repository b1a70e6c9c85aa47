"""Records → a shard set: tars, DALI indexes, index.arrow, manifest.json (omr_io.layout has each).

Every row becomes a sample or a named `Refusal`; nothing is lost in between and nothing is merged.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from omr_io.errors import ConfigError, DataError
from omr_io.images import MAX_BYTES, MAX_PIXELS
from omr_io.layout import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    REJECTS_NAME,
    FileDigest,
    Manifest,
    Part,
)
from omr_io.prepare import ImageChecks, Prepared, prepare_rows, refuse
from omr_io.storage import AtomicFile, write_atomically
from omr_io.tar_writer import ShardWriter
from omr_io.target import claim
from omr_io.types import Record, Refusal

_INDEX_ROWS = 4096  # of one record batch

_REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.utf8()), ("row", pa.int64()), ("id", pa.utf8()), ("reason", pa.utf8()),
        ("detail", pa.utf8()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How rows become shards.

    Args:
        split: names the shards; letters, digits, "-" and "_".
        max_shard_bytes: a tar is cut before it grows beyond this.
        max_shard_samples: and before it holds more samples than this.
        check: "decode" decodes every image in full, "header" reads only headers: faster, and a
            truncated image is found in training.
        max_image_pixels, max_image_bytes: an image above is refused.
        overwrite: replace a complete set.
        threads: that check images; the result does not depend on it.
    """

    split: str = "train"
    max_shard_bytes: int = 256 << 20
    max_shard_samples: int = 10_000
    check: Literal["decode", "header"] = "decode"
    max_image_pixels: int = MAX_PIXELS
    max_image_bytes: int = MAX_BYTES
    overwrite: bool = False
    threads: int = 2

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.split):
            raise ConfigError(
                f"split {self.split!r} is no name", mend="Use letters, digits, '-' and '_'"
            )
        if self.check not in ("decode", "header"):
            raise ConfigError(f"check {self.check!r} is unknown", mend="Use decode or header")
        for name in ("max_shard_bytes", "max_shard_samples", "max_image_pixels", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if not 1 <= self.max_image_bytes <= 1 << 32:
            raise ConfigError("max_image_bytes must lie between 1 and 4 GiB")

    def image_checks(self) -> ImageChecks:
        """What each image must pass."""
        return ImageChecks(
            self.max_image_pixels, self.max_image_bytes, decode=self.check == "decode"
        )

    def recorded(self) -> dict[str, object]:
        """Those that change the content."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in ("overwrite", "threads")}


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """Rows read, samples written, rows refused, and bytes of images and text so far.

    `total_rows` is None when the source cannot tell.
    """

    rows: int
    samples: int
    refused: int
    bytes: int
    total_rows: int | None


@dataclass(frozen=True, slots=True)
class ConvertSummary:
    """What `convert` did.

    Attributes:
        folder: the shard set.
        rows, samples, images: read; written.
        refusals: refused rows by reason, sorted by reason; all are in rejects.parquet.
        examples: the first refused rows of each reason.
        shards, bytes: number of tars; their size.
        seconds: wall clock.
    """

    folder: Path
    rows: int
    samples: int
    images: int
    refusals: Mapping[str, int]
    examples: tuple[Refusal, ...]
    shards: int
    bytes: int
    seconds: float


def convert(
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    options: ConvertOptions | None = None,
    progress: Callable[[ConvertProgress], None] | None = None,
) -> ConvertSummary:
    """Convert Parquet files of OpenMedReason's schema into one shard set.

    Args:
        sources: files, folders or glob patterns; all of one split.
        out: a folder that is new, empty, or left by a run that was killed.
        options: see `ConvertOptions`.
        progress: called after each row.

    Raises:
        SourceError: a source cannot be read.
        ConfigError: `out` is taken.
        DataError: not one row became a sample.
        DiskError: writing failed; running again removes what is left and starts afresh.
    """
    from omr_io.corpus import count_rows, list_sources, read_parquet, source_fingerprint

    paths = list_sources(sources)
    total = count_rows(paths)
    readers = [read_parquet(path) for path in paths]  # checks every schema before any work
    rows = (item for reader in readers for item in reader)
    names = [path.name for path in paths]
    return write_shard_set(
        rows, Path(out), options or ConvertOptions(), progress,
        sources=names, source_fingerprint=source_fingerprint(paths), total_rows=total,
    )  # fmt: skip


def write_shard_set(
    rows: Iterable[tuple[int, Record | Refusal]],
    out: Path,
    options: ConvertOptions,
    progress: Callable[[ConvertProgress], None] | None = None,
    *,
    sources: Sequence[str] = (),
    source_fingerprint: str = "",
    total_rows: int | None = None,
) -> ConvertSummary:
    """Write rows from anywhere into a shard set; `convert` without its reader.

    Args:
        rows: (row number, record or refusal) in the order to be written. `Record.source` is
            "FILE#ROW".
        out, options, progress: as in `convert`.
        sources, source_fingerprint: for the manifest.
        total_rows: for `progress`.
    """
    start = time.monotonic()
    with claim(out, options.split, overwrite=options.overwrite), closing(_Set(out, options)) as to:
        for row, item in prepare_rows(rows, options.image_checks(), options.threads):
            to.take(row, item)
            if progress is not None:
                done = (to.rows, to.samples, len(to.refusals), to.num_bytes)
                progress(ConvertProgress(*done, total_rows))
        manifest = to.finish(sources, source_fingerprint)
    return ConvertSummary(
        folder=out,
        rows=to.rows,
        samples=to.samples,
        images=to.images,
        refusals=manifest.refusals,
        examples=_first_of_each(to.refusals, 3),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        seconds=time.monotonic() - start,
    )


class _Set:
    """A shard set being written: takes rows in order, refuses duplicates, counts everything."""

    def __init__(self, folder: Path, options: ConvertOptions) -> None:
        self.rows = self.samples = self.images = self.num_bytes = 0
        self.refusals: list[Refusal] = []
        self._folder = folder
        self._options = options
        self._first: dict[str, tuple[str, str]] = {}  # key -> (id, source) that has it
        limits = (options.max_shard_bytes, options.max_shard_samples)
        self._shards = ShardWriter(folder, options.split, *limits)
        self._index_file = AtomicFile(folder / INDEX_NAME)
        self._index = pa.ipc.new_file(self._index_file, INDEX_SCHEMA)
        self._pending: list[dict[str, Any]] = []

    def take(self, row: int, item: Prepared | Refusal) -> None:
        self.rows += 1
        if isinstance(item, Prepared):
            refusal = self._duplicate(row, item)
            if refusal is None:
                self._write(item)
                return
            item = refusal
        self.refusals.append(item)

    def _duplicate(self, row: int, item: Prepared) -> Refusal | None:
        record = item.record
        if item.key not in self._first:
            self._first[item.key] = (record.id, record.source)
            return None
        known_id, source = self._first[item.key]
        if known_id == record.id:
            return refuse(row, record, "duplicate-id", f"the id is that of {source}")
        detail = f"the key {item.key} is that of {source} with id {known_id!r}"
        return refuse(row, record, "duplicate-key", detail)

    def _write(self, item: Prepared) -> None:
        shard, parts = self._shards.add(item.key, item.members)
        self._pending.append(_index_row(shard, parts, item))
        self.samples += 1
        self.images += len(item.infos)
        self.num_bytes += sum(part.size for part in parts)
        if len(self._pending) >= _INDEX_ROWS:
            self._flush_index()

    def _flush_index(self) -> None:
        self._index.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=INDEX_SCHEMA))
        self._pending = []

    def finish(self, sources: Sequence[str], source_fingerprint: str) -> Manifest:
        if not self.samples:
            raise DataError(_nothing_left(self.rows, self.refusals))
        shards = self._shards.finish()
        if self._pending:
            self._flush_index()
        self._index.close()
        self._index_file.commit()
        by_reason = Counter(refusal.reason for refusal in self.refusals)
        manifest = Manifest(
            split=self._options.split,
            shards=shards,
            index=_digest_of(self._index_file),
            rejects=self._write_rejects(),
            sources=tuple(sources),
            source_fingerprint=source_fingerprint,
            options=self._options.recorded(),
            counts={
                "rows": self.rows,
                "samples": self.samples,
                "images": self.images,
                "refused": len(self.refusals),
            },
            refusals=dict(sorted(by_reason.items())),
        )
        write_atomically(self._folder / MANIFEST_NAME, manifest.to_bytes())
        return manifest

    def _write_rejects(self) -> FileDigest | None:
        if not self.refusals:
            return None
        rows = [dataclasses.asdict(refusal) for refusal in self.refusals]
        with AtomicFile(self._folder / REJECTS_NAME) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=_REJECTS_SCHEMA), file)
            file.commit()
        return _digest_of(file)

    def close(self) -> None:
        """Remove what is not complete; nothing after `finish`."""
        self._shards.close()
        self._index_file.close()


def _index_row(shard: int, parts: Sequence[Part], item: Prepared) -> dict[str, Any]:
    record = item.record
    images = [
        {**dataclasses.asdict(info), "sha256": digest}
        for info, digest in zip(item.infos, item.hashes, strict=True)
    ]
    return {
        "shard": shard,
        "key": item.key,
        "parts": [dataclasses.asdict(part) for part in parts],
        "images": images,
        "question_bytes": len(record.question.encode()),
        "reasoning_bytes": len(record.reasoning.encode()),
        "num_options": len(record.options),
        "answer": record.answer,
    }


def _digest_of(file: AtomicFile) -> FileDigest:
    return FileDigest(file.path.name, file.num_bytes, file.sha256())


def _first_of_each(refusals: Iterable[Refusal], count: int) -> tuple[Refusal, ...]:
    taken: Counter[str] = Counter()
    first = []
    for refusal in refusals:
        taken[refusal.reason] += 1
        if taken[refusal.reason] <= count:
            first.append(refusal)
    return tuple(sorted(first, key=lambda refusal: refusal.reason))  # stable: rows keep order


def _nothing_left(rows: int, refusals: Sequence[Refusal]) -> str:
    if not rows:
        return "the source has no rows"
    examples = "; ".join(
        f"{item.source} row {item.row}: {item.reason}, {item.detail}"
        for item in _first_of_each(refusals, 1)
    )
    return f"not one of {rows} rows became a sample. First of each reason: {examples}"
