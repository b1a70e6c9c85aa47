"""`verify`'s proof: a flipped bit is named with shard, key and part, wherever it lies.

What a reader sees is told by Python's tarfile, and so is where each member lies: neither comes from
the code under test.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from omr_io.errors import OmrError
from omr_io.shards import VerifyReport, verify
from tests.shard_sets import mixed_records, record, single_records, write
from tests.shards.test_verification import forge

# Pillow warns of what a flip made of a TIFF's directory before it fails to decode it.
pytestmark = pytest.mark.filterwarnings("ignore:Tag data larger than file:UserWarning")

FLIPS = 10_000
SHARD = "train-000000.tar"


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", [*mixed_records(12), record(99, [b"x"])])
    return tmp_path / "set"


def seen(tar: bytes) -> list[tuple[object, ...]] | str:
    """What a reader gets from a tar: names, types, sizes and data, or that it fails."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r|") as opened:
            return [
                (m.name, m.type, m.size, m.isreg() and opened.extractfile(m).read()) for m in opened
            ]
    except (tarfile.TarError, ValueError, OSError) as error:
        return f"it fails: {error}"


def places(tar: bytes) -> list[tuple[range, str, str]]:
    """(its header, data and padding, key, part) of each member."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = opened.getmembers()
    return [
        (
            range(member.offset, member.offset_data + (member.size + 511) // 512 * 512),
            member.name.partition(".")[0],
            member.name,
        )
        for member in members
    ]


def check_flips(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Flip single bits of the tar, verify, and count what was flipped."""
    path = folder / SHARD
    whole = path.read_bytes()
    members, before = places(whole), seen(whole)
    rng = random.Random(seed)
    counts = {"content": 0, "no content": 0, "in a member": 0, "in the trailer": 0}
    with path.open("r+b", buffering=0) as file:
        for _ in range(count):
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes([whole[at] ^ bit]))
            problems = verify(folder).problems
            file.seek(at)
            file.write(whole[at : at + 1])
            changed = seen(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]) != before
            counts["content" if changed else "no content"] += 1
            assert problems, f"the flip of {bit} at {at} is silent"
            assert all(problem.where.shard == SHARD for problem in problems)
            home = next(((key, part) for span, key, part in members if at in span), None)
            named = {(problem.where.key, problem.where.part) for problem in problems}
            if home is None:
                assert not changed
                assert any(problem.where.offset == at for problem in problems)
                counts["in the trailer"] += 1
            else:
                assert named <= {home, (None, None)}, f"{problems} for a flip at {at}"
                assert home in named, f"{problems} for a flip at {at} in {home}"
                counts["in a member"] += 1
    assert path.read_bytes() == whole
    return counts


def test_a_flipped_bit_is_named_with_shard_key_and_part(folder):
    counts = check_flips(folder, 300, seed=1)
    assert all(counts.values()), counts  # every kind was tried
    assert verify(folder).ok


@pytest.mark.slow
def test_10_000_flipped_bits_none_silent(folder):
    counts = check_flips(folder, FLIPS, seed=2)
    assert counts["content"] + counts["no content"] == FLIPS
    assert all(counts.values()), counts
    print(counts)


