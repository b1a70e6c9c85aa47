"""Which samples are asked, and which of them share a cluster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError
from omr_io.index import ShardSet
from omr_io.train.clusters import image_clusters
from omr_io.train.evaluation.items import read_items
from omr_io.train.evaluation.options import EvaluationOptions, Named, check_names, named
from tests.shard_sets import encoded, record, single_records, write


class Hashes:
    """The part of a shard set that clusters are made of."""

    def __init__(self, images: list[list[int]]) -> None:
        self.image_offsets = np.cumsum([0, *map(len, images)])
        self.image_hashes = np.array([[i] * 16 for one in images for i in one], np.uint8)
        self.image_hashes = self.image_hashes.reshape(-1, 16)

    def key(self, number: int) -> str:
        return f"k{number}"


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=20))
def test_clusters_are_what_images_connect(images) -> None:
    found = image_clusters(Hashes(images), range(len(images)))
    # The oracle: reach everything from each sample, step by step.
    for start in range(len(images)):
        reached, pictures = {start}, set(images[start])
        while True:
            more = {i for i, own in enumerate(images) if pictures & set(own)} | reached
            if more == reached:
                break
            reached = more
            pictures |= {p for i in reached for p in images[i]}
        assert {i for i, name in enumerate(found) if name == found[start]} == reached


def test_items_of_a_set(tmp_path) -> None:
    image = encoded(1)
    records = [
        record(0, [image]), record(1, [image]), record(2, [encoded(2)]), record(3),
        record(4, question="W?\nA. one\nB. Both A and C\nC. x", options=_options(3), answer="B"),
    ]  # fmt: skip
    write(tmp_path / "s", records)
    with ShardSet.open(tmp_path / "s") as shards:
        read = read_items(Named("s", "path"), shards, EvaluationOptions())
        assert [item.key for item in read.items] == [shards.key(i) for i in range(5)]
        assert read.items[0].cluster == read.items[1].cluster != read.items[2].cluster
        assert read.items[3].cluster == f"key:{shards.key(3)}"
        assert list(read.not_shuffled) == [shards.key(4)]
        assert read.items[4].shown("shuffled") is None
        assert read.items[4].shown("blind").letters == "ABC"
        by_study = read_items(
            Named("s", "p"), shards, EvaluationOptions(cluster_field="study", limit=2)
        )
        assert [item.cluster for item in by_study.items] == ["study:s0", "study:s1"]
        plain = read_items(Named("s", "p"), shards, EvaluationOptions(variants=("plain",)))
        assert [item.shuffled for item in plain.items] == [None] * 5
        assert plain.not_shuffled == {}
        with pytest.raises(ConfigError, match=r"no field 'patient'.*Fields of this one: study"):
            read_items(Named("s", "p"), shards, EvaluationOptions(cluster_field="patient"))


def _options(count: int):
    from omr_io.types import Option

    return tuple(Option("ABC"[i], ("one", "Both A and C", "x")[i]) for i in range(count))


def test_open_ended_samples_are_refused_or_counted(tmp_path) -> None:
    open_ended = record(7, options=(), answer="a knee", reasoning="", question="What?")
    write(tmp_path / "s", [record(0), open_ended, record(2)])
    with ShardSet.open(tmp_path / "s") as shards:
        with pytest.raises(ConfigError, match=r"1 of 3 samples of s .*case%2E0007.*--skip-open"):
            read_items(Named("s", "p"), shards, EvaluationOptions())
        read = read_items(Named("s", "p"), shards, EvaluationOptions(skip_open_ended=True))
        assert read.open_ended == ("case%2E0007",)
        assert [item.number for item in read.items] == [0, 2]
    write(tmp_path / "t", [open_ended])
    with ShardSet.open(tmp_path / "t") as shards, pytest.raises(ConfigError, match="nothing to"):
        read_items(Named("t", "p"), shards, EvaluationOptions(skip_open_ended=True))


@pytest.mark.parametrize("answer", ["", "Z", "a", "AB"])
def test_an_answer_that_is_no_option_is_refused(tmp_path, answer: str) -> None:
    """Every completion would be wrong on it, and no one would know why."""
    write(tmp_path / "s", [record(0), record(1, answer=answer), record(2)])
    with ShardSet.open(tmp_path / "s") as shards:
        wanted = rf"1 of 3 samples of s is none of .* {answer!r} of A, B.*key case%2E0001"
        for variants in (("plain",), ("plain", "shuffled")):
            with pytest.raises(DataError, match=wanted):
                read_items(Named("s", "p"), shards, EvaluationOptions(variants=variants))
        assert len(read_items(Named("s", "p"), shards, EvaluationOptions(limit=1)).items) == 1


def test_names() -> None:
    assert named("a=b/c", "set", name_needed=True) == Named("a", "b/c")
    assert named("x/test/", "set", name_needed=False) == Named("test", "x/test/")
    assert named("s3://bucket/slake", "set", name_needed=False).name == "slake"
    with pytest.raises(ConfigError, match=r"has no name.*NAME=m0"):
        named("m0", "model", name_needed=True)
    with pytest.raises(ConfigError, match="no name for files"):
        named("a/b c", "set", name_needed=False)
    with pytest.raises(ConfigError, match="no name for files"):
        named("a=", "set", name_needed=False)
    one, other = Named("a", ""), Named("b", "")
    check_names([one, other], [one, other])
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        check_names([one, one], [one])
    with pytest.raises(ConfigError, match="no set to evaluate"):
        check_names([one], [])
    with pytest.raises(ConfigError, match="would share a file"):
        check_names([Named("a-b", ""), Named("a", "")], [Named("c", ""), Named("b-c", "")])
    with pytest.raises(ConfigError, match="would share a file"):  # where case does not count
        check_names([Named("a", ""), Named("A", "")], [Named("c", "")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 2}, "2 runs at temperature 0"),
        ({"runs": 0}, "runs is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"variants": ("blind",)}, "variants blind"),
        ({"variants": ("plain", "upside-down")}, "upside-down"),
        ({"limit": 0}, "limit is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
    ],
)
def test_options_that_cannot_be_right(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationOptions(**changes)


def test_items_have_no_image_bytes(tmp_path) -> None:
    """All items' texts are in memory: their images must not be."""
    write(tmp_path / "s", single_records(3))
    with ShardSet.open(tmp_path / "s") as shards:
        read = read_items(Named("s", "p"), shards, EvaluationOptions())
        assert all(not image.data for item in read.items for image in item.record.images)
