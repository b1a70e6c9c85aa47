"""What an index may not say, whoever wrote it: its hash shows damage, and no intent.

Legend: n samples, N images of all samples, M parts of all samples, S shards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omr_io.types import Int32Array, Int64Array

MAX_SIDE = 1 << 24
"""Of an image as the index may have it: WebP's header, the widest but for TIFF's, has 24 bits."""


def arrow_fault(table: pa.Table) -> str | None:
    """What is wrong with a table as Arrow holds it: offsets out of bounds, text that is no UTF-8,
    nulls where the schema has none. None if nothing is: then no access can leave its buffers.

    It takes some 10 ms for 450,000 samples.
    """
    try:
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        return str(error)
    for name in table.column_names:
        for chunk in table.column(name).chunks:
            if _nulls(chunk):
                return f"the column {name} has nulls"
    return None


def _nulls(array: pa.Array) -> bool:
    if array.null_count:
        return True
    if isinstance(array, pa.ListArray):
        return _nulls(array.values)
    if isinstance(array, pa.StructArray):
        return any(_nulls(array.field(place)) for place in range(array.type.num_fields))
    return False


_ROUND = 1 << 18  # samples that are checked at a time, so that memory does not follow the index


def misplaced_part(
    starts_M: Int64Array,
    sizes_M: Int64Array,
    part_offsets: Int64Array,
    image_offsets: Int64Array,
    sample_shards: Int32Array,
    shard_bytes_S: Int64Array,
) -> tuple[int, str] | None:
    """The first sample whose parts cannot lie as the index says, and why.

    Args:
        starts_M, sizes_M: (M,) int64 in bytes.
        part_offsets, image_offsets: (n + 1,) int64; which parts and images are whose.
        sample_shards: (n,) int32, each in 0 to S - 1, never decreasing.
        shard_bytes_S: (S,) int64, sizes of the shards.
    """
    for begin in range(0, len(sample_shards), _ROUND):
        first = max(begin - 1, 0)  # the one before, to compare the next with it
        stop = min(begin + _ROUND, len(sample_shards))
        parts = slice(int(part_offsets[first]), int(part_offsets[stop]))
        found = _misplaced(
            starts_M[parts],
            sizes_M[parts],
            part_offsets[first : stop + 1] - part_offsets[first],
            image_offsets[first : stop + 1],
            sample_shards[first:stop],
            shard_bytes_S,
        )
        if found is not None:
            return first + found[0], found[1]
    return None


def _misplaced(
    starts_M: Int64Array,
    sizes_M: Int64Array,
    part_offsets: Int64Array,
    image_offsets: Int64Array,
    sample_shards: Int32Array,
    shard_bytes_S: Int64Array,
) -> tuple[int, str] | None:
    """`misplaced_part` of some samples."""
    counts = np.diff(part_offsets)
    images = np.diff(image_offsets)
    few = counts <= images  # a sample has a text, after its images
    if few.any():
        sample = int(np.argmax(few))
        return sample, f"it has {counts[sample]} parts and {images[sample]} images"
    samples_M = np.repeat(np.arange(len(counts)), counts)
    ends = shard_bytes_S[sample_shards[samples_M]]
    outside = (starts_M < 0) | (sizes_M < 0) | (sizes_M > ends) | (starts_M > ends - sizes_M)
    if outside.any():
        part = int(np.argmax(outside))
        what = f"a part of {sizes_M[part]} bytes at {starts_M[part]} lies outside the shard's "
        return int(samples_M[part]), f"{what}{ends[part]} bytes"
    return _overlap(starts_M, starts_M + sizes_M, part_offsets[:-1], samples_M, sample_shards)


def _overlap(
    starts_M: Int64Array,
    ends_M: Int64Array,
    firsts: Int64Array,
    samples_M: NDArray[Any],
    sample_shards: Int32Array,
) -> tuple[int, str] | None:
    same = samples_M[1:] == samples_M[:-1]
    unordered = same & ((starts_M[1:] < ends_M[:-1]) | (starts_M[1:] == starts_M[:-1]))
    for sample in np.unique(samples_M[1:][unordered]).tolist():  # few: images come after a text
        rows = _rows(firsts, sample, len(starts_M))
        order = np.argsort(starts_M[rows], kind="stable")
        starts, ends = starts_M[rows][order], ends_M[rows][order]
        if (starts[1:] < ends[:-1]).any() or (starts[1:] == starts[:-1]).any():
            return sample, "its parts overlap"
    begins = np.minimum.reduceat(starts_M, firsts)
    stops = np.maximum.reduceat(ends_M, firsts)
    crossed = (sample_shards[1:] == sample_shards[:-1]) & (begins[1:] < stops[:-1])
    if crossed.any():
        sample = int(np.argmax(crossed)) + 1
        return sample, "its parts begin before those of the sample before it end"
    return None


def _rows(firsts: Int64Array, sample: int, total: int) -> slice:
    stop = int(firsts[sample + 1]) if sample + 1 < len(firsts) else total
    return slice(int(firsts[sample]), stop)


def impossible_image(
    widths_N: Int32Array, heights_N: Int32Array, orientations_N: Int32Array
) -> tuple[int, str] | None:
    """The first image whose size or orientation no image has, and why; all (N,)."""
    wrong = (np.minimum(widths_N, heights_N) < 1) | (np.maximum(widths_N, heights_N) > MAX_SIDE)
    wrong |= (orientations_N < 1) | (orientations_N > 8)
    if not wrong.any():
        return None
    image = int(np.argmax(wrong))
    size = f"{widths_N[image]}x{heights_N[image]} pixels"
    return image, f"an image of {size} and orientation {orientations_N[image]} cannot be"
