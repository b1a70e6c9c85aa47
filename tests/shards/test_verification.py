"""`verify`: no damage is silent, and each problem says where."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from pathlib import Path

import pytest

from omr_io.errors import IntegrityError, OmrError, SourceError
from omr_io.index import ShardSet
from omr_io.shards import VerifyReport, verify
from omr_io.shards.layout import FileDigest, read_manifest
from omr_io.shards.tar_writer import tar_header
from omr_io.tar import scan_tar_file
from tests.shard_sets import contents, encoded, mixed_records, record, single_records, write


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", [*mixed_records(20), record(99, [b"x"])], max_shard_samples=8)
    return tmp_path / "set"


def verify_or_error(folder: Path) -> VerifyReport | OmrError:
    try:
        return verify(folder)
    except OmrError as error:
        return error


def found(outcome: VerifyReport | OmrError) -> str:
    if isinstance(outcome, OmrError):
        return str(outcome)
    assert outcome.problems, "the damage is silent"
    return "\n".join(map(str, outcome.problems))


def test_a_sound_set(folder):
    calls = []
    report = verify(folder, decode=True, progress=lambda *at: calls.append(at))
    assert report.ok
    assert (report.shards, report.samples) == (3, 20)
    assert report.images == sum(len(item.images) for item in mixed_records(20))
    assert [done for done, _ in calls][-1] == report.bytes == calls[0][1]


def test_no_flipped_bit_is_silent(folder):
    """300 one-bit flips anywhere in any file of the set."""
    whole = contents(folder)
    rng = random.Random(8)
    names = sorted(whole, key=lambda name: (not name.endswith(".tar"), name))
    for round in range(300):
        name = names[round % len(names)] if round % 2 else names[round % 3]
        at = rng.randrange(len(whole[name]))
        damaged = bytearray(whole[name])
        damaged[at] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged)
        assert name in found(verify_or_error(folder))
        (folder / name).write_bytes(whole[name])
    assert verify(folder).ok


def test_a_flip_in_a_part_names_key_part_and_offset(folder):
    table = scan_tar_file(folder / "train-000001.tar")
    rng = random.Random(9)
    path = folder / "train-000001.tar"
    whole = path.read_bytes()
    for name, offset, size in zip(table.names, table.data_offsets, table.sizes, strict=True):
        damaged = bytearray(whole)
        damaged[offset + rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        place = f"shard train-000001.tar, key {name.split('.')[0]}, part {name}, offset {offset}"
        assert f"CRC-32C ({place})" in found(verify(folder))


def test_a_flip_in_a_header_names_its_offset(folder):
    table = scan_tar_file(folder / "train-000000.tar")
    path = folder / "train-000000.tar"
    whole = path.read_bytes()
    for offset in table.header_offsets.tolist():
        damaged = bytearray(whole)
        damaged[offset + 3] ^= 1
        path.write_bytes(damaged)
        text = found(verify(folder))
        assert re.search(rf"checksum .*shard train-000000.tar, key .*, offset {offset}\)", text)
        assert re.search(rf"header is not as written .*, part .*, offset {offset + 3}\)", text)


def test_no_truncation_is_silent(folder):
    whole = contents(folder)
    rng = random.Random(10)
    for name, data in whole.items():
        for cut in {0, 1, len(data) - 1, max(0, len(data) - 512), *rng.sample(range(len(data)), 6)}:
            (folder / name).write_bytes(data[:cut])
            assert name in found(verify_or_error(folder))
        (folder / name).unlink()
        assert name in found(verify_or_error(folder))
        (folder / name).write_bytes(data + b"\0")
        assert name in found(verify_or_error(folder))
        (folder / name).write_bytes(data)
    assert verify(folder).ok


def test_every_problem_is_named_not_only_the_first(folder):
    for name in ("train-000000.tar", "train-000002.tar"):
        data = bytearray((folder / name).read_bytes())
        data[600] ^= 1
        (folder / name).write_bytes(data)
    (folder / "train-000001.idx").unlink()
    (folder / "train-000077.tar").write_bytes(b"")
    text = found(verify(folder))
    for name in ("train-000000.tar", "train-000002.tar", "train-000001.idx", "train-000077.tar"):
        assert name in text
    assert "not part of the set (shard train-000077.tar)" in text


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree, as a wrong writer would."""
    (folder / name).write_bytes(data)
    digest = FileDigest(name, len(data), hashlib.sha256(data).hexdigest())
    manifest = read_manifest(folder)
    shards = []
    for shard in manifest.shards:
        if shard.name == name:
            shard = dataclasses.replace(shard, bytes=digest.bytes, sha256=digest.sha256)
        if shard.idx.name == name:
            shard = dataclasses.replace(shard, idx=digest)
        shards.append(shard)
    changes = {"shards": tuple(shards)}
    if name == manifest.index.name:
        changes["index"] = digest
    if manifest.rejects is not None and name == manifest.rejects.name:
        changes["rejects"] = digest
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, **changes).to_bytes())


