"""Plans of OpenMedReason's size, and of an index that is larger than memory.

    python -m benchmarks.bench_plan                    an epoch of 450,000 samples, on one core
    python -m benchmarks.bench_plan simulate --rows 100000000    window by window, from mapped files

The second writes 16 bytes a row into a temporary folder, and what it finds is carried on to 10
billion rows: a window's cost does not hang on how many there are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from omr_io.packing import EpochPlan, Lengths, Plan, plan_epoch, summarize

SAMPLES = 450_000
SEQ_LEN = 8192
PACKS_PER_STEP = 64
WINDOW = 1_000_000
PROJECTED = 10_000_000_000
COLUMNS = ("text_tokens", "image_tokens", "label_tokens", "patches")


def corpus_like(count: int, seed: int = 0) -> Lengths:
    """Log-normal lengths: questions of 45 to 250 tokens, traces of median 400, 0.37 Mpx images."""
    rng = np.random.default_rng(seed)
    question = np.clip(rng.lognormal(np.log(75), 0.35, count), 45, 250).astype(np.int64)
    trace = np.clip(rng.lognormal(np.log(400), 0.295, count), 20, 2000).astype(np.int64)
    area = rng.lognormal(np.log(0.37e6), 0.75, count)
    images = np.clip(area / 1024, 256, 768).astype(np.int64)
    return Lengths(question + trace + 20, images, trace, 4 * images)


def one_epoch() -> dict[str, Any]:
    """An epoch of the corpus' size: seconds of the whole plan, efficiency, balance."""
    lengths = corpus_like(SAMPLES)
    options: dict[str, Any] = {"epoch": 0, "seed": 0, "packs_per_step": PACKS_PER_STEP}
    plans: dict[int, Plan] = {}
    times: dict[int, float] = {}
    for seq_len in (SEQ_LEN, 4096, 16384):
        started = time.perf_counter()
        plans[seq_len] = plan_epoch(lengths, seq_len=seq_len, **options)
        times[seq_len] = time.perf_counter() - started
    summary = summarize(EpochPlan(lengths, seq_len=SEQ_LEN, **options), lengths)
    return {
        "samples": SAMPLES,
        "seq_len": SEQ_LEN,
        "seconds": times[SEQ_LEN],
        "efficiency": plans[SEQ_LEN].efficiency,
        "steps": plans[SEQ_LEN].num_steps,
        "by_seq_len": {
            seq_len: {"seconds": times[seq_len], "efficiency": plan.efficiency}
            for seq_len, plan in plans.items()
        },
        "flops_max_by_mean": {
            one.world_size: {"mean": one.mean, "worst_full": one.worst_full}
            for one in summary.balance
        },
    }


def write_columns(folder: Path, rows: int) -> Lengths:
    """Lengths of so many rows in files, mapped."""
    files = {name: (folder / name).open("wb") for name in COLUMNS}
    for number, begin in enumerate(range(0, rows, WINDOW)):
        made = corpus_like(min(WINDOW, rows - begin), seed=number)
        for name, file in files.items():
            getattr(made, name).astype(np.int32).tofile(file)
    for file in files.values():
        file.close()
    return Lengths(**{name: np.memmap(folder / name, np.int32, "r") for name in COLUMNS})


def memory(name: str) -> int:
    """A figure of /proc/self/status in bytes; VmHWM is the largest resident set so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def simulate(rows: int, window: int, folder: Path | None) -> dict[str, Any]:
    """Plan every window of a mapped index once, then count the steps of another epoch."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        started = time.perf_counter()
        lengths = write_columns(Path(made), rows)
        wrote = time.perf_counter() - started
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
        options: dict[str, Any] = {"seed": 0, "seq_len": SEQ_LEN, "packs_per_step": PACKS_PER_STEP}
        started = time.perf_counter()
        plan = EpochPlan(lengths, epoch=0, window=window, **options)
        constructed = time.perf_counter() - started
        times, packs, tokens, samples = [], 0, 0, 0
        for number in range(plan.num_windows):
            started = time.perf_counter()
            one = plan.window(number)
            times.append(time.perf_counter() - started)
            packs += one.num_packs
            tokens += int(one.pack_tokens.sum())
            samples += len(one.samples)
        peak = memory("VmHWM")
        started = time.perf_counter()
        steps = EpochPlan(lengths, epoch=1, window=window, **options).num_steps
        counted = time.perf_counter() - started
    if samples != rows:
        raise AssertionError(f"{samples} of {rows} samples were planned")
    windows = len(times)
    more = PROJECTED / rows
    return {
        "rows": rows,
        "window": window,
        "windows": windows,
        "seq_len": SEQ_LEN,
        "steps": packs // PACKS_PER_STEP,
        "efficiency": tokens / (packs * SEQ_LEN),
        "seconds": {
            "writing the columns": wrote,
            "EpochPlan()": constructed,
            "all windows": sum(times),
            "a window, median": float(np.median(times)),
            "a window, most": max(times),
            "counting the steps of an epoch": counted,
        },
        "bytes": {
            "index": 16 * rows,
            "before": before,
            "peak": peak,
            "peak less before": peak - before,
        },
        "steps of the next epoch": steps,
        "projected": {
            "rows": PROJECTED,
            "windows": round(windows * more),
            "bytes of the index": 16 * PROJECTED,
            "peak bytes": peak + round(16 * windows * (more - 1)),  # order and counts of windows
            "seconds to the first window": float(np.median(times)) + constructed * more,
            "hours of planning, all windows": sum(times) * more / 3600,
            "hours to count an epoch's steps, one core": counted * more / 3600,
        },
    }


def main() -> None:
    """Run one of the two and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", nargs="?", choices=["epoch", "simulate"], default="epoch")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    given = parser.parse_args()
    if given.side == "epoch":
        print(json.dumps(one_epoch()))
        return
    result = simulate(given.rows, given.window, given.folder)
    from benchmarks.run import write  # afterwards: it imports torch, whose memory is not ours

    write("plan_simulate", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
