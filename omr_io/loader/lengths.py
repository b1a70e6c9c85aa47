"""The lengths of all samples, which the plan is made of; text lengths are kept between runs.

Image tokens follow from the index in no time. Counting the tokens of all texts reads every
sample's JSON, so its result is kept (`omr_io.cache`, kind "lengths"), under a key of all that
decides it: the shard set, the tokenizer, the chat format, and the releases of omr_io and Hugging
Face tokenizers. The pixel budget is no part of it, since image tokens are not in it.

Legend: n samples, N images.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import tokenizers

from omr_io import __version__
from omr_io.cache import Cache
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig, fingerprint
from omr_io.errors import ImageError, Where
from omr_io.images import (
    image_grid_thw,
    image_grid_thw_from_sizes,
    num_image_tokens,
    oriented_sizes,
)
from omr_io.index import ShardSet
from omr_io.packing import Lengths
from omr_io.types import Int64Array

LENGTHS_FORMAT = "lengths/1"
"""Raise it when what is counted changes."""


def measure(
    shard_set: ShardSet, chat: ChatFormat, vision: VisionConfig, cache: Cache | None = None
) -> Lengths:
    """The lengths of all n samples: image tokens from the index, text tokens by counting.

    Reads every sample's JSON once, unless `cache` has their lengths, and no image.

    Raises:
        ImageError: the model refuses an image's size; names the sample.
        DataError, IntegrityError: a text that cannot be encoded or read; names the sample.
    """
    heights_N, widths_N = oriented_sizes(
        shard_set.image_heights, shard_set.image_widths, shard_set.image_orientations, vision.exif
    )
    try:
        grid_N3 = image_grid_thw_from_sizes(heights_N, widths_N, vision)
    except ImageError as error:
        raise _with_sample(error, shard_set, vision) from error
    offsets = shard_set.image_offsets
    text_tokens, label_tokens = _text_lengths(shard_set, chat, cache or Cache(None))
    return Lengths(
        text_tokens=text_tokens,
        image_tokens=_sums(num_image_tokens(grid_N3, vision.merge_size), offsets),
        label_tokens=label_tokens,
        patches=_sums(grid_N3.prod(axis=1), offsets),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Truncation:
    """What cutting completions at seq_len takes away, known before anything is read.

    Attributes:
        samples: (c,) int64 numbers of the samples that are cut.
        tokens: (c,) int64 tokens cut off each, closing ones included.
        label_tokens: (c,) int64 those of them that would have carried a loss.
    """

    samples: Int64Array
    tokens: Int64Array
    label_tokens: Int64Array


def truncate_lengths(
    lengths: Lengths, chat: ChatFormat, seq_len: int
) -> tuple[Lengths, Truncation]:
    """The lengths when completions are cut to make samples fit seq_len.

    Samples whose prompt alone is too long stay as long as they are.
    """
    text, labels = chat.truncated_lengths(
        lengths.text_tokens, lengths.image_tokens, lengths.label_tokens, seq_len
    )
    cut = np.flatnonzero(text != lengths.text_tokens)
    tokens = (lengths.text_tokens - text)[cut]
    lost = (lengths.label_tokens - labels)[cut]
    made = dataclasses.replace(lengths, text_tokens=text, label_tokens=labels)
    return made, Truncation(cut.astype(np.int64), tokens, lost)


def _text_lengths(
    shard_set: ShardSet, chat: ChatFormat, cache: Cache
) -> tuple[Int64Array, Int64Array]:
    key = fingerprint(
        LENGTHS_FORMAT, shard_set.fingerprint, chat.fingerprint, __version__, tokenizers.__version__
    )
    count = len(shard_set)
    kept = cache.load(key)
    if kept is not None:
        table = np.frombuffer(kept, dtype="<i8")
        if table.size == 2 * count:
            text, labels = table.astype(np.int64).reshape(2, count)
            if (labels >= 0).all() and (labels < text).all():
                return text, labels
        cache.discard(key)
    records = (shard_set.read_record(i, images=False) for i in range(count))
    text, labels = chat.lengths(records, np.diff(shard_set.image_offsets).tolist())
    cache.store(key, np.stack([text, labels]).astype("<i8").tobytes())
    return text, labels


def _sums(values_N: Int64Array, offsets: Int64Array) -> Int64Array:
    """(n,) int64: the sum of each sample's images; 0 for a sample without any."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values_N)])
    return np.asarray(running[offsets[1:]] - running[offsets[:-1]], np.int64)


def _with_sample(error: ImageError, shard_set: ShardSet, vision: VisionConfig) -> ImageError:
    """The error of the first sample whose image sizes are refused, with its place."""
    for number in range(len(shard_set)):
        try:
            image_grid_thw(shard_set.images(number), vision)
        except ImageError as named:
            where = Where(shard=shard_set.shard(number), key=shard_set.key(number))
            return ImageError(named.what, where=where, mend=named.mend, reason=named.reason)
    return error
