"""The loader over a URL gives what it gives over the folder."""

import dataclasses
import itertools
import os

import pytest
import torch

from omr_io import DataLoader
from omr_io.batches import Batch
from omr_io.errors import SourceError
from omr_io.index import ShardSet


@pytest.mark.parametrize("cached", [True, False])
def test_batch_for_batch(url, local_set, options, tokenizer, vision, cached):
    chosen = options() if cached else options(cache=None)
    given = {
        "tokenizer": tokenizer, "vision": vision, "seq_len": 256, "packs_per_step": 2, "seed": 5,
        "num_threads": 2,
    }  # fmt: skip
    with ShardSet.open(local_set) as here, ShardSet.open(url, chosen) as there:
        local, remote = DataLoader(here, **given), DataLoader(there, **given)
        count = 0
        for _ in range(2):
            for one, other in itertools.zip_longest(local, remote):
                same_batch(one, other)
                count += 1
        assert count == 2 * len(local) > 4
        assert there.storage_stats().cache_hits > 0
    assert local.state_dict() == remote.state_dict()


def same_batch(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right), field.name
        else:
            assert left == right, field.name


def test_by_its_url_alone(url, tokenizer, vision):
    loader = DataLoader(
        url, tokenizer=tokenizer, vision=vision, seq_len=256, packs_per_step=2, num_threads=1
    )
    keys = [key for batch in loader for pack in batch.keys for key in pack]
    assert len(keys) == len(set(keys)) == 60


def test_a_lost_shard_stops_the_run(server, url, options, tokenizer, vision):
    """It is no bad sample, of which a blank image would take the place."""
    with ShardSet.open(url, options(cache=None)) as shards:
        loader = DataLoader(
            shards, tokenizer=tokenizer, vision=vision, seq_len=256, packs_per_step=2,
            num_threads=2,
        )  # fmt: skip
        del server.files["/sets/train/train-000003.tar"]
        with pytest.raises(SourceError, match="no such file on the server"):
            list(loader)


def test_a_fork_in_the_middle_goes_on_over_the_network(url, options, tokenizer, vision, tmp_path):
    """Threads, connections and locks stay with the parent; both make the same batches."""
    made = DataLoader(
        url, tokenizer=tokenizer, vision=vision, seq_len=256, packs_per_step=2, num_threads=3,
        remote=options(cache=tmp_path / "c"),
    )  # fmt: skip
    with made as loader:
        expected = [batch.keys for batch in loader]
        loader.set_epoch(0)
        stream = iter(loader)
        first = next(stream).keys
        child = os.fork()
        if not child:
            code = 1
            try:
                code = [first, *(batch.keys for batch in stream)] != expected
                loader.close()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert [first, *(batch.keys for batch in stream)] == expected
