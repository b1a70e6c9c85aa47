"""All checks, none of which can stop the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import omr_io
from omr_io.doctor import installation, machine
from omr_io.doctor.finding import Finding
from omr_io.doctor.folder import check_folder

_AT_ONCE = 4  # children that import something


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        version: of omr_io.
        ok: nothing failed; there may be warnings.
        findings: in a fixed order.
    """

    version: str
    ok: bool
    findings: tuple[Finding, ...]


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Look at the installation, the machine and a folder. Never raises for what it finds.

    Heavy packages are imported in child processes with a time limit, so that one which crashes or
    hangs is told like anything else.

    Args:
        folder: where shards are to be written; it need not be there yet.
    """
    root = Path(omr_io.__file__).resolve().parent.parent
    checks: dict[str, Callable[[], Finding]] = {
        "python": installation.python,
        "packages": partial(installation.packages, root),
        "extras": partial(installation.extras, root),
        "C++ core": partial(installation.core, root),
        "Pillow": installation.pillow,
        "JPEG decoders": installation.decoders,
        "torch": installation.torch,
        "Triton": partial(installation.optional, "Triton", "triton", "triton"),
        "DALI": partial(installation.optional, "DALI", "nvidia.dali", "dali"),
        "GPU": installation.gpu,
        "cores": machine.cores,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "temporary files": machine.temporary_space,
        "encoding": machine.encoding,
        "Hugging Face token": machine.hugging_face_token,
        "proxies": machine.proxies,
    }
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        findings = list(pool.map(lambda item: _guarded(*item), checks.items()))
    if folder is not None:
        findings += _folder(folder)
    ok = all(finding.status != "fail" for finding in findings)
    return Diagnosis(omr_io.__version__, ok, tuple(findings))


def _folder(folder: Path) -> list[Finding]:
    try:
        return check_folder(folder)
    except Exception as error:
        return [_unknown("folder", error)]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever is odd about this machine must not hide the rest
        return _unknown(name, error)


def _unknown(name: str, error: Exception) -> Finding:
    return Finding(name, "warn", f"it could not be looked at: {error!r}")
