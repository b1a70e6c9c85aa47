"""The host's plan of pixels on a GPU, and its weights: no Triton needed."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from omr_io.errors import ConfigError
from omr_io.images.axis_weights import CACHED_AXES, axis_weights
from omr_io.images.gpu_plan import FIRST_TILE, IMAGE_FIELDS, fill, plan, upload
from omr_io.reference import pixels as reference
from omr_io.types import Filter, PatchLayout, PatchTarget

PATCH_14, PATCH_16 = PatchLayout(14, 14, 2, 2), PatchLayout(16, 16, 2, 2)
ODD = [(1, 1), (1, 7), (7, 1), (28, 1021), (1021, 28), (3, 4), (700, 100), (5, 5), (2, 255)]


@pytest.mark.parametrize("by", ["bilinear", "bicubic", "lanczos"])
def test_weights_equal_the_reference(by: Filter) -> None:
    random = np.random.default_rng(0)
    for size_in, size_out in [*ODD, *random.integers(1, 300, (40, 2)).tolist()]:
        axis = axis_weights(size_in, size_out, by)
        assert axis.first.dtype == axis.weights.dtype == np.int32
        assert axis.first.min() >= 0
        assert (axis.first + axis.taps).max() <= size_in  # every tap may be read
        matrix = np.zeros((size_out, size_in), np.int64)
        for tap in range(axis.taps):
            np.add.at(matrix, (np.arange(size_out), axis.first + tap), axis.weights[tap])
        # Equal sizes: the pass is skipped, which one tap of weight one is.
        expected = reference.coefficients(size_in, size_out, by)
        assert np.array_equal(matrix, expected), (size_in, size_out)
        # What the int32 sums of the kernels rely on.
        assert 255 * np.abs(matrix).sum(axis=1).max() + (1 << 21) < 2**31


def test_weights_are_kept_in_bounds_and_read_only() -> None:
    axis_weights.cache_clear()
    for size in range(2, CACHED_AXES + 50):
        axis_weights(size, 1, "bilinear")
    assert axis_weights.cache_info().currsize == CACHED_AXES
    axis = axis_weights(9, 5, "bicubic")
    assert axis_weights(9, 5, "bicubic") is axis
    with pytest.raises(ValueError, match="read-only"):
        axis.weights[0, 0] = 1


def field(rows_NF: np.ndarray, name: str) -> list[int]:
    return rows_NF[:, IMAGE_FIELDS.index(name)].tolist()


def test_every_tile_has_one_program_and_nothing_overlaps() -> None:
    random = np.random.default_rng(1)
    sizes = [tuple(pair) for pair in random.integers(1, 900, (40, 2)).tolist()]
    for layout in (PATCH_14, PATCH_16, PatchLayout(14, 28, 1, 1, True), PatchLayout(9, 5, 2)):
        height, width = layout.height * layout.merge_size, layout.width * layout.merge_size
        targets = [
            PatchTarget(height * a, width * b, layout, vertical_first=n % 5 == 4)
            for n, (a, b) in enumerate(random.integers(1, 20, (40, 2)).tolist())
        ]
        made = plan(sizes, targets)
        for launch, name in (
            (made.first_programs, "first_program"),
            (made.second_programs, "second_program"),
        ):
            counts = np.bincount(launch, minlength=40)
            assert (counts > 0).all()
            assert field(made.images, name) == (np.cumsum(counts) - counts).tolist()
        tiles = [
            -(-rows // FIRST_TILE[0]) * -(-columns // FIRST_TILE[1])
            for rows, columns in zip(
                field(made.images, "rows"), field(made.images, "columns"), strict=True
            )
        ]
        assert np.bincount(made.first_programs).tolist() == tiles
        # Second launch: tiles cover each plane of each image with less than a tile to spare a way.
        planes = 1 if layout.channels_last else 3
        for number, target in enumerate(targets):
            lines = target.width // layout.width * planes
            values = layout.width * (3 // planes)
            per_row = -(-lines // made.tile.lines) * -(-values // made.tile.columns)
            down = target.height // layout.height * -(-layout.height // made.tile.rows)
            assert int((made.second_programs == number).sum()) == per_row * down
        # Intermediates and patches lie one after the other.
        ends = [16 * start for start in field(made.images, "between")[1:]]
        for number, end in enumerate([*ends, made.between_bytes]):
            row = dict(zip(IMAGE_FIELDS, made.images[number].tolist(), strict=True))
            sides = {"down": row["rows"], "across": row["columns"]}
            turned = bool(row["vertical_first"])
            blocks = sides.pop("down" if turned else "across") // row["block"]
            lines = blocks * (3 if turned else planes)
            assert row["between"] * 16 + lines * sum(sides.values()) * row["row_bytes"] <= end
            assert row["row_bytes"] % 16 == 0
        widths = [target.num_patches * layout.patch_width for target in targets]
        starts = [start * made.aligned for start in field(made.images, "out")]
        assert starts == (np.cumsum(widths) - widths).tolist()


def test_axes_of_equal_sizes_share_their_weights() -> None:
    target = PatchTarget(28, 56, PATCH_14)
    one = plan([(30, 40)], [target])
    many = plan([(30, 40)] * 50, [target] * 50)
    assert np.array_equal(one.weights, many.weights)


@pytest.mark.parametrize(
    ("size", "height", "width", "frames", "vertical", "words"),
    [
        ((2**15, 2**15), 14, 14, 1, False, "bytes of pixels"),
        ((2**18, 2), 14, 2800, 1, False, "bytes after its first pass"),
        ((2, 2**18), 2800, 14, 1, True, "bytes after its first pass"),
        ((100, 100), 14000, 14000, 4, False, "values in patches"),
    ],
)
def test_an_image_beyond_32_bits_is_refused(
    size: tuple[int, int], height: int, width: int, frames: int, vertical: bool, words: str
) -> None:
    layout = PatchLayout(14, 14, 1, frames)
    small = PatchTarget(14, 14, layout)
    large = PatchTarget(height, width, layout, vertical_first=vertical)
    with pytest.raises(ConfigError, match=rf"image 1 has \d+ {words}.*'cpu'"):
        plan([(9, 9), size], [small, large])


def test_a_batch_beyond_32_bits_is_planned_with_64() -> None:
    """30 images of 100 million values each: only within an image are offsets 32 bits."""
    layout = PatchLayout(2000, 2000)
    made = plan([(40, 40)] * 30, [PatchTarget(4000, 8000, layout)] * 30)
    starts = [start * made.aligned for start in field(made.images, "out")]
    assert starts[-1] == 29 * 3 * 4000 * 8000 > 2**31


def test_one_buffer_holds_all_parts() -> None:
    targets = [PatchTarget(28, 28, PATCH_14)] * 3
    made = plan([(30, 40), (3, 5), (60, 7)], targets)
    table = np.arange(768, dtype=np.int16).reshape(3, 256)
    at = upload(made, table.nbytes, [(1, 45)])
    buffer = np.full(at.size, 0xA5, np.uint8)
    fill(buffer, at, made, table, [(1000, 120), (2000, 15), (3000, 21)])
    rows = buffer[at.images].view(np.int64).reshape(made.images.shape)
    assert rows[:, :2].tolist() == [[1000, 120], [2000, 15], [3000, 21]]
    assert np.array_equal(rows[:, 2:], made.images[:, 2:])
    assert np.array_equal(buffer[at.first_programs].view(np.int32), made.first_programs)
    assert np.array_equal(buffer[at.second_programs].view(np.int32), made.second_programs)
    assert np.array_equal(buffer[at.weights].view(np.int32), made.weights)
    assert np.array_equal(buffer[at.table].view(np.int16), table.ravel())
    ((number, where),) = at.pixels
    assert (number, where.stop - where.start) == (1, 45)
    parts = [at.images, at.first_programs, at.second_programs, at.weights, at.table, where]
    assert all(part.start % 16 == 0 for part in parts)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(parts))


def test_the_plan_does_not_import_triton() -> None:
    # torch itself imports Triton in some builds, never for our sake.
    code = """
import sys, torch
before = "triton" in sys.modules
import omr_io.images.gpu_plan, omr_io.ops
print(before == ("triton" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
