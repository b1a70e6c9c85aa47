"""What a step costs, with a clock of our own."""

from types import SimpleNamespace

import pytest
import torch

from omr_io.train.history import History, read_history
from omr_io.train.meters import STEPS_KEPT, StepMeter, peak_memory
from omr_io.train.ranks import Ranks
from omr_io.train.step_log import PhaseSteps, StepLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def batches(clock, waits, tokens=30, capacity=40):
    for wait in waits:
        clock.now += wait
        yield SimpleNamespace(num_tokens=tokens, input_ids=torch.zeros(1, capacity))


class Flops:
    def of(self, batch) -> float:
        return 1000.0 * batch.num_tokens


def rows_of(tmp_path, meter, clock, source, steps, seconds):
    phases = {"sft": PhaseSteps(steps, steps)}
    path = tmp_path / "history.jsonl"
    with StepLog(Ranks(), History.create(path), phases, show=lambda line: None) as log:
        watched = meter.watch(source)
        for step in range(1, steps + 1):
            clock.now += 50  # an evaluation, say: of no step
            meter.start()
            for _ in range(2):
                next(watched)
                clock.now += seconds / 2
            log.add("sft", step, **meter.finish())
    return read_history(path)


def test_a_steps_metrics(tmp_path):
    clock = Clock()
    meter = StepMeter(
        device=torch.device("cpu"), flops=Flops(), peak=1e6, world_size=1, clock=clock
    )
    rows = rows_of(tmp_path, meter, clock, batches(clock, [0.5, 0.5, 0, 0]), 2, 3.0)
    assert rows[0]["tokens"] == 60
    assert rows[0]["seconds"] == 4.0
    assert rows[0]["tokens_per_second"] == 15
    assert rows[0]["packing_efficiency"] == 0.75
    assert rows[0]["data_wait_share"] == 0.25
    assert rows[0]["mfu"] == pytest.approx(60_000 / (4.0 * 1e6))
    assert rows[1]["data_wait_share"] == 0
    assert rows[1]["seconds"] == 3.0
    assert (rows[1]["seconds_p50"], rows[1]["seconds_p99"]) == (3.0, 4.0)
    assert rows[1]["peak_memory_bytes"] > 50e6


def test_tokens_per_second_are_of_all_ranks_and_utilisation_of_each():
    clock = Clock()
    meter = StepMeter(
        device=torch.device("cpu"), flops=Flops(), peak=1e6, world_size=4, clock=clock
    )
    meter.start()
    next(meter.watch(batches(clock, [0.0])))
    clock.now += 2.0
    made = meter.finish()
    rate, mfu = made["tokens_per_second"], made["mfu"]
    # Four ranks that do the same: sums over them.
    assert 4 * rate.part / (4 * rate.whole) == 4 * 30 / 2.0
    assert 4 * mfu.part / (4 * mfu.whole) == 30_000 / 2.0 / 1e6


@pytest.mark.parametrize(("flops", "peak"), [(Flops(), None), (None, 1e12)])
def test_without_a_peak_or_a_count_there_is_no_utilisation(flops, peak):
    meter = StepMeter(device=torch.device("cpu"), flops=flops, peak=peak)
    meter.start()
    assert "mfu" not in meter.finish()


def test_percentiles_are_of_a_bounded_window():
    clock = Clock()
    meter = StepMeter(device=torch.device("cpu"), clock=clock)
    meter.start()
    clock.now += 1000.0
    assert meter.finish()["seconds_p99"] == 1000.0
    for _ in range(STEPS_KEPT):
        meter.start()
        clock.now += 1.0
        made = meter.finish()
    assert made["seconds_p50"] == made["seconds_p99"] == 1.0


def test_the_end_of_the_batches_is_the_end():
    meter = StepMeter(device=torch.device("cpu"))
    assert len(list(meter.watch(batches(Clock(), [0, 0, 0])))) == 3


def test_memory_is_of_the_process_and_grows():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(30_000_000)  # 120 MB, touched
    assert peak_memory(torch.device("cpu")) >= before
    del held


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_busy_device_does_not_wait_for_data_and_an_idle_one_does(tmp_path):
    import time

    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)

    def slow():
        while True:
            time.sleep(0.02)
            yield SimpleNamespace(num_tokens=1, input_ids=torch.zeros(1, 1))

    shares = []
    for products in (100, 0):
        meter = StepMeter(device=device)
        watched = meter.watch(slow())
        torch.cuda.synchronize()
        meter.start()
        for _ in range(3):
            for _ in range(products):
                x @ x
            next(watched)
        share = meter.finish()["device_wait_share"]
        shares.append(share.part() / share.whole())
    assert shares[0] < 0.1 < 0.9 < shares[1]
