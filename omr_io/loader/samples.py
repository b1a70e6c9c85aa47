"""Samples as tokens and patches, many at a time.

The texts of a call become ids in one step. Images are decoded one by one, and each is cut into
patches before the next is decoded, while its pixels are in the processor's cache and so that the
next one finds the same memory: the first touch of new memory costs more than decoding into it
(1.3 us for 4 KiB). Decoders that work on many images at once get all of them.

Legend: n samples, N images, T tokens of a sample, P patches, D patch width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from omr_io.chat import ChatFormat, Completion
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, IntegrityError, SourceError, Where
from omr_io.images import image_grid_thw, num_image_tokens, smart_resize
from omr_io.images.decode import Decoded, Decoder
from omr_io.images.patch_arguments import DTYPES
from omr_io.images.patches import blank_pixels, patch_target, value_table
from omr_io.images.pixel_values import as_array
from omr_io.ops import patches_implementation
from omr_io.packing import Lengths
from omr_io.sample_set import SampleSet
from omr_io.types import EncodedSample, ImageFailure, ImageInfo, Int64Array, PatchTarget, Record

_MEND = (
    "The shards or the tokenizer changed while they were in use: start again; if that is no help, "
    "with cache=False"
)


@dataclass(frozen=True, slots=True)
class _Read:
    """A sample as it was read: its images' bytes, or why they could not be read."""

    record: Record
    infos: tuple[ImageInfo, ...]
    images: tuple[bytes, ...] | ImageFailure


