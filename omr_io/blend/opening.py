"""A blend with its shard sets open: filters are run, and epochs can be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np

from omr_io.blend.columns import IndexColumns
from omr_io.blend.drawing import Drawing, Stratum
from omr_io.blend.joined import JoinedSets
from omr_io.blend.letters import letter_groups, steps_of_share
from omr_io.blend.sources import Blend, Source, as_fraction, shares
from omr_io.errors import ConfigError, DataError
from omr_io.index import ShardSet
from omr_io.packing import Lengths
from omr_io.remote_storage import RemoteOptions
from omr_io.sample_set import SampleSet
from omr_io.types import Int64Array


def open_blend(blend: Blend, remote: RemoteOptions | None = None) -> OpenBlend:
    """Open the shard sets of a blend, each once.

    Args:
        remote: for those behind URLs.

    Raises:
        ConfigError: the sources' names do not tell them apart.
        SourceError, IntegrityError: a shard set cannot be opened.
    """
    names = source_names(blend.sources)
    opened: dict[str, ShardSet] = {}
    owned: list[ShardSet] = []
    distinct: list[ShardSet] = []
    places: list[int] = []
    try:
        for source in blend.sources:
            shard_set = source.shards
            if not isinstance(shard_set, ShardSet):
                path = _absolute(shard_set)
                if path not in opened:
                    opened[path] = ShardSet.open(shard_set, remote)
                    owned.append(opened[path])
                shard_set = opened[path]
            known = [one.fingerprint for one in distinct]
            if shard_set.fingerprint not in known:
                distinct.append(shard_set)
                known.append(shard_set.fingerprint)
            places.append(known.index(shard_set.fingerprint))
    except BaseException:
        for shard_set in owned:
            shard_set.close()
        raise
    return OpenBlend(blend, names, distinct, places, owned)


class OpenBlend:
    """A blend with its shard sets open.

    Args:
        blend: what is opened.
        names: of its sources.
        sets: the distinct shard sets.
        places: of each source's set in `sets`.
        owned: the sets that `close` closes.

    Attributes:
        blend, names: as given.
        samples: what the loader reads: the only set as it is, or `JoinedSets` of all distinct ones
            in the order in which the sources name them. A set that several sources name is called
            by all their names, joined by "+".
    """

    def __init__(
        self,
        blend: Blend,
        names: Sequence[str],
        sets: Sequence[ShardSet],
        places: Sequence[int],
        owned: Sequence[ShardSet],
    ) -> None:
        self.blend = blend
        self.names = tuple(names)
        self._sets, self._places, self._owned = tuple(sets), tuple(places), tuple(owned)
        set_names = [
            "+".join(name for name, at in zip(names, places, strict=True) if at == place)
            for place in range(len(sets))
        ]
        self.samples: SampleSet = sets[0] if len(sets) == 1 else JoinedSets(set_names, sets)

    def drawing(self, lengths: Lengths | None = None) -> Drawing:
        """Run the filters, once, and say what an epoch holds.

        Args:
            lengths: of all of `samples`, for filters that look at tokens; None where none does.

        Raises:
            ConfigError: a filter fails, gives no (n,) bool, or gives another answer when it is
                asked again; a weight is too small for a sample.
            DataError: a filter takes no sample, or letters cannot be balanced.
        """
        firsts = np.cumsum([0, *(len(one) for one in self._sets)]).tolist()
        if lengths is not None and len(lengths) != firsts[-1]:
            raise ConfigError(f"lengths of {len(lengths)} samples for a blend of {firsts[-1]}")
        totals = self._totals()
        strata: list[Stratum] = []
        for place, source in enumerate(self.blend.sources):
            at = self._places[place]
            first, end = firsts[at], firsts[at + 1]
            of_set = None if lengths is None else _rows(lengths, first, end)
            columns = IndexColumns(self.names[place], self._sets[at], of_set)
            numbers = _selected(source, columns)
            strata += _strata(place, source, columns, numbers, first, totals[place])
        return Drawing(strata, self.names, firsts[-1])

    def _totals(self) -> list[int | None]:
        """Samples of an epoch by source, where they are shares of one."""
        total = self.blend.samples_per_epoch
        if total is None:
            return [None] * len(self.blend.sources)
        weights = [as_fraction("weight", s.weight) for s in self.blend.sources if s.weight]
        counts = shares(weights, total)
        if 0 in counts:
            name = self.names[counts.index(0)]
            raise ConfigError(
                f"source {name}: its weight is too small for one of {total} samples of an epoch",
                mend="Raise its weight or samples_per_epoch, or leave the source out",
            )
        return list(counts)

    def close(self) -> None:
        """Close the sets that `open_blend` opened; those that the caller gave stay open."""
        for one in self._owned:
            one.close()

    def __enter__(self) -> OpenBlend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source: its own, or the last parts of its path that no other path ends in.

    Raises:
        ConfigError: two sources would have one name, or an open set has none.
    """
    paths = [
        None if source.name or isinstance(source.shards, ShardSet) else _parts(source.shards)
        for source in sources
    ]
    names = []
    for place, source in enumerate(sources):
        path = paths[place]
        if source.name is not None:
            names.append(source.name)
        elif path is None:
            names.append(f"set-{place}")
        else:
            others = [p for p in paths if p is not None and p != path]
            length = 1
            while length < len(path) and any(p[-length:] == path[-length:] for p in others):
                length += 1
            names.append("/".join(path[-length:]))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"several sources have the name {', '.join(twice)}",
            mend='Give them names: Source(..., name="hard questions")',
        )
    return names


