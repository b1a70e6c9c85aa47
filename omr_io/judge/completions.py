"""The completions that `omr-io eval` wrote, held against the shard set that they answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omr_io.errors import ConfigError, DataError, SourceError, Where
from omr_io.index import ShardSet
from omr_io.text import short
from omr_io.train.clusters import image_clusters
from omr_io.train.completions_digest import completions_digest

PLAIN = "plain"
"""The variant that is judged; the others (blind, options shuffled, ...) are baselines."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: of which sample, in which run, and its text."""

    key: str
    run: int | str
    text: str
    number: int
    """Of its sample in the shard set."""
    cluster: str
    """What is not independent shares it."""


@dataclass(frozen=True, slots=True)
class Completions:
    """What is judged of a file.

    Attributes:
        path: the file.
        model, set_name: as its lines say.
        items: the completions, in the file's order.
        left_out: lines of other variants.
    """

    path: Path
    model: str
    set_name: str
    items: tuple[Completion, ...]
    left_out: int

    @property
    def digest(self) -> str:
        """See `completions_digest`."""
        return completions_digest((item.key, item.run, item.text) for item in self.items)


def read_completions(
    path: Path,
    shards: ShardSet,
    *,
    model: str | None = None,
    set_name: str | None = None,
    cluster: str | None = None,
) -> Completions:
    """Read a file of completions and find each one's sample.

    A line is a JSON object with key, set, model, run, variant, completion and answer; the first
    may be a header (`"header": true`), which is passed over.

    Args:
        path: JSON lines.
        shards: the set that was answered.
        model, set_name: which lines to take of a file that holds several models or sets.
        cluster: the column (of `Record.extra`) whose equal values are no independent items, the
            study for one. None: samples that share an image, also through others.

    Raises:
        SourceError: the file cannot be read.
        DataError: a line is not of this form; a completion comes twice; a key is not in the set,
            or its answer there is another.
        ConfigError: several models or sets and no choice among them; nothing to judge; a record
            without the column.
    """
    rows = list(_rows(path))
    taken = [row for row in rows if row["variant"] == PLAIN]
    found_model, taken = _only(path, taken, "model", model)
    found_set, taken = _only(path, taken, "set", set_name)
    left_out = sum(row["variant"] != PLAIN for row in rows)
    numbers = {shards.key(i): i for i in range(len(shards))}
    seen: set[tuple[str, int | str]] = set()
    found: list[int] = []
    for row in taken:
        where = Where(source=str(path), row=row["line"])
        if (row["key"], row["run"]) in seen:
            raise DataError(f"run {row['run']} of key {row['key']} comes twice", where=where)
        seen.add((row["key"], row["run"]))
        found.append(_number(row, shards, numbers, where))
    clusters = (
        image_clusters(shards, found)
        if cluster is None
        else [_value(shards, number, cluster) for number in found]
    )
    items = tuple(
        Completion(row["key"], row["run"], row["completion"], number, label)
        for row, number, label in zip(taken, found, clusters, strict=True)
    )
    return Completions(path, found_model, found_set, items, left_out)


def _number(
    row: Mapping[str, Any], shards: ShardSet, numbers: Mapping[str, int], where: Where
) -> int:
    """Of the sample that a line is about."""
    mend, key = "Give the set that was evaluated", row["key"]
    number = numbers.get(key)
    if number is None:
        raise DataError(f"the shard set has no key {short(key)}", where=where, mend=mend)
    right = shards.answer(number)
    if row["answer"] is not None and row["answer"] != right:
        raise DataError(
            f"the right answer to key {key} is {short(row['answer'])} here and {short(right)} in "
            "the shard set",
            where=where,
            mend=mend,
        )
    return number


def image_hashes(shards: ShardSet, number: int) -> tuple[str, ...]:
    """XXH3-128 of a sample's encoded images, in hex, in order."""
    begin, end = shards.image_offsets[number : number + 2].tolist()
    return tuple(shards.image_hashes[place].tobytes().hex() for place in range(begin, end))


def _value(shards: ShardSet, number: int, column: str) -> str:
    extra = shards.read_record(number, images=False).extra
    if column not in extra:
        raise ConfigError(
            f"the record has no column {column!r}",
            where=Where(key=shards.key(number)),
            mend=f"It has {', '.join(sorted(extra)) or 'none'}",
        )
    return str(extra[column])


def file_name(text: str) -> str:
    """A model's or set's name as part of a file's name; a changed one ends in 6 digits of its hash.

    So two models whose names differ in a slash have two files.
    """
    plain = re.sub(r"[^A-Za-z0-9._+=@-]+", "-", text).strip("-.")[-80:]
    if plain == text:
        return plain
    return f"{plain or 'model'}~{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


_FIELDS: dict[str, tuple[type | tuple[type, ...], object]] = {
    # name: its types, and what counts where it is absent (... : it must be there)
    "key": (str, ...),
    "completion": (str, ...),
    "model": (str, ...),
    "set": (str, ""),
    "run": ((int, str), 0),
    "variant": (str, PLAIN),
    "answer": ((str, type(None)), None),
}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                row = _row(line, Where(source=str(path), row=number))
                if not row.get("header"):
                    yield {**row, "line": number}
    except UnicodeDecodeError:
        raise DataError("the file is not UTF-8", where=Where(source=str(path))) from None
    except OSError as error:
        what = f"the completions cannot be read: {error.strerror or error}"
        raise SourceError(what, where=Where(source=str(path))) from None


def _row(line: str, where: Where) -> dict[str, Any]:
    mend = "Give a file of completions that `omr-io eval` wrote"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        torn = not line.endswith("\n")
        raise DataError(
            "the line is not JSON",
            where=where,
            mend="It ends in the middle: let `omr-io eval` go on to its end" if torn else mend,
        ) from None
    if not isinstance(found, dict):
        raise DataError("the line is no JSON object", where=where, mend=mend)
    if found.get("header") is True:
        return {"header": True}
    row = {}
    for name, (types, default) in _FIELDS.items():
        value = found.get(name, default)
        if value is ...:
            raise DataError(f"the line has no field {name!r}", where=where, mend=mend)
        if not isinstance(value, types) or isinstance(value, bool):
            raise DataError(f"{name!r} is {short(repr(value))}", where=where, mend=mend)
        row[name] = value
    return row


def _only(
    path: Path, rows: Sequence[dict[str, Any]], field: str, chosen: str | None
) -> tuple[str, list[dict[str, Any]]]:
    """The rows of one model, or set, and its name."""
    names = sorted({row[field] for row in rows})
    where = Where(source=str(path))
    if not names:
        what = f"there is no completion of variant {PLAIN!r} to judge"
        raise ConfigError(what, where=where, mend="Give a file that `omr-io eval` wrote")
    if chosen is None and len(names) > 1:
        raise ConfigError(
            f"the file holds completions of several {field}s: {', '.join(map(short, names[:5]))}",
            where=where,
            mend="Choose one: --model (prefer: --model-a, --model-b)"
            if field == "model"
            else "Choose one: --set-name",
        )
    name = names[0] if chosen is None else chosen
    if name not in names:
        what = f"the file has no completion of {field} {short(name)}, but {short(names[0])}"
        raise ConfigError(what, where=where)
    return name, [row for row in rows if row[field] == name]
