"""An index that lies, under a manifest that vouches for it: an error that names shard and key.

The manifest's hashes show damage. Whoever makes a set can make them fit, so nothing that follows
from the index may read outside a shard, take memory by its say-so, or crash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from omr_io.errors import IntegrityError
from omr_io.index import ShardSet
from omr_io.shards import index_check
from omr_io.shards.layout import INDEX_SCHEMA, FileDigest, read_manifest
from tests.shard_sets import mixed_records, write

SAMPLE = 5  # of those below: its lies name it

Rows = list[dict[str, Any]]


@pytest.fixture
def shard_set(tmp_path: Path) -> Path:
    write(tmp_path / "set", mixed_records(24), max_shard_samples=10)
    return tmp_path / "set"


def forge(folder: Path, change: Callable[[Rows], None]) -> None:
    """Change the index and make the manifest fit."""
    with pa.ipc.open_file(folder / "index.arrow") as file:
        rows = file.read_all().to_pylist()
    change(rows)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    replace_index(folder, sink.getvalue())


def replace_index(folder: Path, data: bytes) -> None:
    (folder / "index.arrow").write_bytes(data)
    manifest = read_manifest(folder)
    digest = FileDigest("index.arrow", len(data), hashlib.sha256(data).hexdigest())
    forged = dataclasses.replace(manifest, index=digest)
    (folder / "manifest.json").write_bytes(forged.to_bytes())


def part(place: int, **values: int) -> Callable[[Rows], None]:
    return lambda rows: rows[SAMPLE]["parts"][place].update(values)


def image(**values: object) -> Callable[[Rows], None]:
    return lambda rows: rows[SAMPLE]["images"][0].update(values)


def onto_its_neighbour(rows: Rows) -> None:
    first, second = rows[SAMPLE]["parts"][:2]
    second["offset"] = first["offset"]


def into_its_neighbour(rows: Rows) -> None:
    first, second = rows[SAMPLE]["parts"][:2]
    first["size"] = second["offset"] - first["offset"] + 1


def into_the_sample_before(rows: Rows) -> None:
    rows[SAMPLE]["parts"][0]["offset"] = rows[SAMPLE - 1]["parts"][0]["offset"]


def without_its_text(rows: Rows) -> None:
    rows[SAMPLE]["parts"].pop()


def without_parts(rows: Rows) -> None:
    rows[SAMPLE]["parts"].clear()
    rows[SAMPLE]["images"].clear()
    spare = rows[0]["images"][0]
    rows[0]["images"] += [spare]  # so that the manifest's count of images holds


LIES: dict[str, tuple[Callable[[Rows], None], str]] = {
    "size beyond the file": (part(0, size=1 << 40), "outside the shard"),
    "size of 2**63 - 1": (part(0, size=(1 << 63) - 1), "outside the shard"),
    "negative size": (part(0, size=-1), "outside the shard"),
    "offset beyond the file": (part(1, offset=1 << 40), "outside the shard"),
    "offset at 2**63 - 1": (part(1, offset=(1 << 63) - 1), "outside the shard"),
    "negative offset": (part(0, offset=-512), "outside the shard"),
    "the least offset": (part(0, offset=-(1 << 63)), "outside the shard"),
    "parts at one place": (onto_its_neighbour, "overlap"),
    "parts that overlap": (into_its_neighbour, "overlap"),
    "another sample's place": (into_the_sample_before, "before"),
    "no text": (without_its_text, "parts and"),
    "width 0": (image(width=0), "cannot be"),
    "negative height": (image(height=-5), "cannot be"),
    "width of 2**31 - 1": (image(width=(1 << 31) - 1), "cannot be"),
    "orientation 0": (image(orientation=0), "cannot be"),
    "orientation 9": (image(orientation=9), "cannot be"),
    "orientation -128": (image(orientation=-128), "cannot be"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("samples_a_round", [1 << 18, SAMPLE, 1])
def test_a_lie_is_an_error_that_names_shard_and_key(
    shard_set: Path, lie: str, samples_a_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_check, "_ROUND", samples_a_round)
    with ShardSet.open(shard_set) as shards:
        shard, key = shards.shard(SAMPLE), shards.key(SAMPLE)
        assert shards.num_images(SAMPLE) >= 1
    change, words = LIES[lie]
    forge(shard_set, change)
    with pytest.raises(IntegrityError, match=words) as caught:
        ShardSet.open(shard_set)
    where = caught.value.where
    assert where is not None
    assert (where.shard, where.key) == (shard, key)


@pytest.mark.parametrize("samples_a_round", [1 << 18, 3, 1])
def test_the_truth_is_none(
    shard_set: Path, samples_a_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_check, "_ROUND", samples_a_round)
    forge(shard_set, lambda rows: None)
    with ShardSet.open(shard_set) as shards:
        assert len([shards.read_record(i) for i in range(len(shards))]) == 24


def test_images_that_come_after_their_text_are_no_overlap(
    shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign sample's parts need not be in the order of their bytes."""
    with ShardSet.open(shard_set) as shards:
        parts = shards.parts(SAMPLE)
    assert len(parts) > 1
    forge(shard_set, lambda rows: rows[SAMPLE]["parts"].reverse())
    with ShardSet.open(shard_set) as shards:
        assert shards.parts(SAMPLE) == parts[::-1]


