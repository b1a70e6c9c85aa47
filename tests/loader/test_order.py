"""The order: windows, epochs of other samples, what is too long, and planning ahead."""

import dataclasses
import itertools
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import DataError, ResumeError, SampleTooLongError
from omr_io.loader.options import Layout
from omr_io.loader.order import Order
from omr_io.loader.state import Position
from omr_io.packing import Lengths


def lengths(tokens) -> Lengths:
    tokens = np.asarray(tokens, np.int64)
    zeros = np.zeros(len(tokens), np.int64)
    return Lengths(tokens, zeros, tokens // 2, zeros)


def order(tokens=None, samples_of=lambda epoch: None, **options) -> Order:
    tokens = np.random.default_rng(0).integers(5, 60, 100) if tokens is None else tokens
    base = {
        "seed": 3, "seq_len": 64, "packs_per_step": 4, "window": 20, "too_long": "error",
        "keys": [f"key {i}" for i in range(len(tokens))],
    }  # fmt: skip
    return Order(lengths(tokens), samples_of, **(base | options))


ALONE = Layout(0, 1, 4, 4)


def test_positions_lead_from_one_to_the_next_through_windows_and_epochs():
    made = order()
    found = []
    for epoch in range(2):
        places = list(made.places(Position(epoch), ALONE, ahead=False))
        assert places[0].position == Position(epoch)
        for one, other in itertools.pairwise(places):
            assert one.after == other.position
        assert places[-1].after == Position(epoch + 1)
        assert [place.position.epoch_step for place in places] == list(range(len(places)))
        assert len(places) == made.epoch(epoch).num_steps
        assert {place.position.window for place in places} == set(range(5))
        numbers = [number for place in places for pack in place.packs for number in pack]
        assert sorted(numbers) == list(range(100))
        found.append(numbers)
    assert found[0] != found[1]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_position_leads_to_the_same_rest(data):
    window = data.draw(st.none() | st.integers(1, 40))
    layout = data.draw(st.sampled_from([ALONE, Layout(1, 2, 4, 1), Layout(0, 2, 4, 2)]))
    whole = list(order(window=window).places(Position(1), layout, ahead=False))
    start = data.draw(st.integers(0, len(whole) - 1))
    fresh = order(window=window)
    fresh.check(whole[start].position, layout.micro_steps)
    rest = list(fresh.places(whole[start].position, layout, ahead=data.draw(st.booleans())))
    assert rest == whole[start:]


def test_resuming_plans_one_window(monkeypatch):
    whole = list(order().places(Position(), ALONE, ahead=False))
    planned = []
    fresh = order()
    epoch = fresh.epoch(0)
    plan = type(epoch)._plan
    monkeypatch.setattr(type(epoch), "_plan", lambda self, n: (planned.append(n), plan(self, n))[1])
    place = whole[-3].position
    assert place.window >= 3
    fresh.check(place, 1)
    assert next(fresh.places(place, ALONE, ahead=False)) == whole[-3]
    assert planned == [place.window]


def test_the_next_window_and_epoch_are_planned_ahead(monkeypatch):
    made = order(window=50)
    here, elsewhere = threading.get_ident(), []
    epoch = made.epoch(0)
    plan = type(epoch)._plan
    monkeypatch.setattr(
        type(epoch),
        "_plan",
        lambda self, n: (elsewhere.append((self.epoch, n, threading.get_ident() != here)),
                         plan(self, n))[1],
    )  # fmt: skip
    for _ in made.places(Position(), ALONE, ahead=True):
        if made._ahead is not None:
            made._ahead.join(200)
    assert elsewhere == [(0, 0, False), (0, 1, True), (1, 0, True)]
    next(made.places(Position(1), ALONE, ahead=False))
    assert len(elsewhere) == 3


def test_an_error_of_a_later_epoch_is_met_where_it_is_read():
    made = order(samples_of=lambda epoch: None if epoch == 0 else np.empty(0, np.int64))
    list(made.places(Position(), ALONE, ahead=True))
    with pytest.raises(DataError, match="no sample to plan"):
        next(made.places(Position(1), ALONE, ahead=True))


def test_an_epoch_has_the_samples_it_is_given_as_often_as_they_come():
    drawn = {0: np.array([3, 3, 3, 7, 9]), 1: None, 2: np.arange(10, 60)}
    made = order(samples_of=drawn.__getitem__, window=4)
    for epoch, expected in drawn.items():
        places = made.places(Position(epoch), ALONE, ahead=False)
        numbers = sorted(n for place in places for pack in place.packs for n in pack)
        assert numbers == sorted(range(100) if expected is None else expected.tolist())


@pytest.mark.parametrize("window", [None, 5])
def test_what_is_too_long_is_named_at_once_or_left_out_of_every_window(window):
    tokens = np.full(40, 30)
    tokens[20:25] = 65  # a whole window of 5
    tokens[33] = 99
    with pytest.raises(SampleTooLongError) as caught:
        order(tokens, window=window)
    assert "6 of 40 samples" in str(caught.value)
    assert "key 20 (65 tokens)" in str(caught.value)
    made = order(tokens, window=window, too_long="drop")
    assert made.dropped(0) == 6
    numbers = [
        n for place in made.places(Position(), ALONE, ahead=False) for p in place.packs for n in p
    ]
    assert sorted(numbers) == [n for n in range(40) if tokens[n] <= 64]
    with pytest.raises(DataError, match="no sample to plan"):
        next(
            order(np.full(9, 70), too_long="drop", window=window).places(
                Position(), ALONE, ahead=False
            )
        )


@pytest.mark.parametrize(
    "change", [{"window": 5}, {"step": 99}, {"micro_step": 1}, {"window": 4, "step": 50}]
)
def test_positions_that_do_not_exist(change):
    with pytest.raises(ResumeError, match="does not exist"):
        order().check(dataclasses.replace(Position(), **change), 1)


def test_a_child_of_a_fork_takes_over_no_lock():
    made = order()
    made._lock.acquire()
    child = os.fork()
    if not child:
        os._exit(len(list(made.places(Position(), ALONE, ahead=False))) == 0)
    assert os.waitpid(child, 0)[1] == 0
    made._lock.release()
