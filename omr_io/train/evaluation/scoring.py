"""A completion read by the one parser of rewards and evaluation, and what its trace is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omr_io.train.evaluation.items import Item
from omr_io.train.evaluation.log import Line
from omr_io.train.evaluation.options import Variant
from omr_io.train.rewards import parse_answer

_THINK = re.compile(r"<think>(.*?)(?:</think>|(?=<answer>)|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Said:
    """A completion as a model gives it.

    Attributes:
        text: without control tokens.
        finished: False if it was cut at max_new_tokens.
        failure: why an image of its prompt was blank; None if none was, or was meant to be.
    """

    text: str
    finished: bool = True
    failure: str | None = None


def scored(model: str, of: str, item: Item, variant: Variant, run: int, said: Said) -> Line:
    """Read a completion by `parse_answer`, not strictly, against the options as they were shown.

    The letter is mapped back to the record's own.
    """
    shown = item.shown(variant)
    assert shown is not None, "an item without this variant is not asked"
    parsed = parse_answer(said.text, shown.record.options, strict=False)
    letter = shown.original(parsed.letter)
    return Line(
        key=item.key,
        set=of,
        model=model,
        run=run,
        variant=variant,
        completion=said.text,
        finished=said.finished,
        letter=letter,
        how=parsed.how,
        answer=item.record.answer,
        options=item.record.options,
        correct=letter == item.record.answer,
        reasoning=trace_of(said.text),
        order=shown.letters,
        failure=said.failure,
    )


def rescored(line: Line, item: Item) -> Line:
    """The same completion as today's parser reads it."""
    said = Said(line.completion, line.finished, line.failure)
    return scored(line.model, line.set, item, line.variant, line.run, said)


def trace_of(completion: str) -> str:
    """The reasoning in a completion: what a judge of traces reads.

    The text of the first `<think>` element; if that is never closed, up to `<answer>` or the end.
    Without one, all that stands before the last `<answer>`, or everything if there is none.
    """
    thought = _THINK.search(completion)
    if thought:
        return thought[1].strip()
    end = completion.rfind("<answer>")
    return (completion if end < 0 else completion[:end]).strip()
