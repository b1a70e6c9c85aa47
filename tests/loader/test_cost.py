"""Which rank takes which packs of a step, by the costs of the model that is trained."""

import json

import pytest

from omr_io.errors import ConfigError, ResumeError
from omr_io.packing import CostModel, EpochPlan
from tests.loader.loaders import by_step

IMAGES_ALONE = CostModel(text_linear=0, text_quadratic=0, vision_linear=1, vision_quadratic=0)


def loaders(make_loader, **options):
    return [make_loader(rank=rank, world_size=2, **options) for rank in range(2)]


def dealt(loader):
    """(steps) what the rank takes of each."""
    return [sorted(pack for pack in batch.keys if pack) for batch in loader]


def test_packs_are_dealt_by_the_given_costs(make_loader):
    """As `omr-io plan` says; what is in a step stays."""
    usual, other = loaders(make_loader), loaders(make_loader, cost=IMAGES_ALONE)
    assert by_step(other) == by_step(usual)
    for loader in (*usual, *other):
        loader.set_epoch(0)
    assert dealt(usual[0]) != dealt(other[0])
    plan = EpochPlan(
        other[0].lengths, epoch=0, seed=0, seq_len=160, packs_per_step=4, cost=IMAGES_ALONE
    ).window(0)
    loader = make_loader(cost=IMAGES_ALONE)
    for rank, one in enumerate(other):
        one.set_epoch(0)
        expected = [
            sorted(
                tuple(loader._shards.key(i) for i in plan.pack(pack))
                for pack in plan.rank_packs(step, rank, 2)
                if plan.pack(pack)
            )
            for step in range(plan.num_steps)
        ]
        assert dealt(one) == expected


def test_ranks_must_have_one_cost(make_loader):
    usual, other = loaders(make_loader), loaders(make_loader, cost=IMAGES_ALONE)
    other[0].check_ranks([one.state_dict() for one in other])
    with pytest.raises(ConfigError, match="cost"):
        usual[0].check_ranks([usual[0].state_dict(), other[1].state_dict()])
    default = make_loader(rank=0, world_size=2, cost=CostModel())
    assert default.state_dict() == usual[0].state_dict()


def test_another_cost_goes_on_at_the_start_of_a_step(make_loader):
    usual = make_loader(packs_per_batch=2)
    stream = iter(usual)
    next(stream)
    inside = json.loads(json.dumps(usual.state_dict()))
    with pytest.raises(ResumeError, match=r"inside an optimiser step.*cost"):
        make_loader(packs_per_batch=2, cost=IMAGES_ALONE).load_state_dict(inside)
    next(stream)
    resumed = make_loader(packs_per_batch=2, cost=IMAGES_ALONE)
    resumed.load_state_dict(usual.state_dict())
    assert by_step([resumed_of(resumed)]) == by_step([resumed_of(usual)])


def resumed_of(loader):
    """The rest of the epoch, with the length that `by_step` asks for."""
    return list(loader)


def test_a_cost_of_another_type_says_what_to_give(make_loader):
    with pytest.raises(ConfigError, match=r"cost is a str.*CostModel\.from_config"):
        make_loader(cost="Qwen3-VL-2B-Instruct/")
