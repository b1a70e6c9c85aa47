"""Schemas: how public corpora lay out a row, and what makes a row a Record or a Refusal.

A row is refused for the first defect found; the checks go in this order, and each reason is a
stable slug:

    invalid-utf8         text in any column (the id first) that is not UTF-8
    null-id              there is an id column, and the id is null or blank
    bad-type             a value (of a JSON row) of another type than its column's, or bytes
    bad-turns            a conversation that is not system, user, assistant, user, ... in turn
    several-turns        more than one exchange, and ReadOptions.turns is "refuse"
    other-media          video or audio
    null-image           the image is null, or has neither bytes nor a path
    control-characters   U+0000 to U+001F (but tab, line feed, carriage return) or U+007F in the
                         id, an image's path, the question, the answer, the reasoning, the rubric
    image-count          the text has `<image>` placeholders, and other than there are images
    null-question        the question is null
    empty-question       the question is blank, or nothing stands before its options
    no-options           the question has no options and needs some: its schema is multiple-choice,
                         or its answer is a letter
    bad-options          the options do not parse, or contradict those in the question
    null-answer          the answer is null
    empty-answer         the answer of an open-ended question is blank
    bad-answer           OpenMedReason's answer is not an upper-case letter: "B", "B.", "B)", "B:"
                         or "(B)"
    answer-not-an-option the answer is none of the options, or may be several
    label-mismatch       a row gives its answer as a letter and as text, and they disagree
    answer-mismatch      the trace's last <answer> holds another letter (see ReadOptions)
    bad-rubric           JSON that does not parse; a unit that lacks a field or has an unknown one
    empty-image          the image has zero bytes
    image-not-embedded   the image's bytes are null, only a path is there, and no image_root is set;
                         or the path is a URL, which is never fetched
    image-outside-root, missing-image, unreadable-image, image-too-large: from image_root

Control characters and types are looked at as each value is used, so those reasons may come later
than their lines. Whether image bytes decode and ids are unique is for the next stage to check.

What a Record holds, whatever the schema:

- The question is what the model sees. Options that a source gives apart are put under it, a line
  each, "A. text". `<image>` placeholders are taken out: the chat format puts images before the
  text. Their number must be 0 or that of the images. One between words becomes "(image 2)", and
  the text as it stood stays in `extra` under its column's name.
- The answer of a question with options is a letter. A question without any is open-ended, where
  the schema has such: no options, and the answer is free text.
- The reasoning is the completion to learn. A trace without tags is wrapped, as
  `<think>…</think>`, a line feed and `<answer>X</answer>`; one that ends with `</think>` gets the
  answer appended. The reply of a conversation stays as it stands, but one that merely names an
  option counts as no reasoning. A caption is its own completion.
- A conversation gives one exchange. What else it says (a system message, later turns) stays in
  `extra`, which holds the whole conversation then.
- Every column that is not used goes to `extra`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omr_io.corpus.raw import ColumnType, RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import (
    choices,
    conversations,
    mapped,
    open_ended,
    openmedreason,
    problems,
)
from omr_io.corpus.schemas.bound import BoundSchema
from omr_io.corpus.schemas.kinds import fits_json
from omr_io.corpus.schemas.recognise import force, named, recognise
from omr_io.corpus.schemas.row import Found, Schema, Table
from omr_io.errors import SourceError, Where
from omr_io.types import AXES

__all__ = ["SCHEMAS", "BoundSchema", "Schema", "bind"]

SCHEMAS: tuple[Schema, ...] = (
    openmedreason.SCHEMA,
    choices.MEDVLTHINKER,
    choices.PMC_VQA,
    conversations.VERL,
    problems.EASYR1,
    problems.R1V,
    problems.VLAA,
    conversations.LLAVA,
    conversations.PUBMEDVISION,
    conversations.MS_SWIFT,
    conversations.TRL,
    conversations.TRL_MESSAGES,
    open_ended.VQA,
    open_ended.SLAKE,
    open_ended.BIOMEDICA,
)
"""All that are recognised, in the order of `omr-io schemas`. "mapped" is not among them."""


def bind(
    columns: Mapping[str, ColumnType],
    head: Sequence[RawRow],
    options: ReadOptions,
    source: str,
) -> BoundSchema:
    """Find the schema of a source and bind it to its columns.

    Args:
        columns: the columns by name, in the file's order.
        head: the first rows, by which columns that fit several schemas are told apart; the bytes
            of images may be left out.
        options: how to read; `schema` and `column_map` force a schema.
        source: the file's name, for errors.

    Raises:
        SourceError: a column to omit or to map is not there; no schema fits, or several do; or a
            column that is not used cannot go to `Record.extra`, since JSON cannot carry it.
        ConfigError: there is no schema of that name.
    """
    where = Where(source=source)
    kept = _kept(columns, options, where)
    table = Table(kept, head, options)
    schema, found = _choose(table, source)
    used = set(found.values())
    extra = tuple(name for name in kept if name not in used)
    for name in extra:
        if not fits_json(kept[name]):
            raise SourceError(
                f"column {name} has type {kept[name]}, wanted a type that JSON can carry (not "
                "bytes, maps, durations)",
                where=where,
                mend=f"Leave it out by --omit {name} (the option omit), or remove it from the file",
            )
    own = {found[role] for role in ("id", "image", "caption") if role in found}
    return BoundSchema(
        name=schema.name,
        columns=tuple(kept),
        _schema=schema,
        _found=dict(found),
        _axes=tuple(axis for axis in AXES if axis in found),
        _plain=tuple(name for name in kept if name not in own),
        _extra=extra,
        _options=options,
    )


def _kept(
    columns: Mapping[str, ColumnType], options: ReadOptions, where: Where
) -> dict[str, ColumnType]:
    unknown = [name for name in options.omit if name not in columns]
    if unknown:
        raise SourceError(
            f"there is no column {unknown[0]} to omit; there are: {', '.join(columns)}", where=where
        )
    return {name: kind for name, kind in columns.items() if name not in options.omit}


def _choose(table: Table, source: str) -> tuple[Schema, Found]:
    name = table.options.schema
    if table.options.column_map or name == "mapped":
        return force(mapped.schema_of(table, source), table, source)
    if name is not None:
        return force(named(SCHEMAS, name), table, source)
    return recognise(SCHEMAS, table, source)
