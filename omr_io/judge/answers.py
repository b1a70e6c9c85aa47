"""What a judge answers: one JSON object, read strictly.

The object is the whole answer. Two wrappings are taken off, since many models cannot be kept from
them and nothing is guessed thereby: a Markdown fence around all of it, and a `<think>` block before
it. Anything else is rubbish: prose around the object, a field missing, unknown or twice, a number
that is no integer or out of range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from omr_io.text import short

Better = Literal["first", "second", "tie"]

_FENCE = re.compile(r"```[A-Za-z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_MAX_REASON = 1000


class RubbishError(ValueError):
    """An answer that is not of the form that was asked for; its text says what is wrong."""


@dataclass(frozen=True, slots=True)
class UnitVerdict:
    """A judge's word on one unit; `correctness` is None where presence is 0."""

    presence: Literal[0, 1, 2]
    correctness: Literal[-1, 0, 1] | None
    reason: str


@dataclass(frozen=True, slots=True)
class BetterVerdict:
    """A judge's word on two traces, in the order in which they were shown."""

    better: Better
    reason: str


def unit_verdict(text: str) -> UnitVerdict:
    """Read an answer about a unit.

    Where presence is 0, correctness says nothing: null is taken there as well, and None given.

    Raises:
        RubbishError: the answer is not of the form.
    """
    fields = _fields(text, ("presence", "correctness"))
    presence = _whole(fields, "presence", (0, 1, 2))
    if presence == 0 and fields["correctness"] is None:
        return UnitVerdict(0, None, _reason(fields))
    correctness = _whole(fields, "correctness", (-1, 0, 1))
    return UnitVerdict(
        cast(Literal[0, 1, 2], presence),
        None if presence == 0 else cast(Literal[-1, 0, 1], correctness),
        _reason(fields),
    )


def better_verdict(text: str) -> BetterVerdict:
    """Read an answer about two traces.

    Raises:
        RubbishError: the answer is not of the form.
    """
    fields = _fields(text, ("better",))
    if fields["better"] not in ("first", "second", "tie"):
        raise RubbishError(f'"better" is {_shown(fields["better"])}')
    return BetterVerdict(cast(Better, fields["better"]), _reason(fields))


def _fields(text: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
    inner = _THINKING.sub("", text).strip()
    fenced = _FENCE.fullmatch(inner)
    try:
        found = json.loads(fenced[1] if fenced else inner, object_pairs_hook=_unique)
    except RubbishError:
        raise
    except (ValueError, RecursionError):
        raise RubbishError(f"{short(inner, 60)} is not JSON") from None
    if not isinstance(found, dict):
        raise RubbishError("it is no object")
    missing = [name for name in needed if name not in found]
    unknown = [name for name in found if name not in (*needed, "reason")]
    if missing:
        raise RubbishError(f'"{missing[0]}" is missing')
    if unknown:
        raise RubbishError(f"it has a field {_shown(unknown[0])}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RubbishError("it has a field twice")
    return found


def _whole(fields: Mapping[str, Any], name: str, allowed: tuple[int, ...]) -> int:
    value = fields[name]
    if type(value) is not int or value not in allowed:  # True is an int as well
        raise RubbishError(f'"{name}" is {_shown(value)}')
    return value


def _reason(fields: Mapping[str, Any]) -> str:
    value = fields.get("reason", "")
    if not isinstance(value, str):
        raise RubbishError(f'"reason" is {_shown(value)}')
    return value[:_MAX_REASON]


def _shown(value: object) -> str:
    return short(json.dumps(value), 40)
