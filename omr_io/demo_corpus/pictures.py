"""Draw one stored image from a view: crop, mirror, scale, encode, and check what was stored.

Legend: H height, W width.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from omr_io.demo_corpus.questions import (
    MARGIN,
    Task,
    brighter_half,
    brightest_quadrant,
    rgb,
    shows_background,
)
from omr_io.demo_corpus.readers import View
from omr_io.types import UInt8Array

Storage = Literal["jpeg", "jpeg-progressive", "png", "png-16", "png-palette", "png-la"]
STORAGE_SHARES: dict[Storage, float] = {
    "jpeg-progressive": 0.05,
    "png": 0.02,
    "png-16": 0.015,
    "png-palette": 0.015,
    "png-la": 0.015,
}
"""Of all rows; the rest is baseline JPEG. 16-bit PNGs hold 0 to 255: Pillow's convert("RGB"), which
decides what a loader sees, does not scale 16-bit grey but cuts it off at 255."""

SIDES = (96, 256)
"""Shortest and longest side of a stored image in pixels; all sides are multiples of 8."""

_SCALES: dict[Task, tuple[float, float]] = {
    "quadrant": (0.4, 1.0),
    "half": (0.4, 1.0),
    "inversion": (0.6, 1.0),
    "modality": (0.6, 1.0),
    "plane": (0.8, 1.0),
    "body_part": (0.75, 1.0),
}
"""How much of each side of the view a crop keeps: what identifies a picture needs most of it."""

MIN_CONTRAST = 8.0
"""Least standard deviation of a crop, in grey levels: below it there is nothing to see."""

_MIRRORED: dict[str, str] = {"left": "right", "right": "left", "upper": "lower", "lower": "upper",
                             "top": "bottom", "bottom": "top"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """An encoded image and the extension of its format, without the dot."""

    data: bytes
    suffix: str


def draw(
    view: View, task: Task, target: str, storage: Storage, rng: np.random.Generator
) -> Drawing | None:
    """One try at a stored image of which `target` is the true answer to `task`.

    A crop is mirrored so that its brightest quadrant or half becomes the one asked for: the answers
    come out balanced whatever the studies look like. The truth is measured on the decoded file.

    Returns:
        None when the crop shows too little, or its lead is under the margin once stored.
    """
    pixels = _crop(view.pixels, *_SCALES[task], rng)
    if task in ("quadrant", "half", "inversion") and rng.random() < 0.5:
        pixels = np.swapaxes(pixels, 0, 1)
    pixels = _resize(np.ascontiguousarray(pixels), rng)
    if pixels.std() < MIN_CONTRAST or (task == "inversion" and not shows_background(pixels)):
        return None
    compares = task in ("quadrant", "half")
    if compares:
        answer, lead = _answer(pixels, task, target)
        if lead < MARGIN:
            return None
        pixels = _mirror_to(pixels, answer, target)
    elif rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if task == "inversion":
        pixels = pixels[::-1] if rng.random() < 0.5 else pixels
        pixels = 255 - pixels if target == "yes" else pixels
    drawing = _encode(np.ascontiguousarray(pixels), storage, rng)
    if compares:
        with Image.open(io.BytesIO(drawing.data)) as stored:
            answer, lead = _answer(rgb(stored), task, target)
        if answer != target or lead < MARGIN:
            return None
    return drawing


def _answer(pixels: UInt8Array, task: Task, target: str) -> tuple[str, float]:
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    if task == "quadrant":
        return brightest_quadrant(colour)
    return brighter_half(colour, across=target in ("left half", "right half"))


def _mirror_to(pixels: UInt8Array, answer: str, target: str) -> UInt8Array:
    """Mirror so that the quadrant or half called `answer` becomes `target`."""
    for was, wanted in zip(answer.split(), target.split(), strict=True):
        if was != wanted and _MIRRORED.get(was) == wanted:
            pixels = pixels[:, ::-1] if was in ("left", "right") else pixels[::-1]
    return pixels


def _crop(pixels: UInt8Array, low: float, high: float, rng: np.random.Generator) -> UInt8Array:
    height, width = pixels.shape[:2]
    scale = rng.uniform(low, high)
    sides = [min(high, max(low, scale * rng.uniform(0.85, 1.18))) for _ in range(2)]
    rows = max(min(height, 20), round(height * sides[0]))
    columns = max(min(width, 20), round(width * sides[1]))
    # No crop is narrower than 2 to 1: SIDES could not hold it.
    rows, columns = min(rows, 2 * columns), min(columns, 2 * rows)
    top = int(rng.integers(height - rows + 1))
    left = int(rng.integers(width - columns + 1))
    return pixels[top : top + rows, left : left + columns]


def _resize(pixels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    height, width = pixels.shape[:2]
    shortest, longest = SIDES
    most = max(shortest, min(longest, 4 * max(height, width)))
    side = shortest + 8 * int(rng.integers((most - shortest) // 8 + 1))
    factor = max(side / max(height, width), shortest / min(height, width))
    size = [min(longest, 8 * max(shortest // 8, round(n * factor / 8))) for n in (width, height)]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BICUBIC))


def _encode(pixels: UInt8Array, storage: Storage, rng: np.random.Generator) -> Drawing:
    picture = Image.fromarray(pixels)
    options: dict[str, Any] = {}
    quality = int(rng.integers(85, 96))
    in_colour = bool(rng.random() < 0.5)
    if storage.startswith("jpeg"):
        picture = picture.convert("RGB") if in_colour else picture
        options = {"quality": quality, "progressive": storage == "jpeg-progressive"}
    elif storage == "png-16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16))
    elif storage == "png-palette":
        picture = picture.convert("RGB").quantize(256)
    elif storage == "png-la":
        picture = picture.convert("LA")
    kind = "JPEG" if storage.startswith("jpeg") else "PNG"
    stored = io.BytesIO()
    picture.save(stored, kind, **options)
    return Drawing(stored.getvalue(), "jpg" if kind == "JPEG" else "png")
