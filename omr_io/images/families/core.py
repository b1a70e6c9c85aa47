"""The only module of `families` that calls the C++ core.

Legend: H, W pixels in; P patches; D patch width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omr_io import _C
from omr_io.config import PassOrder
from omr_io.errors import ConfigError
from omr_io.images.patches import vertical_first
from omr_io.types import Filter, Float32Array, PatchLayout, UInt8Array

if TYPE_CHECKING:
    import torch

    from omr_io.images.families.base import Family


@dataclass(frozen=True, slots=True)
class Core:
    """Resizes and writes values of one dtype.

    Attributes:
        table: (3, 256), the value of each byte in each channel.
    """

    table: torch.Tensor
    filter: Filter
    pass_order: PassOrder | None

    @classmethod
    def of(cls, vision: Family[Any], dtype: torch.dtype | None, out: torch.Tensor | None) -> Core:
        """For a family's values in a dtype, `out`'s where it is given.

        Raises:
            ConfigError: another dtype than float32, bfloat16 and float16, or two of them.
        """
        import torch

        wanted = dtype or (torch.float32 if out is None else out.dtype)
        if wanted not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(
                f"values cannot be {wanted}", mend="Use torch.float32, bfloat16 or float16"
            )
        if out is not None and out.dtype != wanted:
            raise ConfigError(f"out is {out.dtype}, and dtype {wanted}", mend="Give one of them")
        table = torch.from_numpy(value_table(vision)).to(wanted)
        return cls(table, vision.filter, vision.pass_order)

    def output(self, shape: tuple[int, ...], out: torch.Tensor | None) -> torch.Tensor:
        """`out`, checked, or a new tensor."""
        import torch

        if out is None:
            return torch.empty(shape, dtype=self.table.dtype)
        if tuple(out.shape) != shape or not out.is_contiguous() or out.device.type != "cpu":
            raise ConfigError(
                f"out must be {shape}, contiguous and on the CPU, not {tuple(out.shape)} on "
                f"{out.device}"
            )
        return out

    def resize(self, pixels_HW3: UInt8Array, height: int, width: int) -> UInt8Array:
        """(height, width, 3) uint8, as Pillow makes it; the same pixels where the size stays."""
        if pixels_HW3.shape[:2] == (height, width):
            return pixels_HW3
        resized: UInt8Array = _C.resize(
            np.ascontiguousarray(pixels_HW3),
            height,
            width,
            filter=self.filter,
            vertical_first=vertical_first(pixels_HW3.shape[:2], (height, width), self.pass_order),
        )
        return resized

    def write(
        self, pixels_HW3: UInt8Array, size: tuple[int, int], layout: PatchLayout, out: torch.Tensor
    ) -> None:
        """Resize to `size` (height, width) and write the patches' values to `out`.

        Args:
            out: contiguous, of P x D values.
        """
        resized = self.resize(pixels_HW3, *size)
        rows, columns = size[0] // layout.height, size[1] // layout.width
        cut = resized.reshape(rows, layout.height, columns, layout.width, 3).transpose(
            (0, 2, 1, 3, 4) if layout.channels_last else (0, 2, 4, 1, 3)
        )
        channel = np.arange(3) if layout.channels_last else np.arange(3)[:, None, None]
        bits = "uint32" if self.table.itemsize == 4 else "uint16"
        import torch

        code = getattr(torch, bits)
        table = self.table.view(code).numpy()
        out.view(code).numpy().reshape(-1)[:] = table[channel, cut].reshape(-1)


def value_table(vision: Family[Any]) -> Float32Array:
    """(3, 256) float32: transformers' rescale and normalize (5.23), run on each byte.

    The product is taken in float64 and rounded, the rest is in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * vision.rescale_factor).astype(np.float32)
    mean = np.array(vision.image_mean, dtype=np.float32)[:, None]
    std = np.array(vision.image_std, dtype=np.float32)[:, None]
    table: Float32Array = (scaled - mean) / std
    return table
