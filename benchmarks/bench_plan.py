"""Seconds to plan an epoch of OpenMedReason's size on one core, and the packing efficiency."""

from __future__ import annotations

import json
import time

import numpy as np

from omr_io.packing import Lengths, plan_epoch

SAMPLES = 450_000
SEQ_LEN = 8192


def corpus_like(count: int, seed: int = 0) -> Lengths:
    """Log-normal lengths: questions of 45 to 250 tokens, traces of median 400, 0.37 Mpx images."""
    rng = np.random.default_rng(seed)
    question = np.clip(rng.lognormal(np.log(75), 0.35, count), 45, 250).astype(np.int64)
    trace = np.clip(rng.lognormal(np.log(400), 0.295, count), 20, 2000).astype(np.int64)
    area = rng.lognormal(np.log(0.37e6), 0.75, count)
    images = np.clip(area / 1024, 256, 768).astype(np.int64)
    return Lengths(question + trace + 20, images, trace, 4 * images)


def main() -> None:
    """Plan one epoch and print one line of JSON."""
    lengths = corpus_like(SAMPLES)
    started = time.perf_counter()
    plan = plan_epoch(lengths, epoch=0, seed=0, seq_len=SEQ_LEN, packs_per_step=64)
    seconds = time.perf_counter() - started
    result = {"samples": SAMPLES, "seq_len": SEQ_LEN, "seconds": seconds}
    print(json.dumps(result | {"efficiency": plan.efficiency, "steps": plan.num_steps}))


if __name__ == "__main__":
    main()
