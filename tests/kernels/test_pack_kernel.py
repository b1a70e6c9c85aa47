"""The pack kernel under Triton's interpreter against the reference, and compiled ahead of time."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from omr_io.reference.pack import pack as reference
from omr_io.types import EncodedSample

pytest.importorskip("triton")
kernel = pytest.importorskip("omr_io.kernels.pack")

IMAGE_ID, PAD_ID, MERGE = 7, 3, 2


def sample(random: np.random.Generator, texts: list[int], grids: list[tuple[int, int, int]]):
    """`texts[i]` tokens, then image i, ... and a trained completion of the last `texts` entry."""
    ids: list[int] = []
    for count, grid in zip(texts, [*grids, None], strict=True):
        ids += random.integers(10, 1000, count).tolist()
        if grid is not None:
            ids += [IMAGE_ID] * (int(np.prod(grid)) // MERGE**2)
    trained = np.zeros(len(ids), np.bool_)
    trained[len(ids) - texts[-1] : len(ids) - 1] = True
    patches = sum(int(np.prod(grid)) for grid in grids)
    return EncodedSample(
        key="k",
        input_ids=np.asarray(ids, np.int32),
        trained=trained,
        pixel_values=np.zeros((patches, 6), np.float32) if patches else None,
        image_grid_thw=np.asarray(grids, np.int64).reshape(-1, 3),
    )


def batches():
    random = np.random.default_rng(0)

    def make(texts, *grids):
        return sample(random, texts, list(grids))

    one, wide = (1, 4, 4), (1, 2, 62)
    return {
        "empty": ([[]], 1),
        "one token": ([[make([1])]], 1),
        "text only": ([[make([200]), make([40])], [make([255])]], 255),
        "images": (
            [[make([3, 9], one), make([4, 60], wide)], [], [make([5, 1, 7], one, one)]],
            251,
        ),
        "neighbours": ([[make([2, 0, 9], one, wide)]], 507),
    }


@pytest.mark.parametrize("name", batches())
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_equals_the_reference(name: str, dtype: torch.dtype, monkeypatch) -> None:
    packs, seq_len = batches()[name]
    if name == "one token":  # trained would need a predecessor
        assert not packs[0][0].trained.any()
    # Poisoned memory: an element that the kernel forgets shows.
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch.full(*a, fill_value=-(2**20), **k))
    tokens, spans = kernel.span_table(
        packs, seq_len=seq_len, image_token_id=IMAGE_ID, merge_size=MERGE
    )
    got = kernel.pack(
        torch.from_numpy(tokens),
        torch.from_numpy(spans),
        packs=len(packs),
        seq_len=seq_len,
        padding_id=PAD_ID,
        dtype=dtype,
        block=128,
    )
    want = reference(
        packs, seq_len=seq_len, pad_id=PAD_ID, image_token_id=IMAGE_ID, merge_size=MERGE
    )
    for field in ("input_ids", "labels", "position_ids", "mm_token_type_ids"):
        assert got[field].dtype == dtype
        np.testing.assert_array_equal(got[field].numpy(), getattr(want, field), err_msg=field)
    segments = np.repeat(np.arange(len(want.cu_seqlens) - 1), np.diff(want.cu_seqlens))
    np.testing.assert_array_equal(got["segment_ids"].numpy().ravel(), segments)


def test_offsets_over_int32_are_refused() -> None:
    with pytest.raises(ValueError, match="int32"):
        kernel.pack(
            torch.zeros(1, dtype=torch.int32),
            torch.zeros((1, 9), dtype=torch.int32),
            packs=2**15,
            seq_len=2**14,
            padding_id=0,
        )


COMPILE = """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from omr_io.kernels.pack import SPAN_FIELDS, pack_kernel

    names = pack_kernel.arg_names
    pointers = names[:7]
    constants = dict(FIELDS=SPAN_FIELDS, SEARCH_STEPS=9, IGNORE_INDEX=-100, BLOCK=1024)
    for ids in ("*i32", "*i64"):
        signature = {name: "i32" for name in names}
        signature |= {name: ids for name in pointers}
        signature |= dict(tokens_V="*i32", spans_KF="*i32", segment_ids_BT="*i32")
        signature |= {name: "constexpr" for name in constants}
        # Allocations are 16-byte aligned, and B * T is a multiple of 16 in training.
        aligned = {(index,): [["tt.divisibility", 16]] for index in range(8)}
        source = ASTSource(pack_kernel, signature, constexprs=constants, attrs=aligned)
        for capability in (80, 90):
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert "st.global.v" in built.asm["ptx"], "stores are not vectorised"
            print(capability, ids, len(built.asm["cubin"]))
"""


def test_compiles_ahead_of_time_for_sm_80_and_sm_90(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILE)],
        env={"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path)},  # no TRITON_INTERPRET
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