def test_every_byte_of_a_header_and_its_padding(tmp_path):
    """Where chance seldom falls: each byte of one member's header, and its padding."""
    write(tmp_path / "set", [record(1)])
    path = tmp_path / "set" / SHARD
    whole = path.read_bytes()
    ((span, key, part),) = places(whole)
    end = span.start + 512 + int(whole[124:135], 8)
    for at in (*range(512), end, end + 1, span.stop - 1):
        for bit in (at % 8, (at + 5) % 8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            path.write_bytes(flipped)
            places_named = {(p.where.key, p.where.part) for p in verify(tmp_path / "set").problems}
            assert (key, part) in places_named, (at, bit)


@pytest.mark.parametrize("name", ["index.arrow", "train-000000.idx", "rejects.parquet"])
def test_a_flip_in_another_file_names_it(folder, name):
    whole = (folder / name).read_bytes()
    rng = random.Random(3)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(flipped)
        problems = verify(folder).problems
        assert {problem.where.source for problem in problems} == {name}
    (folder / name).write_bytes(whole)
    assert verify(folder).ok


def test_a_flip_in_the_manifest_names_it(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    rng = random.Random(4)
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(OmrError) as caught:
            verify(folder)
        assert str(path) in str(caught.value)


def named(report: VerifyReport) -> str:
    assert report.problems, "the damage is silent"
    return "\n".join(map(str, report.problems))


def cut_everywhere(folder: Path, lengths: range) -> None:
    path = folder / SHARD
    whole = path.read_bytes()
    for length in lengths:
        path.write_bytes(whole[:length])
        text = named(verify(folder))
        assert f"the file has {length} bytes" in text
        for span, key, part in places(whole):
            if span.start + 512 <= length < span.start + 512 + 40:  # within its data
                assert f"key {key}, part {part}" in text


def test_a_tar_cut_at_many_lengths(tmp_path):
    write(tmp_path / "set", [record(1), record(2)])
    size = (tmp_path / "set" / SHARD).stat().st_size
    cut_everywhere(tmp_path / "set", range(0, size, 7))


@pytest.mark.slow
def test_a_tar_cut_at_every_length(tmp_path):
    write(tmp_path / "set", single_records(2))
    cut_everywhere(tmp_path / "set", range((tmp_path / "set" / SHARD).stat().st_size))


def test_a_member_appended_is_named(folder):
    path = folder / SHARD
    whole = path.read_bytes()
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("stranger.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    path.write_bytes(whole[:-1024] + extra.getvalue())  # as `tar --append` would
    text = named(verify(folder))
    assert "only the tar has this part, of 2 bytes" in text
    assert "part stranger.json" in text
    path.write_bytes(whole + extra.getvalue())  # after the trailer: tar readers never see it
    assert f"not zero (shard {SHARD}, offset {len(whole)})" in named(verify(folder))


def test_two_shards_swapped(tmp_path):
    folder = tmp_path / "set"
    write(folder, single_records(6), max_shard_samples=3)
    first, second = folder / SHARD, folder / "train-000001.tar"
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    problems = verify(folder).problems
    for shard, keys in ((SHARD, (0, 1, 2)), ("train-000001.tar", (3, 4, 5))):
        of_shard = [problem.where for problem in problems if problem.where.shard == shard]
        assert {f"case%2E{number:04d}" for number in keys} <= {where.key for where in of_shard}


def test_threads_change_nothing_in_the_report(tmp_path):
    folder = tmp_path / "set"
    write(folder, mixed_records(20), max_shard_samples=2)
    for path in sorted(folder.glob("*.tar"))[::2]:
        damaged = bytearray(path.read_bytes())
        damaged[700] ^= 1
        path.write_bytes(damaged)
    one = verify(folder, decode=True, threads=1)
    shards = [problem.where.shard for problem in one.problems]
    assert shards == sorted(shards)
    assert len(set(shards)) == 5
    assert verify(folder, decode=True, threads=4) == one


def test_a_key_in_two_shards_is_named(tmp_path):
    """A wrong writer: the second shard is the first again, and all hashes agree."""
    folder = tmp_path / "set"
    write(folder, [record(number) for number in (1, 2)], max_shard_samples=1)
    table = pa.ipc.open_file(folder / "index.arrow").read_all()
    keys = table.column("key").to_pylist()
    same = table.set_column(1, table.schema.field("key"), pa.array([keys[0]] * 2))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(same)
    forge(folder, "index.arrow", sink.getvalue())
    text = named(verify(folder))
    assert f"the key is in {SHARD} too (shard train-000001.tar, key {keys[0]})" in text


def test_a_report_is_json(folder):
    """What --json prints holds shard, key, part and offset as fields."""
    path = folder / SHARD
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 1
    path.write_bytes(damaged)
    fields = json.loads(json.dumps(dataclasses.asdict(verify(folder)), default=str))
    places = [problem["where"] for problem in fields["problems"]]
    assert any(w["shard"] == SHARD and w["key"] and w["part"] and w["offset"] for w in places)
