"""What omr-io writes for Energon, against tarfile, against the decoders, and when things fail."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from omr_io.energon import metadata, write_energon_metadata
from omr_io.energon.sample_loader import part_filter, picture, sample_loader
from omr_io.errors import ConfigError, DataError, DiskError, IntegrityError, SourceError
from omr_io.images import probe
from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.shards import verify
from omr_io.shards.layout import Part
from tests.shard_sets import contents, encoded, mixed_records, record, single_records, write
from tests.test_cli import omr_io  # noqa: F401  # a fixture


def seen_by_tarfile(path: Path) -> tuple[list[tuple], list[tuple], list[int]]:
    """Samples, parts and offsets by Energon's rules, from the tar itself."""
    samples, parts, starts = [], [], []
    with tarfile.open(path) as tar:
        for member in tar:
            found = re.match(r"((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name) or not found:
                continue
            if not samples or samples[-1][0] != found[1]:
                samples.append((found[1], member.offset))
                starts.append(member.offset)
            parts.append((len(samples) - 1, found[2], member.offset_data, member.size))
        starts.append(tar.offset)
    return samples, parts, starts


def test_indexes_equal_what_the_tars_hold(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, mixed_records(30), max_shard_samples=7)
    summary = write_energon_metadata(folder)
    assert (summary.shards, summary.samples, summary.split) == (5, 30, "train")
    database = sqlite3.connect(folder / ".nv-meta" / "index.sqlite")
    for number in range(5):
        tar = folder / f"train-{number:06d}.tar"
        samples, parts, starts = seen_by_tarfile(tar)
        raw = tar.with_suffix(".tar.idx").read_bytes()
        assert list(struct.unpack(f"<{len(raw) // 8}Q", raw)) == starts
        assert database.execute(
            "SELECT sample_key, sample_index, byte_offset, byte_size FROM samples "
            "WHERE tar_file_id = ? ORDER BY rowid", [number],
        ).fetchall() == [
            (key, i, at, starts[i + 1] - at) for i, (key, at) in enumerate(samples)
        ]  # fmt: skip
        assert database.execute(
            "SELECT sample_index, part_name, content_byte_offset, content_byte_size "
            "FROM sample_parts WHERE tar_file_id = ? ORDER BY rowid", [number],
        ).fetchall() == parts  # fmt: skip
    database.close()
    info = json.loads((folder / ".nv-meta" / ".info.json").read_text())
    assert info["shard_counts"] == {f"train-{n:06d}.tar": 7 if n < 4 else 2 for n in range(5)}
    assert verify(folder, decode=False).ok  # what is new there is in nobody's way


def test_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, mixed_records(9), split="validation")
        assert write_energon_metadata(tmp_path / name).split == "val"
    first, second = (contents(tmp_path / name / ".nv-meta") for name in ("a", "b"))
    assert first == second
    split = (tmp_path / "a" / ".nv-meta" / "split.yaml").read_text()
    assert split == (
        'split_parts:\n  "val":\n  - "validation-000000.tar"\n  "train": []\n  "test": []\n'
        "exclude: []\n"
    )


