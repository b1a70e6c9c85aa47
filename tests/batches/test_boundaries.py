"""Boundaries on the host are those on the device, and attention under a loader's batch needs no
others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omr_io.batches import Batch, make_batch
from omr_io.batches.boundaries import HostBoundaries, pack_boundaries
from omr_io.config import VisionConfig
from omr_io.ops import pack_implementation
from omr_io.train.attention import use_varlen
from omr_io.train.model import forward
from omr_io.types import EncodedSample
from tests.train import tiny_models as tiny
from tests.train.test_prefix_attention import HostOnly


def batch_of(packs: list[list[tiny.Sample]], seq_len: int) -> Batch:
    samples = [
        [
            EncodedSample(
                key="k",
                input_ids=s.input_ids.int().numpy(),
                trained=np.zeros(len(s.input_ids), np.bool_),
                pixel_values=s.pixel_values.numpy() if len(s.pixel_values) else None,
                image_grid_thw=s.image_grid_thw.numpy(),
            )
            for s in pack
        ]
        for pack in packs
    ]
    arrays = pack_implementation()(
        samples, seq_len=seq_len, pad_id=tiny.PAD, image_token_id=tiny.IMAGE, merge_size=2
    )
    return make_batch(
        arrays, samples, vision=VisionConfig(patch_size=4), step_label_tokens=1, epoch=0, step=0,
        micro_step=0,
    )  # fmt: skip


@given(lengths=st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=4))
def test_they_are_cu_seqlens(lengths: list[list[int]]) -> None:
    # Of words alone: a sample has three tokens besides.
    packs = [[tiny.tiny_sample([], n, seed=n) for n in pack] for pack in lengths]
    seq_len = max(1, *(sum(len(s.input_ids) for s in pack) for pack in packs))
    batch = batch_of(packs, seq_len)
    assert batch.boundaries.kinds == (tuple(batch.cu_seqlens.tolist()),)
    assert pack_boundaries([], 5).kinds == ((0,),)


def test_a_kind_is_found_by_its_number_of_bounds() -> None:
    known = HostBoundaries(((0, 4, 6), (0, 2, 4, 6)))
    assert known.of(3) == (0, 4, 6)
    assert known.of(4) == (0, 2, 4, 6)
    assert known.of(2) is None


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@torch.no_grad()
def test_no_layer_reads_boundaries_back(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in text nor in the vision tower, whatever the kind of layer."""
    model = tiny.tiny_model(family).eval()
    use_varlen(model)
    samples = [tiny.tiny_sample([(4, 6)], 7, 1), tiny.tiny_sample([(8, 4), (4, 4)], 5, 2)]
    batch = batch_of([samples], 64)
    expected = forward(model, batch)

    def unreadable(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.as_subclass(HostOnly) if "cu_" in name else value
            for name, value in inputs.items()
        }

    plain_inputs, plain_vision = Batch.model_inputs, Batch.vision_inputs
    monkeypatch.setattr(Batch, "model_inputs", lambda self: unreadable(plain_inputs(self)))
    monkeypatch.setattr(
        Batch, "vision_inputs", lambda self, **options: unreadable(plain_vision(self, **options))
    )
    assert torch.equal(forward(model, batch), expected)
    monkeypatch.setattr(HostBoundaries, "of", lambda self, count: None)
    with pytest.raises(AssertionError, match="copied to the host"):
        forward(model, batch)
