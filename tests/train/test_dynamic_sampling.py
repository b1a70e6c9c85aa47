"""Which groups a step learns from: the same for any number of ranks, and exact after a resume."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ResumeError
from omr_io.train.dynamic_sampling import (
    Drawn,
    Group,
    PromptOrder,
    Round,
    deal,
    draw_groups,
    in_step,
    minibatches,
)
from omr_io.train.ranks import Ranks
from omr_io.train.rewards import Reward
from omr_io.train.rollout import Completion
from tests.train.thread_ranks import on_ranks

SAMPLES = np.arange(100, 130, dtype=np.int64)
COMPLETION = Completion(np.array([7], np.int32), np.array([-0.5], np.float32), True)


def rewards(kind: int) -> tuple[Reward, ...]:
    """0: all wrong, 1: all right, 2: mixed, 3: all wrong but of differing form."""
    accuracies = {0: (0, 0), 1: (1, 1), 2: (0, 1), 3: (0, 0)}[kind]
    forms = (0, 1) if kind == 3 else (1, 1)
    return tuple(Reward(a, f, a + 0.5 * f) for a, f in zip(accuracies, forms, strict=True))


def drawing(
    order: PromptOrder,
    kinds: list[int],
    ranks: Any,
    calls: list[Round] | None = None,
    **options: Any,
) -> Drawn:
    """Groups whose kind depends on their place alone."""

    def roll_out(draw: Round) -> list[Group]:
        if calls is not None:
            calls.append(draw)
        places = [draw.first + i for i in draw.mine]
        return [
            Group(p, order.number(p), (COMPLETION,) * 2, rewards(kinds[p % len(kinds)]))
            for p in places
        ]

    settings = {"wanted": 4, "only_mixed": True, "max_draws": 3} | options
    return draw_groups(order, roll_out, ranks=ranks, **settings)


def places(groups: Any) -> list[int]:
    return [group.place for group in groups]


def test_groups_are_dropped_by_accuracy_not_by_reward() -> None:
    """All wrong in differing form has a spread of rewards, and teaches nothing about answers."""
    order = PromptOrder(SAMPLES, 0)
    drawn = drawing(order, [3, 2, 0, 2, 1, 2, 2, 3], Ranks())
    assert places(drawn.groups) == [1, 3, 5, 6]
    assert all(group.is_mixed for group in drawn.groups)
    assert places(drawn.tried) == list(range(8))
    assert order.used == 7


def test_without_dynamic_sampling_one_round_is_all_that_is_drawn() -> None:
    order, calls = PromptOrder(SAMPLES, 0), []
    drawn = drawing(order, [3, 0, 1, 2], Ranks(), calls, only_mixed=False)
    assert places(drawn.groups) == places(drawn.tried) == [0, 1, 2, 3]
    assert calls == [Round(0, 0, 4, (0, 1, 2, 3))]
    assert order.used == 4
    drawing(order, [2], Ranks(), calls, only_mixed=False)
    assert calls[1:] == [Round(0, 4, 4, (0, 1, 2, 3))]


def test_the_order_is_that_of_the_recipes_seed() -> None:
    order = PromptOrder(SAMPLES, 5)
    lap = [order.number(place) for place in range(30)]
    assert sorted(lap) == SAMPLES.tolist()
    assert lap == np.random.default_rng([5, 1]).permutation(SAMPLES).tolist()
    assert [order.number(place) for place in range(30, 60)] == lap
    assert lap != [PromptOrder(SAMPLES, 6).number(place) for place in range(30)]


def test_draws_end_and_the_step_goes_on_with_what_there_is() -> None:
    order, calls = PromptOrder(SAMPLES, 0), []
    drawn = drawing(order, [0] * 9 + [2] + [1] * 9, Ranks(), calls)
    assert places(drawn.groups) == [9]
    assert (len(drawn.tried), drawn.wanted) == (12, 4)
    assert order.used == 12
    assert [draw.count for draw in calls] == [4, 4, 4]
    nothing = drawing(order, [0], Ranks())
    assert nothing.groups == ()
    assert (len(nothing.tried), order.used) == (12, 24)


def test_a_later_round_draws_what_should_be_needed() -> None:
    order, calls = PromptOrder(SAMPLES, 0), []
    # 3 of 4 are of use, so the missing one needs ceil(1 x 4 / 3) = 2; the second of these is left.
    drawn = drawing(order, [2, 2, 2, 0, 2, 2], Ranks(), calls)
    assert [(draw.number, draw.first, draw.count) for draw in calls] == [(0, 0, 4), (1, 4, 2)]
    assert places(drawn.groups) == [0, 1, 2, 4]
    assert order.used == 5  # prompt 5 was rolled out in vain: it comes again


def test_groups_of_a_failed_image_are_not_learned_from() -> None:
    order = PromptOrder(SAMPLES, 0)

    def roll_out(draw: Round) -> list[Group]:
        failures = {1: "image-truncated"}
        return [
            Group(p, p, (COMPLETION,) * 2, rewards(2), failures.get(p))
            for p in (draw.first + i for i in draw.mine)
        ]

    for only_mixed, expected in ((False, [0, 2, 3]), (True, [4, 5, 6, 7])):
        drawn = draw_groups(
            order, roll_out, wanted=4, only_mixed=only_mixed, max_draws=3, ranks=Ranks()
        )
        assert places(drawn.groups) == expected


@given(
    kinds=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    wanted=st.integers(1, 7),
    max_draws=st.integers(1, 4),
    world_size=st.sampled_from([2, 3, 4]),
    updates=st.integers(1, 3),
    only_mixed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_number_of_ranks_learns_from_the_same_groups(
    kinds: list[int],
    wanted: int,
    max_draws: int,
    world_size: int,
    updates: int,
    only_mixed: bool,
) -> None:
    options = {"wanted": wanted, "max_draws": max_draws, "only_mixed": only_mixed}

    def two_steps(ranks: Any) -> list[tuple[list[int], list[int], list[list[int]], int]]:
        order, steps = PromptOrder(SAMPLES, 0), []
        for _ in range(2):
            drawn = drawing(order, kinds, ranks, **options)
            shares = [
                places(deal(part, drawn.made_by, ranks))
                for part in minibatches(drawn.groups, updates)
            ]
            steps.append((places(drawn.groups), places(drawn.tried), shares, order.used))
        return steps

    alone = two_steps(Ranks())
    everyone = on_ranks(world_size, two_steps)
    for step, (groups, tried, parts, used) in enumerate(alone):
        for mine in everyone:
            assert (mine[step][0], mine[step][1], mine[step][3]) == (groups, tried, used)
        assert [place for part in parts for place in part] == groups
        for number, part in enumerate(parts):
            shares = [mine[step][2][number] for mine in everyone]
            assert sorted(place for share in shares for place in share) == part
            assert all(share == sorted(share) for share in shares)
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= (len(part) % world_size > 0)
        # Nothing is drawn in vain, and no more than was allowed.
        assert len(groups) <= wanted
        assert len(tried) <= (max_draws if only_mixed else 1) * wanted
        if only_mixed:
            assert all(kinds[place % len(kinds)] == 2 for place in groups)
            assert len(groups) == wanted or len(tried) == max_draws * wanted


def dealt(costs: list[int], makers: list[int], world_size: int) -> list[list[int]]:
    groups = [Group(p, p, (COMPLETION,), rewards(2)[:1], cost=cost) for p, cost in enumerate(costs)]
    made_by = dict(enumerate(makers))
    return [places(deal(groups, made_by, Ranks(r, world_size))) for r in range(world_size)]


def test_a_rank_keeps_what_it_made() -> None:
    """Only a surplus moves: its prompts must be read again elsewhere."""
    assert dealt([1] * 6, [0, 0, 0, 1, 2, 2], 3) == [[1, 2], [0, 3], [4, 5]]
    assert dealt([1] * 4, [0, 0, 0, 1], 3) == [[1, 2], [3], [0]]
    assert dealt([7, 8, 7, 8], [1, 0, 0, 1], 2) == [[1, 2], [0, 3]]
    assert dealt([1000, 994], [1, 0], 2) == [[1], [0]]


def test_shares_are_even_by_cost_not_by_count() -> None:
    """One group of long completions against many of short ones."""
    assert dealt([90, 30, 30, 30], [0, 1, 0, 1], 2) == [[0], [1, 2, 3]]
    assert dealt([50, 50, 80, 20], [0, 1, 0, 1], 2) == [[2, 3], [0, 1]]  # an exchange alone helps
    assert dealt([5, 5], [0, 0], 4) == [[1], [0], [], []]


@given(
    data=st.data(),
    costs=st.lists(st.integers(1, 5000), max_size=14),
    world_size=st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_no_gift_and_no_exchange_would_even_the_shares_further(
    data: st.DataObject, costs: list[int], world_size: int
) -> None:
    rank = st.integers(0, world_size - 1)
    makers = data.draw(st.lists(rank, min_size=len(costs), max_size=len(costs)))
    shares = dealt(costs, makers, world_size)
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    loads = [sum(costs[place] for place in share) for share in shares]
    before = [
        sum(c for c, m in zip(costs, makers, strict=True) if m == r) for r in range(world_size)
    ]
    assert max(loads) <= max(before)
    dearest = loads.index(max(loads))
    for other in range(world_size):
        for gift in shares[dearest]:
            for back in [0, *(costs[place] for place in shares[other])]:
                moved = costs[gift] - back
                then = max(loads[dearest] - moved, loads[other] + moved)
                assert other == dearest or max(loads) - then <= sum(costs) / (100 * world_size)


def test_a_resumed_run_draws_what_the_whole_one_would_have() -> None:
    kinds = [2, 0, 1, 2, 3, 2, 2]
    whole = PromptOrder(SAMPLES, 0)
    expected = [places(drawing(whole, kinds, Ranks()).tried) for _ in range(6)]
    order, found = PromptOrder(SAMPLES, 0), []
    for _ in range(6):
        found.append(places(drawing(order, kinds, Ranks()).tried))
        saved = json.loads(json.dumps(order.state_dict()))
        order = PromptOrder(SAMPLES, 0)
        order.load_state_dict(saved)
    assert found == expected
    assert len({tuple(step) for step in found}) == 6


@pytest.mark.parametrize(
    "state",
    [{}, {"used": -1, "samples": 30}, {"used": 3, "samples": 29}, {"used": 1.0, "samples": 30}],
)
def test_a_state_that_is_not_this_runs_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ResumeError, match="30 prompts"):
        PromptOrder(SAMPLES, 0).load_state_dict(state)


@given(st.integers(0, 20), st.integers(1, 6))
def test_updates_share_the_groups_evenly(count: int, updates: int) -> None:
    parts = [list(part) for part in minibatches(range(count), updates)]
    assert [i for part in parts for i in part] == list(range(count))
    assert len(parts) == min(count, updates)
    assert all(parts)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_go_through_as_many_batches() -> None:
    def work(ranks: Any) -> list[tuple[str, bool]]:
        own = [f"rank {ranks.rank} batch {i}" for i in range((3, 0, 1)[ranks.rank])]
        return list(in_step(iter(own), lambda: "idle", ranks))

    done = on_ranks(3, work)
    assert [len(batches) for batches in done] == [3, 3, 3]
    assert [sum(counts for _, counts in batches) for batches in done] == [3, 0, 1]
    assert done[1] == [("idle", False)] * 3
    assert done[2][0] == ("rank 2 batch 0", True)
