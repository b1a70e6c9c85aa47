"""Which samples a gallery shows: filters over the index (and the texts), then a seeded draw."""

from __future__ import annotations

import difflib
import fnmatch
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.sample_set import in_turn
from omr_io.types import Record

Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]

FILTERS = {
    "options": "number of options; 0 is an open-ended question",
    "answer": "letter of the right option",
    "images": "number of images",
    "format": "format of any image: jpeg, jpeg-progressive, png, ...",
    "turned": "yes or no: an EXIF orientation other than 1",
    "shard": "a shard's file name; * and ? stand for any text",
    "key": "the key; * and ? stand for any text",
    "rubric": "yes or no: has rubric units (reads the texts)",
    "text": "text in the id, question, options or reasoning (reads the texts)",
}
"""Names of filters and what their values are. All but `text` take several, with commas."""

_OF_TEXTS = ("rubric", "text")


@dataclass(frozen=True, slots=True)
class Choice:
    """The samples to show.

    Attributes:
        samples: their numbers in the set, rising.
        matching: how many samples the filters left to draw from.
    """

    samples: tuple[int, ...]
    matching: int


def choose(
    shards: ShardSet,
    *,
    limit: int,
    seed: int = 0,
    filters: Sequence[str] = (),
    progress: Progress | None = None,
) -> Choice:
    """Draw at most `limit` samples of those that pass every filter.

    Args:
        shards: an open set.
        limit: at least 1.
        seed: the draw is a pure function of it, the filters and the set.
        filters: "NAME=VALUE" with a name of `FILTERS`.
        progress: called with samples read and to read while a filter reads texts.

    Raises:
        ConfigError: an unknown filter, a value that it does not take, or nothing passes.
        IntegrityError: a text that a filter reads is not what was written.
    """
    if limit < 1:
        raise ConfigError(f"cannot show {limit} samples", mend="Use a limit of 1 or more")
    parsed = [_parse(text) for text in filters]
    mask = np.ones(len(shards), np.bool_)
    for name, value in parsed:
        if name not in _OF_TEXTS:
            mask &= _INDEX_FILTERS[name](shards, value)
    matching = np.flatnonzero(mask).tolist()
    of_texts = [_text_filter(name, value) for name, value in parsed if name in _OF_TEXTS]
    if of_texts:
        matching = _passing(shards, matching, of_texts, progress)
    if not matching:
        if not filters:
            raise ConfigError("the set holds no sample")
        raise ConfigError(
            f"no sample of {len(shards)} passes {', '.join(map(repr, filters))}",
            mend="Loosen a filter; `omr-io info` shows what there is",
        )
    drawn = random.Random(seed).sample(matching, min(limit, len(matching)))  # noqa: S311
    return Choice(tuple(sorted(drawn)), len(matching))


def _parse(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not value or name not in FILTERS:
        near = difflib.get_close_matches(name, FILTERS, 1)
        hint = f"; do you mean {near[0]!r}?" if near and near[0] != name else ""
        raise ConfigError(
            f"{text!r} is no filter{hint}",
            mend=f"Use NAME=VALUE with a name of: {', '.join(FILTERS)}",
        )
    return name, value


def _numbers(name: str, value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise ConfigError(
            f"the filter {name} needs numbers, not {value!r}", mend=f"For example {name}=2"
        ) from None


def _yes(name: str, value: str) -> bool:
    if value not in ("yes", "no"):
        raise ConfigError(f"the filter {name} is yes or no, not {value!r}")
    return value == "yes"


def _options(shards: ShardSet, value: str) -> Mask:
    return np.isin(shards.num_options, _numbers("options", value))


def _images(shards: ShardSet, value: str) -> Mask:
    return np.isin(np.diff(shards.image_offsets), _numbers("images", value))


def _answer(shards: ShardSet, value: str) -> Mask:
    return np.isin(np.array(shards.answers(), np.str_), value.split(","))


def _format(shards: ShardSet, value: str) -> Mask:
    return _of_any_image(
        shards, np.isin(np.array(shards.image_formats(), np.str_), value.split(","))
    )


def _turned(shards: ShardSet, value: str) -> Mask:
    turned = _of_any_image(shards, shards.image_orientations != 1)
    return turned if _yes("turned", value) else ~turned


def _of_any_image(shards: ShardSet, of_image: Mask) -> Mask:
    before = np.concatenate(([0], np.cumsum(of_image)))
    return np.asarray(np.diff(before[shards.image_offsets]) > 0)


def _shard(shards: ShardSet, value: str) -> Mask:
    wanted = _matcher(value)
    numbers = [i for i, name in enumerate(shards.shard_names) if wanted(name)]
    return np.isin(shards.sample_shards, numbers)


def _key(shards: ShardSet, value: str) -> Mask:
    wanted = _matcher(value)
    return np.fromiter((wanted(shards.key(i)) for i in range(len(shards))), np.bool_, len(shards))


def _matcher(value: str) -> Callable[[str], Any]:
    return re.compile("|".join(fnmatch.translate(part) for part in value.split(","))).match


_INDEX_FILTERS: dict[str, Callable[[ShardSet, str], Mask]] = {
    "options": _options,
    "answer": _answer,
    "images": _images,
    "format": _format,
    "turned": _turned,
    "shard": _shard,
    "key": _key,
}


def _text_filter(name: str, value: str) -> Callable[[Record], bool]:
    if name == "rubric":
        wanted = _yes(name, value)
        return lambda record: bool(record.rubric) == wanted
    words = value.casefold()
    return lambda record: any(words in text.casefold() for text in _texts(record))


def _texts(record: Record) -> tuple[str, ...]:
    options = (option.text for option in record.options)
    return (record.id, record.question, record.reasoning, *options)


def _passing(
    shards: ShardSet,
    samples: Sequence[int],
    filters: Sequence[Callable[[Record], bool]],
    progress: Progress | None,
) -> list[int]:
    passing = []
    for done, i in enumerate(in_turn(shards, samples, images=False)):
        record = shards.read_record(i, images=False)
        if all(passes(record) for passes in filters):
            passing.append(i)
        if progress is not None:
            progress(done + 1, len(samples))
    return passing
