"""Conversion on a Ray cluster: the same pure function of a piece, one Ray task each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from omr_io.conversion.options import ConvertOptions
from omr_io.conversion.piece import Job, Task, Tell, convert_piece
from omr_io.conversion.piece_record import Tally
from omr_io.conversion.progress import ConvertProgress
from omr_io.conversion.run import convert
from omr_io.conversion.summary import ConvertSummary
from omr_io.errors import ConfigError, OmrError
from omr_io.text import one_line

_IN_FLIGHT = 1000  # tasks that Ray holds at a time


def convert_with_ray(
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    options: ConvertOptions | None = None,
    progress: Callable[[ConvertProgress], None] | None = None,
    *,
    cpus_a_piece: float = 1.0,
    dry_run: bool = False,
) -> ConvertSummary:
    """Convert a corpus into one shard set on Ray; the bytes are those of `convert`.

    Joins the Ray that runs (`ray.init` beforehand, or RAY_ADDRESS), else starts one here. Sources
    and `out` must be on a file system that all nodes share, under the same path, and omr_io must be
    installed on them. This process plans, and merges at the end. A run that was stopped goes on.

    Args:
        sources, out, options, progress: as in `convert`; `progress` is called after each piece, and
            `options.workers` is not used: Ray decides how many run.
        cpus_a_piece: CPUs that a task asks Ray for; `options.threads` are used within each.
        dry_run: as in `convert`; then the system's temporary folder must be shared too.

    Raises:
        ConfigError: Ray is not installed; the rest as `convert`.
        OmrError: what a piece raised; or Ray lost it for good.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed", mend="pip install 'omr_io[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    runner = _RayRunner(cpus_a_piece)
    return convert(sources, out, options, progress, dry_run=dry_run, runner=runner)


@dataclass(frozen=True, slots=True)
class _RayRunner:
    cpus: float

    def __call__(self, job: Job, tasks: Iterable[Task], count: int, tell: Tell) -> None:
        import ray

        remote = ray.remote(num_cpus=self.cpus)(_convert)
        shared = ray.put(job)  # once, not with every task
        waiting = iter(tasks)
        flying = [remote.remote(shared, task) for task in islice(waiting, _IN_FLIGHT)]
        try:
            while flying:
                done, flying = ray.wait(flying)
                flying += [remote.remote(shared, task) for task in islice(waiting, len(done))]
                for number, tally in self._results(done):
                    tell(number, tally, True)
        except BaseException:
            for one in flying:
                ray.cancel(one, force=True)
            raise

    def _results(self, done: list[Any]) -> list[tuple[int, Tally]]:
        import ray

        try:
            return list(ray.get(done))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OmrError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            what = f"Ray lost a piece: {one_line(error)}"
            raise OmrError(what, mend="Run again to go on") from error


def _convert(job: Job, task: Task) -> tuple[int, Tally]:
    record = convert_piece(job, task, job.options.threads or 1)
    return record.number, record.tally
