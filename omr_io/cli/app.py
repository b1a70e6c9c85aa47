"""The command line. Each command has a module: parse, call the library, report."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated

import typer

from omr_io import __version__
from omr_io.cli.common import EXIT_CODES, READ_CODES, WRITE_CODES, epilog
from omr_io.cli.completion import EXAMPLES as COMPLETION_EXAMPLES
from omr_io.cli.completion import PROGRAM, VARIABLE, answer_shells, completion
from omr_io.cli.convert import CONVERT_CODES, CONVERT_EXAMPLES, convert
from omr_io.cli.demo_corpus import DEMO_EXAMPLES, demo_corpus
from omr_io.cli.doctor import CODES as DOCTOR_CODES
from omr_io.cli.doctor import EXAMPLES as DOCTOR_EXAMPLES
from omr_io.cli.doctor import doctor
from omr_io.cli.energon import EXAMPLES as ENERGON_EXAMPLES
from omr_io.cli.energon import energon
from omr_io.cli.eval import CODES as EVAL_CODES
from omr_io.cli.eval import EXAMPLES as EVAL_EXAMPLES
from omr_io.cli.eval import evaluate
from omr_io.cli.index import CODES as INDEX_CODES
from omr_io.cli.index import EXAMPLES as INDEX_EXAMPLES
from omr_io.cli.index import index
from omr_io.cli.lint import CODES as LINT_CODES
from omr_io.cli.lint import EXAMPLES as LINT_EXAMPLES
from omr_io.cli.lint import lint
from omr_io.cli.plan import CODES as PLAN_CODES
from omr_io.cli.plan import EXAMPLES as PLAN_EXAMPLES
from omr_io.cli.plan import plan
from omr_io.cli.publish import CARD_EXAMPLES, PUSH_CODES, PUSH_EXAMPLES, card, push
from omr_io.cli.read_options import SCHEMAS_EXAMPLES, schemas
from omr_io.cli.shard_sets import INFO_EXAMPLES, VERIFY_CODES, VERIFY_EXAMPLES, info, verify
from omr_io.cli.view import EXAMPLES as VIEW_EXAMPLES
from omr_io.cli.view import view
from omr_io.errors import DiskError, OmrError
from omr_io.text import printable

app = typer.Typer(
    name="omr-io",
    help="Shards of OpenMedReason for training: convert, look at, verify.",
    epilog=epilog("omr-io convert train.parquet shards/", "omr-io COMMAND --help  # with examples"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug of ours: print it whole
    add_completion=False,  # `omr-io completion` prints the script and edits no one's files
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def main() -> None:
    """Run the command line; an `OmrError` becomes one line and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may know fewer characters than names
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        answer_shells()
        try:
            app(prog_name=PROGRAM, complete_var=VARIABLE)
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except OmrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _drop_output()  # who reads it has seen enough
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _drop_output()
        print(f"error: writing the result failed: {error.strerror}", file=sys.stderr)
        sys.exit(DiskError.exit_code)


def _drop_output() -> None:
    """Let the interpreter's own flush at its end have nowhere to fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


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


for _name, _command, _examples, _codes in (
    ("convert", convert, CONVERT_EXAMPLES, CONVERT_CODES),
    ("schemas", schemas, SCHEMAS_EXAMPLES, "Exit codes: 0 done; 2 usage."),
    ("index", index, INDEX_EXAMPLES, INDEX_CODES),
    ("info", info, INFO_EXAMPLES, READ_CODES),
    ("view", view, VIEW_EXAMPLES, WRITE_CODES),
    ("verify", verify, VERIFY_EXAMPLES, VERIFY_CODES),
    ("lint", lint, LINT_EXAMPLES, LINT_CODES),
    ("plan", plan, PLAN_EXAMPLES, PLAN_CODES),
    ("eval", evaluate, EVAL_EXAMPLES, EVAL_CODES),
    ("energon", energon, ENERGON_EXAMPLES, WRITE_CODES),
    ("card", card, CARD_EXAMPLES, WRITE_CODES),
    ("push", push, PUSH_EXAMPLES, PUSH_CODES),
    ("demo-corpus", demo_corpus, DEMO_EXAMPLES, EXIT_CODES),
    ("doctor", doctor, DOCTOR_EXAMPLES, DOCTOR_CODES),
    ("completion", completion, COMPLETION_EXAMPLES, "Exit codes: 0 done; 2 usage."),
):
    app.command(_name, epilog=epilog(*_examples, codes=_codes))(_command)
