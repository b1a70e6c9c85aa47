"""An epoch by windows: every sample as often as it is wanted, whatever was planned before."""

import hashlib
import itertools
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.packing import EpochPlan, Plan, epoch, plan_epoch
from tests.packing.made import corpus_like, make_lengths, mapped


def plan(lengths, **options) -> EpochPlan:
    return EpochPlan(
        lengths, **({"epoch": 0, "seed": 0, "seq_len": 64, "packs_per_step": 4} | options)
    )


def content(made: Plan) -> tuple:
    """All of a plan, to compare."""
    arrays = (
        made.samples,
        made.pack_offsets,
        made.pack_tokens,
        made.pack_costs,
        made.step_label_tokens,
        made.dropped,
    )
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    return (made.epoch, made.seq_len, made.packs_per_step, *(tuple(a.tolist()) for a in arrays))


epochs = st.fixed_dictionaries(
    {
        "tokens": st.lists(st.integers(1, 70), min_size=1, max_size=120),
        "epoch": st.integers(0, 3),
        "seed": st.integers(-5, 2**70),
        "window": st.none() | st.integers(1, 50),
        "packs_per_step": st.sampled_from([1, 2, 4, 8, 12]),
    }
)


@settings(max_examples=100, deadline=None)
@given(epochs, st.data())
def test_every_sample_comes_as_often_as_it_is_wanted(options, data):
    tokens = options.pop("tokens")
    numbers = st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=100)
    samples = data.draw(st.none() | numbers)
    wanted = list(range(len(tokens))) if samples is None else samples
    fit = sorted(i for i in wanted if tokens[i] <= 64)
    given_ = None if samples is None else np.asarray(samples)
    made = plan(make_lengths(tokens), too_long="drop", samples=given_, **options)
    if not fit:
        with pytest.raises(DataError, match="no sample to plan"):
            _ = made.num_steps
        return
    windows = [made.window(number) for number in range(made.num_windows)]
    assert sorted(i for window in windows for i in window.samples.tolist()) == fit
    dropped = sorted(i for window in windows for i in window.dropped.tolist())
    assert dropped == sorted(i for i in wanted if tokens[i] > 64)
    size = options["window"] or len(wanted)
    assert made.num_windows == -(-len(wanted) // size)
    for window in windows:
        assert len(window.samples) + len(window.dropped) <= size
        packs = [window.pack(number) for number in range(window.num_packs)]
        assert max((sum(tokens[i] for i in pack) for pack in packs), default=0) <= 64
        assert window.num_packs == window.num_steps * options["packs_per_step"]
        empty = [not pack for pack in packs]
        assert sum(empty) < options["packs_per_step"]
        assert empty == sorted(empty)
    assert made.num_steps == sum(window.num_steps for window in windows)


@settings(max_examples=60, deadline=None)
@given(epochs, st.randoms(use_true_random=False))
def test_windows_do_not_hang_on_what_was_planned_before(options, random):
    tokens = [min(length, 64) for length in options.pop("tokens")]
    whole = plan(make_lengths(tokens), **options)
    expected = [content(whole.window(number)) for number in range(whole.num_windows)]
    steps = [sum(len(one[-2]) for one in expected[:n]) for n in range(len(expected) + 1)]
    other = plan(make_lengths(tokens), **options)
    numbers = list(range(whole.num_windows))
    random.shuffle(numbers)
    for number in numbers:
        assert other.steps_before(number) == steps[number]
        assert content(other.window(number)) == expected[number]
    assert other.num_steps == other.steps_before(len(expected)) == steps[-1]
    fresh = plan(make_lengths(tokens), **options)
    assert fresh.count_steps(threads=3) == steps[-1]
    assert content(fresh.window(numbers[0])) == expected[numbers[0]]


@settings(max_examples=60, deadline=None)
@given(epochs)
def test_steps_are_found(options):
    tokens = [min(length, 64) for length in options.pop("tokens")]
    made = plan(make_lengths(tokens), **options)
    places = [
        (number, step)
        for number in range(made.num_windows)
        for step in range(made.window(number).num_steps)
    ]
    found = plan(make_lengths(tokens), **options)
    assert [found.place_of_step(step) for step in range(len(places))] == places
    for step in (-1, len(places)):
        with pytest.raises(IndexError, match=f"step {step} of an epoch of {len(places)}"):
            found.place_of_step(step)


@settings(max_examples=40, deadline=None)
@given(epochs, st.integers(0, 3))
def test_a_mapped_index_gives_the_same_plan(tmp_path_factory, options, kind):
    tokens = [min(length, 64) for length in options.pop("tokens")]
    lengths = make_lengths(tokens, image_tokens=[length // 3 for length in tokens])
    folder = tmp_path_factory.mktemp("mapped")
    other = mapped(lengths, folder, (np.int32, np.int64)[kind % 2])
    samples = None if kind < 2 else np.arange(len(tokens))
    first, second = plan(lengths, **options), plan(other, samples=samples, **options)
    for number in range(first.num_windows):
        assert content(first.window(number)) == content(second.window(number))


def test_one_window_is_plan_epoch():
    lengths = corpus_like(500)
    options = {"epoch": 2, "seed": 3, "seq_len": 4096, "packs_per_step": 4}
    expected = content(plan_epoch(lengths, **options))
    assert content(EpochPlan(lengths, **options).window(0)) == expected
    assert content(EpochPlan(lengths, window=500, **options).window(0)) == expected
    assert content(EpochPlan(lengths, window=499, **options).window(0)) != expected


def test_windows_are_cut_in_the_order_of_samples_given():
    lengths = corpus_like(500)
    numbers = np.random.default_rng(0).integers(0, 500, 700).astype(np.int32)
    made = plan(lengths, seq_len=4096, samples=numbers, window=300)
    windows = [sorted(made.window(n).samples.tolist()) for n in range(3)]
    runs = [numbers[700 * n // 3 : 700 * (n + 1) // 3] for n in range(3)]
    assert sorted(windows) == sorted(sorted(run.tolist()) for run in runs)


def test_the_plan_is_fixed_for_good():
    """A change here breaks the resume of every run in the field: bump the loader's state format."""
    lengths = make_lengths(300 + np.arange(3000) * 7919 % 1999)
    made = EpochPlan(lengths, seq_len=4096, packs_per_step=8, epoch=1, seed=7, window=1000)
    sha = hashlib.sha256()
    for number in range(3):
        window = made.window(number)
        sha.update(window.samples.tobytes() + window.pack_offsets.tobytes())
    assert sha.hexdigest()[:16] == "4076104c06b74f7e"


def test_windows_are_runs_of_samples_in_a_seeded_order():
    orders = set()
    for seed, number in itertools.product(range(6), range(2)):
        made = plan(make_lengths(np.full(1000, 16)), window=100, seed=seed, epoch=number)
        runs = [np.sort(made.window(n).samples) for n in range(10)]
        for run in runs:
            assert run.tolist() == list(range(run[0], run[0] + 100))
        orders.add(tuple(int(run[0]) for run in runs))
        assert made.window(0).samples.tolist() != sorted(made.window(0).samples.tolist())
    assert len(orders) == 12


def test_windows_of_like_sizes():
    made = plan(make_lengths(np.full(1001, 16)), window=100)
    assert {len(made.window(n).samples) for n in range(made.num_windows)} == {91}


def test_seeds_that_look_alike_differ():
    lengths = make_lengths(np.full(64, 16))
    seeds = (0, 1, -1, 2**64, 2**128 + 1, 10, 100)
    made = [content(plan(lengths, seed=s, epoch=e).window(0))[3] for s in seeds for e in (0, 1, 11)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("window", [0, -3])
def test_options_that_cannot_be_right(window):
    with pytest.raises(ConfigError, match="window"):
        plan(make_lengths([3, 4]), window=window)


def test_windows_that_are_none():
    made = plan(make_lengths(np.full(50, 16)), window=10)
    for number in (-1, 5):
        with pytest.raises(IndexError, match=f"window {number} of an epoch of 5"):
            made.window(number)
    with pytest.raises(IndexError):
        made.steps_before(6)


def test_too_long_samples_are_named_before_any_window_is_planned(tmp_path):
    lengths = make_lengths([10, 65, 64, 90, 70, 71, 72, 73] * 3)
    keys = [f"study-{i}" for i in range(24)]
    with pytest.raises(SampleTooLongError) as caught:
        plan(lengths, window=4, keys=keys)
    for words in ("18 of 24 samples", "study-1 (65 tokens)", "and 13 more", "seq_len >= 90"):
        assert words in str(caught.value)
    made = plan(mapped(lengths, tmp_path), window=4, keys=keys)
    with pytest.raises(SampleTooLongError, match="18 of 24 samples"):
        made.check()
    with pytest.raises(SampleTooLongError, match=r"of 4 samples.*study-"):
        made.window(3)
    with pytest.raises(SampleTooLongError, match="of 4 samples"):
        _ = made.num_steps


def test_a_window_whose_samples_are_all_dropped_has_no_steps():
    made = plan(make_lengths([65] * 10 + [20] * 10), window=10, too_long="drop")
    assert sorted(made.window(n).num_steps for n in range(2)) == [0, 1]
    assert made.num_steps == 1
    assert made.place_of_step(0)[1] == 0
    empty = next(w for w in map(made.window, range(2)) if not w.num_steps)
    assert (empty.num_packs, empty.efficiency, len(empty.dropped)) == (0, 0.0, 10)


def test_no_plan_of_a_window_is_made_to_count_steps(monkeypatch):
    made = plan(make_lengths(np.full(1000, 16)), window=100)
    monkeypatch.setattr(epoch.Window, "plan", None)
    assert made.num_steps == 10 * 7  # 25 packs a window, in steps of 4
    calls = []
    monkeypatch.setattr(epoch.Window, "num_steps", lambda window: calls.append(window))
    assert made.num_steps == 70
    assert made.steps_before(3) == 21
    assert calls == []


def test_a_kept_plan_is_given_while_another_is_made(monkeypatch):
    """The loader's threads must not wait while the next window is planned ahead."""
    made = plan(make_lengths(np.full(200, 16)), window=50)
    first = made.window(0)
    begun, go = threading.Event(), threading.Event()
    real = epoch.Window.plan

    def slow(window):
        begun.set()
        assert go.wait(200)
        return real(window)

    monkeypatch.setattr(epoch.Window, "plan", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(made.window(1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(200)
    assert made.window(0) is first
    go.set()
    for thread in threads:
        thread.join(200)
    assert len(found) == 3
    assert len({id(one) for one in found}) == 1  # planned once


def test_a_failure_on_one_thread_is_raised_on_each(monkeypatch):
    made = plan(make_lengths(np.full(200, 16)), window=50)
    begun, go = threading.Event(), threading.Event()
    real, failures = epoch.Window.plan, []

    def failing(window):
        begun.set()
        assert go.wait(200)
        if len(failures) < 2:
            failures.append(window)
            raise MemoryError("no room")
        return real(window)

    monkeypatch.setattr(epoch.Window, "plan", failing)
    raised, found = [], []

    def work():
        try:
            found.append(made.window(1))
        except MemoryError as error:
            raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(200)
    go.set()
    for thread in threads:
        thread.join(200)
    assert (len(raised), len(found)) == (2, 1)
    assert made.window(1) is found[0]


def test_many_threads_get_the_same_windows():
    lengths = corpus_like(3000)
    options = {"seq_len": 4096, "window": 250}
    expected = [content(plan(lengths, **options).window(number)) for number in range(12)]
    made = plan(lengths, **options)
    wrong = []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 12, 40).tolist():
            if content(made.window(number)) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_that_of_a_window(tmp_path):
    """Of 2 million mapped samples (a list of their numbers alone takes 16 MB), 2,000 at a time."""
    path = tmp_path / "ones.bin"
    np.full(2_000_000, 16, np.int32).tofile(path)
    column = np.memmap(path, np.int32, "r")
    lengths = type(corpus_like(1))(*[column] * 4)
    tracemalloc.start()
    try:
        made = plan(lengths, seq_len=8192, window=2000)
        for number in range(5):
            made.window(number)
        made.steps_before(20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_500_000
