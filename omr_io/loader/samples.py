"""A sample of a shard set as tokens and patches.

Legend: n samples, N images, T tokens of a sample, P patches, D patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from omr_io.chat import ChatFormat, Completion
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, IntegrityError, Where
from omr_io.images import image_grid_thw, num_image_tokens, smart_resize
from omr_io.images.decode import Decoded, Decoder
from omr_io.images.patch_arguments import DTYPES
from omr_io.images.patches import blank_pixels, patch_target, value_table
from omr_io.images.pixel_values import as_tensor, empty_values
from omr_io.index import ShardSet
from omr_io.ops import patches_implementation
from omr_io.packing import Lengths
from omr_io.types import (
    EncodedSample,
    ImageFailure,
    ImageInfo,
    Int64Array,
    PatchTarget,
    PixelValues,
    UInt8Array,
)


class SampleEncoder:
    """Reads, decodes and encodes samples of a shard set. Safe to call from several threads.

    Args:
        shard_set: where the samples are.
        chat: how a record becomes tokens.
        vision: how an image becomes patches.
        decoder: bytes to pixels.
        lengths: of `measure`; what `encode` yields must agree with it. None checks nothing.
        max_tokens: where longer completions are cut (`ChatFormat.encode`, truncate="completion");
            None cuts nothing. `lengths` are then those of `truncate_lengths`.
        pixel_dtype: of the patches: float32, or bfloat16 or float16, which hold the float32 values
            rounded to the nearest.
        pin_memory: write patches into page-locked memory, from which a GPU copies without waiting;
            needs CUDA.

    Raises:
        ConfigError: pixel_dtype is none of these.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        chat: ChatFormat,
        vision: VisionConfig,
        decoder: Decoder,
        lengths: Lengths | None = None,
        max_tokens: int | None = None,
        *,
        pixel_dtype: torch.dtype = torch.float32,
        pin_memory: bool = False,
    ) -> None:
        if pixel_dtype not in DTYPES:
            raise ConfigError(
                f"no patches of {pixel_dtype}", mend="Use float32, bfloat16 or float16"
            )
        self.shard_set = shard_set
        self.chat = chat
        self.vision = vision
        self.decoder = decoder
        self.lengths = lengths
        self.max_tokens = max_tokens
        self.pixel_dtype = pixel_dtype
        self.pin_memory = pin_memory
        self._table_3x256 = value_table(vision)
        self._patches = patches_implementation("cpu")

    def encode(self, number: int) -> EncodedSample:
        """One sample for training; see `encode_many`."""
        return self.encode_many([number])[0]

    def encode_many(self, numbers: Sequence[int]) -> list[EncodedSample]:
        """Samples for training, their images decoded together.

        An image that cannot be read or decoded is replaced by a blank of its planned size; then
        nothing of the sample is trained and `failure` says why.

        Raises:
            IntegrityError: a sample's JSON is not what was written, or a sample has not the length
                that was measured: the shards changed.
        """
        return self._encode(numbers, Completion.CORPUS)

    def prompt(self, number: int) -> EncodedSample:
        """One sample up to where a completion begins: for rollouts and evaluation.

        Images as in `encode_many`; nothing in `trained` is True.
        """
        return self._encode([number], None)[0]

    def _encode(self, numbers: Sequence[int], completion: Completion | None) -> list[EncodedSample]:
        texts = [self._text(number, completion) for number in numbers]
        decoded = self._decode(numbers)
        num_patches = [int(text.image_grid_thw.prod(axis=1).sum()) for text in texts]
        # One array for all, so that a batch made of these samples needs no copy of its pixels.
        pixels_PD = empty_values(
            sum(num_patches), self.vision.patch_width, self.pixel_dtype, pinned=self.pin_memory
        )
        reasons = self._fill(texts, decoded, pixels_PD)
        samples, start = [], 0
        for text, images, count, reason in zip(texts, decoded, num_patches, reasons, strict=True):
            sample = replace(
                text, pixel_values=pixels_PD[start : start + count] if images else None
            )
            if reason is not None:
                sample = replace(sample, trained=np.zeros_like(text.trained), failure=reason)
            samples.append(sample)
            start += count
        return samples

    def _text(self, number: int, completion: Completion | None) -> EncodedSample:
        record = self.shard_set.read_record(number, images=False)
        grid_N3 = image_grid_thw(self.shard_set.images(number), self.vision)
        image_tokens = num_image_tokens(grid_N3, self.vision.merge_size).tolist()
        text = self.chat.encode(
            record,
            image_tokens,
            completion=completion,
            max_tokens=None if completion is None else self.max_tokens,
            truncate="completion",
        )
        key = self.shard_set.key(number)
        if self.lengths is not None and completion is not None:
            planned = int(self.lengths.text_tokens[number] + self.lengths.image_tokens[number])
            if len(text.input_ids) != planned:
                raise IntegrityError(
                    f"the sample has {len(text.input_ids)} tokens, {planned} were measured",
                    where=Where(shard=self.shard_set.shard(number), key=key),
                    mend="The shards or the tokenizer changed while they were in use: start again; "
                    "if that is no help, with cache=False",
                )
        return EncodedSample(key, text.input_ids, text.trained, None, grid_N3)

    def _decode(self, numbers: Sequence[int]) -> list[list[Decoded]]:
        """The pixels of each sample's images, decoded in one call."""
        images: list[bytes] = []
        infos: list[ImageInfo] = []
        unread: dict[int, list[Decoded]] = {}
        for place, number in enumerate(numbers):
            planned = self.shard_set.images(number)
            try:
                images += self.shard_set.read_images(number)
                infos += planned
            except IntegrityError as error:
                failure = ImageFailure("image-unreadable", str(error))
                unread[place] = [failure] * len(planned)
        decoded = iter(self.decoder.decode(images, infos))
        return [
            unread[place]
            if place in unread
            else [next(decoded) for _ in self.shard_set.images(number)]
            for place, number in enumerate(numbers)
        ]

    def _fill(
        self,
        texts: Sequence[EncodedSample],
        decoded: Sequence[Sequence[Decoded]],
        pixels_PD: PixelValues,
    ) -> list[str | None]:
        """Write all patches, blanks where there are no pixels; of each sample why, or None."""
        pixels: list[UInt8Array | torch.Tensor] = []
        targets: list[PatchTarget] = []
        reasons: list[str | None] = []
        for text, images in zip(texts, decoded, strict=True):
            failures: list[str] = []
            for place, (image, grid_3) in enumerate(zip(images, text.image_grid_thw, strict=True)):
                found = self._checked(image, grid_3)
                if isinstance(found, ImageFailure):
                    which = f"image {place}: " if len(images) > 1 else ""
                    failures.append(f"{found.reason}: {which}{found.detail}")
                    found = blank_pixels()
                pixels.append(found)
                targets.append(
                    patch_target((found.shape[0], found.shape[1]), self._size(grid_3), self.vision)
                )
            reasons.append("; ".join(failures) or None)
        if pixels:
            out_PD = as_tensor(pixels_PD)
            self._patches(pixels, targets, self._table_3x256, dtype=self.pixel_dtype, out=out_PD)
        return reasons

    def _size(self, grid_3: Int64Array) -> tuple[int, int]:
        """The planned (height, width) in pixels."""
        _, rows, columns = grid_3.tolist()
        return rows * self.vision.patch_size, columns * self.vision.patch_size

    def _checked(self, image: Decoded, grid_3: Int64Array) -> Decoded:
        """The image, if its pixels become as many patches as were planned."""
        if isinstance(image, ImageFailure):
            return image
        if smart_resize(image.shape[0], image.shape[1], self.vision) != self._size(grid_3):
            return ImageFailure(
                "image-changed", f"{image.shape[1]}x{image.shape[0]} pixels, planned {grid_3[1:]}"
            )
        return image
