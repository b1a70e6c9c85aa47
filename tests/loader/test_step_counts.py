"""Steps that were counted once are not counted again, and are never another plan's."""

import numpy as np
import pytest

from omr_io.cache import Cache
from omr_io.errors import IntegrityError
from omr_io.loader.step_counts import StepCounts
from omr_io.packing import epoch as epoch_module
from omr_io.packing.plan import Window


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of caches; everything is worth a file."""
    monkeypatch.setenv("OMR_IO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(epoch_module, "_LONG_SECONDS", 0.0)
    return tmp_path / "steps"


@pytest.fixture
def binned(monkeypatch):
    """The windows that were binned to be counted."""
    counted = []
    num_steps = Window.num_steps
    monkeypatch.setattr(
        Window, "num_steps", lambda self: counted.append(self.place) or num_steps(self)
    )
    return counted


def test_the_next_start_counts_nothing(make_loader, folder, binned):
    steps = make_loader(window=9).num_steps(3)
    assert len(binned) == 3 * 5
    assert len(list(folder.iterdir())) == 3
    binned.clear()
    loader = make_loader(window=9)
    assert loader.num_steps(3) == steps
    assert len(loader) == loader.plan.num_steps
    assert binned == []
    assert len(list(loader)) == len(loader) == make_loader(window=9, cache=False).plan.num_steps


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"seq_len": 170}, {"packs_per_step": 2}, {"window": 10},
        {"samples": [1, 2, 3, 20, 30]}, {"too_long": "drop"}, {"truncate": "completion"},
    ],
    ids=str,
)  # fmt: skip
def test_another_plan_is_counted_anew(make_loader, folder, binned, change):
    make_loader(window=9).num_steps(1)
    binned.clear()
    options = {"window": 9} | change
    found = make_loader(**options).num_steps(1)
    # What cuts nothing here leaves the lengths, and so the plan, as they were.
    assert bool(binned) == ("truncate" not in change)
    assert found == make_loader(**options, cache=False).num_steps(1)


def test_other_ranks_and_batches_share_the_counts(make_loader, folder, binned):
    make_loader(window=9).num_steps(1)
    binned.clear()
    loader = make_loader(window=9, rank=1, world_size=2, packs_per_batch=1, prefetch=7)
    assert len(loader) == 2 * loader.num_steps(1)
    assert binned == []


def test_what_takes_no_time_is_not_kept(make_loader, folder, monkeypatch):
    monkeypatch.setattr(epoch_module, "_LONG_SECONDS", 60.0)
    make_loader(window=9).num_steps(1)
    assert not folder.exists()


def test_without_a_cache_nothing_is_kept(make_loader, folder, monkeypatch):
    make_loader(window=9, cache=False).num_steps(1)
    assert not folder.exists()
    monkeypatch.setenv("OMR_IO_CACHE_DIR", "")
    assert make_loader(window=9).num_steps(1) > 0
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "negative", "of another number of windows"])
def test_what_is_not_sound_is_counted_anew(make_loader, folder, binned, damage):
    steps = make_loader(window=9).num_steps(1)
    [file] = folder.iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "flipped":
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(data)
    else:
        counts = np.full(5 if damage == "negative" else 4, -1 if damage == "negative" else 2)
        Cache.of("steps").store(file.name, counts.astype("<i8").tobytes())
    binned.clear()
    assert make_loader(window=9).num_steps(1) == steps
    assert len(binned) == 5
    binned.clear()
    assert make_loader(window=9).num_steps(1) == steps  # and it is whole again
    assert binned == []


def test_counts_of_another_plan_stop_the_run(make_loader, folder):
    """It cannot be, but a wrong length would go unnoticed."""
    make_loader(window=9).num_steps(1)
    [file] = folder.iterdir()
    Cache.of("steps").store(file.name, np.full(5, 99).astype("<i8").tobytes())
    loader = make_loader(window=9)
    assert loader.num_steps(1) == 5 * 99
    with pytest.raises(IntegrityError, match=r"99 were kept of an earlier run.*folder steps"):
        list(loader)


def test_they_are_kept_under_all_that_is_named(tmp_path):
    cache, counts = Cache(tmp_path), np.array([3, 0, 2])
    StepCounts(cache, {"seed": 1}, 0).store(counts)
    assert StepCounts(cache, {"seed": 1}, 0).load(3).tolist() == [3, 0, 2]
    assert StepCounts(cache, {"seed": 2}, 0).load(3) is None
    assert StepCounts(cache, {"seed": 1}, 1).load(3) is None
