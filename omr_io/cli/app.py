"""The command line. Each command has a module: parse, call the library, report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from omr_io import __version__
from omr_io.cli.common import EXIT_CODES
from omr_io.cli.convert import CONVERT_EPILOG, convert
from omr_io.cli.demo_corpus import demo_corpus
from omr_io.cli.read_options import SCHEMAS_EPILOG, schemas
from omr_io.cli.shard_sets import info, verify
from omr_io.errors import OmrError
from omr_io.terminal import printable

app = typer.Typer(
    name="omr-io",
    help="Shards of OpenMedReason for training: convert, look at, verify.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug of ours: print it whole
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; an `OmrError` becomes one line and its exit code."""
    try:
        app(prog_name="omr-io")
    except OmrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omr-io {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


app.command("convert", epilog=CONVERT_EPILOG)(convert)
app.command("schemas", epilog=SCHEMAS_EPILOG)(schemas)
app.command("info", epilog=EXIT_CODES)(info)
app.command("verify", epilog=EXIT_CODES)(verify)
app.command("demo-corpus", epilog=EXIT_CODES)(demo_corpus)
