"""Patches in memory: NumPy arrays on the host that are tensors, pinned or not, underneath.

NumPy has no bfloat16. Patches of it are arrays of uint16 that hold its bits; `as_tensor` makes
tensors of them again.

Legend: P patches, D patch width.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from omr_io.types import PixelValues


def empty_values(rows: int, width: int, dtype: torch.dtype, *, pinned: bool = False) -> PixelValues:
    """(rows, width) of that dtype, not initialised.

    Args:
        pinned: page-locked, so that a copy to a GPU need not wait; needs CUDA.
    """
    return as_array(torch.empty((rows, width), dtype=dtype, pin_memory=pinned))


def as_array(values: Tensor) -> PixelValues:
    """A host tensor of float32, float16 or bfloat16 (then its bits) as an array of its memory."""
    held = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
    return cast(PixelValues, held.numpy())


def as_tensor(values: PixelValues) -> Tensor:
    """The tensor of an array of patches, sharing its memory; uint16 becomes bfloat16.

    An array that is a view of a tensor (`empty_values`) gives a view of that very tensor: torch
    then knows pinned memory as its own, and does not use it again before a copy out of it is done.
    """
    owner: Any = values
    while owner is not None and not isinstance(owner, Tensor):
        owner = getattr(owner, "base", None)
    if owner is None:
        tensor = torch.from_numpy(values)
    else:
        offset = values.ctypes.data - owner.data_ptr()
        strides = [stride // values.itemsize for stride in values.strides]
        start = owner.storage_offset() + offset // values.itemsize
        tensor = owner.as_strided(values.shape, strides, start)
    return tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor
