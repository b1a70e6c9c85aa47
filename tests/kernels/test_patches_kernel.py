"""Pixels on a GPU under Triton's interpreter against the reference, and compiled ahead of time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from omr_io.errors import ConfigError
from omr_io.images.gpu_plan import IMAGE_FIELDS, SECOND_TILE, Tile, plan
from omr_io.ops import patches_implementation
from omr_io.reference.pixels import patches as reference
from omr_io.types import Filter, PatchLayout, PatchTarget, UInt8Array
from tests.kernels.ahead_of_time import CAPABILITIES, Compiled, Kernel, compile_kernels

triton = pytest.importorskip("triton")
kernel = pytest.importorskip("omr_io.kernels.patches")
first = pytest.importorskip("omr_io.kernels.resize")
interpreted = pytest.mark.skipif(
    isinstance(kernel.patches_kernel, triton.JITFunction), reason="needs TRITON_INTERPRET=1"
)
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
patches = patches_implementation("triton")

P14, P16 = PatchLayout(14, 14, 2, 2), PatchLayout(16, 16, 2, 2)
LAST_14, LAST_16 = PatchLayout(14, 14, 1, 2, True), PatchLayout(16, 16, channels_last=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Case = tuple[int, int, int, int, bool]


def noise(random: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Noise shows every rounding, black and white show overshoot and clamping."""
    if random.random() < 0.5:
        return random.integers(0, 256, (height, width, 3), np.uint8)
    return random.choice(np.array([0, 255], np.uint8), (height, width, 3))


def table_of(random: np.random.Generator) -> np.ndarray:
    """Values that no two bytes of no two channels share, before or after rounding to 16 bits."""
    return (random.permutation(768).reshape(3, 256) - 300).astype(np.float32) * 1.001


