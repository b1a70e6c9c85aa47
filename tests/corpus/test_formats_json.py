"""JSON files: any layout reads as Python's json does; damage is told, bounded in memory."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus.formats import json_text, untyped
from omr_io.corpus.formats.json_file import JsonFile
from omr_io.corpus.raw import BadRow, BadText, ColumnType
from omr_io.errors import SourceError
from tests.corpus.source_files import all_rows, same_from_a_url

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(width=32) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), min_size=1, max_size=30)
LAYOUTS = ("lines", "array", "indented", "data", "indented data")


def text_of(rows: list[Any], layout: str, *, ascii_only: bool = False) -> str:
    def dump(value: Any, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, **how)

    if layout == "lines":
        return "\n".join(map(dump, rows)) + "\n"
    inside = {"data": rows} if "data" in layout else rows
    return dump(inside, indent=1 if "indented" in layout else None)


def plain(value: Any) -> Any:
    """A value as a RawRow has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: plain(row.get(name)) for name in names} for row in rows]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ROWS,
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.booleans(),
    st.integers(1, 7),
    st.integers(1, 40),
)
def test_every_layout_reads_back_whatever_the_spans_and_chunks(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    layout: str,
    ascii_only: bool,
    mark: bool,
    span: int,
    chunk: int,
) -> None:
    text = ("\ufeff" if mark else "") + text_of(rows, layout, ascii_only=ascii_only)
    path = write(tmp_path / "a.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untyped, "_SPAN_ROWS", span)
        patch.setattr(json_text, "_CHUNK_BYTES", chunk)
        file = JsonFile.open(path)
        assert all_rows(file) == table(rows)
        assert all(item.num_rows <= span for item in file.spans())
        if len(rows) > span:
            assert len(file.spans()) > 1


def test_the_datasets_library_reads_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"id": n, "text": f"é {n}", "turns": [{"from": "human", "value": "x" * n}], "x": n / 2}
        for n in range(50)
    ]
    for layout in ("lines", "array"):
        path = write(tmp_path / f"{layout}.json", text_of(rows, layout))
        theirs = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert all_rows(JsonFile.open(path)) == list(theirs)


def test_types_are_those_of_all_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": 1, "x": 1, "t": "a", "l": [], "s": {"a": 1}, "nothing": None, "late": None, "m": 1}
        for _ in range(1500)
    ]
    rows[1] |= {"x": 0.5, "l": ["b"], "s": {"b": [1.5]}, "flag": True}
    rows[1400] |= {"late": "c", "later": {"d": 1}, "m": "text"}
    found = JsonFile.open(write(tmp_path / "a.jsonl", text_of(rows, "lines"))).columns
    assert {name: str(kind) for name, kind in found.items()} == {
        "n": "integer",
        "x": "float",
        "t": "text",
        "l": "list<text>",
        "s": "struct<a: integer, b: list<float>>",
        "nothing": "null",
        "late": "text",
        "m": "mixed",
        "flag": "boolean",
        "later": "struct<d: integer>",
    }


