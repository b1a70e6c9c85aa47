"""A loss or gradient that is not finite: no rank's weights change, and all say whose samples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omr_io.errors import DiskError, TrainingError, Where
from omr_io.storage import write_atomically
from omr_io.train.ranks import Ranks

_NAMED = 8
"""How many keys the message has; the file has them all."""


def check_finite(
    ranks: Ranks,
    *,
    loss: float,
    gradient_norm: float,
    phase: str,
    step: int,
    keys: Sequence[str],
    path: Path,
) -> None:
    """To be called before the optimiser's step. Collective: if one rank has to stop, all do.

    Args:
        loss: this rank's part of the loss.
        gradient_norm: before clipping; where gradients are shared by ranks it says nothing of whose
            fault it is, so ranks whose own loss is not finite are named first.
        keys: of the samples of this rank's part of the step.
        path: a JSON file for step, and rank, loss, gradient norm and keys of each rank concerned.

    Raises:
        TrainingError: on every rank, if the loss or the gradient is not finite on any. Its words
            have the first keys, and why the file could not be written if so.
    """
    finite = math.isfinite(loss) and math.isfinite(gradient_norm)
    if not ranks.any(not finite):
        return
    told = ranks.gather((loss, gradient_norm, list(keys)))
    bad_loss = [rank for rank, (value, _, _) in enumerate(told) if not math.isfinite(value)]
    bad_norm = [rank for rank, (_, value, _) in enumerate(told) if not math.isfinite(value)]
    concerned = bad_loss or bad_norm
    problem = ""
    if ranks.is_first:
        rows = [_row(rank, *told[rank]) for rank in concerned]
        text = json.dumps({"phase": phase, "step": step, "ranks": rows}, indent=2)
        try:
            write_atomically(path, text.encode() + b"\n")
        except DiskError as error:
            problem = f"; {error.what}"
    problem = ranks.gather(problem)[0]  # nobody ends the run before the file is there
    first = concerned[0]
    their_keys = [key for rank in concerned for key in told[rank][2]]
    shown = ", ".join(their_keys[:_NAMED]) + (", ..." if len(their_keys) > _NAMED else "")
    raise TrainingError(
        f"{phase} step {step}: the loss is {told[first][0]} and the gradient norm {told[first][1]} "
        f"on rank {', '.join(map(str, concerned))}; no weight was changed{problem}",
        where=Where(source=str(path)),
        mend=f"Look at the samples of this step, or lower the learning rate: {shown}",
    )


def _row(rank: int, loss: float, gradient_norm: float, keys: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": rank,
        "loss": _number(loss),
        "gradient_norm": _number(gradient_norm),
        "keys": list(keys),
    }


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite: "nan", "inf", "-inf"."""
    return value if math.isfinite(value) else str(value)
