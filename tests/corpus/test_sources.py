"""Finding source files of every format: folders, globs, URLs; never two kinds at once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_io.corpus import count_rows, list_sources, open_source, source_fingerprint
from omr_io.errors import SourceError
from tests.corpus.source_files import use_remote


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_a_folder_stands_for_its_parquet_or_its_one_other_format(tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = touch(data, "train-0.json", "train-1.jsonl", "train-2.ndjson")
    touch(data, "readme.md", "images.zip", "LICENSE")
    assert list_sources(data) == tuple(files)
    tables = touch(data, "train.csv", "train2.TSV")
    with pytest.raises(SourceError, match=r"several formats: 2 csv, 3 json.*train-0\.json"):
        list_sources(data)
    assert list_sources(str(data / "*.[ct]*v")) == (tables[0],)
    (parquet,) = touch(data, "train-9.parquet")
    assert list_sources(data) == (parquet,)
    tars = touch(tmp_path / "tars", "000001.tar", "000000.tar")
    assert list_sources(tmp_path / "tars") == tuple(reversed(tars))
    touch(tmp_path / "none", "readme.md")
    with pytest.raises(SourceError, match=r"no \*\.parquet.*Known are \.parquet, \.json"):
        list_sources(tmp_path / "none")


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (parquet,) = touch(tmp_path / "data", "train-0.parquet")
    touch(tmp_path / "data", "._train-0.parquet")  # macOS leaves it beside a copy
    assert list_sources(tmp_path / "data") == (parquet,)


@pytest.mark.parametrize("name", ["bad\udcff/train.parquet", "good/train\udcff.parquet"])
def test_a_path_that_is_no_unicode_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=r"not UTF-8.*\udcff.*Rename"):
        list_sources(tmp_path / name)


def test_a_variable_that_was_not_set_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.parquet").touch()
    monkeypatch.chdir(tmp_path)
    assert list_sources(".") == (Path("train.parquet"),)
    with pytest.raises(SourceError, match="a source is empty text"):
        list_sources("")


def test_brackets_in_a_folders_name_are_told_how_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "scans [2024] a"
    folder.mkdir()
    (folder / "train one.parquet").touch()
    with pytest.raises(SourceError, match=r'no file matches.*is written "\[\[\]"'):
        list_sources(str(folder / "*.parquet"))
    escaped = str(folder / "*.parquet").replace("[", "[[]")
    assert list_sources(escaped) == (folder / "train one.parquet",)


def test_rows_of_two_formats_need_different_names_too(tmp_path: Path) -> None:
    files = touch(tmp_path, "a.json", "a.csv")
    with pytest.raises(SourceError, match="same name"):
        list_sources(files)
    splits = touch(tmp_path, "train.json", "test.csv")
    with pytest.raises(SourceError, match="different splits"):
        list_sources(splits)


def test_urls_are_listed_once_and_keep_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "hf://datasets/owner/name/data/"
    names = [f"{base}train-{n}.parquet" for n in range(2)]
    use_remote(monkeypatch, dict.fromkeys([*names, f"{base}test-0.parquet"], b""))
    assert list_sources(f"{base}train") == tuple(names)
    assert list_sources([names[0], f"{base}train"]) == tuple(names)
    (local,) = touch(tmp_path, "train-7.parquet")
    assert set(list_sources([local, names[0]])) == {local, names[0]}
    with pytest.raises(SourceError, match=r"different splits: test-0\.parquet \(test\)"):
        list_sources(base)
    with pytest.raises(SourceError, match="same name"):
        list_sources([names[0], *touch(tmp_path, "train-0.parquet")])


def test_the_fingerprint_of_json_is_over_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"answer": "A"}) + "\n")
    first = source_fingerprint([path])
    path.write_text(json.dumps({"answer": "B"}) + "\n")
    assert source_fingerprint([path]) != first
    path.write_text(json.dumps({"answer": "A"}) + "\n")
    assert source_fingerprint([path]) == first


def test_the_fingerprint_of_parquet_is_what_it_was(tmp_path: Path) -> None:
    """Shard sets on disk hold it: a change would make every one of them foreign."""
    import hashlib

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"]}), path)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer = hashlib.sha256(data[len(data) - 8 - length :]).hexdigest()
    text = json.dumps(["sources", [["a.parquet", len(data), footer]]], separators=(",", ":"))
    assert source_fingerprint([path]) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_rows_are_counted_over_formats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x", "y"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\nbroken\n\n')
    (tmp_path / "c.csv").write_text("a\n1\n2\n3\n")
    assert count_rows([tmp_path / name for name in ("a.parquet", "b.jsonl", "c.csv")]) == 7


def test_other_kinds_of_url_are_told() -> None:
    for url in ("az://bucket/a.parquet", "pipe:// cat x", "file:///a.parquet"):
        with pytest.raises(SourceError, match=r"no URL that omr_io reads.*hf://"):
            list_sources(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a%20b.csv?token=1", "a b.csv"),
        ("s3://bucket/x/a%20b?c#d.csv", "a%20b?c#d.csv"),  # keys of these are literal
        ("hf://datasets/LAB/CORPUS/a%20b.csv", "a%20b.csv"),
    ],
)
def test_a_file_behind_a_url_is_called_what_it_is_called_there(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str
) -> None:
    use_remote(monkeypatch, {url: b"a\n1\n"})
    assert open_source(url).name == name
