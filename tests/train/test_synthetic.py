"""Batches that cost nothing, and the stall that they measure, with a clock of our own."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from omr_io.errors import ConfigError
from omr_io.train.profiling import StepProfile
from omr_io.train.synthetic import Pair, Stall, StallMeter, fake_data, replay


class Item:
    """A batch of so many bytes."""

    def __init__(self, number: int, size: int = 100) -> None:
        self.number, self.size, self.sent = number, size, 0

    def tensors(self):
        return [torch.zeros(self.size, dtype=torch.uint8)]

    def to(self, device):
        self.sent += 1
        return self


def items(clock=None, cost=0.0, size=100, asked=None):
    number = 0
    while True:
        if clock is not None:
            clock.now += cost
        if asked is not None:
            asked.append(number)
        yield Item(number, size)
        number += 1


def test_fake_data_is_the_first_batch_sent_once():
    asked: list[int] = []
    given = list(islice(fake_data(items(asked=asked), torch.device("cpu")), 5))
    assert {id(item) for item in given} == {id(given[0])}
    assert given[0].sent == 1
    assert asked == [0]


def test_replay_goes_round_whole_steps():
    numbers = [item.number for item in islice(replay(items(), 2, steps=3), 15)]
    assert numbers == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_replay_is_bounded_in_bytes():
    asked: list[int] = []
    source = replay(items(asked=asked), 2, steps=50, max_bytes=750)  # a step is of 200
    assert [item.number for item in islice(source, 8)] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert len(asked) == 6
    with pytest.raises(ConfigError, match="one step take 200 bytes, more than the 199"):
        list(islice(replay(items(), 2, steps=50, max_bytes=199), 5))


def run(meter: StallMeter, clock, steps: int, step_seconds: float, micro_steps: int) -> list[int]:
    numbers = []
    source = iter(meter)
    for _ in range(steps):
        for _ in range(micro_steps):
            numbers.append(next(source).number)
        clock.now += step_seconds
    meter.finish()
    return numbers


@pytest.mark.parametrize("micro_steps", [1, 2])
@pytest.mark.parametrize("cost", [0.0, 0.25])
def test_the_stall_is_what_the_loader_costs(micro_steps, cost):
    clock = SimpleNamespace(now=5.0)
    meter = StallMeter(
        items(clock, cost), micro_steps, queued=2, stretch=4, clock=lambda: clock.now
    )
    assert meter.skipped == 4 // micro_steps
    half = meter.skipped + 4
    assert meter.steps_of_a_pair == 2 * half
    numbers = run(meter, clock, 2 * meter.steps_of_a_pair, 1.0, micro_steps)
    first = list(range(half * micro_steps))
    second = [number + len(first) for number in first]
    assert numbers == first + first + second + second  # the same work in both halves
    waited = 4 * micro_steps * cost
    assert meter.pairs == [Pair(4, 4.0 + waited, 4.0, waited)] * 2
    stall = Stall.of(meter.pairs)
    assert stall.stall == pytest.approx(waited / (4 + waited))
    assert stall.wait_share == pytest.approx(waited / (4 + waited))
    assert (stall.pairs, stall.steps, stall.synthetic_seconds) == (2, 8, 1.0)


def test_a_stretch_is_as_long_as_memory_allows():
    clock = SimpleNamespace(now=0.0)
    meter = StallMeter(
        items(clock), 1, queued=1, stretch=50, max_bytes=550, clock=lambda: clock.now
    )
    run(meter, clock, 10, 1.0, 1)
    assert [pair.steps for pair in meter.pairs] == [3]  # 5 of 100 bytes, less the first 2
    short = StallMeter(items(), 1, queued=4, stretch=50, max_bytes=550)
    with pytest.raises(ConfigError, match="only 5 steps fit into 550 bytes"):
        list(islice(iter(short), 30))


def test_no_pair_is_no_figure():
    with pytest.raises(ConfigError, match="no pair"):
        Stall.of([])
    stall = Stall.of([Pair(2, 10.0, 9.0, 0.5), Pair(2, 10.0, 9.5, 0.5), Pair(2, 10.0, 9.9, 0.2)])
    assert str(stall).startswith(
        "data stall 5.00% (1 - t_synthetic / t_real; median of 3 pairs of stretches, 1.00% to "
        "10.00%)"
    )


def test_a_profile_is_of_the_steps_after_the_warm_ones(tmp_path):
    import gzip
    import json

    profile = StepProfile(tmp_path / "profile", "sft", 3, warm=2, traced=2)
    x = torch.ones(8, 8)
    for step in range(6):
        profile.step()
        with torch.profiler.record_function(f"step-{step}"):
            x @ x
    path = tmp_path / "profile" / "sft-rank3.trace.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {f"step-{step}" for step in range(6)} & names == {"step-2", "step-3"}
    assert "aten::mm" in (tmp_path / "profile" / "sft-rank3.txt").read_text()
    assert profile.close() is None


def test_a_run_shorter_than_its_profile_keeps_what_there_is(tmp_path):
    profile = StepProfile(tmp_path, "sft", warm=1, traced=50)
    for _ in range(3):
        profile.step()
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert profile.close() == tmp_path / "sft-rank0.trace.json.gz"
    assert StepProfile(tmp_path, "sft").close() is None