def _parts(path: str | Path) -> tuple[str, ...]:
    """The folders of a path, or a URL's host and folders: a user or a query may be secret."""
    text = _absolute(path)
    if "://" in text:
        url = urlsplit(text)
        text = f"{url.netloc.rpartition('@')[2]}/{url.path}"
    return tuple(part for part in PurePosixPath(text).parts if part != "/")


def _absolute(path: str | Path) -> str:
    text = str(path)
    return text.rstrip("/") if "://" in text else str(Path(text).absolute())


def _selected(source: Source, columns: IndexColumns) -> Int64Array:
    """(m,) int64, the numbers in its set of the samples that the source takes."""
    if not len(columns):
        raise DataError(f"source {columns.source}: the shard set has no sample")
    if source.where is None:
        return np.arange(len(columns))
    mask = _mask(source, columns)
    if not np.array_equal(mask, _mask(source, columns)):
        raise ConfigError(
            f"source {columns.source}: `where` gives another answer when it is asked again",
            mend="Every rank runs it, and all must agree: fix the seed of its random numbers",
        )
    if not mask.any():
        raise DataError(
            f"source {columns.source}: `where` takes none of {len(columns)} samples",
            mend="Check the filter, or leave the source out",
        )
    return np.flatnonzero(mask)


def _mask(source: Source, columns: IndexColumns) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    assert source.where is not None
    expected = f"source {columns.source}: `where` must give an array of bool and shape "
    expected += f"({len(columns)},)"
    mend = "It gets IndexColumns, arrays of all samples: combine them with ==, <, &, | and ~, "
    mend += "each comparison in parentheses"
    try:
        mask = source.where(columns)
    except Exception as error:
        if isinstance(error, ConfigError):  # of IndexColumns, which says how to mend it
            raise ConfigError(
                f"source {columns.source}: `where` fails: {error.what}", mend=error.mend
            ) from error
        what = f"source {columns.source}: `where` fails: {type(error).__name__}: {error}"
        raise ConfigError(what, mend=mend) from error
    if not isinstance(mask, np.ndarray):
        raise ConfigError(f"{expected}, not {type(mask).__name__}", mend=mend)
    if mask.dtype != np.bool_ or mask.shape != (len(columns),):
        raise ConfigError(f"{expected}, not {mask.dtype} and {mask.shape}", mend=mend)
    return mask


def _strata(
    place: int,
    source: Source,
    columns: IndexColumns,
    numbers: Int64Array,
    first: int,
    total: int | None,
) -> list[Stratum]:
    """What a source gives to an epoch; `first` is its set's first number among all samples."""
    repeat = as_fraction("repeat", source.repeat)
    if source.balance_answers is None:
        step = repeat * len(numbers) if total is None else Fraction(total)
        return [Stratum(place, "", numbers + first, step)]
    how = source.balance_answers
    groups = letter_groups(columns.num_options[numbers], columns.answers[numbers], columns.source)
    if total is None:
        steps = [repeat * group.target(how) for group in groups]
    else:
        steps = steps_of_share(groups, how, total)
    return [
        Stratum(place, name, numbers[of_letter] + first, step)
        for group, step in zip(groups, steps, strict=True)
        for name, of_letter in zip(group.names(), group.numbers, strict=True)
    ]


def _rows(lengths: Lengths, begin: int, end: int) -> Lengths:
    names = (field.name for field in dataclasses.fields(lengths))
    return Lengths(**{name: getattr(lengths, name)[begin:end] for name in names})
