"""The pack kernel itself: sizes around its blocks, stores, transfer, machine code.

That it equals the definition on all kinds of samples is in tests/reference/test_pack.py, with the
other implementations.
"""

import dataclasses
import inspect
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.batches.spans import span_table
from omr_io.errors import ConfigError
from omr_io.ops import pack_implementation
from omr_io.reference.pack import pack as reference
from omr_io.types import EncodedSample
from tests.kernels.ahead_of_time import CAPABILITIES, Kernel, compile_kernels

triton = pytest.importorskip("triton")
kernel = pytest.importorskip("omr_io.kernels.pack")

INTERPRETED = not isinstance(kernel.pack_kernel, triton.JITFunction)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
OPTIONS = {"pad_id": 3, "image_token_id": 7, "merge_size": 2}
IDS = ("input_ids", "labels", "position_ids", "mm_token_type_ids")
FIELDS = (*IDS, "segment_ids", "loss_weights", "cu_seqlens", "label_rows")


def sample(random: np.random.Generator, texts: list[int], grids: list[tuple[int, int, int]]):
    """`texts[i]` tokens, then image i, ... and a trained completion of the last `texts` entry."""
    ids: list[int] = []
    for count, grid in zip(texts, [*grids, None], strict=True):
        ids += random.integers(10, 2**31 - 1, count).tolist()
        if grid is not None:
            ids += [7] * (int(np.prod(grid)) // 4)
    trained = np.zeros(len(ids), np.bool_)
    trained[len(ids) - texts[-1] : len(ids) - 1] = True
    return EncodedSample(
        key="k",
        input_ids=np.asarray(ids, np.int32),
        trained=trained,
        pixel_values=None,
        image_grid_thw=np.asarray(grids, np.int64).reshape(-1, 3),
        loss_weight=float(random.random()),
    )


def check(packs, seq_len, dtype="int64", device="cpu"):
    made = pack_implementation("triton", device)(packs, seq_len=seq_len, dtype=dtype, **OPTIONS)
    want = reference(packs, seq_len=seq_len, dtype=dtype, **OPTIONS)
    for name in FIELDS:
        got, expected = getattr(made, name), getattr(want, name)
        assert got.shape == expected.shape, name
        np.testing.assert_array_equal(got.cpu().numpy(), expected, err_msg=name)
    for name in ("max_seqlen", "num_tokens", "num_label_tokens"):
        assert getattr(made, name) == getattr(want, name)


def batches():
    random = np.random.default_rng(0)

    def make(texts, *grids):
        return sample(random, texts, list(grids))

    one, merged, wide = (1, 4, 4), (1, 2, 2), (1, 2, 62)
    return {
        "empty": ([[]], 1),
        "empty packs": ([[], [], []], 507),
        "one token": ([[make([1])]], 1),
        "text only": ([[make([200]), make([40])], [make([255])]], 255),
        "images only": ([[make([0, 0], wide), make([0, 0, 0], merged, merged)], []], 40),
        "one merged patch": ([[make([3, 9], merged), make([0, 1], merged)]], 255),
        "images": (
            [[make([3, 9], one), make([4, 60], wide)], [], [make([5, 1, 7], one, one)]],
            251,
        ),
        "neighbours": ([[make([2, 0, 9], one, wide)]], 507),
        "a block": ([[make([512])]], 512),
        "over a block": ([[make([500, 9], wide), make([3])]], 1024),
        "a span over three blocks": ([[make([3, 1300], one)]], 1400),
        "a token a span": ([[make([1]) for _ in range(1100)]], 1100),
        "frames": ([[make([3, 9], (2, 4, 6)), make([1, 1], (3, 2, 2))]], 64),
    }


@interpreted
@pytest.mark.parametrize("name", batches())
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_equals_the_definition(name: str, dtype: str, monkeypatch) -> None:
    packs, seq_len = batches()[name]
    # Poisoned memory: an element that the kernel forgets shows.
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(0xA5 if made.dtype == torch.uint8 else -(2**20))

    monkeypatch.setattr(torch, "empty", poisoned)
    check(packs, seq_len, dtype)


@st.composite
def random_packs(draw):
    """Up to 3 blocks: samples from one token to more than a block."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sides = st.integers(1, 12).map(lambda side: 2 * side)
    size = st.sampled_from([0, 1, 2, 30, 300, 600])
    packs = []
    for _ in range(draw(st.integers(1, 3))):
        pack, room = [], 512
        while room > 0 and draw(st.booleans()):
            grids = draw(st.lists(st.tuples(st.just(1), sides, sides), max_size=2))
            one = sample(random, [draw(size) for _ in range(len(grids) + 1)], grids)
            room -= len(one.input_ids)
            pack.append(one)
        packs.append(pack)
    return packs


@interpreted
@settings(max_examples=40, deadline=None)
@given(random_packs(), st.integers(0, 20), st.sampled_from(["int32", "int64"]))
def test_random_packs(packs, room, dtype) -> None:
    seq_len = max(1, *(sum(len(s.input_ids) for s in pack) for pack in packs), 1) + room
    check(packs, seq_len, dtype)


@interpreted
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("seq_len", [255, 1024])
def test_each_element_is_stored_once(dtype: str, seq_len: int, monkeypatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    stored: Counter[int] = Counter()
    store = InterpreterBuilder.create_masked_store

    def counting(self, pointers, value, mask, *rest):
        size = value.data.itemsize
        for address in pointers.data[mask.data].tolist():
            stored.update(range(address, address + size, 4))
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting)
    packs = [[sample(np.random.default_rng(0), [3, 9], [(1, 4, 4)])], []]
    made = pack_implementation("triton")(packs, seq_len=seq_len, dtype=dtype, **OPTIONS)
    assert set(stored.values()) == {1}
    for name in FIELDS[:-2]:
        tensor = getattr(made, name)
        words = tensor.element_size() // 4
        flat = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
        places = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).ravel()
        first = tensor.untyped_storage().data_ptr()
        for place in places.tolist():
            for word in range(words):
                assert stored[first + tensor.element_size() * place + 4 * word] == 1, name


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_the_table_goes_over_in_one_transfer(count: int, monkeypatch) -> None:
    packs = [[sample(np.random.default_rng(0), [3, 9], [(1, 4, 4)])] * count, []]
    table = span_table(packs, seq_len=300, **OPTIONS)
    moved = []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *a, **k: moved.append((self.shape, k)) or to(self, *a, **k),
    )
    uploaded = kernel.upload(table, torch.device("cpu"))
    assert moved == [((uploaded.buffer.nbytes,), {"non_blocking": False})]
    same = uploaded.cu_seqlens.untyped_storage().data_ptr()
    assert same == uploaded.buffer.untyped_storage().data_ptr()
    np.testing.assert_array_equal(uploaded.cu_seqlens.numpy(), table.cu_seqlens)
    assert 4 * uploaded.cu_seqlens.storage_offset() % 16 == 0


def test_without_a_device_or_interpreter_the_error_says_so(monkeypatch) -> None:
    table = span_table([[]], seq_len=3, **OPTIONS)
    uploaded = kernel.upload(table, torch.device("cpu"))
    monkeypatch.setattr(kernel, "pack_kernel", object.__new__(triton.JITFunction))
    with pytest.raises(ConfigError, match=r"cannot pack on cpu.*CUDA"):
        kernel.pack_spans(uploaded)


def test_machine_code() -> None:
    """The one variant of each dtype: 16-byte stores of ids, no shared memory, no atomics."""
    takes = inspect.signature(kernel.pack_kernel.fn).parameters
    assert list(takes) == ["buffer_L", "out", "stride", "BLOCK"]
    kernels = [
        Kernel(
            "omr_io.kernels.pack",
            "pack_kernel",
            signature={"buffer_L": "*i32", "out": f"*i{dtype[3:]}", "stride": "i32"},
            constants={"BLOCK": kernel.BLOCK},
            aligned=("buffer_L", "out", "stride"),
            capability=capability,
            options={"num_warps": warps},
        )
        for capability in CAPABILITIES
        for dtype, warps in kernel.NUM_WARPS.items()
    ]
    for described, built in zip(kernels, compile_kernels(kernels), strict=True):
        rows = 7 if described.signature["out"] == "*i64" else 9  # the rest: 2 of 8 bytes a thread
        assert built.wide_stores == rows == built.count_sass("STG.E.128")
        assert built.count("st.global.v2.b32") == 9 - rows
        assert built.count("st.global") == built.count_sass("STG") == 9
        assert built.registers <= (40 if rows == 7 else 64)
        assert (built.spill_bytes, built.stack_bytes, built.shared_bytes) == (0, 0, 0)
        for instruction in ("bar.sync", "shfl", "atom", "red.", "st.shared", "ld.shared"):
            assert built.count(instruction) == 0, instruction


gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=gpu)
        for name in (*batches(), "large")
        for dtype in ("int32", "int64")
    ],
)
def test_equals_the_definition_on_a_gpu(name: str, dtype: str) -> None:
    random = np.random.default_rng(1)
    large = [[sample(random, [30, 400], [(1, 40, 36)]) for _ in range(10)] for _ in range(8)]
    packs, seq_len = batches().get(name, (large, 8192))
    check(packs, seq_len, dtype, "cuda")


@pytest.mark.gpu
@gpu[1]
def test_the_host_does_not_wait_and_nothing_is_recompiled() -> None:
    pack = pack_implementation("auto", "cuda")
    random = np.random.default_rng(1)
    rows = [[sample(random, [30, 400], [(1, 4, 4)]) for _ in range(n)] for n in (1, 3, 9, 17)]
    pack([rows[0]], seq_len=8192, **OPTIONS)
    torch.cuda.synchronize()
    caches = [len(cache[0]) for cache in kernel.pack_kernel.device_caches.values()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [pack([row], seq_len=8192, **OPTIONS | {"pad_id": 1}) for row in rows]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert caches == [len(cache[0]) for cache in kernel.pack_kernel.device_caches.values()]
    for row, batch in zip(rows, made, strict=True):
        want = reference([row], seq_len=8192, **OPTIONS | {"pad_id": 1})
        assert torch.equal(batch.position_ids.cpu(), torch.from_numpy(want.position_ids))


def test_ids_near_the_limit_of_int32_stay() -> None:
    ids = np.asarray([1, 2**31 - 1, 7], np.int32)
    grids = np.asarray([[1, 2, 2]], np.int64)
    one = EncodedSample("k", ids, np.ones(3, np.bool_), None, grids)
    table = span_table([[one]], seq_len=3, **OPTIONS)
    assert table.tokens.tolist() == ids.tolist()
    if INTERPRETED:
        check([[one, dataclasses.replace(one, loss_weight=3.0)]], 6)
