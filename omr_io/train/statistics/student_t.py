"""Student's t without scipy."""

from __future__ import annotations

import math
from statistics import NormalDist


def student_t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection; probability in [0.5, 1).

    The distribution function is the finite sum of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _student_t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _student_t_cdf(middle, freedom) < probability else (low, middle)
        )
    return (low + high) / 2


def _student_t_cdf(t: float, freedom: int) -> float:
    if freedom > 2000:  # the normal is then within 1e-4 of it, and the sum would be long
        return NormalDist().cdf(t)
    angle = math.atan2(t, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= square * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    two_sided = math.sin(angle) * total
    if odd:
        two_sided = 2 / math.pi * (angle + two_sided)
    return 0.5 + two_sided / 2
