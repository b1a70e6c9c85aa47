"""Fixtures of the loader's tests."""

import pytest

from omr_io.index import ShardSet
from omr_io.loader import DataLoader


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