def test_hashes_that_agree_do_not_hide_a_wrong_content(folder, tmp_path):
    """A set whose hashes are right but whose files do not fit together."""
    whole = contents(folder)
    tar = whole["train-000000.tar"]

    def problems(name: str, data: bytes) -> str:
        forge(folder, name, data)
        text = found(verify(folder))
        assert "SHA-256" not in text
        for each, original in whole.items():
            (folder / each).write_bytes(original)
        return text

    idx = whole["train-000000.idx"]
    assert "DALI index does not agree" in problems("train-000000.idx", idx.replace(b"512", b"513"))
    table = scan_tar_file(folder / "train-000000.tar")
    renamed = tar_header("other.jpg", int(table.sizes[0])) + tar[512:]
    text = problems("train-000000.tar", renamed)
    assert "only the tar has this part" in text
    assert "only the index has this part" in text
    assert "trailer" in problems("train-000000.tar", tar[:-512])
    assert "not zero" in problems("train-000000.tar", tar + b"x" * 512)
    at = tar.index(b'"answer":"A"')
    text = problems("train-000000.tar", tar[: at + 10] + b"B" + tar[at + 11 :])
    assert "CRC-32C" in text
    assert "answer are not the index's" in text
    at = tar.index(b'"id":"case.0003"')
    assert "has another key" in problems("train-000000.tar", tar[: at + 14] + b"9" + tar[at + 15 :])
    at = tar.index(b'"question"')
    assert "other fields" in problems("train-000000.tar", tar[: at + 1] + b"Q" + tar[at + 2 :])
    write(tmp_path / "other", [record(1), record(2, [b"x"]), record(3, [b"x"])])
    rejects = (tmp_path / "other" / "rejects.parquet").read_bytes()
    assert "2 rows, the manifest counts 1 refusals" in problems("rejects.parquet", rejects)


def test_an_index_of_another_set_is_found(folder, tmp_path):
    other = [dataclasses.replace(item, answer="B") for item in mixed_records(20)]
    write(tmp_path / "other", other, max_shard_samples=8)
    forge(folder, "index.arrow", (tmp_path / "other" / "index.arrow").read_bytes())
    assert "CRC-32C" in found(verify(folder))


def test_decode_finds_what_headers_do_not(tmp_path):
    jpeg = encoded(5, size=(64, 64))
    write(
        tmp_path / "set", [record(0, [jpeg[: len(jpeg) // 2]])], check="header", keep_metadata=True
    )
    assert verify(tmp_path / "set").ok
    text = found(verify(tmp_path / "set", decode=True))
    assert "key case%2E0000, part case%2E0000.jpg" in text


def test_a_broken_index_does_not_stop_the_check_of_tars(folder):
    (folder / "index.arrow").write_bytes(b"x")
    data = bytearray((folder / "train-000002.tar").read_bytes())
    data[3] ^= 1
    (folder / "train-000002.tar").write_bytes(data)
    text = found(verify(folder))
    assert "index.arrow" in text
    assert "checksum" in text


def test_what_cannot_be_checked_at_all(folder, tmp_path):
    with pytest.raises(SourceError, match="no shard set"):
        verify(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="broken manifest"):
        verify(folder)


def test_no_descriptor_is_left_open(folder):
    before = len(list(Path("/proc/self/fd").iterdir()))
    verify(folder, decode=True)
    (folder / "train-000002.tar").write_bytes(b"")
    verify(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_single_shard_of_single_images(tmp_path):
    write(tmp_path / "set", single_records(3))
    assert verify(tmp_path / "set").ok


def test_a_shard_that_cannot_be_read_does_not_end_the_check(folder):
    (folder / "train-000000.tar").unlink()
    (folder / "train-000000.tar").mkdir()
    (folder / "train-000002.idx").unlink()
    text = found(verify(folder))
    assert "cannot be read: Is a directory (shard train-000000.tar)" in text
    assert "train-000002.idx" in text


def test_a_path_that_is_no_folder_and_a_lost_shard_say_how_to_mend(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "nowhere"):
        with pytest.raises(SourceError, match=r"is no folder\. Give the folder"):
            verify(tmp_path / name)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(IntegrityError, match=r"missing \(shard train-000001.tar\)\. Copy the set"):
        ShardSet.open(folder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{oops", "no JSON at offset 1"),
        (b"\xff{}", "no UTF-8 at offset 0"),
        (b"{}", "the field 'format' is missing"),
        (b"[]", "not those that omr_io writes"),
    ],
)
def test_a_broken_manifest_is_told_without_python_words(folder, data, words):
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(IntegrityError, match=words) as caught:
        verify(folder)
    assert "Error" not in str(caught.value)
