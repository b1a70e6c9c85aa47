"""Counts and times, with a clock made of a list."""

import numpy as np

from omr_io.batches import Failure, make_batch
from omr_io.config import VisionConfig
from omr_io.ops import pack_implementation
from omr_io.telemetry import LoaderStats, Meter
from omr_io.types import EncodedSample


def small_batch(failures=()):
    ids = np.arange(2, 8, dtype=np.int32)
    sample = EncodedSample("a", ids, ids > 4, None, np.empty((0, 3), np.int64))
    packs = [[sample], []]
    arrays = pack_implementation()(packs, seq_len=8, pad_id=0, image_token_id=1, merge_size=2)
    return make_batch(
        arrays, packs, vision=VisionConfig(), step_label_tokens=3, epoch=0, step=0, micro_step=0,
        failures=failures,
    )  # fmt: skip


def test_counts_add_up_and_waiting_is_told_from_working():
    # waits 10-12, works 12-15, waits 15-16, works 16-20, then a pause, then waits 100-103
    clock = iter([10.0, 12.0, 15.0, 16.0, 20.0, 100.0, 103.0])
    meter = Meter(lambda: next(clock))
    assert meter.snapshot() == LoaderStats()
    assert meter.snapshot().efficiency == meter.snapshot().wait_share == 0.0
    failure = Failure("train-000000.tar", "a", "image-truncated: short")
    for batch, size in ((small_batch(), 100), (small_batch([failure]), 50)):
        meter.start_waiting()
        meter.deliver(batch, size)
    meter.start_waiting()
    meter.pause()
    meter.start_waiting()
    meter.deliver(small_batch(), 1)
    stats = meter.snapshot()
    assert (stats.batches, stats.samples, stats.images, stats.failures) == (3, 3, 0, 1)
    assert (stats.tokens, stats.label_tokens) == (18, 9)
    assert (stats.capacity, stats.bytes_read) == (48, 151)
    assert stats.efficiency == 18 / 48
    assert stats.seconds == 13.0
    assert stats.waited_seconds == 6.0
    assert stats.wait_share == 6 / 13
    assert stats.tokens_per_second == 18 / 13
