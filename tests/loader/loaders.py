"""What tests of the loader share: comparing batches and streams."""

import dataclasses
import itertools

import torch

from omr_io.batches import Batch


def assert_equal(one: Batch, other: Batch) -> None:
    """Every field of two batches, bit for bit."""
    for field in dataclasses.fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), field.name
        else:
            assert left == right, field.name


def assert_streams_equal(one, other) -> None:
    for left, right in itertools.zip_longest(one, other):
        assert left is not None
        assert right is not None
        assert_equal(left, right)


def endless(loader):
    """Batches of epoch after epoch, from where the loader stands."""
    while True:
        yield from loader


def epochs(loader, count: int):
    for _ in range(count):
        yield from loader


def rows(batches):
    """What each pack holds, layout aside: a dict keys of the pack → ids, labels, positions."""
    found = {}
    for batch in batches:
        for row, keys in enumerate(batch.keys):
            found.setdefault(keys, []).append(
                (
                    batch.input_ids[row].tolist(),
                    batch.labels[row].tolist(),
                    batch.position_ids[:, row].tolist(),
                )
            )
    return found


def by_step(loaders):
    """The packs of each (epoch, step) over all ranks, which all make the same steps."""
    steps, made = {}, []
    for loader in loaders:
        mine = list(loader)
        assert len(mine) == len(loader)
        made.append({(batch.epoch, batch.step) for batch in mine})
        for batch in mine:
            steps.setdefault((batch.epoch, batch.step), []).append(batch)
    assert all(one == made[0] for one in made)
    return {place: rows(batches) for place, batches in steps.items()}
