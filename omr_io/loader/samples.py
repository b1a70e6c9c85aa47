"""A sample of a shard set as tokens and patches.

Legend: n samples, N images, T tokens of a sample, P patches, D patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omr_io.chat import ChatFormat, Completion
from omr_io.config import VisionConfig
from omr_io.errors import IntegrityError, Where
from omr_io.images import image_grid_thw, num_image_tokens, smart_resize
from omr_io.images.decode import Decoder
from omr_io.images.patches import blank_patches, to_patches
from omr_io.index import ShardSet
from omr_io.packing import Lengths
from omr_io.types import (
    EncodedSample,
    Float32Array,
    ImageFailure,
    ImageInfo,
    Int64Array,
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
    """

    def __init__(
        self,
        shard_set: ShardSet,
        chat: ChatFormat,
        vision: VisionConfig,
        decoder: Decoder,
        lengths: Lengths | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.shard_set = shard_set
        self.chat = chat
        self.vision = vision
        self.decoder = decoder
        self.lengths = lengths
        self.max_tokens = max_tokens

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
        pixels_PD = np.empty((sum(num_patches), self.vision.patch_width), np.float32)
        samples, start = [], 0
        for text, images, count in zip(texts, decoded, num_patches, strict=True):
            samples.append(self._fill(text, images, pixels_PD[start : start + count]))
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

    def _decode(self, numbers: Sequence[int]) -> list[list[UInt8Array | ImageFailure]]:
        """The pixels of each sample's images, decoded in one call."""
        images: list[bytes] = []
        infos: list[ImageInfo] = []
        unread: dict[int, list[UInt8Array | ImageFailure]] = {}
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
        text: EncodedSample,
        images: Sequence[UInt8Array | ImageFailure],
        pixels_PD: Float32Array,
    ) -> EncodedSample:
        """Write a sample's patches to pixels_PD, or blanks where there are no pixels."""
        reasons: list[str] = []
        start = 0
        for place, (image, grid_3) in enumerate(zip(images, text.image_grid_thw, strict=True)):
            out_PD = pixels_PD[start : start + int(grid_3.prod())]
            failure = self._patches(image, grid_3, out_PD)
            if failure is not None:
                which = f"image {place}: " if len(images) > 1 else ""
                reasons.append(f"{failure.reason}: {which}{failure.detail}")
                out_PD[:] = blank_patches(grid_3, self.vision)
            start += len(out_PD)
        sample = replace(text, pixel_values=pixels_PD if images else None)
        if not reasons:
            return sample
        nothing = np.zeros_like(text.trained)
        return replace(sample, trained=nothing, failure="; ".join(reasons))

    def _patches(
        self, image: UInt8Array | ImageFailure, grid_3: Int64Array, out_PD: Float32Array
    ) -> ImageFailure | None:
        if isinstance(image, ImageFailure):
            return image
        height, width = smart_resize(image.shape[0], image.shape[1], self.vision)
        size = self.vision.patch_size
        if (height // size, width // size) != (grid_3[1], grid_3[2]):
            return ImageFailure(
                "image-changed", f"{image.shape[1]}x{image.shape[0]} pixels, planned {grid_3[1:]}"
            )
        to_patches(image, self.vision, out=out_PD)
        return None