def test_a_lie_within_the_shard_is_found_when_it_is_read(shard_set: Path) -> None:
    with ShardSet.open(shard_set) as shards:
        shard, key = shards.shard(SAMPLE), shards.key(SAMPLE)
    for change in (part(0, size=10), part(0, crc32c=1), part(1, size=3)):
        forge(shard_set, change)
        with ShardSet.open(shard_set) as shards:
            with pytest.raises(IntegrityError, match="CRC-32C") as caught:
                shards.read_record(SAMPLE)
            where = caught.value.where
            assert where is not None
            assert (where.shard, where.key) == (shard, key)
            shards.read_record(SAMPLE + 1)


@pytest.mark.parametrize("shard", [-1, -(1 << 31), 3, (1 << 31) - 1])
def test_a_shard_that_is_none(shard_set: Path, shard: int) -> None:
    forge(shard_set, lambda rows: rows[SAMPLE].update(shard=shard))
    with pytest.raises(IntegrityError, match="the index"):
        ShardSet.open(shard_set)


def test_samples_without_parts(shard_set: Path) -> None:
    forge(shard_set, without_parts)
    with pytest.raises(IntegrityError, match="index"):
        ShardSet.open(shard_set)


@pytest.mark.parametrize("offset", [1 << 30, -1, -(1 << 31)])
def test_offsets_that_leave_arrows_buffers(shard_set: Path, offset: int) -> None:
    """Arrow itself would follow them, read where it must not, and crash."""
    data = (shard_set / "index.arrow").read_bytes()
    with pa.ipc.open_file(data) as file:
        keys = file.read_all().column("key").chunk(0)
    offsets = np.frombuffer(keys.buffers()[1], np.int32, len(keys) + 1).copy()
    place = data.index(offsets.tobytes())
    offsets[SAMPLE] = offset
    forged = data[:place] + offsets.tobytes() + data[place + offsets.nbytes :]
    replace_index(shard_set, forged)
    with pytest.raises(IntegrityError, match="the index"):
        ShardSet.open(shard_set)


def test_keys_that_are_no_utf8_and_nulls(shard_set: Path) -> None:
    with pa.ipc.open_file(shard_set / "index.arrow") as file:
        table = file.read_all().combine_chunks()
    count = table.num_rows
    raw = pa.array([b"\xff\xfe"] * count, pa.binary())
    no_text = pa.StringArray.from_buffers(count, *raw.buffers()[1:])
    for name, column in (
        ("key", no_text),
        ("key", pa.array([None, *["k"] * (count - 1)], pa.utf8())),
        ("shard", pa.array([None, *[0] * (count - 1)], pa.int32())),
        ("parts", pa.array([None] * count, INDEX_SCHEMA.field("parts").type)),
    ):
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            for batch in table.to_batches():
                forged = [column if one == name else batch[one] for one in table.column_names]
                writer.write_batch(pa.RecordBatch.from_arrays(forged, schema=INDEX_SCHEMA))
        replace_index(shard_set, sink.getvalue())
        with pytest.raises(IntegrityError, match="the index"):
            ShardSet.open(shard_set)


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "a/../../b.tar", "", "a\0.tar"])
@pytest.mark.parametrize("which", ["shard", "index", "idx"])
def test_names_that_lead_out_of_the_set(shard_set: Path, name: str, which: str) -> None:
    """Such a file would be read by `ShardSet`, and pushed by `omr-io push`."""
    manifest = read_manifest(shard_set)
    if which == "index":
        forged = dataclasses.replace(manifest, index=dataclasses.replace(manifest.index, name=name))
    else:
        first = manifest.shards[0]
        changed = (
            dataclasses.replace(first, name=name)
            if which == "shard"
            else dataclasses.replace(first, idx=dataclasses.replace(first.idx, name=name))
        )
        forged = dataclasses.replace(manifest, shards=(changed, *manifest.shards[1:]))
    (shard_set / "manifest.json").write_bytes(forged.to_bytes())
    with pytest.raises(IntegrityError, match="no file of the folder"):
        ShardSet.open(shard_set)