def values(dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


# Of each case: filter, layout, dtype, and of each image H, W, h, w and whether vertical first.
CASES: dict[str, tuple[Filter, PatchLayout, torch.dtype, list[Case]]] = {
    "one pixel": ("bicubic", P14, torch.bfloat16, [(1, 1, 28, 28, False)]),
    "wide": ("bicubic", P16, torch.float32, [(28, 1021, 32, 96, False)]),
    "ragged": (
        "lanczos",
        P14,
        torch.float16,
        [(30, 41, 28, 56, False), (65, 20, 28, 28, False), (9, 9, 28, 28, False)],
    ),
    "both orders": (
        "bicubic",
        P14,
        torch.bfloat16,
        [(98, 30, 28, 28, True), (30, 41, 28, 56, False), (41, 30, 28, 28, True)],
    ),
    "both orders, last": (
        "bilinear",
        LAST_16,
        torch.float16,
        [(50, 30, 32, 16, True), (30, 41, 16, 32, False)],
    ),
    "by 7": ("bicubic", LAST_14, torch.float32, [(98, 98, 14, 14, False)]),
    "skipped passes": (
        "bicubic",
        P16,
        torch.bfloat16,
        [(32, 32, 32, 32, False), (32, 50, 32, 32, True), (50, 32, 32, 32, False)],
    ),
    "whole image": (
        "bilinear",
        PatchLayout(48, 40),
        torch.float32,
        [(30, 33, 48, 40, False), (48, 40, 48, 40, True)],
    ),
    "whole image, last": (
        "lanczos",
        PatchLayout(24, 40, channels_last=True),
        torch.bfloat16,
        [(30, 33, 24, 40, True)],
    ),
    "rectangular": ("bicubic", PatchLayout(6, 10, 3, 3), torch.float16, [(17, 70, 18, 30, False)]),
    "tiny patches": ("bicubic", PatchLayout(1, 2, 1, 1), torch.float32, [(5, 3, 4, 6, False)]),
    "odd": ("lanczos", PatchLayout(7, 5, 1, 2), torch.bfloat16, [(13, 11, 14, 15, False)]),
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by, layout, dtype, cases = CASES[name]
    random = np.random.default_rng(len(name))
    table = table_of(random)
    images: list[UInt8Array | torch.Tensor] = [noise(random, h, w) for h, w, *_ in cases]
    targets = [PatchTarget(*to, layout, by, order) for _, _, *to, order in cases]
    # Where the kernels run, as a tensor with a pitch of its own; and elsewhere, to be uploaded.
    images[0] = torch.from_numpy(np.pad(images[0], ((2, 0), (1, 3), (0, 0))))[2:, 1:-3]
    # Poisoned memory: what a kernel reads before it is written, or forgets to write, shows.
    empty = torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *a, **k: empty(*a, **k).view(torch.uint8).fill_(0xA5).view(k["dtype"]),
    )
    want = reference(images, targets, table, dtype=dtype)
    buffer = values(dtype, (len(want) + 2, layout.patch_width))
    out = buffer[1:-1]
    got = patches(images, targets, table, dtype=dtype, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(got, want)
    assert buffer[[0, -1]].isnan().all()


@interpreted
def test_random_layouts_equal_the_reference() -> None:
    random = np.random.default_rng(11)
    filters: list[Filter] = ["bilinear", "bicubic", "lanczos"]
    for number, (by, dtype) in enumerate(itertools.product(filters, DTYPES)):
        height, width, merge, frames = random.integers(1, (14, 20, 3, 4)).tolist()
        layout = PatchLayout(height, width, merge, frames, channels_last=number % 2 == 1)
        size = height * merge, width * merge
        image = noise(random, *random.integers(1, 30, 2).tolist())
        target = PatchTarget(*size, layout, by, vertical_first=number % 4 == 1)
        table = table_of(random)
        got = patches([image], [target], table, dtype=dtype)
        want = reference([image], [target], table, dtype=dtype)
        assert got.dtype == dtype
        assert torch.equal(got, want), (image.shape, target)


@interpreted
def test_values_are_rounded_to_the_nearest_even() -> None:
    """Halfway values and those that overflow float16: what `.to(dtype)` makes of them."""
    bits = np.arange(768, dtype=np.uint32).reshape(3, 256) * 0x0800 + 0x3F800000
    table = bits.view(np.float32).copy()
    table[2, 250:] = [1e38, -1e38, 65520.0, 2.0**-25, -0.0, np.inf]
    image = np.arange(768, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    for dtype in DTYPES:
        target = PatchTarget(16, 16, PatchLayout(16, 16))
        got = patches([image], [target], table, dtype=dtype)
        want = reference([image], [target], table, dtype=dtype)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@interpreted
def test_patches_far_into_the_output_are_found() -> None:
    """Values beyond element 2**31; only the pages that are touched take memory."""
    random, layout = np.random.default_rng(4), PatchLayout(16, 16)
    image, target = noise(random, 20, 31), PatchTarget(16, 32, layout)
    table = torch.arange(768, dtype=torch.int16)
    made, far = plan([(20, 31)], [target]), 2**31 + 4096
    rows_NF = made.images.copy()
    rows_NF[0, :2] = image.ctypes.data, image.strides[0]
    rows_NF[0, IMAGE_FIELDS.index("out")] = far // made.aligned
    numbers = [
        torch.from_numpy(a)
        for a in (rows_NF, made.first_programs, made.second_programs, made.weights)
    ]
    between = torch.empty(made.between_bytes, dtype=torch.uint8)
    out = torch.empty(far + 2 * layout.patch_width, dtype=torch.int16)
    first.resize(made, numbers[0], numbers[1], numbers[3], between)
    kernel.launch(made, numbers[0], numbers[2], numbers[3], between, table, out)
    numbered = np.arange(768, dtype=np.float32).reshape(3, 256)
    want = reference([image], [target], numbered).to(torch.int16).ravel()
    assert torch.equal(out[far:], want)


@interpreted
def test_bad_input_is_refused_before_anything_is_written() -> None:
    image, target = np.zeros((20, 20, 3), np.uint8), PatchTarget(28, 28, P14)
    table = np.zeros((3, 256), np.float32)
    out = values(torch.float32, (4, P14.patch_width))
    for images, targets, words in [
        ([image, image[:, :, :2]], [target] * 2, "image 1: pixels must be"),
        ([image], [PatchTarget(28, 30, P14)], "image 0: a size of 30x28"),
        ([image[:, ::2]], [target], "image 0: the bytes of a row"),
        ([image, image], [target] * 2, "out must be"),
        ([torch.empty((2, 2, 3), dtype=torch.uint8, device="meta")], [target], "image 0 is on"),
    ]:
        with pytest.raises(ConfigError, match=words):
            patches(images, targets, table, out=out)
    assert out.isnan().all()


@interpreted
def test_a_crop_whose_rows_lie_too_far_apart_is_refused() -> None:
    """Its offsets wrapped around at 2**31 and were read from before the image."""
    huge = torch.empty(2**31 + 4096, dtype=torch.uint8)  # not touched: it takes no memory
    crop = huge.as_strided((17, 20, 3), (2**27, 3, 1))
    table, target = np.zeros((3, 256), np.float32), PatchTarget(28, 28, P14)
    for image in (crop, crop[:16]):
        with pytest.raises(ConfigError, match=r"image 1 has 1\d rows 134217728 bytes apart"):
            patches([torch.zeros((2, 2, 3), dtype=torch.uint8), image], [target] * 2, table)


@interpreted
def test_no_images_are_no_patches() -> None:
    assert patches([], [], np.zeros((3, 256), np.float32), dtype=torch.bfloat16).shape == (0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Triton is not told to interpret."""
    monkeypatch.setattr(triton, "JITFunction", object)
    image, target = np.zeros((20, 20, 3), np.uint8), PatchTarget(28, 28, P14)
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU.*'cpu'"):
        patches([image], [target], np.zeros((3, 256), np.float32))


# Compiled ahead of time, with the tiles and alignments that the plan gives.


def description(
    capability: int, layout: PatchLayout, dtype: torch.dtype, vertical: bool, image: int = 448
) -> Kernel:
    size = max(image // layout.height, 1) * layout.height, max(image // layout.width, 1)
    target = PatchTarget(size[0], size[1] * layout.width, layout, vertical_first=vertical)
    made, size_bytes = plan([(600, 600)], [target]), torch.empty((), dtype=dtype).element_size()
    bits = f"*i{8 * size_bytes}"
    pointers = {"images_NF": "*i64", "second_G": "*i32", "weights": "*i32", "between": "*u8"}
    pointers |= {"table": bits, "out": bits}
    # As a launch does: what is 1 is a constant, what is a multiple of 16 is known to be.
    row_values = layout.width * (3 if layout.channels_last else 1)
    numbers = {"patch_height": layout.height, "merge_size": layout.merge_size}
    numbers |= {"row_units": row_values // made.aligned}
    constants = {name: value for name, value in numbers.items() if value == 1}
    signature = pointers | {name: "i32" for name in numbers if name not in constants}
    tile = made.tile
    return Kernel(
        "omr_io.kernels.patches",
        "patches_kernel",
        signature=signature,
        constants=constants
        | {
            "FRAMES": layout.frames,
            "CHANNELS_LAST": layout.channels_last,
            "VERTICAL": vertical,
            "ALIGNED": made.aligned,
            "READ_ALIGNED": kernel.read_aligned(made.aligned, size_bytes),
            "L": tile.lines,
            "Y": tile.rows,
            "X": tile.columns,
        },
        aligned=(*pointers, *(name for name in numbers if numbers[name] % 16 == 0)),
        capability=capability,
        options={"num_warps": kernel.NUM_WARPS},
    )


# Of each: layout, dtype, both orders, registers at most, bytes of a store, of a tap's load. A
# multiprocessor holds 7 programs of 72 registers, 6 of 80, 5 of 96, 4 of 128.
BUILDS = {
    "qwen3, bf16": (P16, torch.bfloat16, False, 72, 16, 8),
    "qwen3, fp32": (P16, torch.float32, False, 96, 16, 4),
    "qwen3, both orders": (P16, torch.bfloat16, True, 96, 16, 8),
    "qwen2, both orders": (P14, torch.bfloat16, True, 128, 4, 16),
    "qwen2, bf16": (P14, torch.bfloat16, False, 96, 4, 16),
    "qwen2, fp32": (P14, torch.float32, False, 128, 8, 16),
    "naflex": (LAST_16, torch.bfloat16, False, 80, 16, 8),
    "whole image": (PatchLayout(896, 896), torch.bfloat16, False, 80, 16, 8),
}
STORES = {16: ("st.global.v4.b32",), 8: ("st.global.v2.b32",), 4: ("st.global.b32",)}
LOADS = {16: "ld.global.v4.b32", 8: "ld.global.v2.b32", 4: "ld.global.b32"}


@pytest.fixture(scope="module")
def builds() -> dict[str, list[Compiled]]:
    """All in one process, for whose start the compilation of ten kernels could be had."""
    # Each kernel for every GPU, all variants for the newest.
    few = {"qwen3, bf16", "qwen3, both orders", "qwen2, both orders"}
    cases = [(n, c) for n in BUILDS for c in CAPABILITIES if n in few or c == CAPABILITIES[-1]]
    built: dict[str, list[Compiled]] = {name: [] for name in BUILDS}
    compiled = compile_kernels([description(c, *BUILDS[name][:3]) for name, c in cases])
    for (name, _), one in zip(cases, compiled, strict=True):
        built[name].append(one)
    return built


@pytest.mark.parametrize("name", BUILDS)
def test_compiles_ahead_of_time(name: str, builds: dict[str, list[Compiled]]) -> None:
    _, _, vertical, registers, stored, loaded = BUILDS[name]
    for built in builds[name]:
        assert built.registers <= registers
        assert built.spill_bytes == built.stack_bytes == 0
        # Not one floating-point instruction: nothing to fuse, nothing to round.
        assert not re.search(r"\.(b?f16|f32|f64)", built.ptx)
        # Every store is that wide.
        stores = re.findall(r"st\.global\S*", built.ptx)
        assert stores
        assert set(stores) == set(STORES[stored]), set(stores)
        assert built.count(LOADS[loaded]) > 0
        if stored == 16:  # threads keep their values: nothing passes through shared memory
            assert vertical or built.shared_bytes == 0


def test_tiles_fill_a_program_and_fit_the_layouts() -> None:
    def tile(layout: PatchLayout, height: int, width: int) -> Tile:
        return plan([(9, 9)], [PatchTarget(height, width, layout)]).tile

    assert tile(P16, 448, 448) == tile(P14, 448, 448) == Tile(16, 16, 16)
    assert tile(P14, 28, 28) == Tile(4, 16, 16)  # of 6 planes
    assert tile(PatchLayout(896, 896), 896, 896) == Tile(1, 32, 128)
    assert tile(LAST_16, 448, 448) == Tile(16, 16, 16)
    for layout in (P14, P16, LAST_14, LAST_16, PatchLayout(3, 200)):
        made = tile(layout, 42 * layout.height, 42 * layout.width)
        assert made.lines * made.rows * made.columns <= SECOND_TILE


# On a GPU.


def big_batch(seed: int, layout: PatchLayout, count: int) -> tuple[list[UInt8Array], list]:
    random = np.random.default_rng(seed)
    images = [noise(random, *random.integers(1, 1600, 2).tolist()) for _ in range(count)]
    group = layout.height * layout.merge_size, layout.width * layout.merge_size
    filters: list[Filter] = ["bilinear", "bicubic", "lanczos"]
    targets = [
        PatchTarget(
            *(side * int(n) for side, n in zip(group, random.integers(1, 20, 2), strict=True)),
            layout,
            filters[number % 3],
            number % 7 == 6,
        )
        for number in range(count)
    ]
    return images, targets


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [P14, P16, LAST_14, LAST_16, PatchLayout(28, 14, 1, 3)])
def test_equals_the_cpu_on_a_gpu(layout: PatchLayout, dtype: torch.dtype) -> None:
    cpu = patches_implementation("cpu")
    for seed in range(4):
        images, targets = big_batch(seed, layout, 64)
        table = table_of(np.random.default_rng(seed))
        want = cpu(images, targets, table, dtype=dtype)
        there = [torch.from_numpy(image).cuda() for image in images]
        mixed = [
            one if n % 2 else image
            for n, (one, image) in enumerate(zip(there, images, strict=True))
        ]
        for given in (there, mixed):
            buffer = values(dtype, (len(want) + 2, want.shape[1])).cuda()
            got = patches(given, targets, table, dtype=dtype, out=buffer[1:-1])
            assert torch.equal(got.cpu(), want)
            assert buffer[[0, -1]].isnan().all()


@gpu
@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    images, targets = big_batch(0, P16, 16)
    there = [torch.from_numpy(image).cuda() for image in images]
    table = table_of(np.random.default_rng(0))
    patches(there, targets, table, dtype=torch.bfloat16)  # compiles, and warms the allocators
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = patches(there, targets, table, dtype=torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), patches_implementation("cpu")(images, targets, table).bfloat16())


@gpu
@needs_gpu
def test_another_stream_than_the_images_own() -> None:
    images, targets = big_batch(1, P14, 32)
    table = table_of(np.random.default_rng(1))
    want = patches_implementation("cpu")(images, targets, table)
    stream = torch.cuda.Stream()
    for _ in range(20):
        there = [torch.from_numpy(image).cuda() for image in images]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = patches(there, targets, table)
        del there  # record_stream keeps the memory until `stream` has read it
        again = [torch.zeros(image.shape, dtype=torch.uint8, device="cuda") for image in images]
        stream.synchronize()
        assert torch.equal(got.cpu(), want)
        del again


@gpu
@needs_gpu
def test_patches_beyond_2_31_values_on_a_gpu() -> None:
    """One large image many times over: what lies beyond is what lies at the start."""
    layout = PatchLayout(16, 16, 2, 2)
    image = torch.from_numpy(noise(np.random.default_rng(2), 300, 300)).cuda()
    target = PatchTarget(4096, 4096, layout)
    count = 2**31 // (target.num_patches * layout.patch_width) + 2
    free, _ = torch.cuda.mem_get_info()
    if free < 8 * count * target.num_patches * layout.patch_width:
        pytest.skip("needs some 20 GB of memory")
    got = patches([image] * count, [target] * count, table_of(np.random.default_rng(0)),
                  dtype=torch.bfloat16)  # fmt: skip
    one = got[: target.num_patches]
    assert torch.equal(got[-target.num_patches :], one)
    cpu = patches_implementation("cpu")
    want = cpu([image.cpu()], [target], table_of(np.random.default_rng(0)), dtype=torch.bfloat16)
    assert torch.equal(one.cpu(), want)
