"""The oracle itself: against properties that do not come from the code it checks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from omr_io.images.patches import installed_pass_order
from omr_io.reference import pixels as reference
from omr_io.types import Filter, PatchLayout

ONE = 1 << reference.PRECISION_BITS


def test_kernel_interpolates() -> None:
    assert [reference.cubic(x) for x in (0.0, 1.0, -1.0, 2.0, -2.0, 3.5)] == [1, 0, 0, 0, 0, 0]
    assert reference.cubic(0.5) == reference.cubic(-0.5) == 0.5625  # Keys, a = -0.5
    assert reference.cubic(1.5) == -0.0625


def test_the_other_kernels_interpolate() -> None:
    assert [reference.triangle(x) for x in (0.0, 0.25, -0.25, 1.0, -2.0)] == [1, 0.75, 0.75, 0, 0]
    assert reference.lanczos(0.0) == 1.0
    assert all(abs(reference.lanczos(x)) < 1e-16 for x in (1.0, -1.0, 2.0, 3.0, 4.5))
    # sinc(1/2) sinc(1/6) = (2 / pi) (3 / pi)
    assert reference.lanczos(0.5) == pytest.approx(6 / np.pi**2)


@pytest.mark.parametrize("by", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size_in", "size_out"), [(7, 7), (10, 3), (3, 10), (100, 37), (1, 5)])
def test_rows_sum_to_one_and_mirror(size_in: int, size_out: int, by: Filter) -> None:
    matrix = reference.coefficients(size_in, size_out, by)
    assert abs(matrix.sum(axis=1) - ONE).max() <= size_in  # each coefficient is rounded
    np.testing.assert_array_equal(matrix, matrix[::-1, ::-1])
    if size_in == size_out:
        np.testing.assert_array_equal(matrix, np.eye(size_in, dtype=np.int64) * ONE)


def test_the_two_orders() -> None:
    rule = reference.vertical_first
    assert not rule(100, 100, 10, 100, "horizontal-first")
    assert rule(100, 100, 10, 100, "pillow-13")
    assert rule(100, 100, 79, 90, "pillow-13")
    assert not rule(100, 100, 80, 90, "pillow-13")  # 20 is not over 2 x 10
    assert not rule(100, 100, 100, 200, "pillow-13")  # the height does not shrink
    assert rule(100, 100, 99, 200, "pillow-13")


def test_passes_commute_only_in_part() -> None:
    """The orders differ by what the rounding between them loses: one step, on smooth input."""
    small = np.random.default_rng(0).integers(60, 190, (5, 6, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((60, 90), Image.Resampling.BICUBIC))
    first, second = (
        reference.resize(pixels, 31, 55, "bicubic", first).astype(int) for first in (False, True)
    )
    assert 0 < abs(first - second).max() <= 1


def test_same_size_is_untouched_and_constants_stay() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    flat = np.full((20, 30, 3), 77, dtype=np.uint8)
    for by in reference.KERNELS:
        np.testing.assert_array_equal(reference.resize(pixels, 20, 30, by, True), pixels)
        assert (reference.resize(flat, 13, 44, by, True) == 77).all()


def test_oracle_is_sensitive_to_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 fractional bits the oracle is no longer Pillow: equality is a strong statement."""
    pixels = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((37, 41), Image.Resampling.BICUBIC))
    first = reference.vertical_first(60, 80, 41, 37, installed_pass_order())
    assert np.array_equal(reference.resize(pixels, 41, 37, "bicubic", first), expected)
    monkeypatch.setattr(reference, "PRECISION_BITS", 8)
    assert not np.array_equal(reference.resize(pixels, 41, 37, "bicubic", first), expected)


def test_patch_order_by_hand() -> None:
    """Four groups of four patches of 2 x 2 pixels, numbered by their place."""
    rows, columns = np.mgrid[:8, :8]
    values = np.stack([rows * 100 + columns + 1000 * c for c in range(3)], axis=-1)
    layout = PatchLayout(2, 2, merge_size=2, frames=2)
    patches = reference.cut(values.astype(np.float32), layout)
    assert patches.shape == (16, 24)
    corners = [divmod(int(first), 100) for first in patches[:, 0]]
    assert corners[:6] == [(0, 0), (0, 2), (2, 0), (2, 2), (0, 4), (0, 6)]
    assert corners[8] == (4, 0)
    pixels = (0, 1, 100, 101)
    assert patches[0].tolist() == [p + 1000 * c for c in range(3) for _ in range(2) for p in pixels]
    last = PatchLayout(2, 4, channels_last=True)
    patches = reference.cut(values.astype(np.float32), last)
    assert [divmod(int(first), 100) for first in patches[:3, 0]] == [(0, 0), (0, 4), (2, 0)]
    pixels = (0, 1, 2, 3, 100, 101, 102, 103)
    assert patches[0].tolist() == [p + 1000 * c for p in pixels for c in range(3)]
