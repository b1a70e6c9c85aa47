"""Reasoning traces: what a source gives, as the completion that a model learns to say."""

from __future__ import annotations

import re

from omr_io.corpus.schemas.answers import as_text
from omr_io.corpus.schemas.row import Schema

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def completion(value: object, schema: Schema, answer: str, *, has_options: bool) -> str:
    """A row's reasoning; see `Schema.reasoning`.

    Args:
        value: the raw value.
        schema: says what the value is.
        answer: the row's answer, a letter or free text.
        has_options: whether the question is multiple-choice.

    Raises:
        RowError: "bad-type", "invalid-utf8", "control-characters".
    """
    if value is None:
        return ""
    text = as_text(value, "the reasoning")
    if schema.reasoning == "whole":
        return text
    if schema.reasoning == "reply":
        tagged = "<answer>" in text or "<think>" in text
        return "" if has_options and not tagged else text
    return _wrapped(text, answer)


def _wrapped(trace: str, answer: str) -> str:
    """`<think>trace</think>` and the answer, unless the trace has such tags already."""
    bare = trace.strip()
    if not bare:
        return ""
    if "<answer>" in trace:
        return trace
    if bare.endswith("</think>"):
        return f"{bare}\n<answer>{answer}</answer>"
    if "<think>" in trace or "</think>" in trace:
        return trace
    return f"<think>{bare}</think>\n<answer>{answer}</answer>"


def tagged_answer(text: str) -> str | None:
    r"""What the last `<answer>…</answer>` holds, or else the last `\boxed{…}`; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        return text[start + len("<answer>") : end].strip()
    boxed = _BOXED.findall(text)
    return boxed[-1].strip() if boxed else None


def reply_answer(text: str) -> str:
    """The answer within a reply: what its tags hold, or what follows its thinking, or all of it."""
    tagged = tagged_answer(text)
    return text.rpartition("</think>")[2].strip() if tagged is None else tagged
