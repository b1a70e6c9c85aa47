"""Questions whose answers pixels and metadata prove, with their traces and rubric units.

The wording is short and varies little, so that a tiny model can learn to read it. A trace begins
with what is seen, in the option's own words: with a fixed sentence before it the demo's model was
slower to look at the image (held-out accuracy 0.45 against 0.64 after 800 steps, single runs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omr_io.demo_corpus.readers import PLANES
from omr_io.demo_corpus.studies import Study
from omr_io.types import AXES, Axis, UInt8Array

Float64Array = NDArray[np.float64]

Task = Literal["quadrant", "half", "inversion", "modality", "plane", "body_part"]
TASKS: tuple[Task, ...] = ("quadrant", "half", "inversion", "modality", "plane", "body_part")

SHARES: Mapping[Task, float] = {
    "quadrant": 0.35,
    "half": 0.30,
    "inversion": 0.20,
    "modality": 0.05,
    "plane": 0.05,
    "body_part": 0.05,
}
"""Of all rows. A question that the studies at hand cannot ask gives its share to the others."""

LETTERS = "ABCDE"

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
HALVES = ("left half", "right half", "top half", "bottom half")

MARGIN = 26.0
"""By how many grey levels of 255 the brightest quadrant or half leads, or it is not asked for: a
tenth of the range."""

DARK_BACKGROUND = frozenset(
    {
        "computed tomography",
        "magnetic resonance imaging",
        "nuclear medicine",
        "radiography",
        "ultrasound",
    }
)
"""Modalities displayed on black by convention: only there does "inverted" have a meaning."""

DARK_SHARE = 0.15
"""Inversion is asked only of crops of which at least this share is dark, and less is bright, before
any inversion: there is a background to tell by."""

_DARK, _BRIGHT = 48, 207

_STEMS: Mapping[Task, tuple[str, ...]] = {
    "quadrant": (
        "Which quadrant of this image is the brightest?",
        "In which quadrant is this image brightest?",
    ),
    "half": (
        "Which half of this image is brighter?",
        "Which is brighter in this image, the {0} or the {1}?",
    ),
    "inversion": (
        "Is the contrast of this image inverted?",
        "Has the contrast of this image been inverted?",
    ),
    "modality": (
        "Which imaging modality made this image?",
        "What is the modality of this image?",
    ),
    "plane": (
        "Which plane does this image show?",
        "In which plane is this image?",
    ),
    "body_part": (
        "Which part of the body does this image show?",
        "What part of the body is in this image?",
    ),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """What is true of an image: the answer in words, and how to say it.

    Attributes:
        task: the kind of question.
        answer: the text of the right option.
        choices: the texts that may stand as options, the answer among them.
        seen: a sentence that states the fact.
        known: a sentence of general knowledge that bears on it.
    """

    task: Task
    answer: str
    choices: tuple[str, ...]
    seen: str
    known: str


@dataclass(frozen=True, slots=True)
class Item:
    """A finished question: text with its options inline, the trace, the right letter."""

    question: str
    reasoning: str
    answer: str


def brightness(pixels_hw3: UInt8Array) -> Float64Array:
    """(2, 2) float64: mean luma (ITU-R BT.601) of the four quadrants of an (H, W, 3) uint8 image.

    H and W are even. Rows of the result are top and bottom, columns left and right.
    """
    luma = pixels_hw3.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    height, width = luma.shape
    means: Float64Array = luma.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
    return means


def brightest_quadrant(pixels_hw3: UInt8Array) -> tuple[str, float]:
    """The brightest quadrant's name and its lead over the next, in grey levels."""
    means = brightness(pixels_hw3).ravel()
    order = np.argsort(means)
    return QUADRANTS[int(order[-1])], float(means[order[-1]] - means[order[-2]])


def brighter_half(pixels_hw3: UInt8Array, across: bool) -> tuple[str, float]:
    """The brighter of left and right (`across`) or of top and bottom, and its lead."""
    first, second = brightness(pixels_hw3).mean(axis=0 if across else 1)
    names = HALVES[:2] if across else HALVES[2:]
    return names[int(second > first)], float(abs(first - second))


def quadrant_fact(answer: str) -> Fact:
    """Which quadrant is brightest."""
    return Fact(
        "quadrant",
        answer,
        QUADRANTS,
        f"{answer} has the highest mean.",
        "The quadrant with the highest mean is the brightest.",
    )


def half_fact(answer: str) -> Fact:
    """Which half is brighter: left or right, top or bottom."""
    pair = HALVES[:2] if answer in HALVES[:2] else HALVES[2:]
    return Fact(
        "half",
        answer,
        pair,
        f"{answer} has the higher mean.",
        "The half with the higher mean is the brighter.",
    )


