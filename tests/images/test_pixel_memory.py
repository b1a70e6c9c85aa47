"""Memory that is used again: never while anything looks at it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.config import VisionConfig
from omr_io.images import probe
from omr_io.images.decode import CpuDecoder
from omr_io.images.decode.pixel_memory import PixelMemory, _rounded
from omr_io.images.patches import to_patches
from omr_io.types import UInt8Array
from tests.images.test_decode import assert_equal, encode, photograph

SIZE = 300_000


def test_memory_is_used_again_once_nobody_looks_at_it() -> None:
    memory = PixelMemory()
    first = memory.take(SIZE)
    address = first.ctypes.data
    assert len(first) >= SIZE
    assert memory.take(SIZE).ctypes.data != address
    del first
    again = {memory.take(SIZE).ctypes.data for _ in range(4)}
    assert address in again
    assert len(again) == 2


def test_views_and_tensors_count_as_looking() -> None:
    memory = PixelMemory()
    block = memory.take(SIZE)
    address = block.ctypes.data
    keepers = [
        block[10:20].reshape(2, 5).T,
        torch.from_numpy(block)[7:].view(-1, 1),
        memoryview(block)[3:],
        np.asarray(memoryview(block)),
    ]
    del block
    while keepers:
        taken = [memory.take(SIZE) for _ in range(3)]
        assert address not in [one.ctypes.data for one in taken]
        del taken
        keepers.pop()
    gc.collect()
    assert address in [one.ctypes.data for one in [memory.take(SIZE) for _ in range(5)]]


def test_no_more_is_kept_than_asked_for() -> None:
    memory = PixelMemory(kept_bytes=10 * SIZE)
    held = [memory.take(SIZE) for _ in range(30)]
    assert len({block.ctypes.data for block in held}) == 30
    blocks = memory._local.blocks
    assert blocks._held <= 10 * SIZE
    del held
    # Sizes that are not asked for any more make room for those that are.
    large = memory.take(9 * SIZE)
    assert blocks._held <= 10 * SIZE
    address = large.ctypes.data
    del large
    assert memory.take(9 * SIZE).ctypes.data == address
    assert sum(len(block) for queue in blocks._by_size.values() for block in queue) == blocks._held


def test_images_one_by_one_take_a_few_blocks_and_not_one_for_each_size() -> None:
    memory = PixelMemory()
    random = np.random.default_rng(0)
    largest = 0
    for size in random.lognormal(np.log(1.2e6), 0.75, 3000).astype(int).tolist():
        assert len(memory.take(size)) >= size
        largest = max(largest, size)
    blocks = memory._local.blocks
    assert blocks._held < 3 * largest
    assert sum(map(len, blocks._by_size.values())) <= 8
    assert sorted(blocks._by_size) == blocks._sizes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1 << 16, 1 << 20), st.just(None)), min_size=1, max_size=80),
    st.integers(0, 1 << 22),
)
def test_its_books_are_kept(steps: list[int | None], kept: int) -> None:
    """Sizes taken, and None drops what was taken first: blocks never overlap, counts hold."""
    memory = PixelMemory(kept)
    held: list[UInt8Array] = []
    for step in steps:
        if step is not None:
            held.append(memory.take(step))
            assert len(held[-1]) >= step
        elif held:
            held.pop(0)
        assert len({block.ctypes.data for block in held}) == len(held)
        blocks = getattr(memory._local, "blocks", None)
        if blocks is not None:
            there = [len(block) for queue in blocks._by_size.values() for block in queue]
            assert sum(there) == blocks._held <= kept
            assert sorted(set(there)) == blocks._sizes
            del there


def test_threads_share_nothing() -> None:
    memory = PixelMemory()
    here = memory.take(SIZE).ctypes.data
    there = []
    thread = threading.Thread(target=lambda: there.append(memory.take(SIZE)))
    thread.start()
    thread.join()
    assert there[0].ctypes.data != here
    there[0][:] = 1  # its thread is gone, it is not


@given(st.integers(1 << 16, 1 << 27))
def test_blocks_are_an_eighth_too_large_at_most(size: int) -> None:
    assert size <= _rounded(size) <= size * 9 / 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_pixels_that_are_held_never_change(steps: list[tuple[int, bool]]) -> None:
    """Decode in any order, hold some results and drop others: what is held stays right."""
    held = {}
    for number, (which, keep) in enumerate(steps):
        (pixels,) = DECODER.decode([IMAGES[which]], [INFOS[which]])
        assert isinstance(pixels, np.ndarray)
        if keep:
            held[number] = which, pixels[::-1][::-1]  # a view, the array itself is dropped
        elif held:
            held.pop(next(iter(held)))
    for which, pixels in held.values():
        np.testing.assert_array_equal(pixels, WANTED[which])


IMAGES = [encode(photograph(200 + n % 2, 300, n), "JPEG") for n in range(6)]
INFOS = [probe(image) for image in IMAGES]
WANTED = [CpuDecoder().decode([i], [n])[0].copy() for i, n in zip(IMAGES, INFOS, strict=True)]
DECODER = CpuDecoder()


def test_threads_that_decode_into_it_get_their_own_images() -> None:
    wrong = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        held: list[tuple[int, object]] = []
        for _ in range(60):
            which = int(random.integers(6))
            held.append((which, DECODER.decode([IMAGES[which]], [INFOS[which]])[0]))
            if len(held) > random.integers(1, 8):
                place = int(random.integers(len(held)))
                old, pixels = held.pop(place)
                if not np.array_equal(pixels, WANTED[old]):
                    wrong.append(old)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_whose_patches_are_made_leaves_its_memory_to_the_next() -> None:
    """The loader's pattern: the same pages serve batch after batch."""
    decoder, vision = CpuDecoder(), VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64)
    seen: set[int] = set()
    for _ in range(8):
        pixels = decoder.decode(IMAGES, INFOS)
        assert_equal(pixels, IMAGES)
        seen |= {array.ctypes.data for array in pixels}
        for array in pixels:
            to_patches(array, vision)
        del pixels, array
    assert len(seen) <= 2 * len(IMAGES)  # and not one an image: assert_equal holds the last a while
