"""Run the benchmarks, each measurement in its own process on one core, and write the results.

    python -m benchmarks.run [--rounds 5]

Sides of a comparison take turns (A B A B ...), so that both see the machine's drift; what counts is
the median ratio of neighbouring runs. The result goes to benchmarks/results/loader.json.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_loader import SEQ_LEN, VISION, tokenizer_for

RESULTS = Path(__file__).parent / "results"


def measure(side: str, shards: Path, tokenizer: Path, samples: int) -> dict[str, Any]:
    """One process, pinned to one core."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "benchmarks.bench_loader", side]
    command += ["--shards", str(shards), "--tokenizer", str(tokenizer), "--samples", str(samples)]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/demo-shards"))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.shards.is_dir():
        sys.exit(f"error: {arguments.shards} does not exist. Make it with `make data`")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_for(arguments.shards, Path(folder))
        rounds = [
            {
                side: measure(side, arguments.shards, Path(folder), arguments.samples)
                for side in ("ours", "usual")
            }
            for _ in range(arguments.rounds)
        ]
    rates = {
        side: statistics.median(r[side]["samples_per_second"] for r in rounds)
        for side in ("ours", "usual")
    }
    ratios = [r["ours"]["samples_per_second"] / r["usual"]["samples_per_second"] for r in rounds]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    result = {
        "benchmark": "loader",
        "commit": commit.stdout.strip(),
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "cores": 1},
        "settings": {
            "samples": arguments.samples,
            "seq_len": SEQ_LEN,
            "min_pixels": VISION.min_pixels,
            "max_pixels": VISION.max_pixels,
        },
        "samples_per_second": rates,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "rounds": rounds,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for side, rate in rates.items():
        print(f"{side:>6}: {rate:8.1f} samples/s on one core (median of {arguments.rounds})")
    print(f" ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
