"""Rules on images: equal ones within a set and across splits, narrow and small ones.

Only equal images are found, byte for byte or, with pixels, pixel for pixel. A crop, another size or
JPEG quality, a changed contrast are other images here: near-duplicates are not looked for.

Legend: n samples, N images of all samples together.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.lint.equal import DIGEST, also_in, group_equal
from omr_io.lint.findings import MAX_EXAMPLES, Example, Finding, Tally, finding
from omr_io.sample_set import in_turn
from omr_io.types import ImageFailure, Int64Array, UInt8Array

_SAMPLES_A_ROUND = 64


def size_findings(shards: ShardSet, max_aspect: float, min_side: int) -> Iterator[Finding]:
    """narrow-images and small-images, from the index."""
    high, wide = shards.image_heights, shards.image_widths
    short, long = np.minimum(high, wide), np.maximum(high, wide)
    for rule, wrong in (
        ("narrow-images", long > max_aspect * short.astype(np.float64)),
        ("small-images", short < min_side),
    ):
        places = np.flatnonzero(wrong)
        if len(places):
            examples = [
                image_example(shards, n, f"{wide[n]}x{high[n]}")
                for n in places[:MAX_EXAMPLES].tolist()
            ]
            limit = (
                f"max_aspect {max_aspect:g}" if rule == "narrow-images" else f"min_side {min_side}"
            )
            yield finding(rule, len(places), len(high), examples, limit)


def duplicate_images(shards: ShardSet) -> Iterator[Finding]:
    """Images of the set whose bytes an earlier image has."""
    groups = group_equal(shards.image_hashes)
    firsts = groups.firsts()
    places = np.flatnonzero(firsts != np.arange(len(firsts)))
    if len(places):
        sizes = groups.sizes
        detail = f"{(sizes > 1).sum()} images occur more than once, the most {sizes.max()} times"
        yield _found(
            "duplicate-images", shards, places, shards, firsts[places], len(firsts), detail
        )


def duplicate_pixels(shards: ShardSet, pixels: UInt8Array) -> Iterator[Finding]:
    """Images with the pixels of an earlier one and other bytes; pixels is (N, 16), see there."""
    groups = group_equal(pixels)
    firsts = groups.firsts()
    decoded = pixels.any(axis=1)
    other_bytes = (shards.image_hashes != shards.image_hashes[firsts]).any(axis=1)
    places = np.flatnonzero(decoded & other_bytes)
    if len(places):
        yield _found("duplicate-pixels", shards, places, shards, firsts[places], len(firsts), "")


def leaked_images(shards: ShardSet, test: ShardSet) -> Iterator[Finding]:
    """Samples with an image whose bytes the other split has too."""
    twins = also_in(shards.image_hashes, test.image_hashes)
    yield from _leak("leaked-images", shards, test, twins)


def leaked_pixels(
    shards: ShardSet, pixels: UInt8Array, test: ShardSet, test_pixels: UInt8Array
) -> Iterator[Finding]:
    """Samples with an image whose pixels the other split has, in other bytes."""
    twins = also_in(pixels, test_pixels)
    twins[~pixels.any(axis=1)] = -1
    twins[also_in(shards.image_hashes, test.image_hashes) >= 0] = -1
    yield from _leak("leaked-pixels", shards, test, twins)


def _leak(rule: str, shards: ShardSet, test: ShardSet, twins: Int64Array) -> Iterator[Finding]:
    places = np.flatnonzero(twins >= 0)
    if not len(places):
        return
    samples = np.unique(_samples_of(shards, places))
    there = np.unique(_samples_of(test, twins[places]))
    detail = f"{len(places)} images; {len(there)} of the other split's {len(test)} samples"
    found = _found(rule, shards, places, test, twins[places], len(shards), detail)
    yield finding(rule, len(samples), len(shards), found.examples, detail)


def _found(
    rule: str,
    shards: ShardSet,
    places: Int64Array,
    other: ShardSet,
    twins: Int64Array,
    of: int,
    detail: str,
) -> Finding:
    examples = []
    for place, twin in zip(places[:MAX_EXAMPLES], twins[:MAX_EXAMPLES], strict=True):
        sample = sample_of(other, int(twin))
        where = f"as in {other.shard(sample)}, key {other.key(sample)}"
        examples.append(image_example(shards, int(place), where))
    return finding(rule, len(places), of, examples, detail)


def _samples_of(shards: ShardSet, images: Int64Array) -> Int64Array:
    """The samples that hold some of the N images."""
    found: Int64Array = np.searchsorted(shards.image_offsets, images, side="right") - 1
    return found


def sample_of(shards: ShardSet, image: int) -> int:
    """The sample that holds one of the N images."""
    return int(np.searchsorted(shards.image_offsets, image, side="right")) - 1


def image_example(shards: ShardSet, image: int, detail: str) -> Example:
    """Where one of the N images is."""
    sample = sample_of(shards, image)
    return Example(shards.shard(sample), shards.key(sample), detail)


def pixel_digests(
    shards: ShardSet, tally: Tally, threads: int | None, progress: Callable[[int], None]
) -> UInt8Array:
    """Decode every image.

    Args:
        shards: the set.
        tally: gets broken-images.
        threads: that decode; None: one a core.
        progress: called with the number of samples done.

    Returns:
        (N, 16) uint8: a digest of each image's size and RGB pixels, upright, as the loader decodes
        them; zeros for one that does not decode.
    """
    decoder = CpuDecoder()

    def digests(sample: int) -> list[bytes | ImageFailure]:
        images = decoder.decode(shards.read_images(sample), shards.images(sample))
        return [
            image
            if isinstance(image, ImageFailure)
            else hashlib.blake2b(
                image.tobytes(), digest_size=DIGEST, key=b"%d %d" % image.shape[:2]
            ).digest()
            for image in images
        ]

    found = bytearray()
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        told = in_turn(shards, range(len(shards)), images=True)
        for start in range(0, len(shards), _SAMPLES_A_ROUND):
            samples = range(start, min(start + _SAMPLES_A_ROUND, len(shards)))
            deque(islice(told, len(samples)), maxlen=0)
            for sample, of_sample in zip(samples, pool.map(digests, samples), strict=True):
                for image in of_sample:
                    if isinstance(image, ImageFailure):
                        place = shards.shard(sample), shards.key(sample)
                        tally.add("broken-images", *place, image.detail or image.reason)
                    found += bytes(DIGEST) if isinstance(image, ImageFailure) else image
            progress(samples.stop)
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, DIGEST)
