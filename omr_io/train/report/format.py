"""How the page and the terminal write numbers."""

from __future__ import annotations

import math

from omr_io.train.statistics import Interval


def percent(share: float, digits: int = 1) -> str:
    """0.7133 -> "71.3%"."""
    return f"{100 * share:.{digits}f}%"


def percent_tick(share: float) -> str:
    """Without needless digits, for an axis: 0.25 -> "25%", 0.005 -> "0.5%"."""
    return f"{100 * share:.4g}%"


def percent_interval(interval: Interval) -> str:
    """The ends of an interval of shares: "66.0% to 76.2%"."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def points(interval: Interval) -> str:
    """A difference of shares in percentage points with its interval: "+41.3 (35.0 to 47.1)"."""
    ends = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
    return f"{100 * interval.mean:+.1f} ({ends})"


def plain(value: float) -> str:
    """Four significant digits, thousands separated: 0.4123, 5,120, 0.0001 as 1e-04."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.0e}"


def plain_interval(interval: Interval) -> str:
    """A mean with its interval: "0.61 (0.55 to 0.67)"; one cluster gives no ends."""
    if not math.isfinite(interval.low):
        return f"{interval.mean:.3f} (one cluster: no interval)"
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def p_value(p: float) -> str:
    """ "p = 0.012" or "p < 0.001", with spaces that do not break."""
    words = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
