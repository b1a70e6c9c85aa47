"""The random state of a process: torch's, its GPU's, NumPy's and Python's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

RandomState: TypeAlias = Mapping[str, Any]


def random_state() -> RandomState:
    """The random state of torch (the CPU's and the current GPU's), NumPy and Python, as it is."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (str(name), torch.from_numpy(np.array(keys)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: RandomState) -> None:
    """Put back what `random_state` gave; a GPU's where there is one."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, gauss))
    random.setstate(state["python"])


def seed_random_state(seed: int, rank: int) -> None:
    """A random state that follows from a run's seed and a rank, for a rank that had none."""
    digest = hashlib.sha256(f"random state of rank {rank} by seed {seed}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(int.from_bytes(digest[12:20], "little"))