def shows_background(pixels: UInt8Array) -> bool:
    """Whether an image that is not inverted has a dark background to tell by (see DARK_SHARE)."""
    dark, bright = float((pixels < _DARK).mean()), float((pixels > _BRIGHT).mean())
    return dark >= DARK_SHARE and dark > bright


def inversion_fact(inverted: bool) -> Fact:
    """Whether bright and dark have been exchanged."""
    answer = "yes" if inverted else "no"
    return Fact(
        "inversion",
        answer,
        ("yes", "no"),
        f"{answer}, the background is {'bright' if inverted else 'dark'}.",
        "The background of a normal image is dark.",
    )


def metadata_fact(task: Task, answer: str, choices: Sequence[str]) -> Fact:
    """What the study's metadata says: its modality, plane or body part."""
    sentences = {
        "modality": (f"{answer} has such a texture.", "Each modality has its own texture."),
        "plane": (f"{answer} is the plane.", "Each plane cuts the body its own way."),
        "body_part": (f"{answer} has such a shape.", "Each body part has its own shape."),
    }
    seen, known = sentences[task]
    return Fact(task, answer, tuple(choices), seen, known)


def values(task: Task, study: Study) -> tuple[str, ...]:
    """The answers that a study's metadata gives to a modality, plane or body part question."""
    if task == "modality":
        return (study.modality,) if study.modality else ()
    if task == "body_part":
        return (study.body_part,) if study.body_part else ()
    shown = {view.plane for view in study.views}
    return tuple(plane for plane in PLANES if plane in shown)


def compose(
    fact: Fact, letter: str, num_options: int, rng: np.random.Generator, *, paren: bool
) -> Item:
    """Put a fact into words: the right option at `letter`, the others drawn and shuffled.

    Args:
        fact: the fact; it has at least `num_options` choices.
        letter: where the right option stands, one of the first `num_options` letters.
        num_options: how many options are given, 2 to 5.
        rng: draws the wording and the wrong options.
        paren: options are marked `A)` and not `A.`.
    """
    stems = _STEMS[fact.task]
    stem = stems[int(rng.integers(len(stems)))].format(*fact.choices)
    wrong = [text for text in fact.choices if text != fact.answer]
    texts = [wrong[int(at)] for at in rng.permutation(len(wrong))[: num_options - 1]]
    texts.insert(LETTERS.index(letter), fact.answer)
    mark = ")" if paren else "."
    options = "".join(f"\n{LETTERS[at]}{mark} {text}" for at, text in enumerate(texts))
    trace = f"{fact.seen} {fact.known} That is option {letter}."
    return Item(
        question=stem + options,
        reasoning=f"<think>{trace}</think><answer>{letter}</answer>",
        answer=letter,
    )


def rubric(fact: Fact, item: Item, row_id: str) -> dict[Axis, list[dict[str, str]]]:
    """One unit an axis: what is seen, what is known, how the two give the letter."""
    conclusion = f"That is option {item.answer}."
    claims: dict[Axis, tuple[str, str, str]] = {
        "perception": (fact.task.replace("_", " "), fact.seen, fact.seen),
        "knowledge": ("convention", fact.known, fact.known),
        "rationale": (
            "conclusion",
            f'The answer "{fact.answer}" is option {item.answer}.',
            conclusion,
        ),
    }
    asked: dict[Axis, tuple[str, str]] = {
        "perception": (
            f"Does the trace say what it sees for: {_STEMS[fact.task][0]}",
            f'Does the trace say "{fact.answer}" and nothing else for it?',
        ),
        "knowledge": (
            "Does the trace name a general rule that bears on the question?",
            f"Does the rule agree with: {fact.known}",
        ),
        "rationale": (
            "Does the trace go from what it sees to an option?",
            f"Does the trace conclude with option {item.answer}?",
        ),
    }
    units: dict[Axis, list[dict[str, str]]] = {}
    for axis in AXES:
        topic, claim, quote = claims[axis]
        presence, correctness = asked[axis]
        units[axis] = [
            {
                "unit_id": f"{row_id}-{axis[0]}1",
                "topic": topic,
                "claim": claim,
                "presence_question": presence,
                "correctness_question": correctness,
                "source_quote": quote,
                "importance": "medium" if axis == "knowledge" else "high",
            }
        ]
    return units


def rgb(picture: Image.Image) -> UInt8Array:
    """(H, W, 3) uint8: a decoded image exactly as the loader will see it."""
    return np.asarray(picture.convert("RGB"))
