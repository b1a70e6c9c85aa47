"""What is noted of a converted piece: counts, refusals, digests; and how it looks on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from omr_io.shards.layout import FileDigest, ShardEntry
from omr_io.types import Refusal

RECORD_NAME = "record.json"
KEYS_NAME = "keys.arrow"
PIECE_REJECTS_NAME = "rejects.arrow"
EXAMPLES = 3
"""Refused rows of each reason that a summary shows."""

KEYS_SCHEMA = pa.schema(
    [("digest", pa.uint64()), ("key", pa.utf8()), ("id", pa.utf8()), ("source", pa.utf8())]
)
"""A row a sample, in order: what it takes to find a key that another piece has too."""


class Holder(NamedTuple):
    """The sample that has a key: its raw id, and its source "FILE#ROW"."""

    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of rows: read, written, refused.

    Attributes:
        rows, samples, images: read; written.
        num_bytes: of images and text written.
        refusals: refused rows by reason, sorted.
        examples: the first refused rows of each reason, sorted by reason.
    """

    rows: int = 0
    samples: int = 0
    images: int = 0
    num_bytes: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Refusal, ...] = ()

    @property
    def refused(self) -> int:
        """Rows refused, whatever the reason."""
        return sum(self.refusals.values())

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """The sum of tallies; examples are the first ones in the order given."""
        rows = samples = images = num_bytes = 0
        refusals: Counter[str] = Counter()
        examples: list[Refusal] = []
        for one in tallies:
            rows, samples = rows + one.rows, samples + one.samples
            images, num_bytes = images + one.images, num_bytes + one.num_bytes
            refusals.update(one.refusals)
            examples = list(first_of_each((*examples, *one.examples)))
        by_reason = dict(sorted(refusals.items()))
        return cls(rows, samples, images, num_bytes, by_reason, tuple(examples))


def first_of_each(refusals: Iterable[Refusal], count: int = EXAMPLES) -> tuple[Refusal, ...]:
    """The first `count` refusals of each reason, sorted by reason, rows in their order."""
    taken: Counter[str] = Counter()
    first = []
    for refusal in refusals:
        taken[refusal.reason] += 1
        if taken[refusal.reason] <= count:
            first.append(refusal)
    return tuple(sorted(first, key=lambda refusal: refusal.reason))  # stable: rows keep order


@dataclass(frozen=True, slots=True)
class PieceRecord:
    """A converted piece; its presence and its digest say that the piece is whole.

    Attributes:
        plan: digest of the plan that the piece belongs to.
        number: of the piece.
        tally: its counts.
        shards: its tars with their .idx, under their names within the piece.
        files: the Arrow files beside them.
        taken: keys of earlier pieces that it was made to refuse; 0 before the merge.
    """

    plan: str
    number: int
    tally: Tally
    shards: tuple[ShardEntry, ...]
    files: tuple[FileDigest, ...]
    taken: int = 0

    def to_bytes(self) -> bytes:
        """The file's bytes, ending in a digest of the fields."""
        # Escaped: what is wrong with a refused row may be that its text is not Unicode.
        text = json.dumps(dataclasses.asdict(self), indent=1)
        return json.dumps({"digest": _digest(text), "record": text}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> PieceRecord | None:
        """The record, or None if the bytes are not what was written."""
        try:
            whole = json.loads(data)
            if _digest(whole["record"]) != whole["digest"]:
                return None
            fields: dict[str, Any] = json.loads(whole["record"])
            examples = tuple(Refusal(**item) for item in fields["tally"].pop("examples"))
            fields["tally"] = Tally(**fields["tally"], examples=examples)
            fields["shards"] = tuple(
                ShardEntry(**{**shard, "idx": FileDigest(**shard["idx"])})
                for shard in fields["shards"]
            )
            fields["files"] = tuple(FileDigest(**item) for item in fields["files"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def all_files(self) -> tuple[FileDigest, ...]:
        """Every file of the piece but the record itself."""
        tars = [
            entry
            for shard in self.shards
            for entry in (FileDigest(shard.name, shard.bytes, shard.sha256), shard.idx)
        ]
        return (*tars, *self.files)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_digest(key: str) -> int:
    """64 bits that stand for a key; equal ones are compared in full."""
    return xxhash.xxh3_64_intdigest(key.encode())
