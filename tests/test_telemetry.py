"""Counts and times, with a clock made of a list, and where they go."""

import io
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from omr_io.batches import Failure, make_batch
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError
from omr_io.ops import pack_implementation
from omr_io.storage import StorageStats
from omr_io.telemetry import JsonlWriter, LiveLine, LoaderStats, Meter, PrometheusMetrics
from omr_io.telemetry.stats import STEPS_KEPT
from omr_io.types import EncodedSample


def small_batch(failures=(), step=0, micro_step=0):
    ids = np.arange(2, 8, dtype=np.int32)
    sample = EncodedSample("a", ids, ids > 4, None, np.empty((0, 3), np.int64))
    packs = [[sample], []]
    arrays = pack_implementation()(packs, seq_len=8, pad_id=0, image_token_id=1, merge_size=2)
    return make_batch(
        arrays, packs, vision=VisionConfig(), step_label_tokens=3, epoch=0, step=step,
        micro_step=micro_step, failures=failures,
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


def test_waits_are_counted_by_step():
    """Two batches a step: a step's wait is the sum of theirs."""
    waits = [1.0, 2.0, 0.0, 0.5, 4.0, 4.0, 0.25, 0.25]
    times = itertools.accumulate(itertools.chain.from_iterable((0.125, wait) for wait in waits))
    meter = Meter(lambda: next(times))
    for place in range(len(waits)):
        meter.start_waiting()
        meter.deliver(small_batch(step=place // 2, micro_step=place % 2), 1)
    stats = meter.snapshot()
    assert (stats.batches, stats.steps, stats.last_wait) == (8, 4, 0.5)
    assert (stats.p50_wait, stats.p99_wait, stats.mean_wait) == (0.5, 8.0, 12.0 / 4)


def test_percentiles_are_of_the_latest_steps():
    now = [0.0]
    meter = Meter(lambda: now[0])
    for step in range(STEPS_KEPT + 500):
        meter.start_waiting()
        now[0] += 1000.0 if step < 500 else 1.0 + step % 100
        meter.deliver(small_batch(step=step), 1)
    stats = meter.snapshot()
    assert stats.steps == STEPS_KEPT + 500
    assert (stats.p50_wait, stats.p99_wait) == (50.0, 99.0)
    assert len(meter._waits) == STEPS_KEPT


STATS = LoaderStats(
    batches=8, samples=90, images=80, tokens=60_000, label_tokens=20_000, capacity=65_536,
    bytes_read=123, failures=2, seconds=4.0, waited_seconds=1.0, steps=4, last_wait=0.0125,
    p50_wait=0.25, p99_wait=0.5, queue_batches=2, queue_bytes=3_000_000, quarantined=1,
    storage=StorageStats(fetched_bytes=7, requests=6, retries=5, cache_hits=3, cache_misses=1),
    decoder="cpu",
)  # fmt: skip


def test_as_a_dict_all_is_flat_and_plain():
    values = STATS.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert (values["tokens"], values["cache_hits"], values["decoder"]) == (60_000, 3, "cpu")
    assert (values["tokens_per_second"], values["images_per_second"]) == (15_000, 20)
    assert (values["mean_wait"], values["wait_share"]) == (0.25, 0.25)


def test_lines_of_json_are_appended_and_can_be_read_at_once(tmp_path):
    path = tmp_path / "stats.jsonl"
    for step in range(2):
        with JsonlWriter(path) as writer:
            writer.write(STATS, step=step, rank=3)
            lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["rank"] == 3 and line["p99_wait"] == 0.5 for line in lines)
    with pytest.raises(DiskError, match=r"stats\.jsonl"):
        JsonlWriter(tmp_path / "nowhere" / "stats.jsonl")


class Watched:
    epoch = 2

    def __init__(self):
        self.asked = 0

    def stats(self):
        self.asked += 1
        return STATS


LINE = (
    "epoch 2: 4 steps, 15,000 tokens/s, 20.0 images/s, wait 12.5 ms (p50 250.0, p99 500.0), "
    "queue 2 (3 MB), packing 91.6%, cache 75.0%, 1 quarantined"
)


def test_a_live_line_on_a_terminal_is_drawn_over():
    out, watched = io.StringIO(), Watched()
    with LiveLine(watched, Console(file=out, force_terminal=True, width=200)) as line:
        for _ in range(1000):
            line.update()
        drawn = out.getvalue()
    assert watched.asked < 500  # drawn ten times a second, not for every batch
    assert LINE in drawn
    assert out.getvalue().endswith(LINE + "\n")


def test_a_live_line_elsewhere_is_a_line_now_and_then(monkeypatch):
    out, watched = io.StringIO(), Watched()
    begun = time.monotonic()
    now = [begun]
    monkeypatch.setattr("omr_io.terminal.time.monotonic", lambda: now[0])
    with LiveLine(watched, Console(file=out, width=20)) as line:
        for second in range(0, 25):
            now[0] = begun + second
            line.update()
        assert out.getvalue() == 2 * (LINE + "\n")
    assert out.getvalue() == 3 * (LINE + "\n")
    line.update()
    assert out.getvalue() == 3 * (LINE + "\n")


def test_prometheus_reads_what_the_loader_says_when_it_asks():
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    stats = [STATS]
    labels = {"decoder": "cpu", "rank": "3"}
    with PrometheusMetrics(lambda: stats[0], {"rank": "3"}, registry) as metrics:
        text = client.generate_latest(registry).decode()
        assert 'omr_io_loader_tokens_total{decoder="cpu",rank="3"} 60000.0' in text
        assert "# HELP omr_io_loader_p99_wait " in text
        value = registry.get_sample_value
        assert value("omr_io_loader_cache_hits_total", labels) == 3
        assert value("omr_io_loader_queue_batches", labels) == 2
        stats[0] = LoaderStats(tokens=70_000, decoder="cpu")
        assert value("omr_io_loader_tokens_total", labels) == 70_000
    assert client.generate_latest(registry) == b""
    metrics.close()


def test_two_loaders_need_two_registries():
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry(auto_describe=True)  # as the default one
    with PrometheusMetrics(LoaderStats, {"set": "train"}, registry):
        with pytest.raises(ConfigError, match="registry of its own"):
            PrometheusMetrics(LoaderStats, {"set": "test"}, registry)
        PrometheusMetrics(LoaderStats, {"set": "test"}, client.CollectorRegistry()).close()
    PrometheusMetrics(LoaderStats, {"set": "train"}, registry).close()


def test_without_prometheus_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"omr_io\[prometheus\]"):
        PrometheusMetrics(LoaderStats)


def test_neither_rich_nor_prometheus_is_loaded_before_it_is_used():
    code = (
        "import sys, omr_io.telemetry; "
        "sys.exit(bool({'rich', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
