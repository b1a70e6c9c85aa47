"""What a step of training costs: time, tokens, waiting for data, memory, utilisation.

    meter = StepMeter(device=..., flops=StepFlops.from_model(model), peak=..., world_size=...)
    batches = meter.watch(batches)
    for step in ...:
        meter.start()
        ...                      # batches are taken here
        log.add("sft", step, loss=Total(loss), **meter.finish())

Nothing here waits for a device: what is on it is read when the step is shown (`StepLog`).
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from omr_io.batches import Batch
from omr_io.train.flops import StepFlops
from omr_io.train.profiling import StepProfile
from omr_io.train.step_log import Metric, Most, Share, Total

STEPS_KEPT = 1000
"""The latest steps whose times the percentiles are of."""


class StepMeter:
    """Counts what happens between `start` and `finish`; on one rank, in one thread.

    Args:
        device: where the model computes.
        flops: of the model; None: no utilisation.
        peak: FLOP/s of the device; None: no utilisation.
        world_size: ranks that make a step together.
        profile: told of every step; None: nothing is traced.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        flops: StepFlops | None = None,
        peak: float | None = None,
        world_size: int = 1,
        profile: StepProfile | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops = flops if peak is not None else None
        self._peak = peak
        self._world_size = world_size
        self._profile = profile
        self._clock = clock
        self._device = device
        self._seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self._start_counts()

    def start(self) -> None:
        """A step begins; what was done since the last one ended is not counted."""
        if self._profile is not None:
            self._profile.step()
        self._start_counts()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each counted and the wait for it timed.

        By the host's clock it is the time that the loop stood still. By the device's, between two
        CUDA events around the request, it is the time that the device had nothing to do until the
        batch was there: none while it still works on what was queued before.
        """
        source = iter(batches)
        while True:
            asked, before = self._clock(), self._event()
            batch = next(source, None)
            self._waited += self._clock() - asked
            if before is not None:
                self._events.append((before, self._event()))
            if batch is None:
                return
            self._tokens += batch.num_tokens
            self._capacity += batch.input_ids.numel()
            if self._flops is not None:
                self._work += self._flops.of(batch)
            yield batch

    def finish(self) -> dict[str, Metric]:
        """The step ended: its metrics.

        Returns:
            tokens (real ones, all ranks), seconds, tokens_per_second (of all ranks together),
            packing_efficiency, data_wait_share (host clock), seconds_p50 and seconds_p99 (of the
            latest `STEPS_KEPT` steps on the first rank), peak_memory_bytes (the most of any rank;
            of CUDA's allocator, else of the process); with a peak, mfu; on CUDA device_wait_share.
        """
        seconds = self._clock() - self._started
        self._seconds.append(seconds)
        # The smallest time that at least this share of the steps does not exceed.
        p50, p99 = np.quantile(self._seconds, (0.5, 0.99), method="inverted_cdf").tolist()
        metrics: dict[str, Metric] = {
            "tokens": Total(float(self._tokens)),
            "seconds": Share(seconds, 1.0),
            "tokens_per_second": Share(float(self._tokens), seconds / self._world_size),
            "packing_efficiency": Share(float(self._tokens), float(self._capacity)),
            "data_wait_share": Share(self._waited, seconds),
            "seconds_p50": p50,
            "seconds_p99": p99,
            "peak_memory_bytes": Most(float(peak_memory(self._device))),
        }
        if self._flops is not None and self._peak is not None:
            metrics["mfu"] = Share(self._work, seconds * self._peak)
        last = self._event()
        if last is not None:
            waits, first = self._events, self._first_event
            metrics["device_wait_share"] = Share(
                lambda: sum(_elapsed(a, b) for a, b in waits), lambda: _elapsed(first, last)
            )
        return metrics

    def close(self) -> None:
        """End the trace, if one runs."""
        if self._profile is not None:
            self._profile.close()

    def _start_counts(self) -> None:
        """All counts of a step back to nothing."""
        self._started = self._clock()
        self._waited = 0.0
        self._tokens = self._capacity = 0
        self._work = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._first_event = self._event()

    def _event(self) -> Any:
        """A CUDA event at this place of the current stream; None without CUDA."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def peak_memory(device: torch.device) -> int:
    """Bytes held at most so far: by CUDA's allocator on the device, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _elapsed(first: Any, last: Any) -> float:
    """Seconds between two CUDA events; waits for the later one."""
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
