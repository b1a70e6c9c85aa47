"""Shard sets that tests of blends share."""

import random

import pytest

from omr_io.index import ShardSet
from omr_io.types import Option
from tests import shard_sets

LETTERS = "ABCDE"


def biased_records(counts: dict[int, str]) -> list:
    """Questions by number of options, one for each of the answers; 0: open-ended. Shuffled."""
    rows = [(size, letter) for size, letters in counts.items() for letter in letters]
    random.Random(3).shuffle(rows)
    return [
        shard_sets.record(
            number,
            [shard_sets.encoded(number)],
            options=tuple(Option(letter, f"text {letter}") for letter in LETTERS[:size]),
            answer=letter if size else "a vessel",
            reasoning=f"<think>So.</think>\n<answer>{letter if size else 'a vessel'}</answer>",
            question="Which?" + "".join(f"\n{letter}. text {letter}" for letter in LETTERS[:size]),
        )
        for number, (size, letter) in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """By name the folders of three shard sets: "mixed" and "single" have some keys in common."""
    root = tmp_path_factory.mktemp("blend")
    corpora = {
        "mixed": (shard_sets.mixed_records(30), 8),
        "single": (shard_sets.single_records(20), 100),
        "biased": (biased_records({4: "A" * 20 + "BB" + "CCC" + "D", 2: "AAAB", 0: "---"}), 9),
    }
    for name, (records, per_shard) in corpora.items():
        summary = shard_sets.write(root / name / "train", records, max_shard_samples=per_shard)
        assert summary.samples == len(records)
    return {name: root / name / "train" for name in corpora}


@pytest.fixture
def opened(folders):
    """By name the same sets, open."""
    sets = {name: ShardSet.open(folder) for name, folder in folders.items()}
    yield sets
    for one in sets.values():
        one.close()
