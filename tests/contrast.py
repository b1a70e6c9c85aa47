"""WCAG 2's contrast of colours, for style sheets with a light and a dark theme."""

from __future__ import annotations

import re

import numpy as np


def themes(style: str) -> tuple[dict[str, str], dict[str, str]]:
    """The colours of a style sheet by their names: those it begins with, those of its @media."""
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", s)) for s in style.split("@media")[:2])
    return light, dark


def contrast(a: str, b: str) -> float:
    """From 1 to 21; AA wants 4.5 for text and 3 for marks."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
