"""Every schema from its file on disk to a shard set, and what became of each row there."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omr_io.cli import main
from omr_io.conversion import ConvertOptions, convert
from omr_io.corpus import ReadOptions
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.shards import verify
from omr_io.shards.layout import read_manifest
from omr_io.types import Record
from tests.corpus.schema_fixtures import FIXTURES, MAPPED, PMC_VQA, Fixture

BY_FILE = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.file)


def options_for(fixture: Fixture, root: Path | None) -> ReadOptions:
    return ReadOptions(image_root=root, **fixture.options)


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).tobytes()


def same(found: Record, wanted: Record) -> None:
    """Equal in all but the bytes around the pixels, which conversion may strip."""
    assert [image.name for image in found.images] == [image.name for image in wanted.images]
    for one, other in zip(found.images, wanted.images, strict=True):
        assert pixels(one.data) == pixels(other.data)
    for name in ("id", "question", "options", "answer", "reasoning", "rubric", "source", "extra"):
        assert getattr(found, name) == getattr(wanted, name), name


@BY_FILE
def test_a_shard_set_of_every_schema(fixture: Fixture, tmp_path: Path) -> None:
    path, root = fixture.write(tmp_path)
    out = tmp_path / "shards"
    summary = convert(path, out, ConvertOptions(read=options_for(fixture, root)))
    taken = [(n, e) for n, e in enumerate(fixture.expected) if e.reason is None]
    refused = [(n, e.reason) for n, e in enumerate(fixture.expected) if e.reason is not None]
    assert (summary.rows, summary.samples) == (len(fixture.expected), len(taken))
    assert summary.refusals == Counter(reason for _, reason in refused)
    if refused:
        rejects = pq.read_table(out / "rejects.parquet").to_pylist()
        assert [(row["row"], row["reason"]) for row in rejects] == refused
    assert json.loads((out / "manifest.json").read_text())["schemas"] == [fixture.schema]
    assert read_manifest(out).schemas == (fixture.schema,)
    with ShardSet.open(out) as shards:
        for place, (number, wanted) in enumerate(taken):
            same(shards.read_record(place), wanted.record(fixture.file, number))
            assert shards.answer(place) == (wanted.answer if wanted.options else "")
            assert shards.num_options[place] == len(wanted.options)
    assert verify(out, decode=True).problems == ()


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["omr-io", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code


def test_the_command_line_takes_a_zip_of_images_and_a_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = PMC_VQA.write(tmp_path)
    words = ("convert", path, tmp_path / "shards", "--image-root", root, "--schema", "pmc-vqa")
    run(monkeypatch, *words, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["samples"]) == (9, 2)
    assert found["refusals"]["label-mismatch"] == 2


def test_a_run_with_other_images_does_not_go_on_with_their_refusals(tmp_path: Path) -> None:
    path, root = PMC_VQA.write(tmp_path)
    assert root is not None
    other = tmp_path / "other"
    other.mkdir()
    good = ConvertOptions(read=ReadOptions(image_root=root))
    wrong = ConvertOptions(read=ReadOptions(image_root=(other, root)))
    convert(path, tmp_path / "set", wrong, part=(1, 2))
    with pytest.raises(ConfigError, match=r"image_root was other, images\.zip, now images\.zip"):
        convert(path, tmp_path / "set", good)
    moved = tmp_path / "moved" / root.name
    moved.parent.mkdir()
    root.rename(moved)
    wrong = ConvertOptions(read=ReadOptions(image_root=(other, moved)))
    assert convert(path, tmp_path / "set", wrong).kept == 1


def test_the_command_line_maps_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = MAPPED.write(tmp_path)
    words = ["convert", path, tmp_path / "shards", "--image-root", root]
    words += ["--map", "question=query,answer=label,image=file", "--map", "options=choices"]
    run(monkeypatch, *words, "--map", "reasoning=cot", "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_an_unknown_schema_ends_with_a_line_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"querry": "Which?\nA. x\nB. y", "anser": "B", "score": 0.5}]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    monkeypatch.setattr("sys.argv", ["omr-io", "convert", str(path), str(tmp_path / "shards")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 3
    said = capsys.readouterr().err
    assert "querry (text), anser (text), score (float)" in said
    _, _, line = said.partition("Try --map ")
    run(
        monkeypatch, "convert", path, tmp_path / "shards", "--map", line.split()[0].rstrip(","),
        "--json",
    )  # fmt: skip
    with ShardSet.open(tmp_path / "shards") as shards:
        record = shards.read_record(0)
    assert (record.answer, record.images, record.extra) == ("B", (), {"score": 0.5})


def test_schemas_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "schemas", "--json")
    listed = json.loads(capsys.readouterr().out)["schemas"]
    assert {item["name"] for item in listed} == {fixture.schema for fixture in FIXTURES}
    pmc = next(item for item in listed if item["name"] == "pmc-vqa")
    assert "Figure_path" in pmc["columns"]
    assert "[Answer_label]" in pmc["columns"]
    run(monkeypatch, "schemas")
    shown = capsys.readouterr().out
    assert all(item["name"] in shown and item["summary"] in shown for item in listed)


@pytest.mark.parametrize("text", ["question", "=x", "question=", "question=a,answer=b,c"])
def test_a_map_that_lacks_a_side(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["omr-io", "convert", "x", str(tmp_path / "o"), "--map", text])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "MEANING=COLUMN" in capsys.readouterr().err
