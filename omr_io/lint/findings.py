"""The rules of `omr-io lint`, how grave each is, and what a rule has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["error", "warning"]

MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its severity, what it finds, and what to do about it.

    An "error" makes an evaluation worthless, teaches a wrong answer, or stops the training; a
    "warning" is for a person to judge.
    """

    severity: Severity
    what: str
    mend: str


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "leaked-images": Rule(
            "error",
            "samples with an image that is in the other split too, byte for byte",
            "Take them out of training: a score on that split would count what was memorised",
        ),
        "leaked-pixels": Rule(
            "error",
            "samples with an image that is in the other split too, stored in other bytes",
            "Take them out of training, as with leaked-images",
        ),
        "leaked-ids": Rule(
            "error",
            "samples whose key, and so whose id, is in the other split too",
            "Look at both: they are one case, or the ids are not unique in the corpus",
        ),
        "leaked-questions": Rule(
            "error",
            "samples without an image whose whole question is in the other split too",
            "Take them out of training",
        ),
        "wrong-answers": Rule(
            "error",
            "traces that end in another letter than the answer",
            "Take them out: they teach the wrong letter",
        ),
        "no-such-option": Rule(
            "error",
            "answers that are none of their question's options",
            "Mend the source and convert again",
        ),
        "empty-answers": Rule(
            "error",
            "open-ended questions with an empty answer",
            "Mend the source or leave them out",
        ),
        "narrow-images": Rule(
            "error",
            "images with a longer side over max_aspect times the shorter one",
            "Leave them out: the models' processors refuse them",
        ),
        "broken-images": Rule(
            "error", "images that do not decode", "Run `omr-io verify --decode`, convert again"
        ),
        "duplicate-images": Rule(
            "warning",
            "images that an earlier sample has too, byte for byte",
            "Keep all samples of an image in one split; weigh them down if they are many",
        ),
        "duplicate-pixels": Rule(
            "warning",
            "images with the pixels of an earlier one, stored in other bytes",
            "As with duplicate-images",
        ),
        "duplicate-questions": Rule(
            "warning",
            "samples with the question and the images of an earlier sample",
            "Leave out the repetitions",
        ),
        "contradictions": Rule(
            "warning",
            "samples with the question and the images of an earlier one, and another answer",
            "One of each is wrong: look at them",
        ),
        "answer-bias": Rule(
            "warning",
            "numbers of options whose answers prefer a letter",
            "Shuffle the options when training: a model learns to guess the letter",
        ),
        "empty-traces": Rule(
            "warning", "samples without a reasoning trace", "Train them on the answer alone, or not"
        ),
        "missing-tags": Rule(
            "warning",
            "traces without <think> or without <answer>",
            "Rewards and evaluation look for both; wrap the traces in the source",
        ),
        "unclosed-tags": Rule(
            "warning",
            "traces with <think> or <answer> that is not closed, repeated or out of order",
            "Mend the source: such traces were often cut off",
        ),
        "letters-in-traces": Rule(
            "warning",
            "traces whose thinking names an option by its letter",
            "Do not shuffle the options of these samples: their traces would name the wrong ones",
        ),
        "early-answers": Rule(
            "warning",
            "traces whose thinking says `the answer is X` before its end",
            "Look at some: the reasoning may justify a letter that it was given",
        ),
        "special-tokens": Rule(
            "warning",
            "samples with a model's control tokens or image placeholders in their text",
            "omr_io keeps them plain text; other tokenizers make control tokens of them",
        ),
        "long-texts": Rule(
            "warning",
            "samples with a question or trace of more bytes than the limits",
            "See what they are; the loader can drop samples over seq_len (too_long)",
        ),
        "near-empty-answers": Rule(
            "warning",
            "samples whose right answer holds no letter and no digit",
            "See whether the source was read as it should",
        ),
        "repeated-options": Rule(
            "warning",
            "questions with the same option text under two letters",
            "Leave them out: there are two right or two equal wrong answers",
        ),
        "small-images": Rule(
            "warning",
            "images with a side under min_side pixels",
            "Look at them: often icons or parts cut from a page",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Example:
    """One place where a rule applies."""

    shard: str
    key: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found.

    Attributes:
        rule, severity, what, mend: of `RULES`.
        count: how many, in the units that `what` names; at least 1.
        of: how many were looked at.
        detail: more figures in words, or "".
        examples: the first few.
    """

    rule: str
    severity: Severity
    what: str
    mend: str
    count: int
    of: int
    detail: str
    examples: tuple[Example, ...]


class Tally:
    """Counts what a rule finds and keeps the first examples."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[Example]] = {}

    def add(self, rule: str, shard: str, key: str, detail: str = "") -> None:
        """One more case of a rule."""
        self._counts[rule] = self._counts.get(rule, 0) + 1
        examples = self._examples.setdefault(rule, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(Example(shard, key, detail))

    def count(self, rule: str) -> int:
        """How often a rule was found to apply."""
        return self._counts.get(rule, 0)

    def findings(self, of: Mapping[str, int]) -> list[Finding]:
        """What was found; `of` says for each rule how many were looked at ("" for the others)."""
        return [
            finding(rule, count, of.get(rule, of[""]), self._examples[rule])
            for rule, count in self._counts.items()
        ]


def finding(
    rule: str,
    count: int,
    of: int,
    examples: list[Example] | tuple[Example, ...],
    detail: str = "",
) -> Finding:
    """A finding of a rule."""
    about = RULES[rule]
    return Finding(rule, about.severity, about.what, about.mend, count, of, detail, tuple(examples))
