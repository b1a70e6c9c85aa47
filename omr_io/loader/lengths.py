"""The lengths of all samples, which the plan is made of; text lengths are kept between runs.

Image tokens follow from the index in no time. Counting the tokens of all texts reads every
sample's JSON, so its result is kept (`omr_io.cache`, kind "lengths"), set by set, under a key of
all that decides it: the shard set, the tokenizer, the chat format, and the releases of omr_io and
Hugging Face tokenizers. The pixel budget is no part of it, since image tokens are not in it.

Of processes that start at once and share the cache's folder, one counts and the others wait for
what it keeps: the ranks of a node, or of all nodes where the folder is on a file system that they
share (`omr_io.loader.turn`). Without a cache each counts for itself.

Legend: n samples, N images.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omr_io import __version__
from omr_io.blend.joined import JoinedSets, naming
from omr_io.cache import TRAILER_BYTES, Cache
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig, fingerprint
from omr_io.errors import DataError, ImageError, Where
from omr_io.images import (
    image_grid_thw,
    image_grid_thw_from_sizes,
    num_image_tokens,
    oriented_sizes,
    sizes,
)
from omr_io.loader.turn import Tell, turn
from omr_io.packing import Lengths
from omr_io.sample_set import SampleSet, in_turn
from omr_io.types import Int32Array, Int64Array, Record

LENGTHS_FORMAT = "lengths/2"
"""Raise it when what is counted, or how it is kept, changes."""

Progress = Callable[[str, int, int | None, str], None]
"""Called now and then with the stage, how many are done, of how many, and words that say so."""

_QUIET_SECONDS = 2.0  # work that takes less is not worth a line
_TELL_SECONDS = 0.1
_BLOCK = 1 << 20  # samples whose image tokens are computed at a time, to bound what that takes


def measure(
    samples: SampleSet,
    chat: ChatFormat,
    vision: VisionConfig,
    cache: Cache | None = None,
    *,
    check_images: bool = True,
    progress: Progress | None = None,
) -> Lengths:
    """The lengths of all n samples: image tokens from the index, text tokens by counting.

    Reads every sample's JSON once, unless `cache` has their lengths, and no image. Joined sets are
    measured and kept one by one, so that adding one to a blend measures that one alone.

    Args:
        samples: a shard set, or joined ones.
        check_images: False: an image whose size the model refuses has no tokens and no patches,
            for a corpus of which only a part is used; see `check_image_sizes`.
        progress: called while texts are counted or waited for; None: once that takes more than
            2 seconds it is shown on standard error (`omr_io.terminal.Reporter`).

    Raises:
        ImageError: the model refuses an image's size; names the sample.
        DataError, IntegrityError: a text that cannot be encoded or read; names the sample.
    """
    if check_images:
        check_image_sizes(samples)
    cache = cache or Cache(None)
    parts: list[Lengths] = []
    for name, _, one in _sets(samples):
        image_tokens, patches = image_lengths(one, vision)
        with naming(name):
            text_tokens, label_tokens = _text_lengths(one, chat, cache, progress)
        parts.append(Lengths(text_tokens, image_tokens, label_tokens, patches))
    if len(parts) == 1:
        return parts[0]
    columns = [field.name for field in dataclasses.fields(Lengths)]
    joined = ([getattr(part, name) for part in parts] for name in columns)
    return Lengths(*(np.concatenate(column) for column in joined))


def check_image_sizes(samples: SampleSet, numbers: Int64Array | None = None) -> None:
    """Refuse images that no model takes, of the samples with these numbers; None: of all.

    Raises:
        ImageError: "image-too-narrow"; names the first sample, and how many have such images.
    """
    found = [np.empty(0, np.int64)]
    for _, first, one in _sets(samples):
        found += [first + rows for rows in _refused_rows(one)]
    refused = np.concatenate(found)
    if numbers is not None:
        refused = refused[np.isin(refused, numbers)]
    if not len(refused):
        return
    number = int(refused[0])
    try:
        image_grid_thw(samples.images(number), VisionConfig())
    except ImageError as error:
        more = f", as do {len(refused) - 1} more samples" if len(refused) > 1 else ""
        raise ImageError(
            f"{error.what}{more}",
            where=Where(shard=samples.shard(number), key=samples.key(number)),
            mend=error.mend,
            reason=error.reason,
        ) from None


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
    return made, Truncation(cut.astype(np.int64), tokens.astype(np.int64), lost.astype(np.int64))


def _sets(samples: SampleSet) -> Iterator[tuple[str | None, int, SampleSet]]:
    """Each set with its name and the number of its first sample; one alone has no name."""
    if not isinstance(samples, JoinedSets):
        yield None, 0, samples
        return
    for place, one in enumerate(samples.sets):
        yield samples.names[place], samples.firsts[place], one


def _blocks(samples: SampleSet) -> Iterator[tuple[slice, slice]]:
    """Runs of samples, and their images."""
    offsets = samples.image_offsets
    for begin in range(0, len(samples), _BLOCK):
        end = min(begin + _BLOCK, len(samples))
        yield slice(begin, end), slice(int(offsets[begin]), int(offsets[end]))


def _refused_rows(samples: SampleSet) -> Iterator[Int64Array]:
    """The samples, block by block, that have an image which is too narrow."""
    for rows, images in _blocks(samples):
        narrow_N = _too_narrow(samples.image_heights[images], samples.image_widths[images])
        offsets = samples.image_offsets[rows.start : rows.stop + 1]
        yield rows.start + np.flatnonzero(_sums(narrow_N.astype(np.int64), offsets))


def image_lengths(samples: SampleSet, vision: VisionConfig) -> tuple[Int32Array, Int32Array]:
    """(n,) image tokens and (n,) patches, by blocks of samples; 0 for sizes that are refused."""
    tokens, patches = (np.empty(len(samples), np.int32) for _ in range(2))
    for rows, images in _blocks(samples):
        heights_N, widths_N = oriented_sizes(
            samples.image_heights[images],
            samples.image_widths[images],
            samples.image_orientations[images],
            vision.exif,
        )
        taken_N = ~_too_narrow(heights_N, widths_N)
        grid_N3 = image_grid_thw_from_sizes(
            np.where(taken_N, heights_N, 1), np.where(taken_N, widths_N, 1), vision
        )
        offsets = samples.image_offsets[rows.start : rows.stop + 1]
        tokens_N = num_image_tokens(grid_N3, vision.merge_size) * taken_N
        tokens[rows] = _int32(_sums(tokens_N, offsets))
        patches[rows] = _int32(_sums(grid_N3.prod(axis=1) * taken_N, offsets))
    return tokens, patches


def _text_lengths(
    shard_set: SampleSet, chat: ChatFormat, cache: Cache, progress: Progress | None
) -> tuple[Int32Array, Int32Array]:
    """(n,) text tokens and (n,) label tokens, kept or counted."""
    key = fingerprint(
        LENGTHS_FORMAT, shard_set.fingerprint, chat.fingerprint, __version__, version("tokenizers")
    )
    count = len(shard_set)
    kept = _kept(cache, key, count)
    if kept is not None:
        return kept
    with ExitStack() as stack:
        shown = stack.enter_context(_Shown(progress, count))
        tell: list[Tell] = [shown.counting]
        if cache.folder is not None:
            lock = cache.folder / f".{key}.lock"
            tell.append(stack.enter_context(turn(lock, shown.waiting)))
            kept = _kept(cache, key, count)  # by the process that was waited for
            if kept is not None:
                return kept
        counted = chat.lengths(_records(shard_set, tell), np.diff(shard_set.image_offsets).tolist())
        table = np.stack([_int32(column) for column in counted])
        cache.store(key, table.astype("<i4", copy=False).tobytes())
    return table[0], table[1]


def _records(samples: SampleSet, tell: Sequence[Tell]) -> Iterator[Record]:
    """All records without their images; the storage and `tell` are told how far they are."""
    count = len(samples)
    due = time.monotonic() + _TELL_SECONDS
    for i in in_turn(samples, range(count), images=False):
        if i % 64 == 0 and time.monotonic() >= due:
            due = time.monotonic() + _TELL_SECONDS
            for one in tell:
                one(i)
        yield samples.read_record(i, images=False)


def _kept(cache: Cache, key: str, count: int) -> tuple[Int32Array, Int32Array] | None:
    """The columns that were kept; None, and the entry is gone, where there are no sound ones.

    They stay in their file, so the processes of a machine share them.
    """
    file = cache.path(key)
    if file is None:
        return None
    try:
        if file.stat().st_size == 8 * count + TRAILER_BYTES:
            shape = (2, count)
            table = np.memmap(file, "<i4", "r", shape=shape) if count else np.empty(shape, "<i4")
            text, labels = np.asarray(table).astype(np.int32, copy=False)
            if (labels >= 0).all() and (labels < text).all():
                return text, labels
    except OSError:
        return None  # another process removed it just now
    cache.discard(key)
    return None


def _int32(values: Int64Array) -> Int32Array:
    """The same numbers in half the memory.

    Raises:
        DataError: a sample has more than 2,147,483,647 tokens or patches.
    """
    if len(values) and values.max() > np.iinfo(np.int32).max:
        raise DataError(f"a sample has {values.max()} tokens or patches, more than can be planned")
    return values.astype(np.int32)


class _Shown:
    """Tells `progress`, or after some seconds the terminal, how far the work is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._quiet_until = time.monotonic() + _QUIET_SECONDS
        self._stack = ExitStack()

    def counting(self, done: int) -> None:
        """This process counts."""
        self._tell("counting tokens", done)

    def waiting(self, done: int) -> None:
        """Another process does, and is that far."""
        self._tell("waiting for another process that counts tokens", done)

    def _tell(self, stage: str, done: int) -> None:
        if self._progress is None:
            if time.monotonic() < self._quiet_until:
                return
            from omr_io.terminal import Reporter, standard_error

            self._progress = self._stack.enter_context(Reporter(standard_error())).update
        self._progress(stage, done, self._total, f"{done:,} of {self._total:,} texts")

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _too_narrow(heights_N: NDArray[Any], widths_N: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) sizes that `smart_resize` refuses."""
    longer = np.maximum(heights_N, widths_N).astype(np.int64)
    return np.asarray(longer > sizes.MAX_ASPECT * np.minimum(heights_N, widths_N).astype(np.int64))


def _sums(values_N: Int64Array, offsets: Int64Array) -> Int64Array:
    """(n,) int64: the sum of each sample's images; 0 for a sample without any.

    The values are those from offsets[0] to offsets[-1].
    """
    offsets = offsets - offsets[0]
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values_N)])
    return np.asarray(running[offsets[1:]] - running[offsets[:-1]], np.int64)
