"""`--profile`: a torch.profiler trace of a few steps, once the run is warm."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WARM_STEPS = 3
"""Left out first: buffers are allocated, kernels chosen and compiled in them."""

TRACED_STEPS = 3
ROWS = 40


class StepProfile:
    """Traces some steps, and then nothing more.

    Writes FOLDER/PHASE-rankR.trace.json.gz, for https://ui.perfetto.dev or chrome://tracing, and
    PHASE-rankR.txt, the operators that took the most time. Steps that are traced are slower: their
    times in the log are of no use.

    Args:
        folder: runs/NAME/profile.
        phase, rank: name the files.
        warm, traced: how many steps are left out first, and then traced.
    """

    def __init__(
        self,
        folder: Path,
        phase: str,
        rank: int = 0,
        *,
        warm: int = WARM_STEPS,
        traced: int = TRACED_STEPS,
    ) -> None:
        self._stem = f"{phase}-rank{rank}"
        self._folder = folder
        self._warm, self._traced = warm, traced
        self._begun = 0
        self._profile: profile | None = None

    def step(self) -> None:
        """A step begins: the last one is over."""
        self._begun += 1
        if self._begun == self._warm + 1:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif self._begun == self._warm + self._traced + 1:
            self.close()

    def close(self) -> Path | None:
        """End the trace and write it; where it is, or None if there was none to write."""
        made, self._profile = self._profile, None
        if made is None:
            return None
        made.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._stem}.trace.json.gz"
        made.export_chrome_trace(str(path))
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = made.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=ROWS)
        (self._folder / f"{self._stem}.txt").write_text(table, encoding="utf-8")
        return path
