"""What every command shares: exit codes, the option --json, and how a result is printed."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from omr_io.errors import DiskError, OmrWarning
from omr_io.text import printable

EXIT_CODES = (
    "Exit codes: 0 done (rows that were refused are named, counted and written to "
    "rejects.parquet); 1 the data is wrong as a whole; 2 usage; 3 a source cannot be read; "
    "4 writing failed; 5 bytes on disk are not what was written; 130 interrupted."
)

READ_CODES = (
    "Exit codes: 0 done; 2 usage; 3 no shard set, or it cannot be read; 5 bytes on disk are not "
    "what was written; 130 interrupted."
)
WRITE_CODES = (
    "Exit codes: 0 done; 2 usage; 3 no shard set, or it cannot be read; 4 writing failed; 5 bytes "
    "on disk are not what was written; 130 interrupted."
)


def epilog(*examples: str, codes: str = EXIT_CODES) -> str:
    """The end of a command's help: examples, each a line that can be run, and exit codes."""
    lines = [example.replace("[", "\\[") for example in examples]  # or rich takes it for markup
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines), codes])


def choices(*values: str) -> Callable[[str], list[str]]:
    """For typer.Option(autocompletion=...): the values that a shell may complete to."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def finish(as_json: bool, result: Any, show: Any) -> None:
    """Print a result, a dataclass, for people or for programs.

    Raises:
        DiskError: standard output takes no more.
    """
    try:
        if as_json:
            print(json.dumps(dataclasses.asdict(result), indent=1, default=str))
        else:
            show(result, Console())
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever reads has had enough, and wants no message
    except OSError as error:
        raise DiskError(
            f"the work is done, but its result cannot be printed: {error.strerror}",
            mend="Run it again with an output that has room",
        ) from error


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings of ours as lines on standard error, not as Python prints them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", OmrWarning)
        yield
    for one in told:
        if issubclass(one.category, OmrWarning):
            print(f"warning: {printable(str(one.message))}", file=sys.stderr)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
