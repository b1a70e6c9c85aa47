"""Which schema a source has: told by its columns, forced by name, or a line to map it by hand."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from omr_io.corpus.raw import ColumnType
from omr_io.corpus.schemas.kinds import accepts, wanted
from omr_io.corpus.schemas.row import Found, Need, Schema, Table, find
from omr_io.errors import ConfigError, SourceError, Where
from omr_io.types import AXES

# What columns of these meanings are called in the corpora we know; the first fits best.
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "problem", "query", "prompt", "instruction", "text", "input"),
    "answer": ("answer", "answer_label", "label", "solution", "gt", "ground_truth", "output"),
    "image": ("image", "images", "img", "picture", "figure", "image_path", "img_name", "file_name"),
    "reasoning": ("reasoning", "reasoning_trace", "trace", "cot", "thinking", "rationale"),
    "options": ("options", "choices", "candidates"),
}
_GUESS_KINDS = {"image": "picture", "options": "choices", "answer": "answer"}
_NEAR = 0.6
_HALF = 0.5


class Fit(NamedTuple):
    """How well a table fits a schema: `lacks` says what is wrong, share is 1.0 if nothing is."""

    schema: Schema
    found: Found
    missing: tuple[str, ...]
    lacks: tuple[str, ...]
    share: float


def recognise(schemas: Sequence[Schema], table: Table, source: str) -> tuple[Schema, Found]:
    """The one schema that a table fits.

    Raises:
        SourceError: none does, or several do; it says what to try.
    """
    fits = [fit(schema, table) for schema in schemas]
    whole = [item for item in fits if not item.lacks]
    if len(whole) == 1:
        return whole[0].schema, whole[0].found
    where = Where(source=source)
    if whole:
        names = ", ".join(item.schema.name for item in whole)
        mend = f"Say which, such as --schema {whole[0].schema.name}"
        raise SourceError(f"the columns fit several schemas: {names}", where=where, mend=mend)
    best = max(fits, key=lambda item: item.share)  # the first of the best
    if best.share < _HALF:  # so little says nothing; then it is measured by the first
        best = fits[0]
    what = f"no known schema has these columns; nearest is {best.schema.name}: {_say(best, table)}"
    raise SourceError(what, where=where, mend=_mend(best, table))


def force(schema: Schema, table: Table, source: str) -> tuple[Schema, Found]:
    """A schema given by name: its columns must be there, whatever the rows look like.

    Raises:
        SourceError: a column is missing, or has a type that cannot be read.
    """
    it = fit(schema, table, judge_rows=False)
    if it.lacks:
        what = f"this is not of the schema {schema.name}: {_say(it, table)}"
        raise SourceError(what, where=Where(source=source), mend=_mend(it, table))
    return schema, it.found


def named(schemas: Sequence[Schema], name: str) -> Schema:
    """The schema of this name, or alias.

    Raises:
        ConfigError: there is none.
    """
    names = {alias: item for item in schemas for alias in (item.name, *item.aliases)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
    known = ", ".join((*(item.name for item in schemas), "mapped"))
    mend = f"Did you mean {near[0]}? Known: {known}" if near else f"Known are: {known}"
    raise ConfigError(f"there is no schema {name!r}", mend=mend)


def fit(schema: Schema, table: Table, *, judge_rows: bool = True) -> Fit:
    """Compare a table with a schema."""
    found = find(schema, table)
    needs = _required(schema, table)
    missing = tuple((*need.names, need.role)[0] for need in needs if need.role not in found)
    lacks = []
    if missing:
        lacks.append(f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    wrong = {need.role: text for need in schema.needs if (text := _wrong(need, found, table))}
    lacks += wrong.values()
    if not lacks and judge_rows:
        against = schema.against(table, found)
        lacks += [] if against is None else [against]
    good = sum(need.role in found and need.role not in wrong for need in needs)
    faults = len(missing) + len(lacks) - bool(missing)
    return Fit(schema, found, missing, tuple(lacks), good / (good + faults))


def _required(schema: Schema, table: Table) -> list[Need]:
    """Axes come all together, so that a misspelt one does not vanish; reasoning may be waived."""
    axes = any(axis in table.columns for axis in AXES)
    return [
        need
        for need in schema.needs
        if (axes if need.role in AXES else not need.optional)
        and (need.role != "reasoning" or table.options.need_reasoning)
    ]


def _wrong(need: Need, found: Found, table: Table) -> str | None:
    column = found.get(need.role)
    if column is None or accepts(need.kind, table.columns[column]):
        return None
    kind = table.columns[column]
    return f"column {column} has type {kind}, wanted {wanted(need.kind)}"


def _say(it: Fit, table: Table) -> str:
    parts = list(it.lacks)
    for name in it.missing:
        close = difflib.get_close_matches(name, table.columns, n=1, cutoff=_NEAR)
        if close:
            parts.append(f"nearest to {name} is {close[0]}")
    parts.append(f"the file has: {describe(table.columns)}")
    return "; ".join(parts)


_SHOWN = 40


def describe(columns: Mapping[str, ColumnType]) -> str:
    """Columns with their types, for errors; of very many the first."""
    shown = [f"{name[:100]} ({kind})" for name, kind in list(columns.items())[:_SHOWN]]
    if len(columns) > _SHOWN:
        shown.append(f"and {len(columns) - _SHOWN} more")
    return ", ".join(shown) or "no columns"


def _mend(it: Fit, table: Table) -> str:
    advice = []
    if it.schema.name == "openmedreason" and it.missing == ("reasoning",):
        advice.append("add --allow-no-reasoning if it has no traces")
    guess = guess_map(table.columns)
    if guess:
        advice.append(f"try {guess}")
    advice.append("name a schema by --schema (`omr-io schemas` lists them)")
    text = ", or ".join(advice)
    return text[0].upper() + text[1:]


def guess_map(columns: Mapping[str, ColumnType]) -> str:
    """The likeliest `--map question=problem,answer=label`, as a shell takes it.

    COLUMN stands for the one of the two that cannot be guessed; "" if neither can. A column whose
    name has a comma gets a `--map` of its own.
    """
    taken: dict[str, str] = {}
    for meaning in _USUAL_NAMES:
        column = _guess(meaning, columns, set(taken.values()))
        if column is not None:
            taken[meaning] = column
    if "question" not in taken and "answer" not in taken:
        return ""
    needed = {meaning: taken.get(meaning, "COLUMN") for meaning in ("question", "answer")}
    pairs = [f"{meaning}={column}" for meaning, column in (needed | taken).items()]
    own = [pair for pair in pairs if "," in pair]
    joined = ",".join(pair for pair in pairs if pair not in own)
    return " ".join(f"--map {shlex.quote(text)}" for text in (joined, *own) if text)


def _guess(meaning: str, columns: Mapping[str, ColumnType], taken: set[str]) -> str | None:
    kind = _GUESS_KINDS.get(meaning, "text")
    best, likeness = None, _NEAR
    for column, found in columns.items():
        if column in taken or not accepts(kind, found):
            continue
        for place, usual in enumerate(_USUAL_NAMES[meaning]):
            ratio = difflib.SequenceMatcher(None, column.lower(), usual).ratio() - place / 100
            if ratio > likeness:
                best, likeness = column, ratio
    return best
