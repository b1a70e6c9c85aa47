"""`omr-io index`: index.arrow, DALI indexes and a manifest for shards of another program."""

from __future__ import annotations

import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from omr_io.corpus.rows import ReadOptions
from omr_io.errors import ConfigError, DataError, SourceError
from omr_io.foreign_shards.locate import ForeignTars, locate
from omr_io.foreign_shards.members import TarRead, read_samples
from omr_io.foreign_shards.shard_rows import (
    ImageLimits,
    LeftOut,
    ShardRows,
    index_shard,
)
from omr_io.foreign_shards.view import SampleParts, View, recognise_view, split_name
from omr_io.foreign_shards.writer import IndexWriter
from omr_io.images import MAX_BYTES, MAX_PIXELS
from omr_io.types import Refusal

_HEAD = 64  # samples that a schema is told by
_HEAD_LOOKED_AT = 1024
_MEND_KEYS = (
    "Write the tars again with members named KEY.EXTENSION, no dot in KEY, those of a key together"
)


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How foreign shards are indexed.

    Args:
        split: that all samples belong to; letters, digits, "-" and "_".
        decode: decode every image in full; False reads only headers.
        max_image_pixels, max_image_bytes: an image above is refused.
        read: how samples become records.
        qualify_keys: put the shard's name before each key, for shards whose keys start again in
            each; otherwise a key that an earlier shard has is refused.
        overwrite: replace an index that `omr-io index` wrote.
        threads: shards that are read at once; None: one a core. The result does not depend on it.
    """

    split: str = "train"
    decode: bool = True
    max_image_pixels: int = MAX_PIXELS
    max_image_bytes: int = MAX_BYTES
    read: ReadOptions = field(default_factory=ReadOptions)
    qualify_keys: bool = False
    overwrite: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.split):
            raise ConfigError(
                f"split {self.split!r} is no name", mend="Use letters, digits, '-' and '_'"
            )
        if self.read.image_root is not None:
            raise ConfigError("foreign shards hold their images: image_root has no meaning here")

    def recorded(self) -> dict[str, object]:
        """Those that change the content, as JSON values."""
        return {
            "decode": self.decode,
            "max_image_pixels": self.max_image_pixels,
            "max_image_bytes": self.max_image_bytes,
            "qualify_keys": self.qualify_keys,
        }


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What `index_foreign` did.

    Attributes:
        folder: where index and manifest are; tars: where the shards are.
        layout, schema: how samples become records.
        shards, bytes: of the tars.
        groups: of members under one key; each is a sample or a refusal.
        samples, images: indexed.
        refusals: by reason; all are in rejects.parquet.
        examples: the first refused of each reason.
        left_out: members that no sample uses, by extension ("__meta__": what webdataset skips).
        left_out_examples: the first of each extension.
        seconds: wall clock.
    """

    folder: Path
    tars: str
    layout: str
    schema: str
    shards: int
    bytes: int
    groups: int
    samples: int
    images: int
    refusals: Mapping[str, int]
    examples: tuple[Refusal, ...]
    left_out: Mapping[str, int]
    left_out_examples: tuple[LeftOut, ...]
    seconds: float


