"""Pixels that a library decoded on a GPU, taken over into memory of torch's own.

Imports torch; only decoders on a GPU do so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.utils.dlpack
from torch import Tensor

from omr_io.config import ExifPolicy
from omr_io.types import ImageFailure, ImageInfo

MAX_WAITING: Final = 4
"""Batches whose memory the library has not back yet; of more, the host waits for the oldest."""


class Landing:
    """Copies on the caller's stream, and keeps the library's memory until they are done.

    Why a copy, and why kept. The tensors must be like any other of torch's: freed on the host
    while the GPU still reads them, and then given only to work that comes later on the same
    stream. That holds for memory of torch's allocator alone, so pixels are copied there, on the
    stream that is current in the calling thread; beside decoding that is little. The library's
    memory is what the copies read, and the library may use it again as soon as it is free, on
    streams of its own, or before its turn (reported for the hardware JPEG decoder of the H100:
    `benchmarks/gpu_stream_order.py`). So everything that owns it is held until an event
    recorded behind the copies has come about: no memory that is still to be read is ever free.

    Not safe to call from several threads at once.

    Args:
        device: such as "cuda:0".
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._waiting: deque[tuple[torch.cuda.Event, object]] = deque()

    def stream(self) -> torch.cuda.Stream:
        """The stream that is current in the calling thread."""
        return torch.cuda.current_stream(self.device)

    def take(
        self,
        views: Sequence[Tensor | None],
        infos: Sequence[ImageInfo],
        exif: ExifPolicy,
        owner: object,
    ) -> list[Tensor | ImageFailure | None]:
        """Copy pixels, upright.

        Args:
            views: (H, W, 3) uint8 each on the device, ready on `stream()`.
            infos: what the plan knows of each.
            exif: whether they are turned.
            owner: whatever must live until the copies are done, the encoded bytes among it.
        """
        with torch.cuda.device(self.device):
            taken = [
                view if view is None else upright(view, info, exif)
                for view, info in zip(views, infos, strict=True)
            ]
            self._waiting.append((self.stream().record_event(), (owner, list(views))))
        while len(self._waiting) > MAX_WAITING or (self._waiting and self._is_done()):
            self._waiting.popleft()[0].synchronize()
        return taken

    def _is_done(self) -> bool:
        return bool(self._waiting[0][0].query())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Wait for the copies and let everything go."""
        while self._waiting:
            self._waiting.popleft()[0].synchronize()


def upright(view: Tensor, info: ImageInfo, exif: ExifPolicy) -> Tensor | ImageFailure:
    """A copy of (H, W, 3) pixels, turned as `omr_io.images.decode.turn` turns arrays.

    Returns:
        Contiguous, in memory of torch's own; or a failure when the size is not the planned one.
    """
    if tuple(view.shape) != (info.height, info.width, 3) or view.dtype != torch.uint8:
        what = f"decoded to {tuple(view.shape)} {view.dtype}"
        return ImageFailure("image-changed", f"{what}, planned {info.width}x{info.height}")
    orientation = 1 if exif == "ignore" else info.orientation
    # EXIF 2.32, 4.6.4: where row 0 and column 0 of the stored image belong.
    flips: dict[int, list[int]] = {2: [1], 3: [0, 1], 4: [0], 6: [0], 7: [0, 1], 8: [1]}
    turned = view.flip(flips[orientation]) if orientation in flips else view
    if orientation >= 5:
        turned = turned.transpose(0, 1)
    copy = torch.empty(turned.shape, dtype=torch.uint8, device=view.device)
    copy.copy_(turned, non_blocking=True)
    return copy


def tensor_of(array: Any) -> Tensor:
    """A view of a DLPack array or capsule, without a copy."""
    made: Tensor = torch.utils.dlpack.from_dlpack(array)
    return made
