"""Run the benchmarks, each measurement in its own process on one core, and write the results.

    python -m benchmarks.run [loader] [plan] [pack] [convert] [tokenizer] [shared_prefix] [pixels]
                             [train] [--rounds 5]

Sides of a comparison take turns (A B A B ...), so that both see the machine's drift; what counts is
the median ratio of neighbouring runs. Results go to benchmarks/results/*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_loader, bench_pack, bench_pixels, bench_tokenizer, bench_train
from benchmarks.bench_convert import IMAGE_BYTES

RESULTS = Path(__file__).parent / "results"
SLOW_SIDES = ("omr_io-decode", "datasets", "img2dataset")
"""Of the convert benchmark: a minute and a half together, and far from the others."""

SLOW_ROUNDS = 2


def measure(
    module: str, arguments: Sequence[str] = (), *, all_cores: bool = False
) -> dict[str, Any]:
    """One process, pinned to one core unless it may have all; its last line is its result."""
    cores = os.sched_getaffinity(0) if all_cores else {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write(name: str, result: dict[str, Any]) -> None:
    """A result with the commit and the machine it comes from."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),  # there are; sides use one unless a result says more
    }
    about = {"benchmark": name, "commit": commit.stdout.strip(), "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(about | result, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def bench_plan(rounds: int) -> None:
    """The plan of an epoch of the corpus' size."""
    runs = [measure("bench_plan") for _ in range(rounds)]
    seconds = statistics.median(run["seconds"] for run in runs)
    write("plan", {"seconds": seconds, "rounds": runs})
    first = runs[0]
    print(
        f"plan: {first['samples']} samples in {seconds:.2f} s (median of {rounds}), packing "
        f"efficiency {first['efficiency']:.2%} at seq_len {first['seq_len']}"
    )


def bench_packing(rounds: int) -> None:
    """One batch of 64k tokens laid out, by each side in turn; a process's least time counts."""
    sides = list(bench_pack.SIDES)
    runs = [{side: measure("bench_pack", [side]) for side in sides} for _ in range(rounds)]
    first = runs[0]["omr_io-cpu"]
    times = {side: statistics.median(run[side]["milliseconds"] for run in runs) for side in sides}
    ratios = {
        side: statistics.median(
            run[side]["milliseconds"] / run["omr_io-cpu"]["milliseconds"] for run in runs
        )
        for side in sides
    }
    result = {"tokens": first["tokens"], "milliseconds": times, "omr_io-cpu_is_faster_by": ratios}
    write("pack", result | {"rounds": runs})
    for side in sides:
        print(f"pack, {side}: {times[side]:.2f} ms; omr_io-cpu is {ratios[side]:.1f} times as fast")


def bench_convert(rows: int, rounds: int, folder: Path | None, img2dataset_python: str) -> None:
    """Parquet to shards against the peers and the machine's own limit, side by side."""
    sides = ["limit", "omr_io", "omr_io-start", "omr_io-decode", "omr_io-cores"]
    sides += ["datasets", "datasets-raw", "nemo"]
    sides += ["img2dataset"] if img2dataset_python else []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        corpus = Path(made) / "corpus"
        make = [sys.executable, "-m", "benchmarks.bench_convert", "make", str(corpus)]
        subprocess.run([*make, "--rows", str(rows)], check=True)
        extra = [str(corpus), "--img2dataset-python", img2dataset_python]
        runs = [
            {
                side: measure("bench_convert", [side, *extra], all_cores=side == "omr_io-cores")
                for side in sides
                if number < SLOW_ROUNDS or side not in SLOW_SIDES
            }
            for number in range(rounds)
        ]
    held = {side: [run for run in runs if side in run] for side in sides}
    seconds = {
        side: statistics.median(run[side]["seconds"] for run in held[side]) for side in sides
    }
    rates = {side: rows / seconds[side] for side in sides}
    ratios = {
        side: statistics.median(
            run[side]["seconds"] / run["omr_io"]["seconds"] for run in held[side]
        )
        for side in sides
    }
    settings = {"rows": rows, "image_bytes": IMAGE_BYTES, "folder": str(folder or "temporary")}
    result = {"settings": settings, "rows_per_second": rates, "omr_io_is_faster_by": ratios}
    write("convert", result | {"rounds": runs})
    for side in sides:
        print(f"convert, {side}: {rates[side]:.0f} rows/s; omr_io is {ratios[side]:.2f} times it")


def bench_shared_prefix(rounds: int) -> None:
    """Prompts laid out once a group against once a completion."""
    runs = [measure("bench_shared_prefix") for _ in range(rounds)]
    ratio = statistics.median(run["step"]["times_faster"] for run in runs)
    write("shared_prefix", {"times_faster": ratio, "rounds": runs})
    tokens, step = runs[0]["counts"][0], runs[0]["step"]
    print(
        f"shared_prefix: {tokens['ratio_of_tokens']:.2f} times fewer tokens, "
        f"{tokens['ratio_of_patches']:.0f} times fewer patches; a small model's step is "
        f"{ratio:.2f} times as fast (median of {rounds}) in {step['times_less_memory']:.2f} times "
        "less memory"
    )


def main() -> None:
    """Measure, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["loader", "plan", "pack", "convert", "tokenizer", "shared_prefix", "pixels", "train"]
    parser.add_argument("benchmarks", nargs="*", choices=[*every, []], default=[])
    parser.add_argument("--rows", type=int, default=20_000, help="of the convert benchmark")
    parser.add_argument("--folder", type=Path, help="where convert reads and writes")
    parser.add_argument("--img2dataset-python", default="", help="of an environment that has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--simd-python", default="", help="of an environment with pillow-simd")
    bench_tokenizer.add_arguments(parser.add_argument_group("tokenizer"))
    bench_loader.add_arguments(parser.add_argument_group("loader"))
    bench_train.add_arguments(parser.add_argument_group("train"))
    arguments = parser.parse_args()
    chosen = arguments.benchmarks or every
    if "loader" in chosen:
        bench_loader.report(arguments)
    if "plan" in chosen:
        bench_plan(arguments.rounds)
    if "pack" in chosen:
        bench_packing(arguments.rounds)
    if "convert" in chosen:
        folder, python = arguments.folder, arguments.img2dataset_python
        bench_convert(arguments.rows, arguments.rounds, folder, python)
    if "tokenizer" in chosen:
        given = arguments
        bench_tokenizer.report(
            given.peers_python, given.text, given.ranks, given.rounds, given.clock
        )
    if "shared_prefix" in chosen:
        bench_shared_prefix(arguments.rounds)
    if "pixels" in chosen:
        bench_pixels.report(arguments.simd_python, arguments.rounds, arguments.clock)
    if "train" in chosen:
        bench_train.report(arguments)


if __name__ == "__main__":
    main()
