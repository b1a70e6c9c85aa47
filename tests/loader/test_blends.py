"""Blends in the loader: what is drawn comes, as often, and goes on exactly where it stopped."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from omr_io.blend import Blend, Source
from omr_io.errors import ConfigError, ResumeError
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from tests import shard_sets
from tests.loader.loaders import assert_streams_equal


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets with keys in common."""
    root = tmp_path_factory.mktemp("blends")
    shard_sets.write(root / "first", shard_sets.single_records(12))
    shard_sets.write(root / "second", shard_sets.mixed_records(9), max_shard_samples=4)
    return root / "first", root / "second"


@pytest.fixture
def make(tokenizer, vision):
    made: list[DataLoader] = []

    def loader(shards, **options):
        defaults = {"seq_len": 160, "packs_per_step": 4, "num_threads": 0, "cache": False}
        made.append(DataLoader(shards, tokenizer=tokenizer, vision=vision, **defaults | options))
        return made[-1]

    yield loader
    for one in made:
        one.close()


def keys_of(loader):
    return Counter(key for batch in loader for pack in batch.keys for key in pack)


def test_every_sample_comes_as_often_as_its_source_says(make, folders):
    first, second = folders
    blend = Blend([Source(first, repeat=2), Source(second, repeat=0.5, name="half")])
    loader = make(blend)
    epochs = [keys_of(loader) for _ in range(2)]
    for held in epochs:
        assert sum(count for key, count in held.items() if key.startswith("first/")) == 24
        assert all(count == 2 for key, count in held.items() if key.startswith("first/"))
    both = epochs[0] + epochs[1]
    assert {count for key, count in both.items() if key.startswith("half/")} == {1}
    with ShardSet.open(second) as opened:
        assert sum(key.startswith("half/") for key in both) == len(opened)


def test_a_filter_and_numbers_of_samples_select_the_same(make, folders):
    first, _ = folders
    with ShardSet.open(first) as opened:
        wanted = np.flatnonzero(opened.question_bytes > np.median(opened.question_bytes))
    assert 0 < len(wanted) < 12
    blend = Blend([Source(first, where=lambda c: c.question_bytes > np.median(c.question_bytes))])
    filtered, chosen = make(blend), make(first, samples=wanted)
    assert keys_of(filtered) == keys_of(chosen)
    tokens = Blend([Source(first, where=lambda c: c.text_tokens >= 0)])
    assert_streams_equal(make(tokens), make(first))  # lengths are known to filters


@pytest.mark.parametrize("threads", [0, 2])
def test_a_blend_goes_on_exactly_where_it_stopped(make, folders, threads):
    first, second = folders
    blend = Blend([Source(first, repeat=1.5), Source(second)])
    options = {"window": 10, "num_threads": threads}
    whole = make(blend, **options)
    batches = [*whole, *whole]
    for stop in range(0, len(batches), 3):
        stopped = make(blend, **options)
        taken = 0
        while taken < stop:
            for _ in stopped:
                taken += 1
                if taken == stop:
                    break
        resumed = make(blend, **options)
        resumed.load_state_dict(stopped.state_dict())
        rest = [batch for _ in range(resumed.epoch, 2) for batch in resumed]
        assert_streams_equal(rest, batches[stop:])


def test_a_state_of_another_blend_is_refused(make, folders):
    first, second = folders
    state = make(Blend([Source(first), Source(second)])).state_dict()
    for other in (
        Blend([Source(first, repeat=2), Source(second)]),
        Blend([Source(first), Source(second, where=lambda c: c.num_images > 0)]),
    ):
        with pytest.raises(ResumeError, match="what differs: samples"):
            make(other).load_state_dict(state)
    with pytest.raises(ResumeError, match="what differs: corpus"):
        make(Blend([Source(second), Source(first)])).load_state_dict(state)
    make(Blend([Source(first, name="renamed"), Source(second)])).load_state_dict(state)


def test_failures_say_which_set_they_are_of(make, folders, tmp_path):
    _, second = folders
    shard_sets.write(tmp_path / "broken", shard_sets.single_records(3))
    tar = next((tmp_path / "broken").glob("*.tar"))
    with ShardSet.open(tmp_path / "broken") as opened:
        part = opened.parts(1)[0]
        key = opened.key(1)
    data = bytearray(tar.read_bytes())
    data[part.offset + part.size // 2] ^= 255
    tar.write_bytes(bytes(data))
    loader = make(Blend([Source(second), Source(tmp_path / "broken")]))
    failures = [failure for batch in loader for failure in batch.failures]
    assert [(f.shard, f.key) for f in failures] == [(f"broken/{tar.name}", f"broken/{key}")]
    assert loader.quarantine == failures


def test_numbers_of_samples_beside_a_blend_are_refused(make, folders):
    with pytest.raises(ConfigError, match="beside a Blend"):
        make(Blend([Source(folders[0])]), samples=np.arange(3))
    with pytest.raises(ConfigError, match="shards is a int"):
        make(17)
