"""What an epoch draws: exact counts, without replacement, a pure function of whole numbers."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.blend.drawing import DRAWING_FORMAT, Drawing, Stratum
from omr_io.blend.letters import letter_groups, steps_of_share
from omr_io.blend.sources import as_fraction, shares
from omr_io.errors import ConfigError, DataError
from omr_io.random_words import RandomWords

SEEDS = st.integers(-(2**40), 2**70)
DRAWS = [
    [3, 11, 6, 12],
    [1, 10, 2, 11, 5],
    [4, 10, 8, 12],
]
FINGERPRINT = "bf50a1d324711abc"
REPEATS = st.builds(Fraction, st.integers(1, 40), st.integers(1, 12))
SIZES = st.integers(1, 60)


def one(size: int, step: Fraction, first: int = 0) -> Drawing:
    return Drawing([Stratum(0, "", np.arange(first, first + size), step)], ["a"], first + size)


def drawn(drawing: Drawing, epoch: int, seed: int) -> Counter[int]:
    """The counts of an epoch; without samples none."""
    return Counter(drawing.draw(epoch, seed).tolist()) if drawing.size(epoch) else Counter()


@given(SIZES, REPEATS, SEEDS, st.integers(0, 30))
def test_over_a_round_of_epochs_every_sample_comes_exactly_as_often(size, repeat, seed, start):
    drawing = one(size, repeat * size)
    total: Counter[int] = Counter()
    for epoch in range(start, start + repeat.denominator):
        total += drawn(drawing, epoch, seed)
    assert total == dict.fromkeys(range(size), repeat.numerator)


@given(SIZES, REPEATS, SEEDS)
def test_counts_never_differ_by_more_than_one(size, repeat, seed):
    drawing = one(size, repeat * size)
    total: Counter[int] = Counter()
    for epoch in range(8):
        epoch_counts = drawn(drawing, epoch, seed)
        assert epoch_counts.total() == drawing.size(epoch)
        total += epoch_counts
        for counts in (epoch_counts, total):
            times = [counts[number] for number in range(size)]
            assert max(times) - min(times) <= 1
        assert abs(total.total() - repeat * size * (epoch + 1)) < 1


@given(SIZES, REPEATS, SEEDS, st.integers(0, 50))
def test_an_epoch_is_a_window_of_a_seeded_circle(size, repeat, seed, epoch):
    order = RandomWords(f"{DRAWING_FORMAT} seed {seed} source 0 ").order(size).tolist()
    assert sorted(order) == list(range(size))
    begin, end = int(repeat * size * epoch), int(repeat * size * (epoch + 1))
    want = Counter(100 + order[place % size] for place in range(begin, end))
    drawing = one(size, repeat * size, first=100)
    assert drawn(drawing, epoch, seed) == want
    if want:
        numbers = drawing.draw(epoch, seed)
        assert numbers.dtype == np.int64
        laps = np.split(numbers, range(size, len(numbers), size))  # the last may be a part
        assert all((np.diff(lap) > 0).all() for lap in laps)


@given(SEEDS, st.permutations(range(6)))
def test_a_draw_depends_on_nothing_that_was_drawn_before(seed, epochs):
    used, fresh = one(40, Fraction(13)), one(40, Fraction(13))
    want = [fresh.draw(epoch, seed).tolist() for epoch in range(6)]
    for epoch in epochs:
        used.draw(epoch, seed + 1)
        assert used.draw(epoch, seed).tolist() == want[epoch]
    again = pickle.loads(pickle.dumps(used))
    assert [again.draw(epoch, seed).tolist() for epoch in range(6)] == want


def test_the_draw_stays_what_it_is():
    # If this changes, runs that go on from a saved state would see other samples.
    drawing = Drawing(
        [
            Stratum(0, "", np.arange(0, 10), Fraction(5, 2)),
            Stratum(1, "2 options, answer A", np.arange(10, 13), Fraction(2)),
        ],
        ["a", "b"],
        13,
    )
    assert [drawing.draw(epoch, 7).tolist() for epoch in range(3)] == DRAWS
    assert drawing.fingerprint == FINGERPRINT


def test_seeds_epochs_and_sources_differ():
    drawing = one(1000, Fraction(500))
    first = set(drawing.draw(0, 0).tolist())
    assert first.isdisjoint(drawing.draw(1, 0).tolist())
    assert len(first & set(drawing.draw(0, 1).tolist())) < 350
    both = [Stratum(place, "", np.arange(1000), Fraction(500)) for place in range(2)]
    pair = Counter(Drawing(both, ["a", "b"], 1000).draw(0, 0).tolist())
    assert 150 < sum(times == 2 for times in pair.values()) < 350


@pytest.mark.parametrize(
    ("strata", "samples", "whole"),
    [
        ([(0, 5, 5)], 5, True),
        ([(0, 5, 5)], 6, False),
        ([(1, 6, 5)], 6, False),
        ([(0, 5, 10)], 5, False),
        ([(0, 5, 5), (5, 9, 4)], 9, False),  # in an order that mixes them
        ([(0, 5, 5), (0, 5, 5)], 5, False),
    ],
)
def test_everything_in_order_is_known_without_a_draw(strata, samples, whole):
    made = [
        Stratum(place, "", np.arange(begin, end), Fraction(step))
        for place, (begin, end, step) in enumerate(strata)
    ]
    drawing = Drawing(made, ["a", "b"], samples)
    assert drawing.is_everything == whole
    in_order = drawing.draw(3, 9).tolist() == list(range(samples))
    assert in_order == whole


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 120)), min_size=1, max_size=5),
    st.integers(0, 20),
    st.data(),
)
def test_a_run_of_a_draw_holds_of_each_stratum_its_share(sizes, epoch, data):
    strata, first = [], 0
    for place, (size, step) in enumerate(sizes):
        strata.append(Stratum(place, "", np.arange(first, first + size), Fraction(step)))
        first += size
    drawing = Drawing(strata, ["a"] * len(sizes), first)
    numbers = drawing.draw(epoch, 5)
    assert len(numbers) == drawing.size(epoch)
    begin = data.draw(st.integers(0, len(numbers)))
    end = data.draw(st.integers(begin, len(numbers)))
    for stratum in strata:
        mine = np.isin(numbers[begin:end], stratum.numbers).sum()
        share = Fraction(stratum.size(epoch) * (end - begin), len(numbers))
        assert abs(int(mine) - share) <= len(sizes)
        places = np.flatnonzero(numbers == stratum.numbers[0])
        if stratum.step > 2 * len(stratum.numbers):  # whole laps lie between two of its copies
            gap = Fraction(len(numbers) * len(stratum.numbers), stratum.size(epoch))
            assert (np.diff(places)[:-1] >= gap - len(sizes)).all()


def test_the_fingerprint_is_of_all_that_decides_a_draw():
    base = {"source": 0, "name": "", "numbers": np.arange(6), "step": Fraction(3)}
    changes = [{}, {"source": 1}, {"name": "x"}, {"numbers": np.arange(1, 7)}, {"step": 4}]
    made = [Drawing([Stratum(**(base | change))], ["a", "b"], 9).fingerprint for change in changes]
    assert len(set(made)) == len(changes)
    assert Drawing([Stratum(**base)], ["another name"], 9).fingerprint == made[0]


def test_epochs_without_a_sample_are_refused():
    with pytest.raises(DataError, match="no epoch"):
        one(3, Fraction(0))
    drawing = one(3, Fraction(1, 2))
    assert [drawing.size(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"epoch 2 of the blend holds no sample\. Raise"):
        drawing.draw(2, 0)
    with pytest.raises(ConfigError, match="epoch -1"):
        drawing.draw(-1, 0)


@given(st.lists(st.fractions(Fraction(1, 50), 50), min_size=1, max_size=8), st.integers(0, 1000))
def test_shares_add_up_and_are_rounded_to_a_neighbour(weights, total):
    counts = shares(weights, total)
    assert sum(counts) == total
    for weight, count in zip(weights, counts, strict=True):
        assert abs(weight * total / sum(weights) - count) < 1


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        (1, Fraction(1)), (2.5, Fraction(5, 2)), (0.1, Fraction(1, 10)), (1 / 3, Fraction(1, 3)),
        (2 / 7, Fraction(2, 7)), (Fraction(1, 10**9), Fraction(1, 10**9)),
        (1e-6, Fraction(1, 10**6)), (10**9, Fraction(10**9)),
    ],
)  # fmt: skip
def test_a_float_is_the_fraction_that_was_meant(value, fraction):
    assert as_fraction("repeat", value) == fraction


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), True, "2", None, 1e-9, Fraction(0)]
)
def test_what_is_no_repeat(value):
    with pytest.raises(ConfigError, match="repeat"):
        as_fraction("repeat", value)


# Letters


@st.composite
def questions(draw):
    """(num_options, answers) in which no letter is missing; some are open-ended."""
    rows = []
    for count in draw(st.sets(st.integers(1, 6), min_size=1, max_size=3)):
        for letter in "ABCDEF"[:count]:
            rows += [(count, letter)] * draw(st.integers(1, 9))
    rows += [(0, "")] * draw(st.integers(0, 5))
    rows = draw(st.permutations(rows))
    return np.array([r[0] for r in rows], np.int32), np.array([r[1] for r in rows])


def by_letter(numbers, options, answers) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = {}
    for number in numbers:
        counts.setdefault(int(options[number]), Counter())[str(answers[number])] += 1
    return counts


@given(questions(), REPEATS, st.sampled_from(["upsample", "subsample"]), SEEDS)
def test_letters_come_equally_often_in_every_epoch(rows, repeat, how, seed):
    options, answers = rows
    strata = [
        Stratum(0, name, numbers, repeat * group.target(how))
        for group in letter_groups(options, answers, "a")
        for name, numbers in zip(group.names(), group.numbers, strict=True)
    ]
    drawing = Drawing(strata, ["a"], len(options))
    have = by_letter(range(len(options)), options, answers)
    total: Counter[int] = Counter()
    for epoch in range(repeat.denominator):
        numbers = drawn(drawing, epoch, seed)
        total += numbers
        for count, letters in by_letter(numbers.elements(), options, answers).items():
            assert len(letters) == max(count, 1)
            assert len(set(letters.values())) == 1
    for count, letters in by_letter(total.elements(), options, answers).items():
        sizes = have[count].values()
        target = max(sizes) if how == "upsample" else min(sizes)
        assert set(letters.values()) == {repeat.numerator * target}
        for letter, size in have[count].items():
            times = [
                total[n] for n in range(len(options)) if (options[n], answers[n]) == (count, letter)
            ]
            assert len(times) == size
            assert max(times) - min(times) <= 1


@given(questions(), st.integers(1, 500), st.sampled_from(["upsample", "subsample"]))
def test_balanced_letters_fill_a_share_as_far_as_they_can(rows, total, how):
    options, answers = rows
    groups = letter_groups(options, answers, "a")
    steps = steps_of_share(groups, how, total)
    widths = [len(group.numbers) for group in groups]
    assert sum(step * width for step, width in zip(steps, widths, strict=True)) == total
    strata = [
        Stratum(0, name, numbers, step)
        for group, step in zip(groups, steps, strict=True)
        for name, numbers in zip(group.names(), group.numbers, strict=True)
    ]
    drawing = Drawing(strata, ["a"], len(options))
    for epoch in range(4):
        assert abs(drawing.size(epoch) - total) < sum(widths)
    whole = [drawing.size(epoch) for epoch in range(12)]
    assert abs(sum(whole) - 12 * total) < sum(widths)


def test_letters_that_cannot_be_balanced():
    options = np.array([4, 4, 4, 4, 2, 2], np.int32)
    with pytest.raises(DataError, match=r"source x: none of 4 questions with 4 options has answer "
                       r"B or D, .*num_options != 4"):  # fmt: skip
        letter_groups(options, np.array(["A", "A", "C", "A", "A", "B"]), "x")
    with pytest.raises(DataError, match=r"1 questions with 2 options .* such as 'C'"):
        letter_groups(options, np.array(["A", "B", "C", "D", "A", "C"]), "x")
