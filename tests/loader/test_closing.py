"""Who else may touch a loader while it is iterated: other threads, signals, torch's workers."""

import gc
import os
import signal
import threading
import weakref

import pytest
import torch

from omr_io.errors import ConfigError, SourceError


@pytest.fixture
def opened(opened_shards):
    return opened_shards


@pytest.fixture
def make(make_loader):
    return make_loader


@pytest.mark.parametrize("threads", [0, 2])
def test_a_loader_goes_when_its_last_name_does(make, threads):
    """With its buffers, which may be gigabytes; not when the collector comes."""
    gc.disable()
    try:
        loader = make(num_threads=threads)
        for _ in range(2):
            for batch in loader:
                del batch
                break
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()


class Paused:
    """A shard set whose reads wait, and tell that they do."""

    def __init__(self, monkeypatch, opened):
        self.waits, self.go = threading.Event(), threading.Event()
        read = opened.read_record

        def slow(*arguments, **options):
            self.waits.set()
            assert self.go.wait(30)
            return read(*arguments, **options)

        monkeypatch.setattr(opened, "read_record", slow)


@pytest.mark.parametrize("threads", [0, 2])
def test_closing_a_loader_that_another_thread_waits_for(make, opened, monkeypatch, threads):
    """Its loop ends, and stands where it stood: nothing is skipped."""
    loader = make(num_threads=threads)
    paused = Paused(monkeypatch, opened)
    told = []
    consumer = threading.Thread(target=lambda: told.append(sum(1 for _ in loader)))
    consumer.start()
    assert paused.waits.wait(30)
    state = loader.state_dict()
    for change in (iter, lambda it: it.set_epoch(3), lambda it: it.load_state_dict(state)):
        with pytest.raises(ConfigError, match="waited for, on another thread"):
            change(loader)
    loader.close()
    paused.go.set()
    consumer.join(30)
    # Without threads the batch that the consumer makes itself is still given.
    assert told == [1 if threads == 0 else 0]
    assert (loader.epoch, loader.state_dict()["step"]) == (0, told[0])
    assert len(list(loader)) == len(make()) - told[0]


def test_a_signal_s_handler_may_close_and_ask(make, opened, monkeypatch):
    """It runs in the consumer's thread, in the middle of whatever that does."""
    loader = make(num_threads=2)
    paused = Paused(monkeypatch, opened)
    seen = []

    def handle(*_):
        paused.go.set()
        seen.append((loader.stats().batches, loader.state_dict()["step"]))
        loader.close()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        killer = threading.Thread(
            target=lambda: paused.waits.wait(30) and os.kill(os.getpid(), signal.SIGUSR1)
        )
        killer.start()
        assert len(list(loader)) == 0
        killer.join(30)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [(0, 0)]
    assert len(list(loader)) == len(loader)


def test_what_is_interrupted_reads_no_other_sample(make, opened, monkeypatch):
    """At the end of a process, which would wait for each read of a unit from a disk far away."""
    loader = make()
    engine = loader._start()  # as an iteration does
    read, numbers = opened.read_record, []

    def interrupted(number, *arguments, **options):
        numbers.append(number)
        if len(numbers) == 2:
            engine._interrupt()
        return read(number, *arguments, **options)

    monkeypatch.setattr(opened, "read_record", interrupted)
    with pytest.raises(SourceError, match="the process ends"):
        next(engine)
    assert len(numbers) == 2


class Wrapped(torch.utils.data.IterableDataset):
    def __init__(self, make, by_worker):
        self.make, self.by_worker, self.loader = make, by_worker, make()

    def __iter__(self):
        loader = self.loader
        if self.by_worker:
            worker = torch.utils.data.get_worker_info()
            loader = self.make(rank=worker.id, world_size=worker.num_workers)
        return (batch.keys for batch in loader)


def test_workers_of_torch_would_each_give_all(make):
    def keys(workers, by_worker):
        source = torch.utils.data.DataLoader(
            Wrapped(make, by_worker), batch_size=None, num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        return sorted(key for batch in source for pack in batch for key in pack)

    expected = keys(0, by_worker=False)
    assert keys(1, by_worker=False) == expected
    assert keys(2, by_worker=True) == expected
    with pytest.raises(ConfigError, match=r"each of 2 workers .* would give all batches"):
        keys(2, by_worker=False)
