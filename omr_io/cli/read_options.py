"""Options of commands that read sources, and `omr-io schemas`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, finish
from omr_io.errors import ConfigError
from omr_io.terminal import table

if TYPE_CHECKING:
    from omr_io.corpus import ReadOptions

SCHEMAS_EXAMPLES = (
    "omr-io schemas",
    "omr-io schemas --json",
)

ImageRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        help="Where images lie that rows name by their path: a folder, a zip, a tar; repeatable.",
    ),
]
UnpackTo = Annotated[
    Path | None,
    typer.Option(help="Where packed tars of images are unpacked to; default: temporary."),
]
SchemaName = Annotated[
    str | None,
    typer.Option("--schema", help="Take the sources to be of this schema (`omr-io schemas`)."),
]
ColumnMap = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="MEANING=COLUMN,...",
        help="Read any columns: question=problem,answer=label; repeatable. Meanings: question, "
        "answer, reasoning, image, options, id, perception, knowledge, rationale.",
    ),
]
OpenEnded = Annotated[
    bool, typer.Option("--open-ended", help="Mapped columns may hold questions without options.")
]
Turns = Annotated[
    str, typer.Option(help="A conversation of several exchanges: refuse it, or take its first.")
]
CaptionQuestion = Annotated[
    str | None, typer.Option("--question", help="What captioned images are asked.")
]
Omit = Annotated[list[str] | None, typer.Option(help="A column to leave out; repeatable.")]
AnswerMismatch = Annotated[
    str, typer.Option(help="A trace that ends in another letter than the answer: refuse, keep.")
]
AllowNoReasoning = Annotated[
    bool, typer.Option("--allow-no-reasoning", help="Take a source without a reasoning column.")
]


def read_options(
    *,
    omit: list[str] | None,
    answer_mismatch: str,
    allow_no_reasoning: bool,
    schema: str | None,
    column_map: list[str] | None,
    image_root: list[Path] | None = None,
    unpack_to: Path | None = None,
    open_ended: bool = False,
    turns: str = "refuse",
    question: str | None = None,
) -> ReadOptions:
    """The library's options from the command line's.

    Raises:
        ConfigError: one cannot be right.
    """
    from omr_io.corpus.rows import CAPTION_QUESTION, ReadOptions

    return ReadOptions(
        image_root=tuple(image_root) if image_root else None,
        unpack_to=unpack_to,
        omit=tuple(omit or ()),
        answer_mismatch=answer_mismatch,  # type: ignore[arg-type]  # ReadOptions refuses others
        need_reasoning=not allow_no_reasoning,
        schema=schema,
        column_map=parse_map(column_map or []),
        open_ended=open_ended,
        turns=turns,  # type: ignore[arg-type]  # ReadOptions refuses others
        question=CAPTION_QUESTION if question is None else question,
    )


def parse_map(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """(meaning, column) pairs of "question=problem,answer=label" and the like.

    A text with one "=" is one pair, so a column's name may hold commas.

    Raises:
        ConfigError: a pair lacks a side.
    """
    pairs = []
    for text in texts:
        for item in [text] if text.count("=") == 1 else text.split(","):
            meaning, sign, column = item.partition("=")
            if not (meaning.strip() and sign and column.strip()):
                raise ConfigError(
                    f"--map has {item!r}", mend="Write MEANING=COLUMN, such as question=problem"
                )
            pairs.append((meaning.strip(), column.strip()))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class SchemaLine:
    """A schema in words: `columns` are those it needs, or "[...]" can do without."""

    name: str
    aliases: tuple[str, ...]
    summary: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SchemaList:
    """All schemas that `convert` knows."""

    schemas: tuple[SchemaLine, ...]


def schemas(as_json: AsJson = False) -> None:
    """List the schemas of sources: names, and the columns each is recognised by."""
    from omr_io.corpus.schemas import SCHEMAS
    from omr_io.corpus.schemas.mapped import SUMMARY

    lines = [
        SchemaLine(
            name=item.name,
            aliases=item.aliases,
            summary=item.summary,
            columns=tuple(_column(need.names, need.optional) for need in item.needs),
        )
        for item in SCHEMAS
    ]
    lines.append(SchemaLine("mapped", (), SUMMARY, ("any",)))
    finish(as_json, SchemaList(tuple(lines)), _print_schemas)


def _column(names: tuple[str, ...], optional: bool) -> str:
    return f"[{'|'.join(names)}]" if optional else "|".join(names)


def _print_schemas(found: SchemaList, to: Console) -> None:
    rows = [line for item in found.schemas for line in _lines(item)]
    to.print(table(rows), soft_wrap=True)


def _lines(item: SchemaLine) -> list[tuple[str, str]]:
    columns = ", ".join(item.columns)
    return [(item.name, item.summary), ("", f"  columns: {columns}")]
