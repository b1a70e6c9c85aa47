"""How the loader starts and what memory it keeps: one measurement of our own loader; JSON out.

    python -m benchmarks.loader_runs drift FOLDER --steps 20000
    python -m benchmarks.loader_runs start FOLDER [--resume STATE] [--save STATE]
    python -m benchmarks.loader_runs held FOLDER --batches 40
    python -m benchmarks.loader_runs wait FOLDER --batches 40
    python -m benchmarks.loader_runs stop FOLDER

    drift   resident memory after 1,000 steps and after all, over a small set read again and again
    start   seconds from construction to the first batch, fresh or at a saved state
    held    the most memory over that of the imports, at the corpus' seq_len and sizes, 2 threads
    wait    share of the time that a consumer waits whose step takes 1.5 times a batch's making
    stop    says "ready" when it gives batches, and goes on until a signal ends it

FOLDER is of loader_corpus.py with about.json; `shards` in it may be a large set (`repeat`).
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader_sides import Side
from omr_io.batches import Batch
from omr_io.loader import DataLoader

WARM = 8
"""Batches before a wait counts."""

EARLY = 1000
"""Steps after which memory should not grow any more."""


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory; with "VmHWM" the most there ever were."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def loader(folder: Path, **changes: Any) -> DataLoader:
    """Ours, as a training run has it: two threads, bfloat16 pixels."""
    side = Side("omr_io", folder, 0)
    options: dict[str, Any] = {
        "tokenizer": folder / "tokenizer",
        "vision": side.vision(),
        "seq_len": side.about["seq_len"],
        "packs_per_step": 1,
        "num_threads": 2,
        "pixel_dtype": torch.bfloat16,
    }
    return DataLoader(folder / "shards", **(options | changes))


def drift(folder: Path, steps: int, every: int = EARLY) -> dict[str, Any]:
    """Memory of a long run; small images and packs, so that 20,000 steps take a minute."""
    vision = replace(Side("omr_io", folder, 0).vision(), min_pixels=4 * 32**2, max_pixels=9 * 32**2)
    held: dict[int, int] = {}
    done = 0
    with loader(folder, seq_len=1024, vision=vision) as batches:
        while done < steps:
            for _ in batches:
                done += 1
                if done % every == 0:
                    held[done] = resident()
                if done == steps:
                    break
    early, late = held[min(held)], held[max(held)]
    drifted = late / early - 1
    return {"steps": done, "at_first": early, "at_last": late, "drift": drifted, "bytes": held}


def start(folder: Path, resume: Path | None, save: Path | None) -> dict[str, Any]:
    """Seconds to the first batch; the cache of lengths is warm if it was filled before."""
    began = time.perf_counter()
    with loader(folder) as batches:
        made = time.perf_counter()
        if resume:
            batches.load_state_dict(json.loads(resume.read_text(encoding="utf-8")))
        first = next(iter(batches))
        ended = time.perf_counter()
        if save:
            for number, _ in enumerate(batches):
                if number == 40:
                    break
            save.write_text(json.dumps(batches.state_dict()), encoding="utf-8")
        samples = len(batches.lengths)
    times = {"construction": made - began, "first_batch": ended - made, "in_all": ended - began}
    return {"samples": samples, "step": first.step, "seconds": times}


def held(folder: Path, batches: int) -> dict[str, Any]:
    """The most memory while batches are made at full size, over what imports take."""
    before = resident()
    with loader(folder) as made:
        for number, _ in enumerate(made):
            if number + 1 == batches:
                break
        samples = len(made.lengths)
    over = resident("VmHWM") - before
    return {"samples": samples, "imports": before, "over_imports": over}


def wait(folder: Path, batches: int) -> dict[str, Any]:
    """The loader's own account of a consumer that sleeps, as one does whose GPU computes.

    Once the queue is full: the first batch can only be waited for, which `start` measures.
    """
    if batches <= WARM:
        raise ValueError(f"{batches} batches, the first {WARM} of which do not count")
    with loader(folder, num_threads=0) as alone:
        begun = time.perf_counter()
        for _ in islice(_endless(alone), 10):
            pass
        step = 1.5 * (time.perf_counter() - begun) / 10
    with loader(folder, num_threads=1) as made:
        first = begun = 0.0
        for number, _ in enumerate(islice(_endless(made), batches)):
            if number == WARM:
                first, begun = made.stats().waited_seconds, time.perf_counter()
            time.sleep(step)
        seconds, waited = time.perf_counter() - begun, made.stats().waited_seconds - first
    return {"step_seconds": step, "batches": batches - WARM, "wait_share": waited / seconds}


def stop(folder: Path) -> None:
    """Batches without an end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with loader(folder) as made:
        for number, _ in enumerate(_endless(made)):
            if number == WARM:
                print("ready", flush=True)


def _endless(made: DataLoader) -> Iterator[Batch]:
    """Epoch after epoch: a small corpus has few batches."""
    while True:
        yield from made


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["drift", "start", "held", "wait", "stop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "stop":
        stop(given.folder)
    if given.what == "drift":
        result = drift(given.folder, given.steps)
    elif given.what == "start":
        result = start(given.folder, given.resume, given.save)
    else:
        result = {"held": held, "wait": wait}[given.what](given.folder, given.batches)
    print(json.dumps({"what": given.what} | result))


if __name__ == "__main__":
    main()
