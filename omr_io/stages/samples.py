"""What flows from `encode` to `pack`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from omr_io.batches import Failure
from omr_io.config import VisionConfig
from omr_io.types import EncodedSample


@dataclass(frozen=True, slots=True)
class SampleForm:
    """What a batch must know of how its samples were encoded; one object for a whole stream.

    Attributes:
        pad_token_id: fills what is left of a pack.
        image_token_id: of the placeholders.
        vision: how images became patches.
        pixel_dtype: of the patches.
    """

    pad_token_id: int
    image_token_id: int
    vision: VisionConfig
    pixel_dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StreamedSample(EncodedSample):
    """An encoded sample on its way through a stream.

    Attributes:
        form: how it was encoded.
        shard: the file name of its tar; "" where the stream does not say.
        lost: what could not be encoded and was left out since the sample before this one. It
            travels with the sample, so that a batch of another process can report it.
    """

    form: SampleForm
    shard: str = ""
    lost: tuple[Failure, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of its arrays."""
        pixels = 0 if self.pixel_values is None else self.pixel_values.nbytes
        return int(self.input_ids.nbytes + self.trained.nbytes + pixels)
