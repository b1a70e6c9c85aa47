"""Samples in memory, such as rollouts, as batches: planned and packed as the loader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from omr_io.batches import Batch, make_batch
from omr_io.loader.samples import SampleEncoder
from omr_io.ops import pack_implementation
from omr_io.packing import Lengths, plan_epoch
from omr_io.types import EncodedSample


def packed_batches(
    samples: Sequence[EncodedSample],
    *,
    seq_len: int,
    packs_per_batch: int,
    step_label_tokens: int,
    encoder: SampleEncoder,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Batch, list[list[int]]]]:
    """Pack all samples, one step's.

    Args:
        step_label_tokens: what the step's summed loss is divided by.
        encoder: of the samples.
        device: where the batches are; see `DataLoader`.

    Yields:
        a batch, and the numbers of its samples, pack by pack.

    Raises:
        SampleTooLongError: a sample is longer than seq_len.
    """
    chat = encoder.chat
    plan = plan_epoch(
        _lengths(samples, chat.image_token_id),
        epoch=0,
        seed=0,
        seq_len=seq_len,
        packs_per_step=1,
        keys=[sample.key for sample in samples],
    )
    pack = pack_implementation("auto", device)
    for first in range(0, plan.num_packs, packs_per_batch):
        last = min(first + packs_per_batch, plan.num_packs)
        packs = [[int(i) for i in plan.pack(n)] for n in range(first, last)]
        rows = [[samples[i] for i in numbers] for numbers in packs]
        arrays = pack(
            rows,
            seq_len=seq_len,
            pad_id=chat.pad_token_id,
            image_token_id=chat.image_token_id,
            merge_size=encoder.vision.merge_size,
        )
        batch = make_batch(
            arrays,
            rows,
            vision=encoder.vision,
            step_label_tokens=step_label_tokens,
            epoch=0,
            step=0,
            micro_step=first // packs_per_batch,
            pixel_dtype=encoder.pixel_dtype,
        )
        yield batch, packs


def _lengths(samples: Sequence[EncodedSample], image_token_id: int) -> Lengths:
    def column(of: Callable[[EncodedSample], int]) -> Any:
        return np.asarray([of(sample) for sample in samples], np.int64)

    return Lengths(
        text_tokens=column(lambda s: int((s.input_ids != image_token_id).sum())),
        image_tokens=column(lambda s: int((s.input_ids == image_token_id).sum())),
        label_tokens=column(lambda s: int(s.trained.sum())),
        patches=column(lambda s: int(s.image_grid_thw.prod(axis=1).sum())),
    )
