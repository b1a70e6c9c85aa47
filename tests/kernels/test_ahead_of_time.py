"""The harness itself: what it reports must be true of kernels whose needs are known."""

import pytest

pytest.importorskip("triton")

from tests.kernels.ahead_of_time import Kernel, compile_kernel, compile_kernels

HERE = "tests.kernels.sample_kernels"
POINTERS = {"from_N": "*i32", "to_N": "*i32", "count": "i32"}


def copy(**changes):
    constants = {"BLOCK": 1024, "STEP": 1}
    fields = {"signature": POINTERS, "constants": constants, "aligned": tuple(POINTERS)} | changes
    return Kernel(HERE, "copy_kernel", **fields)


def test_reports_follow_the_kernel(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as in `make test`
    wide, narrow, strided, older, summed, heavy = compile_kernels(
        [
            copy(),
            copy(aligned=()),
            copy(constants={"BLOCK": 1024, "STEP": 2}),
            copy(capability=80),
            Kernel(HERE, "sum_kernel", {"from_N": "*fp32", "to_1": "*fp32"}, {"BLOCK": 1024}),
            Kernel(
                HERE,
                "heavy_kernel",
                {"from_N": "*fp32", "to_N": "*fp32"},
                {"BLOCK": 8192},
                ("from_N", "to_N"),
                options={"num_warps": 4, "maxnreg": 32},
            ),
        ]
    )
    assert wide.wide_stores == 2  # 1024 positions, 128 threads, 4 a store
    assert wide.count_sass("STG.E.128") == 2
    assert wide.registers < 64
    assert (wide.spill_bytes, wide.stack_bytes, wide.shared_bytes) == (0, 0, 0)
    assert narrow.wide_stores == strided.wide_stores == 0
    assert older.wide_stores == 2
    assert ".target sm_80" in older.ptx
    assert ".target sm_90a" in wide.ptx
    assert summed.shared_bytes > 0
    assert heavy.spill_bytes > 0


def test_fused_multiply_add_can_be_told() -> None:
    fields = {"signature": {"from_N": "*fp32", "to_N": "*fp32"}, "constants": {"BLOCK": 128}}
    fused = Kernel(HERE, "multiply_add_kernel", **fields)
    apart = Kernel(HERE, "multiply_add_kernel", **fields, options={"enable_fp_fusion": False})
    with_fma, without = compile_kernels([fused, apart])
    assert with_fma.count_sass("FFMA") > 0
    assert without.count_sass("FFMA") == 0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(AssertionError, match="copy_kernel takes"):
        compile_kernel(copy(constants={"BLOCK": 1024}))
