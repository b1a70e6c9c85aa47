"""The first pass under Triton's interpreter against the reference, and compiled ahead of time."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from omr_io.images.gpu_plan import FIRST_TILE, IMAGE_FIELDS, Plan, plan
from omr_io.reference import pixels as reference
from omr_io.types import Filter, PatchLayout, PatchTarget, UInt8Array
from tests.kernels.ahead_of_time import CAPABILITIES, Kernel, compile_kernels

triton = pytest.importorskip("triton")
kernel = pytest.importorskip("omr_io.kernels.resize")
interpreted = pytest.mark.skipif(
    isinstance(kernel.resize_kernel, triton.JITFunction), reason="needs TRITON_INTERPRET=1"
)

POISON, GUARD = 0xA5, 64
PLANAR, LAST = PatchLayout(14, 14, 2, 2), PatchLayout(16, 16, 1, 1, True)


def noise(random: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Noise shows every rounding, black and white show overshoot and clamping."""
    if random.random() < 0.5:
        return random.integers(0, 256, (height, width, 3), np.uint8)
    return random.choice(np.array([0, 255], np.uint8), (height, width, 3))


def first_pass(images: list[UInt8Array], made: Plan) -> tuple[UInt8Array, Plan]:
    """The intermediate of a batch between two guard zones, poisoned before."""
    rows_NF = made.images.copy()
    for row, image in zip(rows_NF, images, strict=True):
        row[:2] = image.ctypes.data, image.strides[0]
    between = torch.full((made.between_bytes + 2 * GUARD,), POISON, dtype=torch.uint8)
    kernel.resize(
        made,
        torch.from_numpy(rows_NF),
        torch.from_numpy(made.first_programs),
        torch.from_numpy(made.weights),
        between[GUARD:-GUARD],
    )
    assert (between[:GUARD] == POISON).all()
    assert (between[-GUARD:] == POISON).all()
    return between[GUARD:-GUARD].numpy(), made


def intermediate(image: UInt8Array, target: PatchTarget) -> UInt8Array:
    """What the first pass makes of one image, as bytes in their order; padding is poison."""
    height, width, _ = image.shape
    if target.vertical_first:
        pixels = reference.resize(image, target.height, width, target.filter, False)
    else:
        pixels = reference.resize(image, height, target.width, target.filter, False)
    layout, (rows, columns, _) = target.layout, pixels.shape
    if target.vertical_first:  # turned: patch row, channel, column, row in the patch
        blocks = pixels.reshape(rows // layout.height, layout.height, columns, 3)
        lines = blocks.transpose(0, 3, 2, 1)
    else:
        blocks = pixels.reshape(rows, columns // layout.width, layout.width, 3)
        if layout.channels_last:  # patch column, row, column in the patch and channel
            lines = blocks.transpose(1, 0, 2, 3).reshape(-1, rows, 3 * layout.width)
        else:  # patch column, channel, row, column in the patch
            lines = blocks.transpose(1, 3, 0, 2)
    gaps = [(0, 0)] * (lines.ndim - 1) + [(0, -lines.shape[-1] % 16)]
    return np.pad(lines, gaps, constant_values=POISON).ravel()


CASES: dict[str, tuple[Filter, PatchLayout, list[tuple[int, int, int, int, bool]]]] = {
    "bicubic": (
        "bicubic",
        PLANAR,
        [(1, 1, 28, 28, False), (28, 1021, 28, 84, False), (17, 20, 28, 28, False)],
    ),
    "bilinear, last": ("bilinear", LAST, [(5, 112, 16, 16, False), (9, 30, 16, 48, False)]),
    "lanczos": ("lanczos", PLANAR, [(3, 196, 28, 28, False), (2, 9, 28, 56, False)]),
    "both orders": (
        "bicubic",
        PLANAR,
        [(196, 5, 28, 28, True), (21, 30, 28, 28, False), (1, 70, 28, 28, True)],
    ),
    "both orders, last": ("lanczos", LAST, [(50, 33, 16, 16, True), (4, 4, 16, 32, False)]),
    "skipped": ("bicubic", PLANAR, [(5, 56, 28, 56, False), (28, 7, 28, 28, True)]),
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    by, layout, cases = CASES[name]
    random = np.random.default_rng(len(name))
    images = [noise(random, height, width) for height, width, *_ in cases]
    images[-1] = noise(random, images[-1].shape[0], images[-1].shape[1] + 7)[:, 3:-4]  # a crop
    targets = [PatchTarget(*to, layout, by, first) for _, _, *to, first in cases]
    between, made = first_pass(images, plan([image.shape[:2] for image in images], targets))
    starts = [16 * at for at in made.images[:, IMAGE_FIELDS.index("between")].tolist()]
    ends = [*starts[1:], made.between_bytes]
    for image, target, start, end in zip(images, targets, starts, ends, strict=True):
        expected = intermediate(image, target)
        assert np.array_equal(between[start : start + len(expected)], expected)
        assert (between[start + len(expected) : end] == POISON).all()


@interpreted
def test_an_image_far_into_a_buffer_is_found() -> None:
    """Intermediates beyond 2**31 bytes; only the pages that are touched take memory."""
    random, target = np.random.default_rng(3), PatchTarget(28, 28, PLANAR)
    image = noise(random, 20, 31)
    made = plan([(20, 31)], [target])
    rows_NF, far = made.images.copy(), 2**31 + 4096
    rows_NF[0, :2] = image.ctypes.data, image.strides[0]
    rows_NF[0, IMAGE_FIELDS.index("between")] = far // 16
    between = torch.empty(far + made.between_bytes, dtype=torch.uint8)
    kernel.resize(
        made,
        torch.from_numpy(rows_NF),
        torch.from_numpy(made.first_programs),
        torch.from_numpy(made.weights),
        between,
    )
    expected = intermediate(image, target).reshape(-1, 16)[:, :14]
    found = between[far : far + made.between_bytes].numpy().reshape(-1, 16)[:, :14]
    assert np.array_equal(found, expected)


def description(capability: int, last: bool, vertical: bool) -> Kernel:
    pointers = {"images_NF": "*i64", "first_G": "*i32", "weights": "*i32", "between": "*u8"}
    return Kernel(
        "omr_io.kernels.resize",
        "resize_kernel",
        signature=pointers,
        constants={
            "CHANNELS_LAST": last,
            "VERTICAL": vertical,
            "Y": FIRST_TILE[0],
            "X": FIRST_TILE[1],
        },
        aligned=tuple(pointers),
        capability=capability,
        options={"num_warps": kernel.NUM_WARPS},
    )


def test_compiles_ahead_of_time() -> None:
    cases = [
        (capability, last, vertical)
        for capability in CAPABILITIES
        for last, vertical in [(False, False), (True, False), (False, True)]
    ]
    for case, built in zip(cases, compile_kernels([description(*c) for c in cases]), strict=True):
        # 80: 6 programs of 4 warps on a multiprocessor, 24 of its 64 warps; 96: 5 programs.
        assert built.registers <= (96 if case[2] else 80), case
        assert built.spill_bytes == built.stack_bytes == 0, case
        # Only a tile that is turned passes through shared memory.
        assert built.shared_bytes <= (2048 if case[2] else 0), case
        # Not one floating-point instruction: nothing to fuse, nothing to round.
        assert not re.search(r"\.(b?f16|f32|f64|bf16)", built.ptx), case
        assert built.count("st.global.b8") > 0, case
