"""What a run of the recipe shows: its log, its meter, and how it measures the data stall."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.errors import ConfigError, OmrError
from omr_io.loader import DataLoader
from omr_io.storage import write_atomically
from omr_io.train.flops import StepFlops, peak_flops
from omr_io.train.history import History, curve, read_history
from omr_io.train.meters import StepMeter
from omr_io.train.profiling import StepProfile
from omr_io.train.recipe import Recipe, recipe_fields
from omr_io.train.run import Place, Run, say
from omr_io.train.step_log import PhaseSteps, StepLog
from omr_io.train.synthetic import STRETCH, Stall, StallMeter, fake_data, replay
from omr_io.train.trackers import Trackers

Mode = Literal["fake-data", "replay", "measure-stall"]


def open_log(run: Run, place: Place) -> StepLog:
    """Where the run's metrics go: on the first rank history.jsonl, the screen and the trackers.

    The log is cut back to `place`: a killed run may have logged past its checkpoint. Collective.

    Raises:
        ConfigError: a tracker cannot start.
        ResumeError: the log is gone, or of another run.
    """
    recipe = run.recipe
    phases = {
        "sft": PhaseSteps(recipe.sft.steps, recipe.sft.log_every),
        "rl": PhaseSteps(recipe.rl.steps, recipe.rl.log_every, first=recipe.sft.steps),
    }
    history = trackers = failed = None
    if run.ranks.is_first:
        try:
            history, trackers = _opened(run, place, phases[place.phase].first + place.step)
        except OmrError as error:
            failed = error
    # The others must not wait for a rank that has given up.
    for refused in run.ranks.gather(failed):
        if refused is not None:
            raise refused
    return StepLog(run.ranks, history, phases, trackers, say)


def _opened(run: Run, place: Place, done: int) -> tuple[History, Trackers]:
    trackers = Trackers.of(run.recipe.trackers, run.folder, done)
    trackers.start(run.recipe.name, recipe_fields(run.recipe))
    path = run.folder / "history.jsonl"
    try:
        if place.step == 0 and not path.exists():
            return History.create(path), trackers
        return History.resume(path, phase=place.phase, step=place.step), trackers
    except OmrError:
        trackers.close(failed=True)
        raise


def has_metric(run: Run, step: int, name: str) -> bool:
    """Whether the log of a run has a metric of a step of SFT; for the first rank."""
    rows = read_history(run.folder / "history.jsonl")
    return any(row["phase"] == "sft" and row["step"] == step and name in row for row in rows)


def sft_meter(run: Run, *, profile: bool = False) -> StepMeter:
    """The meter of SFT's steps; call it once what is trained is settled.

    Args:
        profile: trace a few steps to runs/NAME/profile.
    """
    return StepMeter(
        device=run.device,
        flops=StepFlops.from_model(run.model),
        peak=peak_flops(run.device, run.recipe.peak_tflops),
        world_size=run.ranks.world_size,
        profile=StepProfile(run.folder / "profile", "sft", run.ranks.rank) if profile else None,
    )


class Synthetic:
    """A run of SFT that only measures time; false where it is none of that.

    Args:
        mode: see `omr_io.train.synthetic`; None: a real run.
        steps: to make; with "measure-stall", to make from the loader and again replayed.

    Raises:
        ConfigError: no steps, or a run that is to be resumed: none of them is ever saved.
    """

    def __init__(self, mode: Mode | None = None, steps: int = 100, *, resume: bool = False) -> None:
        if mode is not None and (steps < 1 or resume):
            raise ConfigError(
                f"--{mode} cannot be resumed" if resume else f"--{mode} {steps} makes no steps",
                mend="Such a run only measures time: start it anew" if resume else "Give 1 or more",
            )
        self.mode = mode
        self._steps = steps
        self._stall: StallMeter | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Synthetic:
        """Of the command's options: --fake-data, --replay, --measure-stall, --resume."""
        for mode in typing.get_args(Mode):
            steps = getattr(arguments, mode.replace("-", "_"))
            if steps is not None:
                return cls(mode, steps, resume=arguments.resume)
        return cls()

    def __bool__(self) -> bool:
        return self.mode is not None

    def renamed(self, recipe: Recipe) -> Recipe:
        """The recipe under a name of its own, so that no real run is touched; says what it is."""
        if self.mode is None:
            return recipe
        say(
            f"--{self.mode}: this run only measures time. The model learns NOTHING USEFUL from "
            "such batches, and no checkpoint is written"
        )
        return dataclasses.replace(recipe, name=f"{recipe.name}-{self.mode}")

    def with_steps(self, recipe: Recipe, loader: DataLoader) -> Recipe:
        """The recipe with as many steps of SFT as are asked for."""
        steps = self._steps
        if self.mode is None:
            return recipe
        if self.mode == "measure-stall":
            stall = self._meter(iter(()), loader, torch.device("cpu"))
            steps = stall.steps_of_a_pair * max(1, round(self._steps / stall.stretch))
        return dataclasses.replace(recipe, sft=dataclasses.replace(recipe.sft, steps=steps))

    def batches(
        self, batches: Iterator[Batch], loader: DataLoader, device: torch.device
    ) -> Iterator[Batch]:
        """What SFT is given in place of the loader's batches; of a real run those."""
        if self.mode == "fake-data":
            return fake_data(batches, device)
        if self.mode == "replay":
            return replay(batches, loader.micro_steps, steps=max(1, self._steps // 4))
        if self.mode == "measure-stall":
            self._stall = self._meter(batches, loader, device)
            return iter(self._stall)
        return batches

    def _meter(
        self, batches: Iterator[Batch], loader: DataLoader, device: torch.device
    ) -> StallMeter:
        return StallMeter(
            batches,
            loader.micro_steps,
            queued=loader.prefetch + max(1, loader.num_threads),
            stretch=min(STRETCH, self._steps),
            synchronize=lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None,
        )

    def report(self, run: Run, log: StepLog) -> None:
        """Say what was measured and write it to measured.json; on the first rank."""
        if self._stall is not None:
            self._stall.finish()
        log.flush()
        if not run.ranks.is_first:
            return
        result: dict[str, Any]
        if self._stall is not None:
            stall = Stall.of(self._stall.pairs)
            result = dataclasses.asdict(stall) | {
                "rounds": [dataclasses.asdict(pair) for pair in self._stall.pairs]
            }
            say(str(stall))
        else:
            synthetic = _median_step(run.folder, skip=self._steps // 4)
            assert synthetic is not None  # steps is at least 1
            result = {"synthetic_seconds": synthetic}
            text = f"a step takes {synthetic:.4g} s (median, the first quarter left out)"
            real_run = run.folder.with_name(run.folder.name.removesuffix(f"-{self.mode}"))
            real = _median_step(real_run, skip=self._steps // 4)
            if real is None:
                text += "; after a real run of this recipe the data stall is given here as well"
            else:
                result |= {"real_seconds": real, "stall": 1 - synthetic / real}
                text += f", in the real run {real:.4g} s: data stall {1 - synthetic / real:.2%}"
            say(text)
        write_atomically(run.folder / "measured.json", json.dumps(result, indent=1).encode())


def _median_step(folder: Path, *, skip: int) -> float | None:
    """Seconds of a step of SFT by a run's log, its first steps left out; None without a log."""
    path = folder / "history.jsonl"
    if not path.exists():
        return None
    seconds = curve(read_history(path), "sft", "seconds")[1]
    return float(np.median(seconds[skip:])) if len(seconds) > skip else None
