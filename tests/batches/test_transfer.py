"""One block, one copy: what is laid, what arrives, how many copies are made.

There may be no GPU: copies are counted by a dispatch mode on the "meta" device, which has shapes
and storages but no bytes, and bytes are checked through a stand-in that copies to the CPU.
"""

import copy
import dataclasses
import gc
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from omr_io.batches import Batch, Block
from omr_io.batches import transfer as module
from omr_io.batches.transfer import by_block, move
from omr_io.loader.buffers import BatchBuffers
from omr_io.ops import batch_room
from tests.batches.test_batch import assemble, make_sample

CPU, META = torch.device("cpu"), torch.device("meta")
DTYPES = [torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.float16, torch.uint8]


class Copies(TorchDispatchMode):
    """Counts what goes from one device to another."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and made.device != args[0].device:
            self.sizes.append(made.nbytes)
        if function is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            self.sizes.append(args[0].nbytes)
        return made


def storages(tensors):
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def values(random, shape, dtype):
    return torch.from_numpy(random.integers(0, 200, shape)).to(dtype)


def in_a_block(tensors, more=0):
    size = sum(module.aligned(tensor.nbytes) for tensor in tensors.values())
    block = Block(torch.empty(size + more, dtype=torch.uint8))
    return block, {name: block.put(tensor) for name, tensor in tensors.items()}


def some(seed=0):
    random = np.random.default_rng(seed)
    return {
        "pixels": values(random, (7, 3), torch.bfloat16),
        "ids": values(random, (5, 2, 3), torch.int64),
        "none": values(random, (0, 4), torch.float32),
        "bounds": values(random, (5,), torch.int32),
    }


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6), st.integers(0, 9))
def test_what_is_laid_is_there_and_on_the_device(kinds, seed):
    random = np.random.default_rng(seed)
    wanted = {str(i): values(random, shape, dtype) for i, (shape, dtype) in enumerate(kinds)}
    block, laid = in_a_block(wanted)
    with Copies() as copies:
        block.send(META)
    assert copies.sizes == [block.used]
    for name, tensor in wanted.items():
        assert torch.equal(laid[name], tensor)
        there = block.sent(laid[name])
        assert (there.shape, there.dtype, there.device) == (tensor.shape, tensor.dtype, META)
        assert there.storage_offset() * there.itemsize % module.ALIGNMENT == 0 or not there.numel()


def test_bytes_arrive_as_they_were(monkeypatch):
    sent = []
    monkeypatch.setattr(module, "copied", lambda run, device: sent.append(run) or run.clone())
    block, laid = in_a_block(some())
    laid["part"] = laid["ids"][1:4]  # a view of one, as position_ids is of all ids
    block.send(torch.device("cuda"))
    block.send(torch.device("cuda"))  # at most once
    assert [run.nbytes for run in sent] == [block.used]
    arrived = {name: block.sent(tensor) for name, tensor in laid.items()}
    for tensor in laid.values():
        tensor.zero_()  # the copy is one
    for name, tensor in some().items():
        assert torch.equal(arrived[name], tensor)
    assert torch.equal(arrived["part"], some()["ids"][1:4])
    assert len(storages(arrived.values())) == 1


def test_a_block_that_begins_within_a_storage():
    memory = torch.zeros(4096, dtype=torch.uint8)
    block = Block(memory[128:2048])
    laid = block.put(torch.arange(9))
    block.send(CPU)
    assert torch.equal(block.sent(laid), torch.arange(9))
    assert block.sent(laid).data_ptr() == memory.data_ptr() + 128


def test_a_block_refuses_what_would_be_lost():
    block = Block(torch.empty(100, dtype=torch.uint8))
    block.put(torch.arange(8))
    with pytest.raises(ValueError, match="no room for 40 bytes at 64 of 100"):
        block.put(torch.arange(5))
    block.send(CPU)
    with pytest.raises(ValueError, match="sent already"):
        block.put(torch.arange(1))


def test_arrays_of_a_block_are_found_in_it_and_others_are_put_there():
    block = Block(torch.empty(4096, dtype=torch.uint8))
    array = block.array((3, 5), np.float32)
    array[:] = 7
    used = block.used
    inside = block.tensor(array[1:])
    assert inside.data_ptr() == array[1:].ctypes.data
    assert block.used == used
    turned = block.tensor(array.T)  # not contiguous: laid out anew
    assert torch.equal(turned, torch.full((5, 3), 7.0))
    assert turned.is_contiguous()
    other = block.tensor(np.arange(6, dtype=np.int64))
    assert torch.equal(other, torch.arange(6))
    assert len(storages([inside, turned, other])) == 1
    assert block.tensor(np.empty((0, 3), np.int64)).shape == (0, 3)


# Tensors that share a block, or do not


def batch_in_a_block(batch: Batch) -> Batch:
    named = {
        field.name: value
        for field in dataclasses.fields(Batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    named = {"pixel_values": named.pop("pixel_values"), **named}  # first, as in the loader
    return dataclasses.replace(batch, **in_a_block(named)[1])


@pytest.fixture
def plain(tiny_tokens) -> Batch:
    first = make_sample(tiny_tokens, "a", [(1, 4, 8)], 5, seed=1)
    second = make_sample(tiny_tokens, "b", [], 7, seed=2)
    return assemble([[first, second], []], tiny_tokens, seq_len=60)


@pytest.fixture
def batch(plain) -> Batch:
    return batch_in_a_block(plain)


def check_same(one: Batch, other: Batch) -> None:
    for left, right in zip(one.tensors(), other.tensors(), strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_a_batch_of_one_block_goes_in_one_copy(batch):
    with Copies() as copies:
        there = batch.to("meta")
    assert len(copies.sizes) == 1
    assert copies.sizes[0] < sum(module.aligned(tensor.nbytes) for tensor in batch.tensors()) + 64
    assert len(storages(there.tensors())) == 1
    for left, right in zip(batch.tensors(), there.tensors(), strict=True):
        assert (left.shape, left.dtype, left.stride()) == (right.shape, right.dtype, right.stride())
    assert there.to("meta").input_ids is there.input_ids
    assert batch.to("cpu").input_ids is batch.input_ids


def test_its_bytes_are_seen_through_the_copy(batch):
    named = {str(i): tensor for i, tensor in enumerate(batch.tensors())}
    calls = []
    copied = by_block(named, lambda run: calls.append(run.nbytes) or run.clone())
    assert len(calls) == 1
    assert list(copied) == list(named)
    for name, tensor in named.items():
        assert torch.equal(copied[name], tensor)
        assert copied[name].data_ptr() != tensor.data_ptr() or not tensor.numel()


@pytest.mark.parametrize("moved", [False, True])
def test_labels_may_be_changed_between_forward_and_backward(batch, moved):
    """Memory is shared, the changes that autograd counts are not."""
    if moved:
        named = {str(i): tensor for i, tensor in enumerate(batch.tensors())}
        copied = by_block(named, torch.clone)
        place = [id(tensor) for tensor in batch.tensors()]
        labels = copied[str(place.index(id(batch.labels)))]
        pixels = copied[str(place.index(id(batch.pixel_values)))]
    else:
        labels, pixels = batch.labels, batch.pixel_values
    weight = torch.ones(pixels.shape[1], 1, requires_grad=True)
    loss = (pixels @ weight).sum()
    labels.fill_(-100)
    loss.backward()
    torch.testing.assert_close(weight.grad[:, 0], pixels.sum(0))


def test_what_shares_no_block_goes_by_itself(batch, plain):
    for changed, count in [
        (dataclasses.replace(batch, labels=batch.labels.clone()), 2),
        (dataclasses.replace(batch, pixel_values=batch.pixel_values.clone().requires_grad_()), 2),
        (batch, 1),
    ]:
        calls = []
        named = {str(i): tensor for i, tensor in enumerate(changed.tensors())}
        made = by_block(named, lambda run: calls.append(run) or run.clone())  # noqa: B023
        assert len(calls) == count
        assert all(torch.equal(made[name], named[name]) for name in named)
    assert plain.to("meta").input_ids.device == META


def test_a_little_of_a_large_storage_does_not_take_it_along():
    large = torch.arange(100_000)
    named = {"first": large[:5], "last": large[-5:]}
    with Copies() as copies:
        there = move(named, META, non_blocking=True)
    assert sum(copies.sizes) == 80
    assert [tuple(tensor.shape) for tensor in there.values()] == [(5,), (5,)]


def test_views_that_overlap_and_are_strided_arrive():
    rows = torch.arange(60).view(6, 10)
    named = {"all": rows, "turned": rows.T, "column": rows[:, 3], "corner": rows[4:, 8:]}
    made = by_block(named, torch.clone)
    assert all(torch.equal(made[name], named[name]) for name in named)
    assert len(storages(made.values())) == 1


def test_pickled_a_batch_holds_no_more_than_itself(batch):
    own = sum(tensor.nbytes for tensor in batch.tensors())
    large = torch.empty(batch.pixel_values.numel() + 50 * own, dtype=torch.float32)
    pixels = large[: batch.pixel_values.numel()].view(batch.pixel_values.shape)
    pixels.copy_(batch.pixel_values)
    batch = dataclasses.replace(batch, pixel_values=pixels)
    written = pickle.dumps(batch)
    assert len(written) < 2 * own + 20_000
    for again in (pickle.loads(written), copy.deepcopy(batch), copy.copy(batch)):
        check_same(batch, again)
        assert again.keys == batch.keys
        assert again.vision == batch.vision


# Memory that is used again


@pytest.mark.parametrize("name", ["pixels", "ids", "bounds"])
def test_memory_is_lent_again_only_when_no_view_is_left(name):
    buffers = BatchBuffers(keep=2)
    block = Block(buffers.take(4 << 20))
    laid = {key: block.put(tensor) for key, tensor in some().items()}
    block.send(CPU)
    place = laid["pixels"].data_ptr()
    held = block.sent(laid[name])
    del block, laid
    gc.collect()
    other = buffers.take(4 << 20)
    other.fill_(255)
    assert other.data_ptr() != place
    assert torch.equal(held, some()[name])
    del held
    gc.collect()
    assert buffers.take(4 << 20).data_ptr() == place


def test_there_is_room_for_any_batch():
    """The bound is that of the largest layouts: all positions labels, every token a sample."""
    for positions, samples, packs in [(1, 1, 1), (16, 16, 2), (4096, 4096, 8), (65536, 900, 8)]:
        room = batch_room(positions, samples, packs, samples)
        host = [56 * positions, 4 * positions, 4 * positions, 8 * positions]
        host += [4 * (samples + packs + 1), 24 * samples]
        assert sum(module.aligned(size) for size in host) + module.ALIGNMENT <= room
        blocks = 8 * (-(-positions // 512) + 2)
        kernel = [16, blocks, 40 * positions, 4 * (samples + packs + 1), 4 * positions]
        kernel += [8 * positions, 64]
        table = sum(-(-size // 16) * 16 for size in kernel)
        assert module.aligned(table) + module.aligned(24 * samples) + 64 <= room
