"""Inline SVG charts: small functions from numbers to markup. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from omr_io.markup import Markup, element, join
from omr_io.train.statistics import Interval

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
MOST_POINTS = 300
"""Longer curves are shown as means of as many equal bins, so that the page stays small."""

Number = Callable[[float], str]


def line_chart(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    number: Number,
    tick: Number,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Markup:
    """A curve over steps: each point thin, and from 40 points on their moving mean in bold.

    Args:
        steps, values: (n,) with n >= 2, finite; steps rise.
        title: what assistive technology reads, with the ends of the curve after it.
        number, tick: how a value is written in the title and at the axis.
        floor, ceiling: the value axis takes in these, and its ticks stay within them.
    """
    x_n, y_n = _thin(np.asarray(steps, np.float64), np.asarray(values, np.float64))
    smooth_n = moving_mean(y_n)
    low = float(y_n.min()) if floor is None else min(floor, float(y_n.min()))
    high = float(y_n.max()) if ceiling is None else max(ceiling, float(y_n.max()))
    ticks = nice_ticks(low, high, 5)
    bottom, top = min(ticks[0], low), max(ticks[-1], high)
    first, last = float(x_n[0]), float(x_n[-1])

    def place_x(value: float) -> float:
        return LEFT + (value - first) / ((last - first) or 1.0) * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    start, end = ends(values)
    summary = f"{title}: {number(start)} to {number(end)} over {len(values)} points"
    points = [(place_x(x), place_y(y)) for x, y in zip(x_n, y_n, strict=True)]
    means = [(place_x(x), place_y(y)) for x, y in zip(x_n, smooth_n, strict=True)]
    smoothed = not np.array_equal(smooth_n, y_n)
    return element(
        "svg",
        element("title", summary),
        _value_axis(ticks, place_y, tick),
        _step_axis(first, last, place_x),
        element("path", d=_path(points), class_="raw") if smoothed else None,
        element("path", d=_path(means), class_="curve"),
        element("circle", cx=means[-1][0], cy=means[-1][1], r="3", class_="end"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def interval_chart(marks: Sequence[tuple[str, Interval]], *, summary: str) -> Markup:
    """Means as dots with their intervals as bars, one under the other on a scale of 0 to 1.

    The drawing is stretched to the width of its cell; dots stay round since they are strokes of no
    length with round caps, which do not scale.

    Args:
        marks: CSS class ("image", "blind", "majority") and interval of each.
        summary: what assistive technology reads.
    """
    height = 4 + 12 * len(marks)
    lines = [
        element("path", d=f"M{tick} 0V{height}", class_="grid") for tick in (0, 25, 50, 75, 100)
    ]
    for row, (name, interval) in enumerate(marks):
        y = 8 + 12 * row
        low, high = (100 * min(max(end, 0.0), 1.0) for end in (interval.low, interval.high))
        lines.append(element("path", d=f"M{low:.2f} {y}H{high:.2f}", class_=f"bar {name}"))
        lines.append(element("path", d=f"M{100 * interval.mean:.2f} {y}h0", class_=f"dot {name}"))
    return element(
        "svg",
        element("title", summary),
        *lines,
        viewBox=f"-1 0 102 {height}",
        preserveAspectRatio="none",
        role="img",
        class_=f"intervals rows{len(marks)}",
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) that enclose low..high."""
    if not high > low:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def moving_mean(values_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over a twentieth of the points (shorter at the ends); below 40, unchanged."""
    n = len(values_n)
    half = n // 40
    if half == 0:
        return values_n
    sums = np.concatenate(([0.0], np.cumsum(values_n)))
    position = np.arange(n)
    start, stop = np.maximum(position - half, 0), np.minimum(position + half + 1, n)
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth of a curve (at least one point each)."""
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def _thin(
    x_n: NDArray[np.float64], y_n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x_n) <= MOST_POINTS:
        return x_n, y_n
    bins = zip(np.array_split(x_n, MOST_POINTS), np.array_split(y_n, MOST_POINTS), strict=True)
    means = np.array([(x.mean(), y.mean()) for x, y in bins])
    return means[:, 0], means[:, 1]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _value_axis(ticks: Sequence[float], place: Callable[[float], float], number: Number) -> Markup:
    parts = []
    for tick in ticks:
        y = round(place(tick), 1)
        parts.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="grid"))
        label = element("text", number(tick), x=LEFT - 6, y=y + 4, text_anchor="end")
        parts.append(label)
    return join(*parts)


def _step_axis(first: float, last: float, place: Callable[[float], float]) -> Markup:
    inner = [tick for tick in nice_ticks(first, last, 5) if first <= tick <= last - 1e-9]
    whole = [tick for tick in inner if tick == int(tick)] or [first]
    labels = []
    for number, tick in enumerate(whole):
        text = f"step {tick:,.0f}" if number == 0 else f"{tick:,.0f}"
        x = round(place(tick), 1)
        labels.append(element("text", text, x=x, y=HEIGHT - 8, text_anchor="middle"))
    return join(*labels)
