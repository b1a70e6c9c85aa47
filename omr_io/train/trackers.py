"""Trackers of experiments behind three methods: TensorBoard, Weights & Biases, MLflow, Trackio.

A recipe names those it wants (`trackers: [tensorboard]`); each is an extra of omr_io. Where and as
whom they write is set as each of them has it: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, TRACKIO_PROJECT and so on; project and experiment are else called "omr_io".
TensorBoard's files are in runs/NAME/tensorboard. A resumed run goes on in the run it began.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from omr_io.errors import ConfigError, OmrError, OmrWarning
from omr_io.storage import write_atomically

PROJECT = "omr_io"


class Tracker(Protocol):
    """What the run needs of a tracker."""

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Begin, or go on with, the run of this name; `config` is flat."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of one step; steps grow."""

    def close(self, *, failed: bool) -> None:
        """Write what is left; the run `failed` if an error ended it."""


class TensorBoard:
    """Event files in FOLDER/tensorboard; on resuming, what was written after `step` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder / "tensorboard"
        self._step = step

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Open an event file, with the configuration as a text."""
        # Also after no step at all: a run killed before its first checkpoint begins again.
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(
            str(self._folder), purge_step=self._step + 1
        )
        rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        self._writer.add_text("recipe", f"{name}\n\n| key | value |\n|-|-|\n{rows}", self._step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A scalar each."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self, *, failed: bool) -> None:
        """Write and close the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases; its local files are in FOLDER/wandb."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Begin the run, or go on with it by the id kept in FOLDER."""
        self._run: Any = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=_kept(self._folder, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(self._folder),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; of steps that a killed run has logged already, wandb keeps the first."""
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run, as failed if it did."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """An MLflow tracking server or store, as MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Begin a run of the experiment, or go on with that whose id is kept in FOLDER."""
        self._client: Any = import_module("mlflow").MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)

        def begin() -> str:
            found = self._client.get_experiment_by_name(wanted)
            experiment = found.experiment_id if found else self._client.create_experiment(wanted)
            run = self._client.create_run(experiment, run_name=name)
            for key, value in config.items():
                self._client.log_param(run.info.run_id, key, value)
            return str(run.info.run_id)

        self._run = _kept(self._folder, "mlflow", begin)
        self._client.update_run(self._run, status="RUNNING")  # a resumed one was finished
        self._last: dict[str, int] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics in one request; of what a killed run has logged already, the first stays."""
        metric, now = import_module("mlflow.entities").Metric, int(time.time() * 1000)
        for key in metrics.keys() - self._last.keys():
            there = self._client.get_metric_history(self._run, key)
            self._last[key] = max((row.step for row in there), default=-1)
        new = {key: value for key, value in metrics.items() if step > self._last[key]}
        if new:
            rows = [metric(key, value, now, step) for key, value in new.items()]
            self._client.log_batch(self._run, metrics=rows)

    def close(self, *, failed: bool) -> None:
        """Mark the run as finished or failed."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio: a local database, or a Space as TRACKIO_SPACE_ID says."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Begin a run, or go on with the newest of its name if FOLDER knows that it was begun."""
        self._trackio: Any = import_module("trackio")
        resume = "allow"

        def begin() -> str:
            nonlocal resume
            resume = "never"
            return name

        kept = _kept(self._folder, "trackio", begin)
        run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=kept,
            config=dict(config),
            resume=resume,
            embed=False,
        )
        # Trackio has no public word for the last step that is there.
        self._last = getattr(run, "_next_step", 0) - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; of steps that a killed run has logged already, the first stays.

        The last of them comes again, since of what a step logs in two rows one may be missing.
        """
        if step >= self._last:
            self._trackio.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self._trackio.finish()


_KINDS: dict[str, tuple[type[Any], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
    "trackio": (Trackio, "trackio"),
}
"""Each with the package it needs."""

NAMES = tuple(_KINDS)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be had, before any work is done; imports none of them.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in _KINDS:
            raise ConfigError(f"trackers: {name!r} is unknown", mend=f"Known: {', '.join(NAMES)}")
        if importlib.util.find_spec(_KINDS[name][1]) is None:
            raise ConfigError(
                f"trackers: {name} is not installed",
                mend=f"pip install 'omr_io[{name}]', or take it out of the recipe's trackers",
            )


class Trackers:
    """Several trackers as one; one that fails in mid-run is left out, and the run goes on.

    Args:
        trackers: by name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    @classmethod
    def of(cls, names: Sequence[str], folder: Path, step: int = 0) -> Trackers:
        """Those of a recipe, not yet started.

        Args:
            folder: runs/NAME, which is there.
            step: steps that are done, of all phases together: above 0 the run is resumed.

        Raises:
            ConfigError: as `check_trackers`.
        """
        check_trackers(names)
        return cls({name: _KINDS[name][0](folder, step) for name in names})

    def start(self, name: str, config: Mapping[str, object]) -> None:
        """Start all of them.

        Raises:
            ConfigError: one cannot start: not logged in, no such server. The others are closed.
        """
        started: dict[str, Tracker] = {}
        for kind, tracker in self._trackers.items():
            try:
                tracker.start(name, config)
            except Exception as error:
                self._trackers = started
                self.close(failed=True)
                if isinstance(error, OmrError):
                    raise
                raise ConfigError(
                    f"{kind} cannot start: {_first_line(error)}",
                    mend=f"Set it up ({kind}'s login, server or environment variables), or take "
                    "it out of the recipe's trackers",
                ) from error
            started[kind] = tracker

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """The numbers among the metrics of one step, to all of them."""
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for kind in list(self._trackers):
            self._guard(kind, lambda tracker: tracker.log(step, numbers))

    def close(self, *, failed: bool = False) -> None:
        """Close all that still work.

        Args:
            failed: an error ended the run.
        """
        for kind in list(self._trackers):
            self._guard(kind, lambda tracker: tracker.close(failed=failed))
        self._trackers.clear()

    def _guard(self, kind: str, call: Any) -> None:
        try:
            call(self._trackers[kind])
        except Exception as error:
            tracker = self._trackers.pop(kind)
            with suppress(Exception):  # what it has already may still be written
                tracker.close(failed=True)
            warnings.warn(
                f"{kind} failed and gets no more metrics: {_first_line(error)}. The run goes on; "
                "history.jsonl has all of them",
                OmrWarning,
                stacklevel=3,
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _kept(folder: Path, kind: str, make: Any) -> str:
    """What names this run to a tracker, kept in FOLDER so that a resumed run goes on with it."""
    path = folder / "trackers.json"
    names = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kind not in names:
        names[kind] = make()
        write_atomically(path, json.dumps(names).encode())
    return str(names[kind])
