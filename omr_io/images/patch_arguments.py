"""What every implementation of the operation `patches` asks of its arguments; see `omr_io.ops`.

Legend: H, W pixels; P patches of all images; D patch width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.types import Float32Array, PatchTarget, UInt8Array

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What values can be. A table's float32 values are rounded to the nearest, halves to even."""

MAX_SIDE = 2**20
"""The longest side in pixels, before and after a resize: offsets within a line fit 32 bits."""

_CPU = torch.device("cpu")


def checked_output(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    *,
    dtype: torch.dtype,
    out: Tensor | None,
    device: torch.device = _CPU,
) -> Tensor:
    """Check all arguments of `patches`, and give back where the values go.

    Args:
        device: where `out` has to be, or is made.

    Returns:
        (P, D), contiguous: `out`, or a new tensor, not initialised; (0, 0) without any image.

    Raises:
        ConfigError: what is wrong, and with which image.
    """
    if len(images) != len(targets):
        raise ConfigError(f"{len(images)} images have {len(targets)} targets")
    if dtype not in DTYPES:
        raise ConfigError(f"no patches of {dtype}", mend="Use float32, bfloat16 or float16")
    if (
        not isinstance(table_3x256, np.ndarray)
        or table_3x256.shape != (3, 256)
        or table_3x256.dtype != np.float32
    ):
        raise ConfigError("the table must be a (3, 256) float32 array of NumPy")
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        try:
            check_image(image)
            check_target(target, targets[0])
        except ConfigError as error:
            raise ConfigError(f"image {number}: {error.what}", mend=error.mend) from None
    rows = sum(target.num_patches for target in targets)
    shape = (rows, targets[0].layout.patch_width if targets else 0)
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if tuple(out.shape) != shape or out.dtype != dtype or not out.is_contiguous():
        contiguous = "" if out.is_contiguous() else ", not contiguous"
        raise ConfigError(
            f"out must be {shape} {dtype} and contiguous, not {tuple(out.shape)} {out.dtype}"
            f"{contiguous}"
        )
    if out.device.type != device.type or (device.index not in (None, out.device.index)):
        raise ConfigError(f"out must be on {device}, not on {out.device}")
    return out


def check_image(image: UInt8Array | Tensor) -> None:
    """Refuse what is not (H, W, 3) uint8, not empty, with rows that have no gaps within.

    Rows may be any distance apart (a crop of a larger image), but do not overlap.

    Raises:
        ConfigError: which of these it is.
    """
    wanted = torch.uint8 if isinstance(image, Tensor) else np.dtype(np.uint8)
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] != 3 or image.dtype != wanted:
        raise ConfigError(f"pixels must be (H, W, 3) uint8, not {shape} {image.dtype}")
    height, width, _ = shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ConfigError(f"pixels of {width}x{height}: sides are 1 to {MAX_SIDE}")
    row, pixel, channel = image.stride() if isinstance(image, Tensor) else image.strides
    if channel != 1 or (width > 1 and pixel != 3) or (height > 1 and row < 3 * width):
        strides = (row, pixel, channel)
        raise ConfigError(
            f"the bytes of a row must lie side by side, and rows in order: strides {strides}",
            mend="Copy it: np.ascontiguousarray(image) or image.contiguous()",
        )


def check_target(target: PatchTarget, first: PatchTarget) -> None:
    """Refuse a size that its layout does not divide, and a layout other than the first's.

    Raises:
        ConfigError: which of these it is.
    """
    layout = target.layout
    if layout != first.layout:
        raise ConfigError(f"{layout}, but image 0 has {first.layout}", mend="Use one call a layout")
    if min(layout.height, layout.width, layout.merge_size, layout.frames) < 1:
        raise ConfigError(f"{layout} has no values")
    group_height = layout.height * layout.merge_size
    group_width = layout.width * layout.merge_size
    height, width = target.height, target.width
    if (
        height % group_height
        or width % group_width
        or not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE)
    ):
        raise ConfigError(
            f"a size of {width}x{height} is not cut into groups of {group_width}x{group_height}",
            mend="Sides must be multiples of patch x merge_size, at least 1",
        )
    if target.filter not in ("bilinear", "bicubic", "lanczos"):
        raise ConfigError(
            f"there is no filter {target.filter!r}", mend="Use bilinear, bicubic or lanczos"
        )
