"""The report of a run: report.html, one file that loads nothing else, and a table."""

from omr_io.train.report.data import Example, Report, Throughput, choose_items
from omr_io.train.report.page import print_summary, render_report, write_report

__all__ = [
    "Example",
    "Report",
    "Throughput",
    "choose_items",
    "print_summary",
    "render_report",
    "write_report",
]
