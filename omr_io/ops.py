"""The only place that chooses an implementation of an operation, by name.

Every implementation of an operation takes the same arguments, returns equal arrays, and goes
through the same tests; "reference" is the definition.

| pack | what it is |
|---|---|
| "reference" | the definition, in NumPy, sample by sample |
| "cpu" | C++, from a span table |
| "triton" | one launch on a CUDA device, from the same span table |
| "auto" | "triton" where the device is CUDA and the extra is installed, else "cpu" |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from omr_io.batches import Block, as_tensors
from omr_io.batches.spans import pack as _cpu_pack
from omr_io.batches.spans import span_table
from omr_io.batches.transfer import ALIGNMENT
from omr_io.errors import ConfigError
from omr_io.images.cpu_patches import patches as _cpu_patches
from omr_io.packing.refusals import check_options
from omr_io.reference.pack import pack as _reference_pack
from omr_io.reference.pixels import patches as _reference_patches
from omr_io.types import (
    EncodedSample,
    Float32Array,
    IdType,
    PackedArrays,
    PackedTensors,
    PatchTarget,
    UInt8Array,
)


class Pack(Protocol):
    """Assembles packs; see `omr_io.reference.pack.pack` for arguments, result and errors."""

    def __call__(
        self,
        packs: Sequence[Sequence[EncodedSample]],
        *,
        seq_len: int,
        pad_id: int,
        image_token_id: int,
        merge_size: int,
        dtype: IdType = "int64",
        block: Block | None = None,
    ) -> PackedTensors:
        """Lay each pack's samples into one row of seq_len tokens.

        Args:
            block: what the device gets is laid into it, behind what lies there; then all of it is
                sent, in one copy, and what was laid before is there too (`Block.sent`). None: a
                block of its own. `batch_room` says how much is needed.
        """
        ...


def batch_room(positions: int, samples: int, packs: int, images: int) -> int:
    """Bytes of a block that hold a batch's integers and grids, by any implementation.

    Seven ids of 8 bytes, segment and weight of 4 each, at most one row of labels of 8 bytes for
    each position; a bound of a segment; a grid of 3 x 8 bytes an image. What the kernel takes, at
    most a span of 40 bytes, a token of 4 and a row of labels for each position, is less.
    """
    return positions * 72 + (samples + packs + 1) * 4 + images * 24 + 16 * ALIGNMENT


def _host_pack(
    make: Callable[..., PackedArrays],
    device: torch.device,
    packs: Sequence[Sequence[EncodedSample]],
    *,
    seq_len: int,
    pad_id: int,
    image_token_id: int,
    merge_size: int,
    dtype: IdType = "int64",
    block: Block | None = None,
) -> PackedTensors:
    """An implementation on the host; its tensors then go to the device."""
    within = {"block": block} if make is _cpu_pack else {}  # the reference's are put there after
    arrays = make(
        packs,
        seq_len=seq_len,
        pad_id=pad_id,
        image_token_id=image_token_id,
        merge_size=merge_size,
        dtype=dtype,
        **within,
    )
    return as_tensors(arrays, device, block)


def _triton_pack(
    device: torch.device,
    packs: Sequence[Sequence[EncodedSample]],
    *,
    seq_len: int,
    pad_id: int,
    image_token_id: int,
    merge_size: int,
    dtype: IdType = "int64",
    block: Block | None = None,
) -> PackedTensors:
    """The span table by C++ on the host, one transfer, one launch."""
    from omr_io.kernels.pack import pack_spans, upload

    check_options(len(packs), seq_len, pad_id, image_token_id, merge_size, dtype)
    table = span_table(
        packs,
        seq_len=seq_len,
        pad_id=pad_id,
        image_token_id=image_token_id,
        merge_size=merge_size,
    )
    made: PackedTensors = pack_spans(upload(table, device, block), dtype=dtype)
    return made


PACK: Mapping[str, Callable[[torch.device], Pack]] = MappingProxyType(
    {
        "reference": lambda device: partial(_host_pack, _reference_pack, device),
        "cpu": lambda device: partial(_host_pack, _cpu_pack, device),
        "triton": lambda device: partial(_triton_pack, device),
    }
)
"""Implementations of `pack` by name: for a device, what assembles packs there."""


def pack_implementation(name: str = "auto", device: torch.device | str = "cpu") -> Pack:
    """The implementation of `pack` of this name, whose tensors are on `device`.

    Args:
        name: of `PACK`, or "auto": "triton" where the device is CUDA and Triton is installed, else
            "cpu".
        device: where the tensors shall be.

    Raises:
        ConfigError: there is none, or it needs what is not installed.
    """
    device = torch.device(device)
    installed = find_spec("triton") is not None
    if name == "auto":
        name = "triton" if device.type == "cuda" and installed else "cpu"
    if name not in PACK:
        raise ConfigError(
            f"there is no implementation {name!r} of pack",
            mend=f"Use one of auto, {', '.join(PACK)}",
        )
    if name == "triton" and not installed:
        raise ConfigError(
            "the implementation 'triton' of pack needs triton, which is not installed",
            mend='Install it: pip install "omr_io[triton]"',
        )
    return PACK[name](device)


class Patches(Protocol):
    """Pixels of any sizes to a vision tower's patches, for a whole batch in one call.

    Legend: H, W pixels; P patches of all images; D patch width (`PatchLayout.patch_width`).

    For each image: Pillow's resize (`PatchTarget`; a direction whose size stays is left out), then
    for each byte b of channel c the value table_3x256[c, b], then the layout's order. Every
    implementation gives the same bits.

    Args:
        images: (H, W, 3) uint8 RGB each, NumPy arrays or tensors, H and W from 1. The bytes of a
            row lie side by side; rows may be further apart (a crop of a larger image), and are read
            where they are. "reference" and "cpu" take memory of the host, "triton" of host or GPU.
        targets: one for each image, all with the same layout; sizes, filters and pass orders may
            differ.
        table_3x256: (3, 256) float32, NumPy: the value of each byte in each channel, such as
            `omr_io.images.patches.value_table` gives.
        dtype: of the values: float32 as in the table, or bfloat16 or float16, which hold the
            table's values rounded to the nearest, halves to even: what `.to(dtype)` makes of the
            float32 result.
        out: (P, D) of that dtype, contiguous, on the host for "reference" and "cpu" (pinned or not)
            and on the GPU for "triton": written to, every value of it, and given back.
        threads: of the host that share the images of a call; "cpu" alone uses more than one.

    Returns:
        (P, D): the patches of the first image, then of the second, and so on. With a layout whose
        patch is a whole image of h x w, row n is image n, and `.view(-1, 3, h, w)` (or, with
        channels_last, `.view(-1, h, w, 3)`) of one frame is the usual batch of images. Without any
        image (0, 0).

    Raises:
        ConfigError: an argument has another shape, dtype, device or layout in memory; it names the
            image. Nothing has been written then.
    """

    def __call__(
        self,
        images: Sequence[UInt8Array | Tensor],
        targets: Sequence[PatchTarget],
        table_3x256: Float32Array,
        *,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
        threads: int = 1,
    ) -> Tensor:
        """Resize, look up and cut."""
        ...


def _triton_patches(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """`omr_io.kernels.patches.patches`; Triton is imported when it is first called."""
    try:
        from omr_io.kernels.patches import patches
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ConfigError(
            "the implementation 'triton' of patches needs the package triton, which is missing",
            mend="Install it with `pip install 'omr_io[triton]'`, or use another implementation",
        ) from None
    made: Tensor = patches(images, targets, table_3x256, dtype=dtype, out=out, threads=threads)
    return made


PATCHES: Mapping[str, Patches] = MappingProxyType(
    {"reference": _reference_patches, "cpu": _cpu_patches, "triton": _triton_patches}
)
"""Implementations of `patches` by name."""


def patches_implementation(name: str) -> Patches:
    """The implementation of `patches` of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PATCHES:
        raise ConfigError(
            f"there is no implementation {name!r} of patches",
            mend=f"Use one of {', '.join(PATCHES)}",
        )
    return PATCHES[name]
