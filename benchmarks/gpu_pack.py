"""Pack assembly on a GPU: the launch, the host's part before it, and the collators of a CPU.

    python -m benchmarks.gpu_pack

Before anything is timed, the result is compared with the definition's. Batches take turns, so that
no launch finds the outputs of the one before in the L2 cache.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench_pack import OPTIONS, SIDES, corpus_packs
from benchmarks.gpu_pixels import copy_bandwidth, require_gpu

LAUNCHES = 200
"""In a row, without waiting: what one costs a training loop that runs ahead of its GPU."""

TENSORS = (
    "input_ids", "labels", "position_ids", "mm_token_type_ids", "segment_ids", "loss_weights",
    "cu_seqlens", "label_rows",
)  # fmt: skip


def check_equal(packs: list[Any]) -> None:
    """The kernel's tensors are the definition's.

    Raises:
        SystemExit: one is not.
    """
    torch = require_gpu()
    from omr_io.ops import pack_implementation

    for dtype in ("int64", "int32"):
        got = pack_implementation("triton", "cuda")(packs, dtype=dtype, **OPTIONS)
        want = pack_implementation("reference")(packs, dtype=dtype, **OPTIONS)
        for name in TENSORS:
            if not torch.equal(getattr(got, name).cpu(), getattr(want, name)):
                raise SystemExit(f"error: {name} ({dtype}) differs from the definition")


def in_a_row(run: Callable[[], object]) -> float:
    """Microseconds of one call among LAUNCHES queued ones, the GPU's work included: a median."""
    torch = require_gpu()
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / LAUNCHES)
    return 1e6 * statistics.median(times)


def milliseconds(run: Callable[[], object], seconds: float = 2.0) -> float:
    """The median of one call on the CPU."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def measure() -> dict[str, Any]:
    """All of it, as JSON values.

    Returns:
        Microseconds of the kernel alone (do_bench, L2 emptied), of a launch in a row, and of the
        whole call (span table, transfer, launch); bytes written and the share of the copy
        bandwidth; milliseconds of the sides of `benchmarks.bench_pack` on one core, and how many
        times the whole call they take.

    Raises:
        ConfigError: there is no GPU.
    """
    torch = require_gpu()
    from triton.testing import do_bench

    from omr_io.batches.spans import span_table
    from omr_io.kernels.pack import pack_spans, upload
    from omr_io.ops import pack_implementation

    torch.set_num_threads(1)
    packs = corpus_packs()
    check_equal(packs)
    bandwidth, device = copy_bandwidth(), torch.device("cuda")
    pack = pack_implementation("triton", device)
    tables = [span_table([*packs[n:], *packs[:n]], **OPTIONS) for n in range(4)]
    uploaded = itertools.cycle([upload(table, device) for table in tables])
    made = pack(packs, **OPTIONS)
    written = sum(
        getattr(made, name).numel() * getattr(made, name).element_size() for name in TENSORS[:-2]
    )
    kernel = 1e3 * do_bench(lambda: pack_spans(next(uploaded)), return_mode="median")
    cpu = {name: milliseconds(make(packs)) for name, make in SIDES.items()}
    whole = in_a_row(lambda: pack(packs, **OPTIONS))
    return {
        "tokens": made.input_ids.numel(),
        "bytes_written": written,
        "copy_bytes_per_second": bandwidth,
        "microseconds": {
            "kernel": kernel,
            "launch in a row": in_a_row(lambda: pack_spans(next(uploaded))),
            "whole call in a row": whole,
        },
        # A copy's bandwidth counts bytes read and written; here hardly any are read.
        "share_of_copy_bandwidth": written / kernel * 1e6 / bandwidth,
        "milliseconds_on_the_cpu": cpu,
        "times_the_whole_call": {name: 1e3 * time / whole for name, time in cpu.items()},
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
