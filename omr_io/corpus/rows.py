"""How the rows of a source are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omr_io.corpus.image_roots import check_image_root, image_paths
from omr_io.errors import ConfigError
from omr_io.types import AXES

CAPTION_QUESTION = "Describe the image."
MEANINGS = ("question", "answer", "reasoning", "image", "images", "options", "id", *AXES)
"""What columns can be mapped to."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a source.

    Args:
        image_root: where images are looked up whose bytes are null: a folder, a .zip, .tar,
            .tar.gz or .tar.zst, or several of these, of which the first that has a name gives
            it (see `open_image_root`). Nothing outside a folder is ever read.
        unpack_to: a folder for the plain tars that packed ones are unpacked into, once; None takes
            a temporary one.
        omit: columns to leave out by name, such as one of bytes that JSON cannot carry.
        answer_mismatch: what to do with a row whose trace ends in another letter than its answer
            says: one of them is wrong. "refuse" counts and names the row; "keep" takes it as it
            is, which suits a test split, where the trace is not trained on.
        need_reasoning: whether a source without a reasoning column is an error; if not, its
            records' reasoning is "".
        max_image_bytes: largest file, in bytes, read from image_root.
        schema: the name of the sources' schema (`omr-io schemas`); None recognises it.
        column_map: (meaning, column) pairs: read any columns as OpenMedReason's. Meanings are
            question, answer, reasoning, image, images, options, id and the rubric's axes; one that
            is not mapped is the column of its own name, if there is one.
        open_ended: mapped columns may hold questions without options.
        turns: what to do with a conversation of several exchanges: "refuse" the row, or take its
            "first"; the whole conversation then stays in `Record.extra`.
        question: asked of captioned images.

    Raises:
        ConfigError: image_root is not there or of no known kind, or another value is none of
            those above.
    """

    image_root: Path | tuple[Path, ...] | None = None
    unpack_to: Path | None = None
    omit: tuple[str, ...] = ()
    answer_mismatch: Literal["refuse", "keep"] = "refuse"
    need_reasoning: bool = True
    max_image_bytes: int = 256 << 20
    schema: str | None = None
    column_map: tuple[tuple[str, str], ...] = ()
    open_ended: bool = False
    turns: Literal["refuse", "first"] = "refuse"
    question: str = CAPTION_QUESTION

    def __post_init__(self) -> None:
        for root in image_paths(self.image_root):
            check_image_root(root)
        if self.answer_mismatch not in ("refuse", "keep"):
            raise ConfigError(
                f"answer_mismatch is {self.answer_mismatch!r}", mend="Use 'refuse' or 'keep'"
            )
        if self.turns not in ("refuse", "first"):
            raise ConfigError(f"turns is {self.turns!r}", mend="Use 'refuse' or 'first'")
        if not self.question.strip():
            raise ConfigError("the question for captions is blank")
        _check_map(self.column_map, self.schema)


def _check_map(column_map: tuple[tuple[str, str], ...], schema: str | None) -> None:
    meanings = [meaning for meaning, _ in column_map]
    columns = [column for _, column in column_map]
    for meaning in meanings:
        if meaning not in MEANINGS:
            known = ", ".join(MEANINGS)
            raise ConfigError(f"{meaning!r} is nothing to map to", mend=f"Use one of {known}")
    for name in (*meanings, *columns):
        if meanings.count(name) > 1 or columns.count(name) > 1:
            raise ConfigError(f"{name} is mapped twice")
    if "image" in meanings and "images" in meanings:
        raise ConfigError("image is mapped twice, as images too")
    if column_map and schema not in (None, "mapped"):
        raise ConfigError(
            f"the schema is {schema} and columns are mapped", mend="Give one or the other"
        )
