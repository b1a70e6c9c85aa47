"""The operation `patches`: every implementation on the host, against Pillow and transformers."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omr_io.errors import ConfigError
from omr_io.images import cpu_patches, smart_resize
from omr_io.images.patches import patch_target, value_table, vertical_first
from omr_io.ops import PATCHES, Patches, patches_implementation
from omr_io.types import PatchLayout, PatchTarget, UInt8Array
from tests.images.pixel_cases import FILTERS, INSTRUCTIONS, VISIONS, processor, random_pixels

# The operation: one set of tests for every implementation on the host.

IMPLEMENTATIONS: dict[str, Patches] = {
    "reference": PATCHES["reference"],
    "cpu": PATCHES["cpu"],
    **{name: partial(cpu_patches.patches, instructions=name) for name in INSTRUCTIONS},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_implementation = pytest.mark.parametrize(
    "patches", IMPLEMENTATIONS.values(), ids=list(IMPLEMENTATIONS)
)


def bits_of(values: torch.Tensor) -> np.ndarray:
    assert values.is_contiguous()
    return cpu_patches.bits(values)


def poisoned(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(rows, width) of a NaN that no table holds, within a frame of the same."""
    held = torch.full(
        (rows + 2, width), -1, dtype=torch.int32 if dtype.itemsize == 4 else torch.int16
    )
    return held.view(dtype)[1:-1]


def frame_is_whole(out: torch.Tensor) -> bool:
    whole = out._base if out._base is not None else out
    return bool((bits_of(whole)[[0, -1]] == -1).all())


def random_table(rng: np.random.Generator, equal: bool) -> np.ndarray:
    """Any bits but NaN, whose bits a rounding may change."""
    raw = rng.integers(0, 2**32, (3, 256), dtype=np.uint32)
    raw[(raw & 0x7F800000) == 0x7F800000] = 0x3F808000  # a tie for bfloat16
    table = raw.view(np.float32)
    return np.repeat(table[:1], 3, 0) if equal else table


def pillow_patches(
    image: UInt8Array, target: PatchTarget, table: np.ndarray, dtype: torch.dtype
) -> torch.Tensor:
    """Pillow's resize, then the layout as one transpose: no loop of the reference's."""
    layout, merge = target.layout, target.layout.merge_size
    size = (target.width, target.height)
    resized = np.asarray(Image.fromarray(image).resize(size, FILTERS[target.filter]))
    values = np.stack([table[c][resized[..., c]] for c in range(3)], -1)
    rows, columns = target.height // layout.height, target.width // layout.width
    shape = (rows // merge, merge, layout.height, columns // merge, merge, layout.width, 3)
    cut = values.reshape(shape).transpose(0, 3, 1, 4, 2, 5, 6)
    cut = cut.reshape(rows * columns, 1, layout.height, layout.width, 3)
    cut = np.repeat(cut, layout.frames, 1)
    if not layout.channels_last:
        cut = cut.transpose(0, 4, 1, 2, 3)
    return torch.from_numpy(np.ascontiguousarray(cut).reshape(rows * columns, -1)).to(dtype)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[UInt8Array], list[PatchTarget], np.ndarray, torch.dtype]:
    """A batch of up to 3 images with one layout."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    side = st.one_of(st.integers(1, 40), st.sampled_from([1, 14, 16, 64, 65]))
    layout = PatchLayout(
        draw(side),
        draw(side),
        merge_size=draw(st.integers(1, 3)),
        frames=draw(st.integers(1, 3)),
        channels_last=draw(st.booleans()),
    )
    images, targets = [], []
    for _ in range(draw(st.integers(0, 3))):
        height, width = draw(side), draw(side)
        to_height = layout.height * layout.merge_size * draw(st.integers(1, 2))
        to_width = layout.width * layout.merge_size * draw(st.integers(1, 2))
        first = vertical_first((height, width), (to_height, to_width), None)
        by = draw(st.sampled_from(sorted(FILTERS)))
        images.append(random_pixels(rng, height, width))
        targets.append(PatchTarget(to_height, to_width, layout, by, first))
    table = random_table(rng, equal=draw(st.booleans()))
    return images, targets, table, draw(st.sampled_from(DTYPES))


@every_implementation
@settings(max_examples=60, deadline=None)
@given(call=calls(), threads=st.integers(1, 4))
def test_any_call_equals_pillow(patches: Patches, call, threads: int) -> None:
    images, targets, table, dtype = call
    expected = [
        pillow_patches(image, target, table, dtype)
        for image, target in zip(images, targets, strict=True)
    ]
    result = patches(images, targets, table, dtype=dtype, threads=threads)
    assert result.dtype == dtype
    if not images:
        assert result.shape == (0, 0)
        return
    assert np.array_equal(bits_of(result), bits_of(torch.cat(expected)))
    out = poisoned(*result.shape, dtype)
    given_back = patches(images, targets, table, dtype=dtype, out=out, threads=threads)
    assert given_back.data_ptr() == out.data_ptr()
    assert np.array_equal(bits_of(out), bits_of(result))
    assert frame_is_whole(out)


@every_implementation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patches_of_transformers_in_every_dtype(patches: Patches, dtype: torch.dtype) -> None:
    """A batch of Qwen's, odd sizes among it: float32 as transformers has it, others rounded."""
    rng, vision = np.random.default_rng(11), VISIONS["small"]
    sizes = [(1, 1), (28, 1021), (200, 1), *rng.integers(8, 90, (4, 2)).tolist()]
    images = [random_pixels(rng, height, width) for height, width in sizes]
    targets = [
        patch_target(image.shape[:2], smart_resize(*image.shape[:2], vision), vision)
        for image in images
    ]
    theirs = processor(vision)
    expected = np.concatenate(
        [theirs(Image.fromarray(image), return_tensors="np")["pixel_values"] for image in images]
    )
    result = patches(images, targets, value_table(vision), dtype=dtype, threads=2)
    assert np.array_equal(bits_of(result), bits_of(torch.from_numpy(expected).to(dtype)))


