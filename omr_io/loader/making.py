"""A batch made: its samples read and encoded in units, its integers laid out behind the pixels.

All of a batch lies in one block of host memory, which goes to a GPU in one copy.

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

import numpy as np
import torch
from torch import Tensor

from omr_io.batches import Batch, Block, Failure, dummy_patches, image_grids, make_batch
from omr_io.batches.transfer import aligned
from omr_io.loader.buffers import BatchBuffers
from omr_io.loader.device import SideStream
from omr_io.loader.order import Place
from omr_io.loader.samples import SampleEncoder
from omr_io.ops import Pack, batch_room
from omr_io.packing import Lengths
from omr_io.types import EncodedSample

_UNIT_PATCHES = 8192  # of a unit that threads share: about 10 ms of work
_LONE_PATCHES = 32768  # where one thread does all: fewer steps in Python
_UNIT_SAMPLES = 64  # of a unit at most: without images a sample takes 50 us
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
        keep: blocks of memory that may lie idle.
        most_positions: B x T of the batches.
        num_threads: that share the units of a batch.
        pin_memory: batches on the host, and what is sent from there, are page-locked.
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
        # Every token of a batch may be an image's, of merge_size x merge_size patches; or a sample.
        patches = most_positions * encoder.vision.merge_size**2
        most_bytes = aligned(patches * self.patch_bytes)
        most_bytes += batch_room(most_positions, most_positions, most_positions, most_positions)
        # A GPU copies from page-locked memory alone without the host's waiting.
        pinned = pin_memory or device.type == "cuda"
        self.buffers = BatchBuffers(keep, most_bytes, pinned=pinned)
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

    @property
    def patch_bytes(self) -> int:
        """Of one patch."""
        return self.encoder.vision.patch_width * self.encoder.pixel_dtype.itemsize

    def memory(self, job: BatchJob) -> tuple[Block, Tensor]:
        """A batch's block of host memory, and in it (P, D) for the patches, first of all.

        Patches of a decoder on a GPU are there instead. A batch without images gets its dummy's.
        """
        block = Block(self.buffers.take(job.host_bytes))
        shape = job.pixel_rows, self.encoder.vision.patch_width
        dtype = self.encoder.pixel_dtype
        if self.on_gpu:
            pixels_PD = torch.empty(shape, dtype=dtype, device=self.device)
        else:
            pixels_PD = block.empty(shape, dtype)
        return block, pixels_PD if job.num_patches else pixels_PD.zero_()

    def assemble(
        self, job: BatchJob, samples: list[EncodedSample], block: Block, pixels_PD: Tensor
    ) -> Made:
        """The batch of samples that are encoded, in the order of their packs; sends its block."""
        vision = self.encoder.vision
        rest = iter(samples)
        packs = [[next(rest) for _ in pack] for pack in job.place.packs]
        grids_N3 = block.put(image_grids(samples, vision)[0])
        arrays = self.pack(
            packs,
            seq_len=self.seq_len,
            pad_id=self.pad_id,
            image_token_id=self.encoder.chat.image_token_id,
            merge_size=vision.merge_size,
            block=block,
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
            pixel_values=pixels_PD if self.on_gpu else block.sent(pixels_PD),
            image_grid_thw=block.sent(grids_N3),
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
        self.num_units = len(self._units)
        # Without images the vision tower gets a dummy: see `make_batch`.
        self.pixel_rows = self.num_patches or dummy_patches(maker.encoder.vision)
        offsets = maker.encoder.shard_set.image_offsets
        rows = np.asarray(self.numbers, np.int64)
        images = int((offsets[rows + 1] - offsets[rows]).sum())
        room = batch_room(
            len(place.packs) * maker.seq_len, len(self.numbers), len(place.packs), max(images, 1)
        )
        self.num_bytes = aligned(self.pixel_rows * maker.patch_bytes) + room
        self.host_bytes = room if maker.on_gpu else self.num_bytes
        self._memory: tuple[Block, Tensor] | None = None

    def begin(self) -> None:
        """Take the memory of the batch."""
        self._memory = self._maker.memory(self)

    def run(self, unit: int) -> list[EncodedSample]:
        """Read, decode and encode the samples of a unit."""
        assert self._memory is not None, "begin comes first"
        first, last, start, stop = self._units[unit]
        pixels_PD = self._memory[1][start:stop]
        return self._maker.encoder.encode_into(self.numbers[first:last], pixels_PD)

    def finish(self, parts: list[list[EncodedSample]]) -> Made:
        """The batch."""
        assert self._memory is not None, "begin comes first"
        (block, pixels_PD), self._memory = self._memory, None
        samples = [sample for part in parts for sample in part]
        return self._maker.assemble(self, samples, block, pixels_PD)

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
