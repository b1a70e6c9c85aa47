"""Reading a shard set: everything comes back, and nothing damaged does."""

from __future__ import annotations

import json
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from omr_io.blend.columns import IndexColumns
from omr_io.errors import IntegrityError, OmrError, SourceError
from omr_io.images import probe
from omr_io.index import ShardSet
from omr_io.shards import index_columns
from omr_io.shards.description import describe
from omr_io.shards.layout import read_manifest
from omr_io.types import Record
from tests.shard_sets import contents, encoded, mixed_records, record, write


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return mixed_records(40)


@pytest.fixture
def folder(tmp_path, records):
    write(tmp_path / "set", records, max_shard_samples=15)
    return tmp_path / "set"


def test_every_record_comes_back(folder, records):
    with ShardSet.open(folder) as shards:
        assert len(shards) == len(records)
        for i, expected in enumerate(records):
            assert shards.read_record(i) == expected
            assert shards.read_images(i) == tuple(image.data for image in expected.images)
            text = shards.read_record(i, images=False)
            assert text.images == ()
            assert (text.question, text.rubric) == (expected.question, expected.rubric)


def test_columns_follow_from_the_records(folder, records):
    shards = ShardSet.open(folder)
    infos = [probe(image.data) for item in records for image in item.images]
    counts = [len(item.images) for item in records]
    assert shards.image_offsets.tolist() == [0, *np.cumsum(counts).tolist()]
    assert shards.image_offsets.dtype == np.int64
    assert shards.image_widths.tolist() == [info.width for info in infos]
    assert shards.image_heights.tolist() == [info.height for info in infos]
    assert shards.image_orientations.tolist() == [info.orientation for info in infos]
    assert [info for i in range(len(shards)) for info in shards.images(i)] == infos
    assert shards.question_bytes.tolist() == [len(item.question.encode()) for item in records]
    assert shards.reasoning_bytes.tolist() == [len(item.reasoning.encode()) for item in records]
    assert shards.answers() == [item.answer for item in records]
    assert shards.shard_names == ("train-000000.tar", "train-000001.tar", "train-000002.tar")
    assert shards.sample_shards.tolist() == [0] * 15 + [1] * 15 + [2] * 10
    assert shards.shard(15) == "train-000001.tar"
    assert shards.key(3) == "case%2E0003"
    assert [part.name for part in shards.parts(6)] == [
        "case%2E0006.img0.jpg", "case%2E0006.img1.jpg", "case%2E0006.img2.jpg", "case%2E0006.json",
    ]  # fmt: skip
    for out in (-1, len(records)):
        with pytest.raises(IndexError):
            shards.parts(out)


def test_orientation_is_as_stored_and_told(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "set", [record(0, [encoded(0, size=(24, 40), exif=exif)])])
    shards = ShardSet.open(tmp_path / "set")
    assert (shards.image_widths[0], shards.image_heights[0]) == (40, 24)
    assert shards.image_orientations.tolist() == [6]
    assert shards.images(0)[0].oriented == (24, 40)


def test_a_set_without_any_image(tmp_path):
    write(tmp_path / "set", [record(0), record(1)])
    shards = ShardSet.open(tmp_path / "set")
    assert shards.image_offsets.tolist() == [0, 0, 0]
    assert shards.image_hashes.shape == (0, 16)
    assert shards.read_record(1) == record(1)


def test_equal_images_have_equal_hashes(tmp_path):
    write(tmp_path / "set", [record(0, [encoded(1)]), record(1, [encoded(2), encoded(1)])])
    hashes = ShardSet.open(tmp_path / "set").image_hashes
    assert hashes.shape == (3, 16)
    assert np.array_equal(hashes[0], hashes[2])
    assert not np.array_equal(hashes[0], hashes[1])


def test_no_flipped_bit_of_a_part_is_read(folder):
    """Every part of every sample: one random bit flipped is an error that names the part."""
    shards = ShardSet.open(folder)
    rng = random.Random(2)
    for i in range(len(shards)):
        for part in shards.parts(i):
            path = folder / shards.shard(i)
            whole = path.read_bytes()
            damaged = bytearray(whole)
            damaged[part.offset + rng.randrange(part.size)] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError, match="CRC-32C") as caught:
                shards.read_record(i)
            where = caught.value.where
            assert (where.shard, where.key) == (shards.shard(i), shards.key(i))
            assert (where.part, where.offset) == (part.name, part.offset)
            path.write_bytes(whole)
    assert len(list(shards.manifest.shards)) == 3


def test_a_shard_cut_short_is_named_on_opening(folder):
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(IntegrityError, match=r"the manifest says \d+ \(shard train-000001.tar\)"):
        ShardSet.open(folder)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"missing \(shard train-000001.tar\)"):
        ShardSet.open(folder)


def test_a_shard_cut_short_after_opening(folder):
    shards = ShardSet.open(folder)
    os.truncate(folder / "train-000002.tar", 1000)
    with pytest.raises(IntegrityError, match=r"shard train-000002.tar, key case%2E0039"):
        shards.read_record(39)


