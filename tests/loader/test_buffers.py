"""Memory is lent again when nobody can see it, and never before."""

import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from omr_io.loader.buffers import BatchBuffers

ROWS, WIDTH = 2048, 1024  # 8 MiB of float32


def take(buffers, rows, width, dtype):
    return buffers.take(rows * width * dtype.itemsize).view(dtype).view(rows, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_buffer_is_lent_again_when_it_is_gone(dtype):
    buffers = BatchBuffers(keep=2)
    first = take(buffers, ROWS, WIDTH, dtype)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((ROWS, WIDTH), dtype, True)
    first.fill_(1)
    place = first.data_ptr()
    assert buffers.num_idle == 0
    del first
    assert buffers.num_idle == 1
    again = take(buffers, ROWS, WIDTH, dtype)
    assert again.data_ptr() == place
    assert buffers.num_idle == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t[3:5],
        lambda t: t.view(-1)[7:9],
        lambda t: t.numpy()[1:3],
        lambda t: t.numpy().T[2],
        lambda t: t.detach(),
        lambda t: torch.from_numpy(t.numpy()[:4]),
        lambda t: t.view(torch.int32),
        lambda t: t.untyped_storage(),
        lambda t: memoryview(t.numpy()),
    ],
)
def test_whoever_still_looks_keeps_it(look):
    buffers = BatchBuffers(keep=2)
    whole = take(buffers, ROWS, WIDTH, torch.float32)
    place = whole.data_ptr()
    seen = look(whole)
    del whole
    gc.collect()
    other = take(buffers, ROWS, WIDTH, torch.float32)
    assert other.data_ptr() != place
    del seen
    gc.collect()
    assert take(buffers, ROWS, WIDTH, torch.float32).data_ptr() == place


def test_tensors_that_autograd_saved_keep_it():
    buffers = BatchBuffers(keep=1)
    pixels = take(buffers, ROWS, WIDTH, torch.float32)
    pixels.fill_(3)
    weight = torch.ones(WIDTH, 1, requires_grad=True)
    loss = (pixels @ weight).sum()  # the product keeps pixels for the weight's gradient
    del pixels
    gc.collect()
    take(buffers, ROWS, WIDTH, torch.float32).fill_(-1)
    loss.backward()
    assert weight.grad[0].item() == 3 * ROWS


def test_small_ones_come_from_the_system():
    buffers = BatchBuffers(keep=2)
    assert take(buffers, 4, 8, torch.float32).shape == (4, 8)
    assert take(buffers, 0, 8, torch.float32).shape == (0, 8)
    assert buffers.num_idle == 0


def test_idle_blocks_are_bounded():
    buffers = BatchBuffers(keep=2)
    held = [take(buffers, ROWS, WIDTH, torch.float32) for _ in range(5)]
    del held
    gc.collect()
    kept = take(buffers, ROWS, WIDTH, torch.float32)
    assert buffers.num_idle < 2
    del kept
    large = take(buffers, 8 * ROWS, WIDTH, torch.float32)  # what is too small is dropped
    assert large.shape == (8 * ROWS, WIDTH)
    assert buffers.num_idle <= 2


def test_every_block_has_room_for_the_largest():
    buffers = BatchBuffers(keep=2, most_bytes=64 * ROWS * WIDTH * 4)
    small = take(buffers, ROWS, WIDTH, torch.float32)
    place = small.data_ptr()
    assert place % (2 << 20) == 0
    del small
    large = take(buffers, 64 * ROWS, WIDTH, torch.float32)
    assert large.data_ptr() == place
    large[-1] = 3  # its last page is there
    assert buffers.num_idle == 0


def test_room_that_is_never_touched_takes_no_memory():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffers = BatchBuffers(keep=4, most_bytes=1 << 33)
    held = [take(buffers, ROWS, WIDTH, torch.float32) for _ in range(4)]
    for one in held:
        one.fill_(1)
    assert resident() - before < 4 * 2 * ROWS * WIDTH * 4


def test_threads_never_share_one():
    buffers, wrong = BatchBuffers(keep=3), []

    def work(mine):
        for _ in range(100):
            pixels = take(buffers, ROWS, WIDTH, torch.float32)
            pixels[::512, ::512] = mine
            if (pixels[::512, ::512] != mine).any():
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_writes_into_its_own():
    buffers = BatchBuffers(keep=2)
    pixels = take(buffers, ROWS, WIDTH, torch.float32)
    pixels.fill_(1)
    child = os.fork()
    if not child:
        pixels.numpy()[:] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pixels.min().item() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_ones_are_torch_s():
    assert BatchBuffers(keep=1, pinned=True).take(4 * ROWS).is_pinned()