@every_implementation
def test_a_patch_may_be_a_whole_image(patches: Patches) -> None:
    rng = np.random.default_rng(12)
    images = [random_pixels(rng, 30, 41), random_pixels(rng, 70, 17)]
    table = random_table(rng, equal=False)
    for channels_last in (False, True):
        layout = PatchLayout(70, 37, channels_last=channels_last)
        targets = [
            PatchTarget(70, 37, layout, "lanczos", vertical_first(image.shape[:2], (70, 37), None))
            for image in images
        ]
        result = patches(images, targets, table)
        resized = [
            np.asarray(Image.fromarray(i).resize((37, 70), FILTERS["lanczos"])) for i in images
        ]
        values = np.stack([np.stack([table[c][r[..., c]] for c in range(3)], -1) for r in resized])
        if channels_last:
            assert np.array_equal(result.view(-1, 70, 37, 3).numpy(), values)
        else:
            assert np.array_equal(result.view(-1, 3, 70, 37).numpy(), values.transpose(0, 3, 1, 2))


@every_implementation
@pytest.mark.parametrize("size", [(28, 28), (24, 40)])
def test_a_crop_is_read_where_it_is(patches: Patches, size: tuple[int, int]) -> None:
    """Rows of a larger array, also as a tensor, and one whose strides of length 1 mean nothing."""
    rng = np.random.default_rng(13)
    whole, table = random_pixels(rng, 60, 70), random_table(rng, equal=False)
    layout = PatchLayout(4, 4, 2)
    for crop in (whole[7:31, 11:51], whole[::2], whole[5:6], whole[:, 9:10]):
        target = PatchTarget(*(side // 8 * 8 for side in size), layout)
        expected = patches([crop.copy()], [target], table)
        assert torch.equal(patches([crop], [target], table), expected)
        assert torch.equal(patches([torch.from_numpy(crop)], [target], table), expected)


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [14, 16, 100])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_batch_into_any_address(
    name: str, dtype: torch.dtype, side: int, channels_last: bool
) -> None:
    """Enough bytes for the way past the cache, begun at every offset within a cache line."""
    rng = np.random.default_rng(15)
    layout = PatchLayout(side, side, frames=2, channels_last=channels_last)
    target = PatchTarget(side * 4, side * (1600 // side), layout)
    image = random_pixels(rng, side * 4, side * (1600 // side))  # no resize
    table = random_table(rng, equal=channels_last)
    count = -(-(9 << 20) // (target.num_patches * layout.patch_width * dtype.itemsize))
    one = bits_of(pillow_patches(image, target, table, dtype))
    expected = np.concatenate([one] * count)
    kind = torch.int32 if dtype.itemsize == 4 else torch.int16
    whole = torch.full((expected.size + 64,), -1, dtype=kind)
    assert expected.nbytes >= 9 << 20
    for begin in (0, 1, 8, 17, 31):
        whole.fill_(-1)
        out = whole[begin : begin + expected.size].view(dtype).view(expected.shape)
        IMPLEMENTATIONS[name]([image] * count, [target] * count, table, dtype=dtype, out=out)
        assert np.array_equal(bits_of(out), expected)
        assert (whole[:begin] == -1).all()
        assert (whole[begin + expected.size :] == -1).all()


@every_implementation
def test_wrong_arguments_are_refused_and_nothing_is_written(patches: Patches) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    layout, table = PatchLayout(4, 4, 2), np.zeros((3, 256), np.float32)
    target = PatchTarget(16, 24, layout)
    other = PatchTarget(16, 24, PatchLayout(4, 4))

    def refused(words: str, images=(image,), targets=(target,), table=table, **more) -> None:
        out = poisoned(24, 48, torch.float32)
        with pytest.raises(ConfigError, match=words):
            patches(list(images), list(targets), table, **{"out": out, **more})
        assert (bits_of(out) == -1).all()

    refused("1 images have 2 targets", targets=(target, target))
    refused("image 1: PatchLayout.*image 0 has", images=(image, image), targets=(target, other))
    for height, width in [(12, 24), (16, 0), (16, 23), (0, 0), (2**20 + 8, 8)]:
        refused("image 0: a size of", targets=(PatchTarget(height, width, layout),))
    for bad in [PatchLayout(0, 4), PatchLayout(4, 4, 0), PatchLayout(4, 4, 1, 0)]:
        refused("has no values", targets=(PatchTarget(16, 24, bad),))
    refused("no filter 'box'", targets=(PatchTarget(16, 24, layout, "box"),))
    for pixels in [image[..., 0], image[:0], image[..., :2], image.astype(np.int8), image[None]]:
        refused("image 0: pixels", images=(pixels,))
    for pixels in [
        image[::-1],
        image[:, ::2],
        image.swapaxes(0, 1),
        np.broadcast_to(image[:1], image.shape),
    ]:
        refused("image 0: the bytes of a row", images=(pixels,))
    refused("no patches of torch.float64", dtype=torch.float64)
    for wrong in [table[:2], table.astype(np.float64), torch.from_numpy(table)]:
        refused("the table must be", table=wrong)
    for out in [
        torch.empty(23, 48),
        torch.empty(24, 48, dtype=torch.float16),
        torch.empty(48, 24).T,
        torch.empty(24, 48, device="meta"),
    ]:
        refused("out must be", out=out)


def test_threads_and_instructions_are_checked() -> None:
    image, table = np.zeros((8, 8, 3), np.uint8), np.zeros((3, 256), np.float32)
    target = PatchTarget(8, 8, PatchLayout(8, 8))
    with pytest.raises(ConfigError, match="threads 0"):
        cpu_patches.patches([image], [target], table, threads=0)
    with pytest.raises(ConfigError, match="no such instructions: mmx"):
        cpu_patches.patches([image], [target], table, instructions="mmx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no implementation 'gpu' of patches"):
        patches_implementation("gpu")


FORK = """
import os
import numpy as np
from omr_io.images.cpu_patches import bits, patches
from omr_io.types import PatchLayout, PatchTarget

rng = np.random.default_rng(14)
images = [rng.integers(0, 256, (90, 80, 3), dtype=np.uint8) for _ in range(8)]
targets = [PatchTarget(32, 32, PatchLayout(16, 16))] * 8
table = rng.standard_normal((3, 256)).astype(np.float32)
expected = patches(images, targets, table, threads=4)
child = os.fork()
if child == 0:
    again = patches(images, targets, table, threads=4)
    os._exit(0 if np.array_equal(bits(again), bits(expected)) else 1)
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_may_follow_threads() -> None:
    """Nothing of a call outlives it: a child of a fork calls again, with threads."""
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout == "0\n", done.stderr