class SampleEncoder:
    """Reads, decodes and encodes samples of a shard set. Safe to call from several threads.

    Args:
        shard_set: where the samples are.
        chat: how a record becomes tokens.
        vision: how an image becomes patches.
        decoder: bytes to pixels. One on a GPU gives patches there, by the Triton kernel.
        lengths: of `measure`; what `encode` yields must agree with it. None checks nothing.
        max_tokens: where longer completions are cut (`ChatFormat.encode`, truncate="completion");
            None cuts nothing. `lengths` are then those of `truncate_lengths`.
        pixel_dtype: of the patches: float32, or bfloat16 or float16, which hold the float32 values
            rounded to the nearest.
        pin_memory: `encode`, `encode_many` and `prompt` write patches into page-locked memory, from
            which a GPU copies without waiting; needs CUDA.

    Raises:
        ConfigError: pixel_dtype is none of these.
    """

    def __init__(
        self,
        shard_set: SampleSet,
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
        self._patches = patches_implementation("cpu" if decoder.device == "cpu" else "triton")
        # Pillow, simplejpeg: an image a call. DALI and nvImageCodec: the more, the better.
        self._one_by_one = decoder.name == "cpu"
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Read nothing more: the process ends, and slow storage would hold it up sample by sample.

        Every later read is a `SourceError`.
        """
        self._is_interrupted = True
        self.shard_set.close()

    def encode(self, number: int) -> EncodedSample:
        """One sample for training; see `encode_many`."""
        return self.encode_many([number])[0]

    def encode_many(self, numbers: Sequence[int]) -> list[EncodedSample]:
        """Samples for training, with their patches on the host.

        An image that cannot be read or decoded is replaced by a blank of its planned size; then
        nothing of the sample is trained and `failure` says why.

        Raises:
            IntegrityError: a sample's JSON is not what was written, or a sample has not the length
                that was measured: the shards changed.
        """
        return self._with_patches(numbers, Completion.CORPUS)

    def prompt(self, number: int) -> EncodedSample:
        """One sample up to where a completion begins: for rollouts and evaluation.

        Images as in `encode_many`; nothing in `trained` is True.
        """
        return self._with_patches([number], None)[0]

    def encode_into(self, numbers: Sequence[int], out_PD: Tensor) -> list[EncodedSample]:
        """As `encode_many`, but all patches go one after the other into `out_PD`.

        Args:
            numbers: of the samples.
            out_PD: (P, D) of `pixel_dtype`, contiguous, on the decoder's device; P is the sum of
                the samples' planned patches. Every value of it is written.

        Returns:
            The samples, with pixel_values None.
        """
        read = [self._read(number) for number in numbers]
        samples = self._texts(numbers, read, Completion.CORPUS)
        return self._filled(samples, read, out_PD)

    def _with_patches(
        self, numbers: Sequence[int], completion: Completion | None
    ) -> list[EncodedSample]:
        read = [self._read(number) for number in numbers]
        samples = self._texts(numbers, read, completion)
        counts = [int(sample.image_grid_thw.prod(axis=1).sum()) for sample in samples]
        shape = (sum(counts), self.vision.patch_width)
        device = self.decoder.device
        pinned = self.pin_memory and device == "cpu"
        out_PD = torch.empty(shape, dtype=self.pixel_dtype, device=device, pin_memory=pinned)
        samples = self._filled(samples, read, out_PD)
        # One array for all, so that a batch made of these samples needs no copy of its pixels.
        pixels_PD = as_array(out_PD.cpu())
        ends = np.cumsum(counts).tolist()
        return [
            replace(sample, pixel_values=pixels_PD[end - count : end] if one.infos else None)
            for sample, one, count, end in zip(samples, read, counts, ends, strict=True)
        ]

    # Bytes

    def _read(self, number: int) -> _Read:
        """All of a sample in one read; an image that is not what was written is no error."""
        if self._is_interrupted:
            raise SourceError("the process ends while samples are read")
        source = self.shard_set
        infos = source.images(number)
        try:
            record = source.read_record(number)
            return _Read(record, infos, tuple(image.data for image in record.images))
        except IntegrityError:
            record = source.read_record(number, images=False)  # a wrong text is an error
        try:
            return _Read(record, infos, source.read_images(number))
        except IntegrityError as error:
            return _Read(record, infos, ImageFailure("image-unreadable", str(error)))

    # Tokens

    def _texts(
        self, numbers: Sequence[int], read: Sequence[_Read], completion: Completion | None
    ) -> list[EncodedSample]:
        """The samples' ids, all of them in one call, without their patches."""
        grids_N3 = image_grid_thw([info for one in read for info in one.infos], self.vision)
        counts = iter(num_image_tokens(grids_N3, self.vision.merge_size).tolist())
        encoded = self.chat.encode_batch(
            [one.record for one in read],
            [[next(counts) for _ in one.infos] for one in read],
            completions=completion,
            max_tokens=None if completion is None else self.max_tokens,
            truncate="completion",
        )
        if completion is not None:
            self._check_lengths(numbers, np.diff(encoded.offsets))
        samples, offsets, image = [], encoded.offsets.tolist(), 0
        for number, one, (begin, end) in zip(numbers, read, pairwise(offsets), strict=True):
            samples.append(
                EncodedSample(
                    self.shard_set.key(number),
                    encoded.input_ids[begin:end],
                    encoded.trained[begin:end],
                    None,
                    grids_N3[image : image + len(one.infos)],
                )
            )
            image += len(one.infos)
        return samples

    def _check_lengths(self, numbers: Sequence[int], counts: Int64Array) -> None:
        if self.lengths is None or not len(numbers):
            return
        planned = self.lengths.tokens_of(np.asarray(numbers, np.int64))
        differing = np.flatnonzero(counts != planned)
        if not len(differing):
            return
        place = int(differing[0])
        number = numbers[place]
        raise IntegrityError(
            f"the sample has {counts[place]} tokens, {planned[place]} were measured",
            where=Where(shard=self.shard_set.shard(number), key=self.shard_set.key(number)),
            mend=_MEND,
        )

    # Pixels

    def _filled(
        self, samples: Sequence[EncodedSample], read: Sequence[_Read], out_PD: Tensor
    ) -> list[EncodedSample]:
        """Write all patches, blanks where there are no pixels; failed samples are not trained."""
        failures = [_Failures(len(one.infos)) for one in read]
        images: list[Decoded] = []
        targets: list[PatchTarget] = []
        start = 0
        decoded = self._decode(read)
        for sample, one, failed in zip(samples, read, failures, strict=True):
            for place in range(len(one.infos)):
                image, target = self._image(
                    next(decoded), sample.image_grid_thw[place], failed, place
                )
                if not self._one_by_one:
                    images.append(image)
                    targets.append(target)
                    continue
                stop = start + target.num_patches
                self._cut([image], [target], out_PD[start:stop])
                start = stop
        if images:
            self._cut(images, targets, out_PD)
        return [failed.applied_to(sample) for sample, failed in zip(samples, failures, strict=True)]

    def _decode(self, read: Sequence[_Read]) -> Iterator[Decoded]:
        """The pixels of all images in order."""
        if self._one_by_one:
            for one in read:
                if isinstance(one.images, ImageFailure):
                    yield from [one.images] * len(one.infos)
                    continue
                for data, info in zip(one.images, one.infos, strict=True):
                    yield self.decoder.decode([data], [info])[0]
            return
        images: list[bytes] = []
        infos: list[ImageInfo] = []
        for one in read:
            if not isinstance(one.images, ImageFailure):
                images += one.images
                infos += one.infos
        decoded = iter(self.decoder.decode(images, infos))
        for one in read:
            if isinstance(one.images, ImageFailure):
                yield from [one.images] * len(one.infos)
            else:
                yield from (next(decoded) for _ in one.infos)

    def _image(
        self, image: Decoded, grid_3: Int64Array, failed: _Failures, place: int
    ) -> tuple[Decoded, PatchTarget]:
        """The image, or a blank if it does not become as many patches as were planned."""
        _, rows, columns = grid_3.tolist()
        size = rows * self.vision.patch_size, columns * self.vision.patch_size
        if not isinstance(image, ImageFailure):
            height, width = image.shape[0], image.shape[1]
            if smart_resize(height, width, self.vision) == size:
                return image, patch_target((height, width), size, self.vision)
            image = ImageFailure("image-changed", f"{width}x{height} pixels, planned {grid_3[1:]}")
        failed.add(place, image)
        return blank_pixels(), patch_target((1, 1), size, self.vision)

    def _cut(
        self, images: Sequence[Decoded], targets: Sequence[PatchTarget], out_PD: Tensor
    ) -> None:
        pixels = [image for image in images if not isinstance(image, ImageFailure)]
        self._patches(pixels, targets, self._table_3x256, dtype=self.pixel_dtype, out=out_PD)


class _Failures:
    """Why images of one sample are blank."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._reasons: list[str] = []

    def add(self, place: int, failure: ImageFailure) -> None:
        which = f"image {place}: " if self._num_images > 1 else ""
        self._reasons.append(f"{failure.reason}: {which}{failure.detail}")

    def applied_to(self, sample: EncodedSample) -> EncodedSample:
        """The sample, nothing of which is trained if an image failed."""
        if not self._reasons:
            return sample
        untrained = np.zeros_like(sample.trained)
        return replace(sample, trained=untrained, failure="; ".join(self._reasons))
