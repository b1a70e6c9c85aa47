"""The plan's benchmark: what of it breaks when the library changes."""

import numpy as np
import pytest

from benchmarks import bench_plan


def test_the_simulation_plans_every_row(tmp_path):
    try:
        made = bench_plan.simulate(20_000, 5000, tmp_path)
    except PermissionError:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert (made["windows"], made["projected"]["windows"]) == (4, 2_000_000)
    assert abs(made["steps"] - made["steps of the next epoch"]) <= 4
    assert 0.9 < made["efficiency"] < 1
    assert list(tmp_path.iterdir()) == []


def test_columns_are_those_of_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_plan, "WINDOW", 300)
    lengths = bench_plan.write_columns(tmp_path, 700)
    assert lengths.mapped
    expected = np.concatenate(
        [bench_plan.corpus_like(n, s).tokens for s, n in enumerate((300, 300, 100))]
    )
    np.testing.assert_array_equal(lengths.tokens, expected)
