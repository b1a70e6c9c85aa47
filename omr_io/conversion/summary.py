"""What a conversion did, in numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omr_io.conversion.piece_record import PieceRecord, Tally
from omr_io.shards.layout import Manifest
from omr_io.types import Refusal

Outcome = Literal["converted", "already complete", "part done", "dry run"]


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
        outcome: "converted"; "already complete" if there was nothing to do; "part done" if only
            this part's pieces are (then all counts are theirs, before duplicates over the whole
            corpus are refused); "dry run" if nothing was written.
        pieces, kept: that the corpus, or the part, is cut into; those that earlier runs made.
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
    outcome: Outcome = "converted"
    pieces: int = 1
    kept: int = 0

    @classmethod
    def of_pieces(
        cls,
        out: Path,
        records: Sequence[PieceRecord],
        start: float,
        outcome: Outcome,
        pieces: int,
        kept: int,
    ) -> ConvertSummary:
        """Sum up pieces; `start` is the run's on the monotonic clock."""
        total = Tally.total(record.tally for record in records)
        shards = [shard for record in records for shard in record.shards]
        return cls(
            folder=out,
            rows=total.rows,
            samples=total.samples,
            images=total.images,
            refusals=total.refusals,
            examples=total.examples,
            shards=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            seconds=time.monotonic() - start,
            outcome=outcome,
            pieces=pieces,
            kept=kept,
        )

    @classmethod
    def of_manifest(
        cls, out: Path, manifest: Manifest, start: float, outcome: Outcome, pieces: int
    ) -> ConvertSummary:
        """Sum up a complete set; it does not say which rows were the first refused."""
        counts = manifest.counts
        return cls(
            folder=out,
            rows=counts["rows"],
            samples=counts["samples"],
            images=counts["images"],
            refusals=manifest.refusals,
            examples=(),
            shards=len(manifest.shards),
            bytes=sum(shard.bytes for shard in manifest.shards),
            seconds=time.monotonic() - start,
            outcome=outcome,
            pieces=pieces,
            kept=pieces,
        )