def pax_tar(path: Path, key: str) -> list[list[Part]]:
    """A tar as others make them: a folder, long headers, a file that is no part of a sample."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(3):
            if number == 1:
                tar.addfile(tarfile.TarInfo("__meta__/x.txt"), io.BytesIO(b""))
            for end, data in (("jpg", b"j" * 700), ("json", b"{}")):
                member = tarfile.TarInfo(f"folder/{key}{number}.{end}")
                member.size = len(data)
                member.pax_headers = {"comment": "é" * 600} if number else {}
                tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        found = [m for m in tar if m.isreg() and not m.name.startswith("__")]
    parts = [Part(m.name, m.offset_data, m.size, 0) for m in found]
    return [parts[at : at + 2] for at in (0, 2, 4)]


def test_shards_made_by_others(tmp_path: Path) -> None:
    groups = pax_tar(tmp_path / "x.tar", "k")
    shards = SimpleNamespace(parts=lambda i: groups[i], key=lambda i: f"k{i}")
    found, last = metadata._samples(tmp_path, shards, "x.tar", 0, 3)
    samples, parts, starts = seen_by_tarfile(tmp_path / "x.tar")
    assert [(sample.key, sample.begin) for sample in found] == samples
    assert [*(sample.begin for sample in found), last] == starts
    assert [(i, *part) for i, one in enumerate(found) for part in one.parts] == parts
    moved = [[Part(p.name, p.offset + 512, p.size, 0) for p in group] for group in groups]
    shards = SimpleNamespace(parts=lambda i: moved[i], key=lambda i: f"k{i}")
    with pytest.raises(IntegrityError, match="does not have"):
        metadata._samples(tmp_path, shards, "x.tar", 0, 3)


def test_names_that_energon_cuts_otherwise(tmp_path: Path) -> None:
    for names in (("a.b/c", "a.b/c.json"), ("x.jpg", "y.json"), (".jpg", ".json")):
        parts = [Part(name, 512 + 1024 * i, 5, 0) for i, name in enumerate(names)]
        shards = SimpleNamespace(parts=lambda i, parts=parts: parts, key=lambda i: "k")
        with pytest.raises(DataError, match="would not take"):
            metadata._samples(tmp_path, shards, "x.tar", 0, 1)


def test_an_old_one_is_kept_or_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    write(folder, single_records(3))
    write_energon_metadata(folder)
    (folder / ".nv-meta" / "mine.yaml").write_text("x")
    before = contents(folder / ".nv-meta")
    with pytest.raises(ConfigError, match="--overwrite"):
        write_energon_metadata(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for broken in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os if broken == "fsync" else Path, broken, fail)
            with pytest.raises(DiskError, match="No space left"):
                write_energon_metadata(folder, overwrite=True)
        assert contents(folder / ".nv-meta") == before
        assert not list(folder.glob(".nv-meta.*"))
    write_energon_metadata(folder, overwrite=True)
    assert set(contents(folder / ".nv-meta")) == set(before) - {"mine.yaml"}
    assert not list(folder.glob(".nv-meta.*"))


def test_a_full_disk_in_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    write(folder, single_records(3))
    monkeypatch.setattr(metadata, "_INDEXES", ("PRAGMA max_page_count = 1", *metadata._INDEXES))
    with pytest.raises(DiskError, match="full"):
        write_energon_metadata(folder)
    assert not (folder / ".nv-meta").exists()
    assert not list(folder.glob(".nv-meta*"))


def test_no_set_and_no_shards(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        write_energon_metadata(tmp_path)
    write(tmp_path / "set", single_records(2))
    (tmp_path / "set" / "train-000000.tar").unlink()
    with pytest.raises(IntegrityError):
        write_energon_metadata(tmp_path / "set")


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8))
    deep = Image.fromarray(rng.integers(0, 60_000, (20, 30), np.uint16))
    images = [
        ("JPEG", colour), ("JPEG", colour.convert("L")), ("JPEG", colour.convert("CMYK")),
        ("PNG", colour), ("PNG", alpha), ("PNG", colour.convert("P")), ("PNG", deep),
        ("PNG", alpha.convert("LA")), ("WEBP", colour), ("BMP", colour), ("GIF", colour),
        ("TIFF", colour),
    ]  # fmt: skip
    out = []
    for kind, image in images:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[274] = orientation
            file = io.BytesIO()
            tagged = {} if kind in ("BMP", "GIF") else {"exif": exif}
            image.save(file, kind, **tagged)
            out.append(file.getvalue())
    return out


def test_pictures_are_those_of_training() -> None:
    for data in pictures():
        info = probe(data)
        [expected] = CpuDecoder().decode([data], [info])
        found = picture(data)
        assert found.shape == (3, *expected.shape[:2])
        pixels = (found.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(pixels, expected, err_msg=str(info))


def test_the_sample_loader(tmp_path: Path) -> None:
    rows = [
        record(0, [encoded(0), encoded(1, "PNG")]),
        record(1, [], options=(), answer="some words", reasoning=""),
    ]
    write(tmp_path / "set", rows)
    with ShardSet.open(tmp_path / "set") as shards:
        for i, row in enumerate(rows):
            names = [part.name.split(".", 1)[1] for part in shards.parts(i)]
            raw = dict(zip(names, shards._read(i, shards.parts(i)), strict=True))
            assert all(part_filter(name) for name in names)
            *images, question, completion = sample_loader({"__key__": "k", **raw})["sequence"]
            assert [image.shape[0] for image in images] == [3] * len(row.images)
            assert question == row.question
            assert completion == (row.reasoning or "some words")


def test_command(omr_io, tmp_path: Path) -> None:  # noqa: F811
    write(tmp_path / "set", single_records(3))
    code, out, err = omr_io("energon", tmp_path / "set")
    assert (code, err) == (0, "")
    assert ["samples", "3"] in [line.split() for line in out.splitlines()]
    code, _, err = omr_io("energon", tmp_path / "set")
    assert code == 2
    assert "--overwrite" in err
    code, out, _ = omr_io("energon", tmp_path / "set", "--overwrite", "--json")
    assert (code, json.loads(out)["shards"]) == (0, 1)
