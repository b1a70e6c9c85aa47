"""What a shard set holds, counted from its index and manifest alone.

Legend: n samples, N images of all samples together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omr_io.index import ShardSet
from omr_io.shards.layout import Manifest
from omr_io.types import Int64Array


@dataclass(frozen=True, slots=True)
class Spread:
    """How some numbers are spread; all 0 when there are none.

    `p5` and `p95` are quantiles by linear interpolation: 5% of the numbers are below `p5`.
    """

    low: float
    p5: float
    median: float
    p95: float
    high: float


@dataclass(frozen=True, slots=True)
class Description:
    """A shard set in numbers.

    Attributes:
        fingerprint, split, sources, source_fingerprint, options: as in the manifest; a foreign
            set's options have its schema too.
        samples, images, shards, bytes: counts; bytes of all tars.
        shard_samples, shard_bytes: of a shard.
        images_per_sample: samples by number of images.
        formats, modes: images by format ("jpeg") and by Pillow's mode ("RGB").
        pixels: width x height of an image.
        short_side, long_side: of an image, in pixels.
        aspect: long side / short side.
        image_bytes: of an image as encoded.
        turned: images whose EXIF orientation is not 1.
        repeated_images: images whose bytes an earlier image of the set has.
        question_bytes, reasoning_bytes: of UTF-8, a sample.
        without_reasoning: samples whose reasoning is empty.
        num_options: samples by number of options; "0" are open-ended.
        answers: samples by answer letter; open-ended ones have none and are left out.
        answers_by_options: the same for each number of options.
        rows, refusals: rows read, and those refused by reason.
    """

    fingerprint: str
    split: str
    sources: tuple[str, ...]
    source_fingerprint: str
    options: Mapping[str, Any]
    samples: int
    images: int
    shards: int
    bytes: int
    shard_samples: Spread
    shard_bytes: Spread
    images_per_sample: Mapping[str, int]
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    pixels: Spread
    short_side: Spread
    long_side: Spread
    aspect: Spread
    image_bytes: Spread
    turned: int
    repeated_images: int
    question_bytes: Spread
    reasoning_bytes: Spread
    without_reasoning: int
    num_options: Mapping[str, int]
    answers: Mapping[str, int]
    answers_by_options: Mapping[str, Mapping[str, int]]
    rows: int
    refusals: Mapping[str, int]


def _options(manifest: Manifest) -> Mapping[str, Any]:
    if manifest.foreign is None:
        return manifest.options
    return {**manifest.options, "schema": manifest.foreign.view["schema"]}


def describe(shards: ShardSet) -> Description:
    """Count what a shard set holds; no shard is read."""
    manifest = shards.manifest
    entries = manifest.shards
    width, height = shards.image_widths.astype(np.int64), shards.image_heights.astype(np.int64)
    short, long = np.minimum(width, height), np.maximum(width, height)
    hashes = np.ascontiguousarray(shards.image_hashes).view("V16").reshape(-1)
    image_bytes = shards.image_sizes()
    by_options = _answers_by_options(shards)
    letters = sorted({letter for counts in by_options.values() for letter in counts})
    return Description(
        fingerprint=shards.fingerprint,
        split=manifest.split,
        sources=manifest.sources,
        source_fingerprint=manifest.source_fingerprint,
        options=_options(manifest),
        samples=len(shards),
        images=len(width),
        shards=len(entries),
        bytes=sum(entry.bytes for entry in entries),
        shard_samples=_spread(np.array([entry.samples for entry in entries], np.int64)),
        shard_bytes=_spread(np.array([entry.bytes for entry in entries], np.int64)),
        images_per_sample=_count_numbers(np.diff(shards.image_offsets)),
        formats=_count_texts(shards.column("format")),
        modes=_count_texts(shards.column("mode")),
        pixels=_spread(width * height),
        short_side=_spread(short),
        long_side=_spread(long),
        aspect=_spread(long / np.maximum(short, 1)),
        image_bytes=_spread(image_bytes),
        turned=int(np.count_nonzero(shards.image_orientations != 1)),
        repeated_images=len(hashes) - len(np.unique(hashes)),
        question_bytes=_spread(shards.question_bytes),
        reasoning_bytes=_spread(shards.reasoning_bytes),
        without_reasoning=int(np.count_nonzero(shards.reasoning_bytes == 0)),
        num_options=_count_numbers(shards.num_options),
        answers={
            letter: sum(counts.get(letter, 0) for counts in by_options.values())
            for letter in letters
        },
        answers_by_options=by_options,
        rows=manifest.counts["rows"],
        refusals=manifest.refusals,
    )


def _answers_by_options(shards: ShardSet) -> dict[str, dict[str, int]]:
    """Samples by number of options and answer letter; open-ended ones (no letter) left out."""
    column = shards.column("answer").dictionary_encode()
    letters = column.dictionary.to_pylist()
    if not letters:
        return {}
    codes = column.indices.to_numpy().astype(np.int64)
    pairs, counts = np.unique(
        shards.num_options.astype(np.int64) * len(letters) + codes, return_counts=True
    )
    found: dict[str, dict[str, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        number, code = divmod(pair, len(letters))
        if number and letters[code]:
            found.setdefault(str(number), {})[letters[code]] = count
    return {number: dict(sorted(counts.items())) for number, counts in found.items()}


def _count_texts(column: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(column)
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return dict(sorted(pairs))


def _count_numbers(values: NDArray[Any]) -> dict[str, int]:
    numbers, counts = np.unique(values, return_counts=True)
    return {str(n): count for n, count in zip(numbers.tolist(), counts.tolist(), strict=True)}


def _spread(values: NDArray[Any] | Int64Array) -> Spread:
    if not len(values):
        return Spread(0, 0, 0, 0, 0)
    return Spread(*(float(value) for value in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))))
