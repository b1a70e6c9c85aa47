"""Records → a shard set: tars, DALI indexes, index.arrow, manifest.json (`layout` has each).

Every row becomes a sample or a named `Refusal`; nothing is lost in between and nothing is merged.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omr_io.corpus import ReadOptions, open_corpus
from omr_io.errors import ConfigError, DataError, Where
from omr_io.images import MAX_BYTES, MAX_PIXELS
from omr_io.images.policy import ImagePolicy
from omr_io.images.transcode import Transcode, library_versions
from omr_io.shards.prepare import ImageChecks, prepare_rows
from omr_io.shards.set_writer import SetWriter, first_of_each
from omr_io.shards.target import claim
from omr_io.types import Record, Refusal


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How rows become shards.

    Args:
        split: names the shards; letters, digits, "-" and "_".
        max_shard_bytes: a tar is cut before it grows beyond this.
        max_shard_samples: and before it holds more samples than this.
        check: "decode" decodes every image in full, "header" reads only headers: faster, and a
            damaged image is found in training.
        max_image_pixels, max_image_bytes: an image above is refused.
        keep_metadata: store image files as they came; by default their metadata is stripped.
        keep_icc: keep ICC profiles when the rest is stripped.
        unusual: which images that are not 8-bit grey, RGB or CMYK are refused.
        transcode: re-encode images as smaller JPEGs; None: never.
        read: how Parquet rows become records.
        max_rejects: refused rows that are tolerated: a number of rows (int), or a share of all rows
            (float, 0 to 1); None tolerates any. Beyond it the conversion stops.
        overwrite: replace a complete set.
        threads: that check images; the result does not depend on it.
    """

    split: str = "train"
    max_shard_bytes: int = 256 << 20
    max_shard_samples: int = 10_000
    check: Literal["decode", "header"] = "decode"
    max_image_pixels: int = MAX_PIXELS
    max_image_bytes: int = MAX_BYTES
    keep_metadata: bool = False
    keep_icc: bool = False
    unusual: ImagePolicy = field(default_factory=ImagePolicy)
    transcode: Transcode | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    max_rejects: int | float | None = None
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

        limit = self.max_rejects
        if limit is not None and (limit < 0 or (isinstance(limit, float) and limit > 1)):
            raise ConfigError(
                f"max_rejects {limit} is neither a count nor a share",
                mend="Use a whole number of rows from 0, or a share from 0.0 to 1.0",
            )

    def image_checks(self) -> ImageChecks:
        """What each image must pass."""
        return ImageChecks(
            self.max_image_pixels,
            self.max_image_bytes,
            decode=self.check == "decode",
            keep_metadata=self.keep_metadata,
            keep_icc=self.keep_icc,
            policy=self.unusual,
            transcode=self.transcode,
        )

    def recorded(self) -> dict[str, object]:
        """Those that change the content, as JSON values."""
        fields = dataclasses.asdict(self)
        del fields["overwrite"], fields["threads"], fields["max_rejects"]
        for name in ("image_root", "unpack_to"):  # places on one machine, not what the set is
            del fields["read"][name]
        if self.transcode is not None:
            fields["transcode"]["libraries"] = library_versions()
        return fields


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
        DataError: not one row became a sample, or more were refused than `max_rejects`.
        DiskError: writing failed; running again removes what is left and starts afresh.
    """
    options = options or ConvertOptions()
    corpus = open_corpus(sources, options.read)
    pieces = corpus.pieces(options.max_shard_bytes, options.max_shard_samples)
    rows = (item for piece in pieces for item in corpus.read(piece))
    return write_shard_set(
        rows, Path(out), options, progress,
        sources=corpus.names, fingerprint=corpus.fingerprint, total_rows=corpus.num_rows,
    )  # fmt: skip


def write_shard_set(
    rows: Iterable[tuple[int, Record | Refusal]],
    out: Path,
    options: ConvertOptions,
    progress: Callable[[ConvertProgress], None] | None = None,
    *,
    sources: Sequence[str] = (),
    fingerprint: str = "",
    total_rows: int | None = None,
) -> ConvertSummary:
    """Write rows from anywhere into a shard set; `convert` without its reader.

    Args:
        rows: (row number, record or refusal) in the order to be written. `Record.source` is
            "FILE#ROW".
        out, options, progress: as in `convert`.
        sources, fingerprint: of the source, for the manifest.
        total_rows: for `progress`.
    """
    start = time.monotonic()
    limits = (options.max_shard_bytes, options.max_shard_samples)
    with (
        claim(out, options.split, overwrite=options.overwrite),
        closing(SetWriter(out, options.split, *limits)) as to,
    ):
        for row, item in prepare_rows(rows, options.image_checks(), options.threads):
            to.take(row, item)
            _check_rejects(to, options.max_rejects, total_rows)
            if progress is not None:
                done = (to.rows, to.samples, len(to.refusals), to.num_bytes)
                progress(ConvertProgress(*done, total_rows))
        _check_rejects(to, options.max_rejects, to.rows)
        manifest = to.finish(sources, fingerprint, options.recorded())
    return ConvertSummary(
        folder=out,
        rows=to.rows,
        samples=to.samples,
        images=to.images,
        refusals=manifest.refusals,
        examples=first_of_each(to.refusals, 3),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        seconds=time.monotonic() - start,
    )


def _check_rejects(to: SetWriter, limit: int | float | None, total_rows: int | None) -> None:
    """Stop once more rows were refused than `limit` tolerates; a share needs the number of rows."""
    if limit is None or (isinstance(limit, float) and total_rows is None):
        return
    tolerated = limit if isinstance(limit, int) else limit * (total_rows or 0)
    if len(to.refusals) <= tolerated:
        return
    counts = Counter(refusal.reason for refusal in to.refusals)
    first = to.refusals[0]
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    raise DataError(
        f"{len(to.refusals)} of the first {to.rows} rows were refused, more than max_rejects "
        f"{limit}: {listed}; the first: {first.reason}: {first.detail}",
        where=Where(source=first.source, row=first.row),
        mend="Mend the source, or raise max_rejects; nothing of this run carries a final name",
    )
