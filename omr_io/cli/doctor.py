"""`omr-io doctor`: what of this machine and installation would be in the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from omr_io.cli.common import AsJson, finish
from omr_io.text import printable

if TYPE_CHECKING:
    from omr_io.doctor import Diagnosis

EXAMPLES = ("omr-io doctor", "omr-io doctor /scratch/shards", "omr-io doctor --json")
CODES = "Exit codes: 0 nothing fails; 1 something does; 2 usage."

_STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Look at this folder too: can shards be written?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation and the machine, and say how to mend what is wrong.

    Exits with 1 if something fails; warnings do not count. Passwords and tokens are never printed.
    """
    from omr_io.doctor import diagnose

    diagnosis = diagnose(folder)
    finish(as_json, diagnosis, _print_doctor)
    if not diagnosis.ok:
        raise typer.Exit(1)


def _print_doctor(diagnosis: Diagnosis, to: Console) -> None:
    text = Text()
    width = max(len(finding.name) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        text.append(f"{finding.status:<4}  ", style=_STYLES[finding.status])
        text.append(f"{finding.name:<{width}}  ", style="bold")
        text.append(f"{printable(finding.found)}\n")
        if finding.mend:
            text.append(f"{'':<{width + 8}}{printable(finding.mend)}\n", style="dim")
    counts = [
        (sum(finding.status == status for finding in diagnosis.findings), word)
        for status, word in (("fail", "failed"), ("warn", "warnings"))
    ]
    words = ", ".join(f"{count} {word}" for count, word in counts if count)
    text.append(f"omr-io {diagnosis.version}: {words or 'all is well'}")
    to.print(text, soft_wrap=True, highlight=False)
