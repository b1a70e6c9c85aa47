"""The prompts: text files in `prompts/`, filled in, and told apart by their hashes.

What a model under test wrote is not to be trusted. It stands between tags that hold a code made of
its own SHA-256, so that it cannot hold the tag that would end it, and what chat templates would
take for control tokens is broken up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omr_io.types import Axis, Record, RubricUnit

FOLDER = Path(__file__).parent / "prompts"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_CONTROL = re.compile(r"<(?=[|\uff5c])|\[(?=/?INST\])")
_CODE_DIGITS = 16

SCORES_FORM = '{"reason": "one sentence", "presence": 0, 1 or 2, "correctness": -1, 0 or 1}'
BETTER_FORM = '{"reason": "one sentence", "better": "first", "second" or "tie"}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: a system message and a user's; images, if any, go before the user's text."""

    system: str
    text: str


@cache
def template(name: str) -> str:
    """The text of `prompts/NAME.txt`."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip()


def prompt_hash(kind: Axis | str) -> str:
    """The SHA-256, in hex, of all that is asked for one axis, or for "preference".

    It stands for the prompts in results: figures under different hashes do not compare.
    """
    system = "preference-system" if kind == "preference" else "rubric-system"
    form = BETTER_FORM if kind == "preference" else SCORES_FORM
    texts = (template(system), template(kind), template("again"), form)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def unit_prompt(record: Record, num_images: int, trace: str, unit: RubricUnit) -> Prompt:
    """The question about one rubric unit of one trace.

    The trace comes before the unit, so that a server that keeps prefixes reads it once.
    """
    inert = harmless(trace)
    fields = {
        "images": _images(num_images),
        "question": harmless(record.question),
        "trace": inert,
        "code": _code(inert),
        "topic": harmless(unit.topic),
        "claim": harmless(unit.claim),
        "source_quote": harmless(unit.source_quote) or "(none)",
        "presence_question": harmless(unit.presence_question),
        "correctness_question": harmless(unit.correctness_question),
    }
    return Prompt(template("rubric-system"), fill(template(unit.axis), fields))


def preference_prompt(record: Record, num_images: int, first: str, second: str) -> Prompt:
    """The question which of two traces is better, in this order."""
    inert = harmless(first), harmless(second)
    texts = [f"{item.letter}. {item.text}" for item in record.options]
    right = next((text for text in texts if text.startswith(f"{record.answer}.")), record.answer)
    fields = {
        "images": _images(num_images),
        "question": harmless(record.question),
        "answer": harmless(right),
        "first": inert[0],
        "first_code": _code(inert[0]),
        "second": inert[1],
        "second_code": _code(inert[1]),
    }
    return Prompt(template("preference-system"), fill(template("preference"), fields))


def again_text(fault: str, form: str) -> str:
    """What is said to a judge whose answer was not of the form."""
    return fill(template("again"), {"fault": fault, "form": form})


def fill(text: str, fields: Mapping[str, str]) -> str:
    """A template with its places filled, each once: what is put in is not looked at again."""
    return _PLACE.sub(lambda match: fields[match[1]], text)


def harmless(text: str) -> str:
    """Text without what a chat template could take for a control token: `<|` becomes `< |`.

    Half surrogate pairs, which no UTF-8 can hold, become question marks.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub(lambda match: f"{match[0]} ", text).strip()


def _code(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_CODE_DIGITS]


def _images(count: int) -> str:
    if count == 0:
        return "it has no image"
    return "its image is above" if count == 1 else f"its {count} images are above, in order"
