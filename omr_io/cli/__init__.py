"""The command line `omr-io`."""

from omr_io.cli.app import app, main

__all__ = ["app", "main"]
