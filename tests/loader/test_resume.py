"""A run that stops and goes on sees what an uninterrupted one sees, bit for bit."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ResumeError
from tests.loader.loaders import assert_equal, by_step, endless, epochs, rows

SMALL = {"packs_per_step": 2, "window": 9}  # some 14 steps of 5 windows an epoch


def check_resumes(make_loader, steps, threads, *, every=1, more=2):
    """Stop after each of the first `steps` batches, and read on from there."""
    options = SMALL | {"num_threads": threads, "prefetch": 2}
    whole = list(itertools.islice(endless(make_loader(**options)), steps + more))
    running, resumed = make_loader(**SMALL), make_loader(**options)
    stream = endless(running)
    for count in range(steps):
        if count % every == 0:
            state = json.loads(json.dumps(running.state_dict()))
            assert len(json.dumps(state)) < 1024
            resumed.load_state_dict(state)
            rest = itertools.islice(endless(resumed), more)
            for expected, found in zip(whole[count:], rest, strict=False):
                assert_equal(found, expected)
        assert_equal(next(stream), whole[count])
    resumed.close()
    return whole


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 8])
def test_at_every_one_of_forty_steps(make_loader, threads):
    whole = check_resumes(make_loader, 40, threads)
    assert {batch.epoch for batch in whole} >= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("threads", range(9))
def test_at_every_one_of_five_hundred_steps(make_loader, threads):
    check_resumes(make_loader, 500, threads)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_plan_stopped_anywhere(make_loader, data):
    options = {
        "seed": data.draw(st.integers(0, 2**40)),
        "packs_per_step": data.draw(st.sampled_from([2, 4, 6])),
        "window": data.draw(st.none() | st.integers(3, 40)),
        "packs_per_batch": data.draw(st.sampled_from([1, 2])),
        "num_threads": data.draw(st.integers(0, 4)),
        "prefetch": data.draw(st.integers(0, 3)),
        "prefetch_bytes": data.draw(st.sampled_from([0, 10**5, 10**9])),
    }
    first = make_loader(**options)
    stop = data.draw(st.integers(0, 2 * len(first)))
    whole = list(itertools.islice(endless(make_loader(**options | {"num_threads": 0})), stop + 3))
    stream = endless(first)
    for expected in whole[:stop]:
        assert_equal(next(stream), expected)
    state = first.state_dict()
    first.close()
    resumed = make_loader(**options | {"num_threads": data.draw(st.integers(0, 4))})
    resumed.load_state_dict(state)
    stream = endless(resumed)
    for expected in whole[stop:]:
        assert_equal(next(stream), expected)
    resumed.close()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**40), st.none() | st.integers(3, 40), st.integers(0, 2))
def test_every_sample_comes_once_an_epoch_and_ranks_make_equal_steps(
    make_loader, seed, window, epoch
):
    """37 samples in 4 shards over 1, 4 and 8 ranks; some packs are text alone or empty."""
    found = []
    for world_size in (1, 4, 8):
        loaders = [
            make_loader(seed=seed, window=window, packs_per_step=8, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        for loader in loaders:
            loader.set_epoch(epoch)
        found.append(by_step(loaders))
    assert all(one == found[0] for one in found)
    keys = [key for packs in found[0].values() for pack in packs for key in pack]
    assert sorted(keys) == sorted(f"study-{i}" for i in range(37))


def test_seven_shards_on_four_ranks(make_loader, write_shards, make_records):
    folder = write_shards(make_records(37), samples_per_shard=6)
    loaders = [
        make_loader(shards=folder, rank=rank, world_size=4, num_threads=2) for rank in range(4)
    ]
    assert len(loaders[0]._shards.shard_names) == 7
    steps = by_step(loaders)
    keys = [key for packs in steps.values() for pack in packs for key in pack]
    assert sorted(keys) == sorted(f"study-{i}" for i in range(37))
    for loader in loaders:
        loader.close()


def test_a_rank_with_nothing_left_makes_its_steps(make_loader):
    """One pack in a step of four: three ranks get empty packs, with a dummy image."""
    batches = [
        list(make_loader(samples=np.array([1]), rank=rank, world_size=4)) for rank in range(4)
    ]
    assert [len(mine) for mine in batches] == [1] * 4
    assert sorted(mine[0].num_samples for mine in batches) == [0, 0, 0, 1]
    empty = next(mine[0] for mine in batches if not mine[0].num_samples)
    assert empty.has_dummy_image
    assert (empty.num_tokens, empty.num_label_tokens) == (0, 0)
    assert {mine[0].step_label_tokens for mine in batches} == {
        max(mine[0].num_label_tokens for mine in batches)
    }


@pytest.mark.parametrize("new", [1, 2, 4, 16])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_checkpoint_of_eight_ranks_goes_on_on_others(make_loader, new, threads):
    options = {"packs_per_step": 16, "window": 20, "num_threads": threads}
    loaders = [make_loader(rank=rank, world_size=8, **options) for rank in range(8)]
    for loader in loaders:
        next(iter(loader))
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    assert states[0]["step"] == 1 or states[0]["window"] == 1
    resumed = [make_loader(rank=rank, world_size=new, **options) for rank in range(new)]
    rest = {}
    for loader in resumed:
        loader.load_state_dict(states[0])
        for batch in epochs(loader, 2):
            rest.setdefault((batch.epoch, batch.step), []).append(batch)
    alone = make_loader(**options)
    expected = {}
    for batch in itertools.islice(epochs(alone, 2), 1, None):
        expected.setdefault((batch.epoch, batch.step), []).append(batch)
    assert len(rest) > 2
    assert {place: rows(batches) for place, batches in rest.items()} == {
        place: rows(batches) for place, batches in expected.items()
    }
    for loader in [*loaders, *resumed, alone]:
        loader.close()


def test_a_state_of_format_1_is_refused_by_name(make_loader):
    loader = make_loader()
    old = {"format": 1, "epoch": 0, "step": 3, "micro_step": 0, "layout": {}, "fingerprint": {}}
    with pytest.raises(ResumeError, match=r"format 1 .*without windows.*reads 2"):
        loader.load_state_dict(old)
    assert loader.state_dict()["step"] == 0


def test_a_state_says_where_it_stands(make_loader):
    loader = make_loader(**SMALL)
    windows = loader.plan.num_windows
    for batch in loader:
        state = loader.state_dict()
        if state["epoch"] == 0:
            assert state["steps_before"] + state["step"] == batch.step + 1
            expected = sum(loader.plan.window(w).num_steps for w in range(state["window"]))
            assert state["steps_before"] == expected
            assert state["window"] < windows
    assert loader.state_dict()["epoch"] == 1
    for change in ({"steps_before": 3}, {"window": windows}, {"window": -1}):
        with pytest.raises(ResumeError):
            loader.load_state_dict(loader.state_dict() | change)