def test_no_flipped_bit_of_the_index_is_used(folder):
    rng = random.Random(3)
    path = folder / "index.arrow"
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"index\.arrow"):
            ShardSet.open(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=r"bytes, the manifest says"):
        ShardSet.open(folder)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        ShardSet.open(folder)


def test_no_flipped_bit_of_the_manifest_is_used(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(OmrError, match=r"manifest\.json"):
            ShardSet.open(folder)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            ShardSet.open(folder)


def test_an_unknown_version_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 3}))
    with pytest.raises(SourceError, match="format version 3, this omr_io reads 2"):
        ShardSet.open(folder)


def test_another_sets_index_is_refused(tmp_path, folder):
    write(tmp_path / "other", mixed_records(10))
    (folder / "index.arrow").write_bytes((tmp_path / "other" / "index.arrow").read_bytes())
    with pytest.raises(IntegrityError, match=r"index\.arrow"):
        ShardSet.open(folder)


def test_what_is_no_shard_set(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        ShardSet.open(tmp_path / "no")
    with pytest.raises(SourceError, match=r"it has no manifest\.json"):
        ShardSet.open(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"tars but no manifest\.json"):
        ShardSet.open(tmp_path)
    (tmp_path / ".omr-io-unfinished").write_bytes(b"")
    with pytest.raises(SourceError, match="unfinished conversion"):
        ShardSet.open(tmp_path)


def test_the_fingerprint_stands_for_the_content(tmp_path, folder, records):
    first = ShardSet.open(folder).fingerprint
    write(tmp_path / "again", records, max_shard_samples=15)
    assert ShardSet.open(tmp_path / "again").fingerprint == first
    assert read_manifest(folder).fingerprint == first
    write(tmp_path / "less", records[:-1], max_shard_samples=15)
    assert ShardSet.open(tmp_path / "less").fingerprint != first


def test_pickle_opens_the_same_set(tmp_path, folder, records):
    frozen = pickle.dumps(ShardSet.open(folder))
    assert pickle.loads(frozen).read_record(7) == records[7]
    write(folder, records[:5], overwrite=True)
    with pytest.raises(IntegrityError, match="replaced since it was opened"):
        pickle.loads(frozen)


def test_threads_and_forks_share_a_set(folder, records):
    shards = ShardSet.open(folder)
    with ThreadPoolExecutor(6) as pool:
        order = [i % len(records) for i in range(400)]
        assert list(pool.map(shards.read_record, order)) == [records[i] for i in order]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(shards.read_record(i) == records[i] for i in range(40)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shards.read_record(0) == records[0]


def test_opening_and_reading_change_nothing(folder):
    before = contents(folder)
    with ShardSet.open(folder) as shards:
        shards.read_record(0)
    assert contents(folder) == before


def test_an_index_whose_texts_32_bits_cannot_count(folder, records, monkeypatch):
    """Of some 50 million samples: the same, in Arrow's types that count in 64 bits."""
    combined, wide = index_columns._combined, []

    def overflow(column):
        if pa.types.is_string(column.type) or pa.types.is_list(column.type):
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        wide.append(str(column.type))
        return combined(column)

    usual = ShardSet.open(folder)
    monkeypatch.setattr(index_columns, "_combined", overflow)
    with usual, ShardSet.open(folder) as shards:
        assert {name.partition("<")[0] for name in wide} >= {"large_string", "large_list"}
        assert shards._names.type == shards._keys.type == pa.large_utf8()
        for i, expected in enumerate(records):
            assert shards.read_record(i) == expected
            assert (shards.key(i), shards.parts(i)) == (usual.key(i), usual.parts(i))
            assert shards.images(i) == usual.images(i)
        assert np.array_equal(shards.image_hashes, usual.image_hashes)
        assert np.array_equal(shards.image_sizes(), usual.image_sizes())
        everything = [IndexColumns("a", one, None) for one in (usual, shards)]
        for name in ("answers", "image_formats", "image_modes", "keys"):
            one, other = (getattr(columns, name) for columns in everything)
            assert np.array_equal(one, other)
        assert describe(shards) == describe(usual)


@pytest.mark.slow
def test_texts_of_more_than_two_gigabytes_are_joined():
    """2.1 GB, made of one chunk that comes many times."""
    rows = [[{"name": f"{n}" * (1 << 19), "offset": n}] for n in range(100, 132)]
    part = pa.struct([pa.field("name", pa.utf8()), pa.field("offset", pa.int64())])
    chunk = pa.array(rows, pa.list_(part))
    count = (1 << 31) // chunk.nbytes + 2
    joined = index_columns.joined(pa.chunked_array([chunk] * count))
    assert len(joined) == count * len(chunk)
    assert index_columns.offsets(joined).tolist() == list(range(len(joined) + 1))
    names = joined.flatten().field("name")
    ends = [names[i].as_py() for i in (0, len(joined) - 1)]
    assert ends == ["100" * (1 << 19), "131" * (1 << 19)]