def test_spans_are_a_thousand_rows_and_count_images_that_lie_elsewhere(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "text": "x"} for n in range(2500)]
    near = [{"image": None, "text": "x"} for n in range(2500)]
    several = [{"images": ["a.jpg", "b.jpg"], "text": "x"} for n in range(2500)]
    sizes = []
    for name, table_ in (("a", near), ("b", rows), ("c", several)):
        spans = JsonFile.open(write(tmp_path / f"{name}.json", text_of(table_, "array"))).spans()
        assert [span.num_rows for span in spans] == [1000, 1000, 500]
        sizes.append(spans[0].num_bytes // 1000 // 10_000)
    assert sizes == [0, 10, 20]
    long = [{"text": "x" * 9_000_000}] * 4
    spans = JsonFile.open(write(tmp_path / "d.json", text_of(long, "array"))).spans()
    assert [span.num_rows for span in spans] == [1, 1, 1, 1]


BAD_LINES = [
    (b"{", "Expecting property name"),
    (b'{"a": 1', "Expecting ',' delimiter"),
    (b'{"a": "x', "Unterminated string"),
    (b"nonsense", "Expecting value"),
    (b'{"a": 1} {"a": 2}', "more than one value"),
    (b"[1]", "a list, wanted an object"),
    (b"17", "a number, wanted an object"),
    (b"null", "null, wanted an object"),
    (b'{"a": 1, "a": 2}', "'a' is there twice"),
    (b'{"a": {"b": 1, "c": 2, "b": 1}}', "'b' is there twice"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
    (b'{"\xff": 1}', "a name is not UTF-8"),
    (b'{"a": {"\\ud800": 1}}', "a name is not UTF-8"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_bad_line_is_one_bad_row(tmp_path: Path, line: bytes, why: str) -> None:
    data = b'{"a": 1}\n' + line + b'\r\n\n  \n{"a": 2}\n'
    first, bad, last = all_rows(JsonFile.open(write(tmp_path / "a.jsonl", data)))
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, BadRow)
    assert bad.reason == "bad-json"
    assert bad.detail.startswith("byte 9: ")
    assert why in bad.detail
    assert len(bad.detail) < 300


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_text_that_is_not_utf8_is_marked_where_it_stands(tmp_path: Path, layout: str) -> None:
    lines = [
        b'{"a": "caf\xe9", "b": ["ok", {"c": "\\ud83d"}], "d": "\xf0\x9f\x98\x80 \\ud83d\\ude00"}',
        b'{"a": "fine", "b": [], "d": "\\u00e9"}',
    ]
    data = b"\n".join(lines) if layout == "lines" else b"[" + b",".join(lines) + b"]"
    first, second = all_rows(JsonFile.open(write(tmp_path / "a.json", data)))
    assert first == {
        "a": BadText(b"caf\xe9", "character 3: not UTF-8"),
        "b": ["ok", {"c": BadText(b"\xed\xa0\xbd", "character 0: half a surrogate pair")}],
        "d": "😀 😀",
    }
    assert second == {"a": "fine", "b": [], "d": "é"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'[{"a": 1}, {"a": }, {"a": 3}]', r"byte 11: Expecting value .*row 1"),
        (b'[{"a": 1}', r"wanted ']', found 'the end of the file' .*row 1"),
        (b'[{"a": 1}, {"a": "x', r"byte 11: Unterminated string .*row 1"),
        (b'[{"a": 1} {"a": 2}]', r"byte 10: wanted ',', found '\{'"),
        (b'[{"a": 1},]', r"byte 10: Expecting value"),
        (b'[{"a": 1}] {"b": 2}', r"there is more after the array's end"),
        (b'{"data": [{"a": 1}], "b": 2}', r"wanted '\}', found ','"),
        (b"[", "found 'the end of the file'"),
        (b"[]", "no row of the file is a JSON object"),
        (b"[1, 2]", "no row of the file is a JSON object.*byte 1: a number"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf \n", "the file is empty"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b"hello\nworld\n", "no row of the file is a JSON object.*byte 0: Expecting value"),
        (b'{\n"a": 1\n}\n', "no row of the file is a JSON object"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        JsonFile.open(write(tmp_path / "a.json", data))
    assert "a.json" in str(caught.value)


def test_an_element_that_is_no_object_is_one_bad_row_of_an_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'[{"a": 1}, 12, "x", {"a": 1, "a": 2}, null, {"a": 2}]')
    rows = all_rows(JsonFile.open(path))
    assert [getattr(row, "reason", None) for row in rows] == [None, *["bad-json"] * 4, None]


def test_a_cut_file_is_an_error_or_shows_the_cut(tmp_path: Path) -> None:
    """Cut anywhere, an array is an error, and Lines lose no row before the cut."""
    rows = [{"a": n, "b": "é" * n} for n in range(12)]
    array, lines = (text_of(rows, layout).encode() for layout in ("array", "lines"))
    for end in range(1, len(array)):
        with pytest.raises(SourceError):
            JsonFile.open(write(tmp_path / "a.json", array[:end]))
    whole = table(rows)
    for end in range(len(lines) - 1):
        whole_lines = lines[:end].count(b"\n")
        path = write(tmp_path / "b.json", lines[:end])
        if not whole_lines and lines[:end] + b"\n" != lines[: end + 1]:
            with pytest.raises(SourceError):
                JsonFile.open(path)
            continue
        found = all_rows(JsonFile.open(path))
        assert found[:whole_lines] == whole[:whole_lines]
        tail = found[whole_lines:]
        complete = lines[end : end + 1] == b"\n"
        cut = not complete and not lines[:end].endswith(b"\n")
        assert [isinstance(row, BadRow) for row in tail] == [not complete] * (complete or cut)


def test_flipped_bytes_never_crash_nor_lose_a_line(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [{"a": n, "b": ["x", None, 1.5]} for n in range(20)]
    lines = text_of(rows, "lines").encode()
    for _ in range(300):
        broken = bytearray(lines)
        at = rng.randrange(len(lines))
        new = rng.randrange(256)
        if 10 in (broken[at], new):
            continue  # that makes or unmakes a line
        broken[at] = new
        found = all_rows(JsonFile.open(write(tmp_path / "a.json", bytes(broken))))
        assert len(found) == 20


def test_memory_is_bounded_by_the_row_not_by_the_file(tmp_path: Path) -> None:
    """60 MB in one array of one line; its objects together take far more."""
    row = {"id": "x", "conversations": [{"from": "human", "value": "y" * 200}] * 5}
    one = json.dumps(row)
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write("[" + ", ".join([one] * 42_000) + "]")
    assert path.stat().st_size > 50_000_000
    tracemalloc.start()
    file_ = JsonFile.open(path)
    count = sum(1 for span in file_.spans() for _ in file_.rows(span, file_.columns))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == file_.num_rows == 42_000
    assert 1_000_000 < peak < 16_000_000


def test_a_url_reads_as_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "é" * (n % 7), "n": n} for n in range(2100)]
    for layout in LAYOUTS:
        path = write(tmp_path / f"{layout}.json", text_of(rows, layout))
        same_from_a_url(monkeypatch, path)


def test_columns_that_are_not_there_and_files_with_too_many(tmp_path: Path) -> None:
    file = JsonFile.open(write(tmp_path / "a.json", b'{"a": 1}\n{"b": 2}\n'))
    with pytest.raises(SourceError, match="no column c; there are: a, b"):
        file.rows(file.spans()[0], ["c"])
    assert [list(row) for row in all_rows(file, ["b"])] == [["b"], ["b"]]
    data = "\n".join(json.dumps({f"{n}.{k}": 1 for k in range(100)}) for n in range(101))
    with pytest.raises(SourceError, match="more than 10000 different names"):
        JsonFile.open(write(tmp_path / "b.json", data))
    assert file.columns["a"] == ColumnType("integer")
