"""Counts and times of a running loader, and where they go: a line, a file, Prometheus."""

from omr_io.telemetry.jsonl import JsonlWriter
from omr_io.telemetry.live import LiveLine
from omr_io.telemetry.prometheus import PrometheusMetrics
from omr_io.telemetry.stats import LoaderStats, Meter

__all__ = [
    "JsonlWriter",
    "LiveLine",
    "LoaderStats",
    "Meter",
    "PrometheusMetrics",
]
