"""A batch made: its samples read and encoded in units, its integers laid out, all of it sent.

Legend: B packs, T seq_len, P patches, D patch width.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from omr_io.batches import Batch, Failure, make_batch
from omr_io.loader.buffers import PixelBuffers
from omr_io.loader.device import SideStream
from omr_io.loader.order import Place
from omr_io.loader.samples import SampleEncoder
from omr_io.ops import Pack
from omr_io.packing import Lengths
from omr_io.types import EncodedSample

_UNIT_PATCHES = 8192  # of a unit that threads share: about 10 ms of work
_LONE_PATCHES = 32768  # where one thread does all: fewer steps in Python
_UNIT_SAMPLES = 64  # of a unit at most: without images a sample takes 50 us
_POSITION_BYTES = 7 * 8 + 4 + 4  # of a token: ids, labels, positions, types, segments, weights
_LOOKAHEAD = 4  # batches that storage is told of before they are begun


@dataclass(frozen=True, slots=True)
class Made:
    """A batch, and what the loader has to know beside it.

    Attributes:
        place: where it stands.
        batch: on the loader's device.
        bytes_read: of its samples' parts, as they stand in the shards.
        ready: the event after which it is there, on a GPU; None elsewhere.
    """

    place: Place
    batch: Batch
    bytes_read: int
    ready: torch.cuda.Event | None


class BatchMaker:
    """Makes batches of places. Safe to use from several threads.

    Args:
        encoder: of the samples.
        lengths: of all samples.
        pack: the implementation of the assembly, for `device`.
        seq_len: T.
        device: where the batches go.
        keep: buffers for pixels that may lie idle.
        most_positions: B x T of the batches.
        num_threads: that share the units of a batch.
        pin_memory: pixels on the host are page-locked.
        rank: for errors.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
        lengths: Lengths,
        pack: Pack,
        *,
        seq_len: int,
        device: torch.device,
        keep: int,
        most_positions: int,
        num_threads: int,
        pin_memory: bool,
        rank: int,
    ) -> None:
        self.rank = rank
        self.encoder = encoder
        self.lengths = lengths
        self.pack = pack
        self.seq_len = seq_len
        self.device = device
        self.pad_id = encoder.chat.pad_token_id
        # Every token of a batch may be an image's, of merge_size x merge_size patches.
        patches = most_positions * encoder.vision.merge_size**2
        most_bytes = patches * encoder.vision.patch_width * encoder.pixel_dtype.itemsize
        self.buffers = PixelBuffers(keep, most_bytes, pinned=pin_memory)
        self.stream = SideStream(device) if device.type == "cuda" else None
        self.on_gpu = encoder.decoder.device != "cpu"
        self.unit_patches = _UNIT_PATCHES if num_threads > 1 else _LONE_PATCHES
        if self.on_gpu:  # a decoder there works on all images at once
            self.unit_patches = sys.maxsize

    def jobs(self, places: Iterator[Place]) -> Iterator[BatchJob]:
        """The batches to be made, some of them planned ahead so that storage can be told."""
        planned: deque[BatchJob] = deque()
        source = self.encoder.shard_set
        while True:
            for place in islice(places, 1 + _LOOKAHEAD - len(planned)):
                planned.append(BatchJob(self, place))
                source.will_read(planned[-1].numbers)
            if not planned:
                return
            yield planned.popleft()

    def around(self) -> AbstractContextManager[Any]:
        """What a thread works within: on a GPU the side stream."""
        return nullcontext() if self.stream is None else self.stream.current()

    def pixels(self, num_patches: int) -> Tensor:
        """(P, D) for the patches of a batch: from the pool, or on the decoder's GPU."""
        width, dtype = self.encoder.vision.patch_width, self.encoder.pixel_dtype
        if self.on_gpu:
            return torch.empty((num_patches, width), dtype=dtype, device=self.device)
        return self.buffers.take(num_patches, width, dtype)

    def assemble(self, job: BatchJob, samples: list[EncodedSample], pixels_PD: Tensor) -> Made:
        """The batch of samples that are encoded, in the order of their packs."""
        vision = self.encoder.vision
        rest = iter(samples)
        packs = [[next(rest) for _ in pack] for pack in job.place.packs]
        arrays = self.pack(
            packs,
            seq_len=self.seq_len,
            pad_id=self.pad_id,
            image_token_id=self.encoder.chat.image_token_id,
            merge_size=vision.merge_size,
        )
        source, position = self.encoder.shard_set, job.place.position
        batch = make_batch(
            arrays,
            packs,
            vision=vision,
            step_label_tokens=job.place.step_label_tokens,
            epoch=position.epoch,
            step=position.epoch_step,
            micro_step=position.micro_step,
            failures=[
                Failure(source.shard(number), sample.key, sample.failure)
                for number, sample in zip(job.numbers, samples, strict=True)
                if sample.failure is not None
            ],
            pixel_dtype=self.encoder.pixel_dtype,
            pixel_values=pixels_PD,
        )
        bytes_read = sum(part.size for number in job.numbers for part in source.parts(number))
        ready = None if self.stream is None else self.stream.record()
        return Made(job.place, batch, bytes_read, ready)


class BatchJob:
    """One batch to be made, in units of neighbouring samples; see `engine.Job`.

    How many patches each sample has is planned, so each unit knows where its own go.
    """

    def __init__(self, maker: BatchMaker, place: Place) -> None:
        self._maker = maker
        self.place = place
        self.numbers = [number for pack in place.packs for number in pack]
        patches = maker.lengths.patches[self.numbers].tolist()
        self.num_patches = sum(patches)
        self._units = _units(patches, maker.unit_patches)
        width, dtype = maker.encoder.vision.patch_width, maker.encoder.pixel_dtype
        positions = len(place.packs) * maker.seq_len
        self.num_bytes = self.num_patches * width * dtype.itemsize + positions * _POSITION_BYTES
        self.num_units = len(self._units)
        self._pixels_PD: Tensor | None = None

    def begin(self) -> None:
        """Take the memory of the pixels."""
        self._pixels_PD = self._maker.pixels(self.num_patches)

    def run(self, unit: int) -> list[EncodedSample]:
        """Read, decode and encode the samples of a unit."""
        assert self._pixels_PD is not None, "begin comes first"
        first, last, start, stop = self._units[unit]
        return self._maker.encoder.encode_into(
            self.numbers[first:last], self._pixels_PD[start:stop]
        )

    def finish(self, parts: list[list[EncodedSample]]) -> Made:
        """The batch."""
        assert self._pixels_PD is not None, "begin comes first"
        pixels_PD, self._pixels_PD = self._pixels_PD, None
        return self._maker.assemble(self, [sample for part in parts for sample in part], pixels_PD)

    def describe(self, error: BaseException) -> None:
        """Note the batch's place."""
        place, rank = self.place.position, self._maker.rank
        error.add_note(f"while making the batch of {place} on rank {rank}")


def _units(patches: list[int], most: int) -> list[tuple[int, int, int, int]]:
    """Cut samples into units of about `most` patches: first and last sample, first and last patch.

    Of samples without images a unit has `_UNIT_SAMPLES`.
    """
    units: list[tuple[int, int, int, int]] = []
    first = start = stop = 0
    for place, count in enumerate(patches):
        stop += count
        is_full = stop - start >= most or (
            place + 1 - first >= _UNIT_SAMPLES and most < sys.maxsize
        )
        if place + 1 == len(patches) or is_full:
            units.append((first, place + 1, start, stop))
            first, start = place + 1, stop
    return units
