"""The stages in webdataset's own pipelines and workers."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
import webdataset as wds

from omr_io import stages
from omr_io.batches import Batch
from omr_io.errors import FailureBudgetError
from omr_io.loader import FailureBudget
from tests.stages.streams import urls

SEQ_LEN = 160


@pytest.fixture(scope="module")
def pipeline(tokenizer, vision):
    """A function: the folder of a shard set → webdataset's pipeline with our stages."""

    def build(shards, *between, packs_per_batch=2, **options):
        return wds.DataPipeline(
            wds.SimpleShardList(urls(shards)),
            wds.split_by_node,
            wds.split_by_worker,
            wds.tarfile_to_samples(),
            *between,
            stages.encode(tokenizer=tokenizer, vision=vision, **options),
            stages.pack(seq_len=SEQ_LEN, packs_per_batch=packs_per_batch),
        )

    return build


def keys(batches):
    return sorted(key for batch in batches for row in batch.keys for key in row)


def assert_equal(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), field.name
        else:
            assert left == right, field.name


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_sample_comes_once_from_any_number_of_workers(pipeline, shards, workers):
    loader = wds.WebLoader(pipeline(shards), batch_size=None, num_workers=workers)
    batches = list(loader)
    assert all(type(batch) is Batch for batch in batches)
    assert keys(batches) == sorted(f"study-{i}" for i in range(37))


def test_a_batch_of_a_worker_is_the_batch(pipeline, shards):
    here = list(pipeline(shards))
    there = list(wds.WebLoader(pipeline(shards), batch_size=None, num_workers=1))
    assert len(here) == len(there) > 3
    for one, other in zip(here, there, strict=True):
        assert_equal(one, other)
    for one, other in zip(here, pipeline(shards), strict=True):  # and again the same
        assert_equal(one, other)


def test_stages_and_batches_can_be_pickled(pipeline, shards):
    made = pickle.loads(pickle.dumps(pipeline(shards)))
    for one, other in zip(made, pipeline(shards), strict=True):
        assert_equal(one, other)
        assert_equal(pickle.loads(pickle.dumps(one)), one)
        assert_equal(copy.deepcopy(one), one)


@pytest.mark.slow
def test_spawned_workers(pipeline, shards):
    loader = torch.utils.data.DataLoader(
        pipeline(shards), batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    assert keys(loader) == sorted(f"study-{i}" for i in range(37))


def test_shuffles_stand_before_and_between_the_stages(pipeline, shards, tokenizer, vision):
    plain = list(pipeline(shards))
    shuffled = list(pipeline(shards, wds.shuffle(20, seed=1)))
    assert keys(shuffled) == keys(plain)
    assert [batch.keys for batch in shuffled] != [batch.keys for batch in plain]
    whole = wds.DataPipeline(
        wds.SimpleShardList(urls(shards)),
        wds.tarfile_to_samples(),
        stages.encode(tokenizer=tokenizer, vision=vision),
        wds.shuffle(10, seed=2),
        wds.select(lambda sample: sample.pixel_values is not None),
        stages.pack(seq_len=SEQ_LEN),
    )
    assert keys(whole) == sorted(f"study-{i}" for i in range(37) if i % 5 != 2)


def test_a_fluid_dataset_composes_them_too(shards, tokenizer, vision):
    dataset = (
        wds.WebDataset(urls(shards), shardshuffle=False)
        .compose(stages.encode(tokenizer=tokenizer, vision=vision))
        .compose(stages.pack(seq_len=SEQ_LEN))
    )
    assert keys(dataset) == sorted(f"study-{i}" for i in range(37))


def test_failures_come_back_from_workers(pipeline, write_shards, make_records):
    folder = write_shards(make_records(20, broken=(8, 9, 19)))
    for on_bad, left in (("blank", 20), ("skip", 17)):
        made = pipeline(folder, on_bad=on_bad)
        batches = list(wds.WebLoader(made, batch_size=None, num_workers=2))
        assert len(keys(batches)) == left
        failures = [failure for batch in batches for failure in batch.failures]
        assert sorted(failure.key for failure in failures) == ["study-19", "study-8", "study-9"]
        assert {failure.shard for failure in failures} == {"train-000000.tar", "train-000001.tar"}


def test_the_budget_stops_a_worker_and_the_consumer_hears_why(pipeline, write_shards, make_records):
    folder = write_shards(make_records(10, broken=(8,)))
    made = pipeline(folder, failure_budget=FailureBudget(0, 0.0))
    with pytest.raises(FailureBudgetError, match="1 of 10 samples failed"):
        list(wds.WebLoader(made, batch_size=None, num_workers=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_memory(pipeline, shards):
    loader = wds.WebLoader(pipeline(shards), batch_size=None, num_workers=1, pin_memory=True)
    for batch in loader:
        assert batch.pixel_values.is_pinned()
        assert batch.to("cuda").input_ids.is_cuda
