"""`omr-io completion`: the script by which a shell completes omr-io's commands and options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

PROGRAM = "omr-io"
VARIABLE = "_OMR_IO_COMPLETE"
"""A shell asks for completions by this environment variable; typer answers."""

EXAMPLES = (
    'eval "$(omr-io completion bash)"  # this shell; put it into ~/.bashrc to keep it',
    "omr-io completion zsh > ~/.zfunc/_omr-io",
    "omr-io completion fish > ~/.config/fish/completions/omr-io.fish",
)


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell that shall complete.")],
) -> None:
    """Print the script that makes a shell complete commands, options and values."""
    # typer's names, though it does not list them: it has had them since completion came to it.
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell.value))


def answer_shells() -> None:
    """Make typer able to answer when a shell asks; nothing otherwise."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
