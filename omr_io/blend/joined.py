"""Several shard sets as one sequence of samples.

Legend: n samples and N images of all sets together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from omr_io.config import fingerprint
from omr_io.errors import ConfigError, OmrError, Where
from omr_io.index import ShardSet
from omr_io.shards.layout import Part
from omr_io.storage import StorageStats
from omr_io.types import ImageInfo, Int32Array, Int64Array, Record, UInt8Array

Number = TypeVar("Number", bound=np.generic)


class JoinedSets:
    """Several shard sets as one: first the samples of the first, then those of the second, ....

    It has the surface of a `ShardSet` and gives what its sets give. Two things have the set's name
    before them, so that they are unique and lead to the set they came from: a shard,
    "NAME/train-000003.tar", and a key, "NAME/study-17"; a key by itself holds no slash, and the
    same key may be in several sets. So it is in batches, failures and errors.

    Thread-safe, fork-safe and picklable, as its sets are. The arrays of all sets are joined when
    they are first asked for; the sets' own stay in their memory-mapped files.

    Args:
        names: of the sets, one each, all different.
        sets: at least one; they stay open until `close`.

    Attributes:
        names, sets: as given.
        firsts: the number of each set's first sample, and n.
        fingerprint: 16 hex digits that stand for the content of all sets in their order; names are
            no part of it.

    Raises:
        ConfigError: names and sets do not match, or a name is empty or not unique.
    """

    def __init__(self, names: Sequence[str], sets: Sequence[ShardSet]) -> None:
        if not sets or len(names) != len(sets):
            raise ConfigError(f"{len(sets)} shard sets and {len(names)} names")
        if len(set(names)) != len(names) or not all(names):
            raise ConfigError(f"the names of shard sets must differ: {', '.join(map(repr, names))}")
        self.names = tuple(names)
        self.sets = tuple(sets)
        self.firsts = tuple(accumulate((len(one) for one in sets), initial=0))
        self.fingerprint = fingerprint("joined sets/1", [one.fingerprint for one in sets])

    def __len__(self) -> int:
        return self.firsts[-1]

    def locate(self, i: int) -> tuple[ShardSet, int]:
        """The shard set that holds sample i, and its number there."""
        place = self._place(i)
        return self.sets[place], i - self.firsts[place]

    def _place(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return bisect_right(self.firsts, i) - 1

    # What an index says of one sample

    def key(self, i: int) -> str:
        """The key of sample i, after its set's name: "NAME/KEY"."""
        place = self._place(i)
        return f"{self.names[place]}/{self.sets[place].key(i - self.firsts[place])}"

    def shard(self, i: int) -> str:
        """The file name of the shard that holds sample i, after its set's name."""
        place = self._place(i)
        return f"{self.names[place]}/{self.sets[place].shard(i - self.firsts[place])}"

    def answer(self, i: int) -> str:
        """The letter of the right option of sample i, "" if it has no options."""
        one, row = self.locate(i)
        return one.answer(row)

    def parts(self, i: int) -> tuple[Part, ...]:
        """The parts of sample i: its images in order, then its texts."""
        one, row = self.locate(i)
        return one.parts(row)

    def images(self, i: int) -> tuple[ImageInfo, ...]:
        """What the headers of sample i's images say."""
        one, row = self.locate(i)
        return one.images(row)

    def num_images(self, i: int) -> int:
        """How many images sample i has."""
        one, row = self.locate(i)
        return one.num_images(row)

    # What the indexes say of all samples

    @cached_property
    def shard_names(self) -> tuple[str, ...]:
        """Of all shards in order, each after its set's name."""
        named = zip(self.names, self.sets, strict=True)
        return tuple(f"{name}/{shard}" for name, one in named for shard in one.shard_names)

    @cached_property
    def sample_shards(self) -> Int32Array:
        """(n,) int32, each sample's place in `shard_names`; never decreasing."""
        begins = accumulate((len(one.shard_names) for one in self.sets), initial=0)
        pairs = zip(self.sets, begins, strict=False)
        return _join([one.sample_shards + np.int32(begin) for one, begin in pairs])

    @cached_property
    def question_bytes(self) -> Int32Array:
        """(n,) int32 bytes of UTF-8."""
        return _join([one.question_bytes for one in self.sets])

    @cached_property
    def reasoning_bytes(self) -> Int32Array:
        """(n,) int32 bytes of UTF-8."""
        return _join([one.reasoning_bytes for one in self.sets])

    @cached_property
    def num_options(self) -> Int32Array:
        """(n,) int32; 0 for an open-ended question."""
        return _join([one.num_options for one in self.sets])

    @cached_property
    def image_offsets(self) -> Int64Array:
        """(n+1,) int64; sample i's images are image_offsets[i]:image_offsets[i+1] of all N."""
        begins = accumulate((len(one.image_widths) for one in self.sets), initial=0)
        pairs = zip(self.sets, begins, strict=False)
        offsets = [one.image_offsets[:-1] + np.int64(begin) for one, begin in pairs]
        end = sum(len(one.image_widths) for one in self.sets)
        return _join([*offsets, np.array([end], np.int64)])

    @cached_property
    def image_widths(self) -> Int32Array:
        """(N,) int32 pixels as stored."""
        return _join([one.image_widths for one in self.sets])

    @cached_property
    def image_heights(self) -> Int32Array:
        """(N,) int32 pixels as stored."""
        return _join([one.image_heights for one in self.sets])

    @cached_property
    def image_orientations(self) -> Int32Array:
        """(N,) int32, EXIF 1 to 8."""
        return _join([one.image_orientations for one in self.sets])

    @cached_property
    def image_hashes(self) -> UInt8Array:
        """(N, 16) uint8, the XXH3-128 of the encoded image."""
        return _join([one.image_hashes for one in self.sets])

    def answers(self) -> list[str]:
        """The letters of the right options of all n samples, "" for those without options."""
        return [letter for one in self.sets for letter in one.answers()]

    def image_formats(self) -> list[str]:
        """The formats of all N images, "jpeg", "png", ...."""
        return [name for one in self.sets for name in one.image_formats()]

    def image_sizes(self) -> Int64Array:
        """(N,) int64 sizes in bytes of all images as encoded."""
        return _join([one.image_sizes() for one in self.sets])

    # Reading

    def read_record(self, i: int, images: bool = True) -> Record:
        """Read sample i back as the record that it was; see `ShardSet.read_record`.

        Raises:
            IntegrityError: with set, shard, key and part, if a byte is not what was written.
        """
        place = self._place(i)
        with naming(self.names[place]):
            return self.sets[place].read_record(i - self.firsts[place], images=images)

    def read_images(self, i: int) -> tuple[bytes, ...]:
        """The encoded images of sample i, in order; errors as in `read_record`."""
        place = self._place(i)
        with naming(self.names[place]):
            return self.sets[place].read_images(i - self.firsts[place])

    def will_read(self, numbers: Sequence[int], images: bool = True) -> None:
        """The parts of these samples will be read soon; each set is told of its own, in order."""
        told: dict[int, list[int]] = {}
        for i in numbers:
            place = self._place(i)
            told.setdefault(place, []).append(i - self.firsts[place])
        for place, rows in told.items():
            with naming(self.names[place]):
                self.sets[place].will_read(rows, images=images)

    def storage_stats(self) -> StorageStats:
        """What the storages of all sets did so far in this process, added up.

        `cache_bytes` is the largest of them: a cache that several sets share counts once.
        """
        all_stats = [one.storage_stats() for one in self.sets]
        names = ("fetched_bytes", "requests", "retries", "cache_hits", "cache_misses")
        sums = {name: sum(getattr(stats, name) for stats in all_stats) for name in names}
        return StorageStats(**sums, cache_bytes=max(stats.cache_bytes for stats in all_stats))

    def close(self) -> None:
        """Close the descriptors of all sets; reading again opens them anew."""
        for one in self.sets:
            one.close()

    def __enter__(self) -> JoinedSets:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedSets, (self.names, self.sets)


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Put a set's name before the shard and the key that an error of the block names.

    Nothing is done where there is no name.
    """
    try:
        yield
    except OmrError as error:
        if name is None:
            raise
        raise _named(error, name) from error


def _named(error: OmrError, name: str) -> OmrError:
    where = error.where or Where()
    if where.shard is None and where.key is None:
        where = replace(where, source=name if where.source is None else f"{name}: {where.source}")
    else:
        shard, key = (value and f"{name}/{value}" for value in (where.shard, where.key))
        where = replace(where, shard=shard, key=key)
    named = type(error)(error.what, where=where, mend=error.mend)
    known = {"what", "where", "mend"}
    named.__dict__.update({k: v for k, v in error.__dict__.items() if k not in known})
    return named


def _join(arrays: Sequence[NDArray[Number]]) -> NDArray[Number]:
    joined = np.concatenate(arrays)
    joined.flags.writeable = False  # as those of a set, which lie in a mapped file
    return joined
