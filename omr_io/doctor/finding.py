"""One thing that was looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

SLOW_SECONDS = 90.0
"""What a child process may take: the first import of torch from a cold network disk is slow."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        name: of the thing: "python", "memory", ....
        status: "fail" when omr_io cannot work so, "warn" when something will go slower, differ or
            fail later.
        found: one line.
        mend: what to do; "" when nothing is to be done.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


class ProbeError(Exception):
    """A child process that failed; the message is the last line of what it said."""


def probe(code: str, timeout: float = SLOW_SECONDS) -> Any:
    """Run Python code in a child and give back the JSON that it prints.

    The working folder is not searched for modules: what lies there is not to be run by chance.
    A library that crashes or hangs on import then ends the child, not the doctor.

    Raises:
        ProbeError: it failed, was killed or took too long.
    """
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, code from this package
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=timeout,
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProbeError(f"it took longer than {timeout:.0f} s") from None
    if done.returncode < 0:
        raise ProbeError(f"the process was ended by signal {-done.returncode}")
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode:
        raise ProbeError(lines[-1])
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ProbeError(lines[-1]) from None
