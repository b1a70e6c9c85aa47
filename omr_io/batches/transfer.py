"""Several arrays to a GPU in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes: the widest load of a kernel


def send(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on a device: on the CPU they share memory, elsewhere they are copied.

    To a CUDA device they go joined in one page-locked buffer, by one copy on the current stream
    that the host does not wait for; the tensors are views of one allocation there. torch's
    allocator keeps the buffer until the copy is over.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    starts, size = {}, 0
    for name, array in arrays.items():
        starts[name] = size
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    staging = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = staging.numpy()
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        host[starts[name] : starts[name] + array.nbytes] = raw
    there = staging.to(device, non_blocking=True)
    tensors = {}
    for name, array in arrays.items():
        raw_bytes = there[starts[name] : starts[name] + array.nbytes]
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors[name] = raw_bytes.view(dtype).view(array.shape)
    return tensors