def index_foreign(
    sources: Iterable[str | Path],
    out: str | Path | None = None,
    options: IndexOptions | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> IndexSummary:
    """Make foreign WebDataset shards a shard set, without copying or changing them.

    Each tar is read once. webdataset's rule groups members into samples; whatever it would merge,
    split or skip is refused or counted, never taken.

    Args:
        sources: see `locate`.
        out: where index and manifest go; None: the folder of the tars.
        options: see `IndexOptions`.
        progress: called with (shards done, shards, samples so far).

    Raises:
        SourceError: a tar is missing or compressed, or its samples fit no schema.
        TarError: a tar is malformed; it names shard and offset.
        ConfigError: `out` is taken, or is needed (remote tars).
        DataError: not one sample was found.
        DiskError: writing failed.
    """
    start = time.monotonic()
    options = options or IndexOptions()
    tars = locate(sources)
    folder = _folder(tars, out)
    defects: list[str] = []
    head = _head(tars, defects)
    if not head and defects:
        what = "no sample here can be told: WebDataset would not give any of them whole"
        raise SourceError(f"{what}. First of each defect: {'; '.join(defects)}", mend=_MEND_KEYS)
    view = recognise_view(head, options.read, tars.names[0])
    counts = _Counts()
    with closing(IndexWriter(folder, tars, options.overwrite)) as writer:
        for done, rows in enumerate(_all_rows(tars, view, options), 1):
            writer.take(rows)  # refuses keys that came before
            counts.take(rows)
            if progress is not None:
                progress(done, len(tars.names), writer.samples)
        if not writer.samples:
            what = f"{counts.nothing_left()}. They were read by the schema {view.schema}"
            raise DataError(what, mend="Where it is another, give --schema or --map")
        writer.finish(options.split, view, options.recorded(), counts.refusals, counts.groups)
    return IndexSummary(
        folder=folder,
        tars=tars.root,
        layout=view.layout,
        schema=view.schema,
        shards=len(tars.names),
        bytes=writer.bytes,
        groups=counts.groups,
        samples=writer.samples,
        images=writer.images,
        refusals=dict(sorted(counts.refusals.items())),
        examples=tuple(counts.examples),
        left_out=dict(sorted(counts.left_out.items())),
        left_out_examples=tuple(counts.left_out_examples.values()),
        seconds=time.monotonic() - start,
    )


def _folder(tars: ForeignTars, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out)
    if tars.is_remote:
        raise ConfigError(
            "the shards are remote, so index and manifest need a folder here", mend="Give -o FOLDER"
        )
    return Path(tars.root)


def _head(tars: ForeignTars, defects: list[str]) -> list[SampleParts]:
    """The first sound samples of the first shard that has any; else why there are none.

    A missing text is no defect here: that there is none at all is told apart.
    """
    reasons = {"missing-text"}
    for name in tars.names:
        with closing(read_samples(tars.location(name), name, TarRead(), hashing=False)) as samples:
            found: list[SampleParts] = []
            for sample in islice(samples, _HEAD_LOOKED_AT):
                if sample.defect is None:
                    found.append(sample.parts_of(name))
                    if len(found) == _HEAD:
                        break
                elif sample.defect.reason not in reasons:
                    reasons.add(sample.defect.reason)
                    why = f"{sample.defect.reason}, {sample.defect.detail}"
                    defects.append(f"{name}, key {sample.key}: {why}")
        if found:
            return found
    return []


def _all_rows(tars: ForeignTars, view: View, options: IndexOptions) -> Iterator[ShardRows]:
    """Read shards on threads, a bounded number ahead, and give them in their order."""
    threads = options.threads or len(os.sched_getaffinity(0))
    limits = ImageLimits(options.max_image_pixels, options.max_image_bytes, options.decode)
    waiting: deque[Future[ShardRows]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="omr-io-index") as pool:
        try:
            for name in tars.names:
                prefix = f"{name.removesuffix('.tar')}/" if options.qualify_keys else ""
                place = tars.location(name)
                waiting.append(pool.submit(index_shard, place, name, view, limits, prefix))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Counts:
    """What is told of all shards together."""

    def __init__(self) -> None:
        self.groups = 0
        self.refusals: Counter[str] = Counter()
        self.examples: list[Refusal] = []
        self.left_out: Counter[str] = Counter()
        self.left_out_examples: dict[str, LeftOut] = {}

    def take(self, rows: ShardRows) -> None:
        """Add what one shard gave."""
        self.groups += rows.groups
        self.left_out += rows.left_out
        for left in rows.examples:
            extension = split_name(left.part)[1].lower()
            self.left_out_examples.setdefault(extension, left)
        for refusal in rows.refusals:
            if not self.refusals[refusal.reason]:
                self.examples.append(refusal)
            self.refusals[refusal.reason] += 1

    def nothing_left(self) -> str:
        """Why there is no sample at all."""
        first = "; ".join(
            f"{item.source}, key {item.id}: {item.reason}, {item.detail}" for item in self.examples
        )
        return f"not one of {self.groups} groups of members is a sample. First of each: {first}"
