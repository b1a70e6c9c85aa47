"""Kernels of known needs, for the test of the harness that compiles ahead of time."""

import triton
import triton.language as tl


@triton.jit
def copy_kernel(from_N, to_N, count, STEP: tl.constexpr, BLOCK: tl.constexpr):
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)) * STEP
    tl.store(to_N + at, tl.load(from_N + at, mask=at < count), mask=at < count)


@triton.jit
def sum_kernel(from_N, to_1, BLOCK: tl.constexpr):
    tl.store(to_1, tl.sum(tl.load(from_N + tl.arange(0, BLOCK))))


@triton.jit
def heavy_kernel(from_N, to_N, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = tl.load(from_N + at)
    for _ in range(100):  # all 64 values of a thread are alive through the loop
        values = tl.sqrt(values) + 1.0
    tl.store(to_N + at, values)


@triton.jit
def multiply_add_kernel(from_N, to_N, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(from_N + at)
    tl.store(to_N + at, value * value + 0.1)
