"""Fixtures of the loader's tests."""

import gc
import threading

import pytest

from omr_io.index import ShardSet
from omr_io.loader import DataLoader, engine


@pytest.fixture(autouse=True)
def _no_thread_of_another_test(monkeypatch):
    """Tests count the loader's threads: those of iterations that were left behind end first.

    And closing waits for a thread's unit of work as long as a busy machine takes for it.
    """
    monkeypatch.setattr(engine, "_PATIENCE", 60.0)
    threads = [t for t in threading.enumerate() if t.name.startswith("omr-io-loader")]
    if threads:
        gc.collect()
    for thread in threads:
        thread.join(10)


@pytest.fixture(scope="session")
def opened_shards(shards):
    with ShardSet.open(shards) as shard_set:
        yield shard_set


@pytest.fixture(scope="session")
def make_loader(opened_shards, tokenizer, vision):
    """A function: options → a loader of the sound shard set, 4 packs a step, without threads."""

    def build(**options) -> DataLoader:
        base = {
            "shards": opened_shards,
            "tokenizer": tokenizer,
            "vision": vision,
            "seq_len": 160,
            "packs_per_step": 4,
            "num_threads": 0,
        } | options
        return DataLoader(base.pop("shards"), **base)

    return build
