"""The operation `patches` on the CPU, by csrc/pixels; see `omr_io.ops.Patches`.

A band of rows at a time goes through both passes of the resize, the value table and into patches
while it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omr_io import _C
from omr_io.errors import ConfigError
from omr_io.images.patch_arguments import checked_output
from omr_io.types import Float32Array, PatchTarget, UInt8Array

Instructions = Literal["best", "scalar", "avx2", "avx512"]
"""The form of the C++ core to use; "best" is the fastest that the processor has. All are equal."""


def patches(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    threads: int = 1,
    instructions: Instructions = "best",
) -> Tensor:
    """See `omr_io.ops.Patches`. The GIL is released.

    Args:
        threads: images are shared by so many; they live within the call, so a fork may follow.
        instructions: for tests and measurements.

    Raises:
        ConfigError: also when the processor lacks the instructions, or threads is below 1.
    """
    out_PD = checked_output(images, targets, table_3x256, dtype=dtype, out=out)
    if threads < 1:
        raise ConfigError(f"threads {threads} must be at least 1")
    if not images:
        return out_PD
    layout = targets[0].layout
    try:
        _C.to_patches(
            [image.numpy() if isinstance(image, Tensor) else image for image in images],
            [(t.height, t.width, t.filter, t.vertical_first) for t in targets],
            bits(torch.from_numpy(np.ascontiguousarray(table_3x256)).to(dtype)),
            bits(out_PD),
            patch_height=layout.height,
            patch_width=layout.width,
            merge_size=layout.merge_size,
            frames=layout.frames,
            channels_last=layout.channels_last,
            threads=threads,
            instructions=instructions,
            # The patches of a batch, filled image by image, are not read while in the cache.
            whole_bytes=out_PD.untyped_storage().nbytes(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return out_PD


def bits(values: Tensor) -> NDArray[Any]:
    """A tensor of values of 2 or 4 bytes as the integers of their bits: NumPy has no bfloat16."""
    return values.view(torch.int32 if values.itemsize == 4 else torch.int16).numpy()
