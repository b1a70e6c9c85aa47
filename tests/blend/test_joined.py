"""Several shard sets as one: a reading of it equals that of its sets."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from omr_io.blend.joined import JoinedSets, naming
from omr_io.errors import ConfigError, DataError, ImageError, IntegrityError, Where
from omr_io.index import ShardSet
from omr_io.sample_set import SampleSet
from omr_io.storage import StorageStats

NAMES = ("mixed", "single", "biased")
COLUMNS = ("question_bytes", "reasoning_bytes", "num_options")
IMAGE_COLUMNS = ("image_widths", "image_heights", "image_orientations", "image_hashes")


@pytest.fixture
def joined(opened):
    return JoinedSets(NAMES, [opened[name] for name in NAMES])


def rows(joined):
    """Every number with the name of its set, the set, and its number there."""
    places = [(name, one, row) for name, one in zip(joined.names, joined.sets, strict=True)
              for row in range(len(one))]  # fmt: skip
    return list(enumerate(places))


def test_a_sample_is_what_its_set_says(joined):
    assert len(joined) == sum(map(len, joined.sets)) == len(rows(joined))
    for i, (name, one, row) in rows(joined):
        assert joined.locate(i) == (one, row)
        assert joined.key(i) == f"{name}/{one.key(row)}"
        assert joined.shard(i) == f"{name}/{one.shard(row)}"
        for question in ("answer", "parts", "images", "num_images", "read_images", "read_record"):
            assert getattr(joined, question)(i) == getattr(one, question)(row)
        assert joined.read_record(i, images=False) == one.read_record(row, images=False)
        assert joined.read_record(i, images=False).images == ()
    assert len({joined.key(i) for i in range(len(joined))}) == len(joined)
    plain = [one.key(row) for _, (_, one, row) in rows(joined)]
    assert len(set(plain)) < len(plain)  # the same key in several sets


def test_the_arrays_are_those_of_the_sets(joined):
    for name in COLUMNS + IMAGE_COLUMNS:
        column = getattr(joined, name)
        parts = [getattr(one, name) for one in joined.sets]
        assert column.dtype == parts[0].dtype
        assert column.tolist() == [value for part in parts for value in part.tolist()]
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
    for call in ("answers", "image_formats"):
        assert getattr(joined, call)() == [v for s in joined.sets for v in getattr(s, call)()]
    assert joined.image_sizes().tolist() == [v for s in joined.sets for v in s.image_sizes()]
    assert joined.image_offsets.dtype == np.int64
    assert len(joined.image_offsets) == len(joined) + 1
    for i in range(len(joined)):
        begin, end = joined.image_offsets[i : i + 2]
        sizes = [(image.width, image.height) for image in joined.images(i)]
        found = zip(joined.image_widths[begin:end], joined.image_heights[begin:end], strict=True)
        assert list(found) == sizes
        assert joined.shard_names[joined.sample_shards[i]] == joined.shard(i)
    assert joined.sample_shards.dtype == np.int32


def test_numbers_that_do_not_exist(joined):
    for number in (-1, len(joined)):
        for call in (joined.key, joined.shard, joined.read_record, joined.locate, joined.images):
            with pytest.raises(IndexError, match=f"sample {number} of {len(joined)}"):
                call(number)


def test_it_has_the_surface_of_a_shard_set(joined, opened):
    def surface(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert surface(SampleSet) <= surface(JoinedSets) | {"fingerprint"}
    for one in (opened["mixed"], joined):
        as_protocol: SampleSet = one
        assert all(hasattr(as_protocol, name) for name in surface(SampleSet))
    for name in surface(SampleSet):
        ours, theirs = getattr(JoinedSets, name, None), getattr(ShardSet, name, None)
        if inspect.isfunction(ours) and inspect.isfunction(theirs):
            assert list(inspect.signature(ours).parameters) == list(
                inspect.signature(theirs).parameters
            )


def test_the_fingerprint_is_of_contents_in_order(opened):
    mixed, single = opened["mixed"], opened["single"]
    whole = JoinedSets(["a", "b"], [mixed, single]).fingerprint
    assert JoinedSets(["x", "y"], [mixed, single]).fingerprint == whole
    others = [[single, mixed], [mixed, opened["biased"]], [mixed]]
    found = {JoinedSets(["a", "b"][: len(sets)], sets).fingerprint for sets in others}
    assert len(found | {whole}) == 4


def test_names_must_tell_sets_apart(opened):
    sets = [opened["mixed"], opened["single"]]
    for names in (["a", "a"], ["a", ""], ["a"], []):
        with pytest.raises(ConfigError, match="names"):
            JoinedSets(names, sets)


def test_errors_say_which_set(folders, tmp_path):
    import shutil

    shutil.copytree(folders["single"], tmp_path / "broken")
    tar = tmp_path / "broken" / "train-000000.tar"
    if not tar.exists():
        [tar] = (tmp_path / "broken").glob("*.tar")
    tar.write_bytes(b"\0" * tar.stat().st_size)
    with ShardSet.open(folders["mixed"]) as sound, ShardSet.open(tmp_path / "broken") as broken:
        joined = JoinedSets(["sound", "broken"], [sound, broken])
        with pytest.raises(IntegrityError) as caught:
            joined.read_record(len(sound) + 3)
        where = caught.value.where
        assert where.shard == f"broken/{tar.name}"
        assert where.key == f"broken/{broken.key(3)}" == joined.key(len(sound) + 3)
        assert "shard broken/" in str(caught.value)
        assert "omr-io verify" in str(caught.value)
        assert joined.read_record(3) == sound.read_record(3)


def test_an_error_keeps_its_kind_and_what_it_carries():
    with pytest.raises(ImageError) as caught, naming("b"):
        raise ImageError("bad", where=Where(key="k"), mend="Mend it", reason="image-truncated")
    assert caught.value.reason == "image-truncated"
    assert str(caught.value) == "bad (key b/k). Mend it"
    assert pickle.loads(pickle.dumps(caught.value)).reason == "image-truncated"
    with pytest.raises(DataError, match=r"bad \(source b: t.parquet, row 3\)"), naming("b"):
        raise DataError("bad", where=Where(source="t.parquet", row=3))
    with pytest.raises(DataError, match=r"bad \(source b\)"), naming("b"):
        raise DataError("bad")


def test_sets_are_told_of_what_will_be_read_in_order(joined, monkeypatch):
    told = []
    monkeypatch.setattr(
        ShardSet, "will_read", lambda self, rows, images=True: told.append((self, rows, images))
    )
    first, second, third = joined.sets
    a, b = len(first), len(first) + len(second)
    joined.will_read([b + 1, 3, a, b, 3, a + 2], images=False)
    assert told == [(third, [1, 0], False), (first, [3, 3], False), (second, [0, 2], False)]


def test_the_storages_stats_add_up(joined, monkeypatch):
    made = {
        one: StorageStats(
            fetched_bytes=n, requests=2 * n, retries=1, cache_hits=n, cache_misses=0, cache_bytes=n
        )
        for n, one in enumerate(joined.sets, 5)
    }
    monkeypatch.setattr(ShardSet, "storage_stats", lambda self: made[self])
    assert joined.storage_stats() == StorageStats(18, 36, 3, 18, 0, 7)


def read_all(joined):
    return [joined.read_record(i) for i in range(len(joined))]


def _in_a_child(joined, connection):
    connection.send(read_all(joined))
    connection.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_goes_to_other_processes(joined, method):
    want = read_all(joined)
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_in_a_child, args=(joined, sending))
    child.start()
    sending.close()
    assert receiving.recv() == want
    child.join(timeout=300)
    assert child.exitcode == 0


def test_threads_and_a_closed_set(joined):
    want = read_all(joined)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: read_all(joined), range(4)):
            assert found == want
    with joined:
        pass
    assert read_all(joined) == want  # closing frees descriptors, and reading opens them anew
    joined.close()


def test_a_set_that_was_replaced_is_not_taken_for_the_same(folders, tmp_path):
    import shutil

    shutil.copytree(folders["single"], tmp_path / "moving")
    with ShardSet.open(folders["mixed"]) as mixed, ShardSet.open(tmp_path / "moving") as moving:
        pickled = pickle.dumps(JoinedSets(["a", "b"], [mixed, moving]))
    shutil.rmtree(tmp_path / "moving")
    shutil.copytree(folders["biased"], tmp_path / "moving")
    with pytest.raises(IntegrityError, match="replaced"):
        pickle.loads(pickled)
