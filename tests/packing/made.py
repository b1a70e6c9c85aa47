"""Lengths for the tests of the plan."""

import numpy as np

from omr_io.packing import Lengths


def make_lengths(tokens, image_tokens=None, label_tokens=None) -> Lengths:
    tokens = np.asarray(tokens, np.int64)
    images = np.zeros_like(tokens) if image_tokens is None else np.asarray(image_tokens, np.int64)
    labels = tokens // 2 if label_tokens is None else np.asarray(label_tokens, np.int64)
    return Lengths(tokens - images, images, labels, 4 * images)


def corpus_like(count: int, seed: int = 0) -> Lengths:
    """Lengths like those of OpenMedReason, at patch 16 and 256 to 768 tokens."""
    rng = np.random.default_rng(seed)
    question = np.clip(rng.lognormal(np.log(75), 0.35, count), 45, 250).astype(np.int64)
    trace = np.clip(rng.lognormal(np.log(400), 0.295, count), 20, 2000).astype(np.int64)
    area = rng.lognormal(np.log(0.37e6), 0.75, count)
    images = np.clip(area / 1024, 256, 768).astype(np.int64)
    return Lengths(question + trace + 20, images, trace, 4 * images)


def mapped(lengths: Lengths, folder, dtype=np.int32) -> Lengths:
    """The same lengths, memory-mapped from files."""
    columns = {}
    for name in ("text_tokens", "image_tokens", "label_tokens", "patches"):
        path = folder / f"{name}.bin"
        getattr(lengths, name).astype(dtype).tofile(path)
        columns[name] = np.memmap(path, dtype, "r")
    return Lengths(**columns)
