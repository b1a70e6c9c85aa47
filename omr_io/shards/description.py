"""What a shard set holds, counted from its index alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omr_io.index import ShardSet
from omr_io.types import Int32Array


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, median and largest of some numbers; all 0 when there are none."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Description:
    """A shard set in numbers.

    Attributes:
        fingerprint, split, sources: as in the manifest.
        samples, images, shards, bytes: counts; bytes of all tars.
        formats: images by format.
        pixels: width x height of an image.
        turned: images whose EXIF orientation is not 1.
        repeated_images: images whose bytes an earlier image of the set has.
        question_bytes, reasoning_bytes: of UTF-8, a sample.
        num_options: samples by number of options.
        answers: samples by answer letter; open-ended ones have none and are left out.
        rows, refusals: rows read, and those refused by reason.
    """

    fingerprint: str
    split: str
    sources: tuple[str, ...]
    samples: int
    images: int
    shards: int
    bytes: int
    formats: Mapping[str, int]
    pixels: Spread
    turned: int
    repeated_images: int
    question_bytes: Spread
    reasoning_bytes: Spread
    num_options: Mapping[str, int]
    answers: Mapping[str, int]
    rows: int
    refusals: Mapping[str, int]


def describe(shards: ShardSet) -> Description:
    """Count what a shard set holds; no shard is read."""
    manifest = shards.manifest
    pixels = shards.image_widths.astype(np.int64) * shards.image_heights
    hashes = np.ascontiguousarray(shards.image_hashes).view("V16")
    options = Counter(shards.num_options.tolist())
    return Description(
        fingerprint=shards.fingerprint,
        split=manifest.split,
        sources=manifest.sources,
        samples=len(shards),
        images=len(pixels),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        formats=_sorted(Counter(shards.image_formats())),
        pixels=_spread(pixels),
        turned=int(np.count_nonzero(shards.image_orientations != 1)),
        repeated_images=len(hashes) - len(np.unique(hashes)),
        question_bytes=_spread(shards.question_bytes),
        reasoning_bytes=_spread(shards.reasoning_bytes),
        num_options=_sorted(Counter({str(name): count for name, count in options.items()})),
        answers=_sorted(Counter(letter for letter in shards.answers() if letter)),
        rows=manifest.counts["rows"],
        refusals=manifest.refusals,
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _spread(values: Int32Array | np.typing.NDArray[np.int64]) -> Spread:
    if not len(values):
        return Spread(0, 0, 0)
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))
