"""The items of a shard set that are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omr_io.errors import ConfigError, DataError, Where
from omr_io.sample_set import SampleSet
from omr_io.text import printable
from omr_io.train.clusters import image_clusters
from omr_io.train.evaluation.options import EvaluationOptions, Named, Variant
from omr_io.train.evaluation.shuffle import Shuffled, permutation, shuffle_options
from omr_io.types import Record


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to be answered.

    Attributes:
        number: its number in the shard set.
        key: the sample's key.
        record: its texts; images are left unread.
        cluster: items that are not independent share it.
        shuffled: its options in another order; None if that cannot be, or was not asked for.
        refused: why it cannot be; "" otherwise.
    """

    number: int
    key: str
    record: Record
    cluster: str
    shuffled: Shuffled | None = None
    refused: str = ""

    def shown(self, variant: Variant) -> Shuffled | None:
        """What a model is asked in a variant; None: this item has no such variant."""
        if variant == "shuffled":
            return self.shuffled
        return Shuffled(self.record, "".join(option.letter for option in self.record.options))


@dataclass(frozen=True, slots=True)
class ItemSet:
    """What is evaluated of one shard set.

    Attributes:
        name, path: as given.
        shards: the set, opened.
        items: by number, rising.
        open_ended: keys of samples that have no options and were left out.
    """

    name: str
    path: str
    shards: SampleSet
    items: tuple[Item, ...]
    open_ended: tuple[str, ...]

    @property
    def not_shuffled(self) -> dict[str, str]:
        """Why, by key, of items whose options cannot be put in another order."""
        return {item.key: item.refused for item in self.items if item.refused}


def read_items(of: Named, shards: SampleSet, options: EvaluationOptions) -> ItemSet:
    """Read the texts of a set's items, put their options in another order, find their clusters.

    Raises:
        ConfigError: an item has no options and `skip_open_ended` is off; nothing is left; or a
            record lacks `cluster_field`.
        DataError: an item's answer is no letter of its options.
        IntegrityError: as `ShardSet.read_record`.
    """
    everything = np.arange(len(shards))
    open_ended: tuple[str, ...] = ()
    if options.skip_open_ended:
        without = shards.num_options == 0
        open_ended = tuple(shards.key(int(i)) for i in everything[without])
        everything = everything[~without]
    elif (shards.num_options == 0).any():
        without = np.flatnonzero(shards.num_options == 0)
        raise ConfigError(
            f"{len(without)} of {len(shards)} samples of {of.name} have no options to choose from, "
            f"the first is {shards.key(int(without[0]))}",
            mend="Leave open-ended samples out with --skip-open-ended; they are counted",
        )
    numbers = everything[: options.limit].tolist()
    if not numbers:
        left_out = f": its {len(open_ended)} samples are open-ended" if open_ended else ""
        raise ConfigError(
            f"the set {of.name} ({of.path}) has nothing to evaluate{left_out}",
            mend="Give a set with questions that have options",
        )
    shards.will_read(numbers, images=False)
    records = [shards.read_record(number, images=False) for number in numbers]
    _check_answers(of, shards, numbers, records)
    if options.cluster_field is None:
        clusters = image_clusters(shards, numbers)
    else:
        clusters = [_named_cluster(record, options.cluster_field) for record in records]
    wanted = "shuffled" in options.variants
    items = [
        _item(number, shards.key(number), record, cluster, options.seed if wanted else None)
        for number, record, cluster in zip(numbers, records, clusters, strict=True)
    ]
    return ItemSet(of.name, of.path, shards, tuple(items), open_ended)


def _check_answers(
    of: Named, shards: SampleSet, numbers: Sequence[int], records: Sequence[Record]
) -> None:
    """Refuse items that no completion could be right on."""
    wrong = [
        place
        for place, record in enumerate(records)
        if record.answer not in [option.letter for option in record.options]
    ]
    if wrong:
        letters = ", ".join(option.letter for option in records[wrong[0]].options)
        raise DataError(
            f"the answer of {len(wrong)} of {len(records)} samples of {of.name} is none of their "
            f"options; the first is {printable(records[wrong[0]].answer)!r} of {letters}",
            where=Where(key=shards.key(numbers[wrong[0]])),
            mend="Convert the set again from a source that has the letter of the right option",
        )


def _item(number: int, key: str, record: Record, cluster: str, seed: int | None) -> Item:
    if seed is None:
        return Item(number, key, record, cluster)
    try:
        order = permutation(seed, key, len(record.options))
        return Item(number, key, record, cluster, shuffle_options(record, order))
    except DataError as error:
        return Item(number, key, record, cluster, None, error.what)


def _named_cluster(record: Record, name: str) -> str:
    if name not in record.extra:
        raise ConfigError(
            f"the record has no field {name!r}",
            where=Where(source=record.source or None, key=record.id),
            mend=f"Fields of this one: {', '.join(sorted(record.extra)) or 'none'}",
        )
    return f"{name}:{record.extra[name]}"
