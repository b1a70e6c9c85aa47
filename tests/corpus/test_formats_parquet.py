"""Parquet files: what pyarrow itself reads, as plain values, whatever the type and the batches."""

from __future__ import annotations

import datetime
import decimal
import math
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus.formats import format_of, open_source, parquet
from omr_io.corpus.formats.arrow import column_type, reader_of
from omr_io.corpus.formats.parquet import ParquetFile
from omr_io.corpus.raw import BadText
from omr_io.errors import SourceError
from tests.corpus.source_files import all_rows, same_from_a_url

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.binary(), st.binary(max_size=8)),
    (pa.large_binary(), st.binary(max_size=8)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.bool_(), st.booleans()),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.dictionary(pa.int32(), pa.string()), TEXT),
]


def typed(depth: int) -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    """An Arrow type, and values of it."""
    leaf = st.sampled_from(LEAVES)
    if not depth:
        return leaf
    inner = typed(depth - 1)

    def listed(of: tuple[Any, Any]) -> tuple[Any, Any]:
        return pa.list_(of[0]), st.lists(st.none() | of[1], max_size=3)

    def viewed(of: tuple[Any, Any]) -> tuple[Any, Any]:
        return pa.list_view(of[0]), st.lists(st.none() | of[1], max_size=3)

    def fixed(of: tuple[Any, Any]) -> tuple[Any, Any]:
        return pa.list_(of[0], 2), st.lists(st.none() | of[1], min_size=2, max_size=2)

    def struct(of: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        kinds = [(f"f{n}", kind) for n, (kind, _) in enumerate(of)]
        values = {f"f{n}": st.none() | each for n, (_, each) in enumerate(of)}
        return pa.struct(kinds), st.fixed_dictionaries(values)

    plain = inner.filter(lambda of: not pa.types.is_dictionary(of[0]))
    structs = st.lists(plain, min_size=1, max_size=3).map(struct)
    return st.one_of(leaf, plain.map(listed), plain.map(viewed), plain.map(fixed), structs)


@st.composite
def tables(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(1, 20))
    columns = {}
    for number in range(draw(st.integers(1, 3))):
        kind, values = draw(typed(2))
        made = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[f"c{number}"] = pa.array(made, kind)
    return pa.table(columns)


def plain(value: Any) -> Any:
    """pyarrow's own value as a RawRow has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.integers(1, 9), st.integers(1, 5))
def test_values_are_pyarrows_own(tmp_path: Path, table: Any, group: int, batch: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_MAX_BATCH_ROWS", batch)
        rows = all_rows(ParquetFile.open(path))
    assert rows == plain(pq.read_table(path).to_pylist())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.data())
def test_slices_of_arrays_read_alike(table: Any, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, table.num_rows))
    for name in table.column_names:
        array = table[name].combine_chunks()
        part = array.slice(start, data.draw(st.integers(0, table.num_rows)))
        assert list(reader_of(array.type)(part)) == plain(part.to_pylist())


def text_array(values: list[bytes | None], large: bool = False) -> Any:
    """A string column whose bytes nobody checked."""
    binary = pa.array(values, pa.large_binary() if large else pa.binary())
    kind = pa.LargeStringArray if large else pa.StringArray
    return kind.from_buffers(len(binary), *binary.buffers()[1:], binary.buffers()[0])


@pytest.mark.parametrize("large", [False, True])
def test_text_that_is_not_utf8_is_marked_and_its_neighbours_are_not(
    tmp_path: Path, large: bool
) -> None:
    texts = text_array([b"ok", b"caf\xe9", None, b"\xed\xa0\x80"], large)
    nested = pa.StructArray.from_arrays([texts, pa.array([1, 2, 3, 4])], names=["t", "n"])
    listed = pa.ListArray.from_arrays(pa.array([0, 1, 3, 3, 4], pa.int32()), texts)
    path = tmp_path / "a.parquet"
    table = pa.table({"t": texts, "s": nested, "l": listed, "d": texts.dictionary_encode()})
    pq.write_table(table, path)
    bad = [
        BadText(b"caf\xe9", "byte 3: unexpected end of data"),
        BadText(b"\xed\xa0\x80", "byte 0: invalid continuation byte"),
    ]
    wanted = ["ok", bad[0], None, bad[1]]
    rows = all_rows(ParquetFile.open(path))
    assert [row["t"] for row in rows] == [row["d"] for row in rows] == wanted
    assert [row["s"]["t"] for row in rows] == wanted
    assert [row["l"] for row in rows] == [["ok"], [bad[0], None], [], [bad[1]]]


def test_types_and_what_becomes_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    columns: dict[str, tuple[Any, Any, str, Any]] = {
        "day": (datetime.date(2020, 1, 2), pa.date32(), "text", "2020-01-02"),
        "moment": (moment, pa.timestamp("ms"), "text", "2020-01-02 03:04:05.000"),
        "hour": (datetime.time(3, 4), pa.time32("s"), "text", "03:04:00.000"),
        "price": (decimal.Decimal("1.20"), pa.decimal128(5, 2), "text", "1.20"),
        "half": (1.5, pa.float16(), "float", 1.5),
        "big": (2**64 - 1, pa.uint64(), "integer", 2**64 - 1),
        "json": ('{"a": 1}', pa.json_(), "text", '{"a": 1}'),
        "nothing": (None, pa.null(), "null", None),
        "image": ({"bytes": b"x", "path": None}, IMAGE, "struct<bytes: bytes, path: text>",
                  {"bytes": b"x", "path": None}),
        "tags": (["a"], pa.list_(pa.string()), "list<text>", ["a"]),
    }  # fmt: skip
    path = tmp_path / "a.parquet"
    arrays = [pa.array([value], kind) for value, kind, _, _ in columns.values()]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), path)
    file = ParquetFile.open(path)
    assert {name: str(kind) for name, kind in file.columns.items()} == {
        name: said for name, (_, _, said, _) in columns.items()
    }
    assert all_rows(file) == [{name: value for name, (_, _, _, value) in columns.items()}]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.timedelta(1), pa.duration("s")),
        ([("a", 1)], pa.map_(pa.string(), pa.int64())),
        ([[("a", 1)]], pa.list_(pa.map_(pa.string(), pa.int64()))),
        ({"m": [("a", 1)]}, pa.struct([("m", pa.map_(pa.string(), pa.int64()))])),
    ],
)
def test_columns_that_no_row_can_carry_keep_arrows_name_for_their_type(
    tmp_path: Path, value: Any, kind: Any
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array([value], kind), "y": ["z"]}), path)
    file = ParquetFile.open(path)
    assert file.columns["x"].kind == column_type(kind).kind == "mixed"
    assert str(file.columns["x"]) == str(pq.read_schema(path).field("x").type)
    assert all_rows(file, ["y"]) == [{"y": "z"}]
    with pytest.raises(SourceError, match=r"column x has type .*omit"):
        file.rows(file.spans()[0], ["x", "y"])
    assert [list(row) for row in file.head(1)] == [["y"]]


def test_the_head_reads_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"image": {"bytes": os.urandom(9), "path": f"{n}.jpg"}, "raw": b"x", "q": f"é{n}"}
        for n in range(7)
    ]
    lists = [[row["image"]] * (n % 3) for n, row in enumerate(rows)]
    path = tmp_path / "a.parquet"
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]} | {"images": lists})
    pq.write_table(table, path, row_group_size=2)
    asked: list[list[str]] = []
    plain_batches = pq.ParquetFile.iter_batches

    def spied(self: Any, *given: Any, columns: list[str], **how: Any) -> Any:
        asked.append(columns)
        return plain_batches(self, *given, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
    found = ParquetFile.open(path).head(5)
    assert {leaf for leaves in asked for leaf in leaves} == {
        "image.path",
        "q",
        "images.list.element.path",
    }
    assert found == [
        {
            "image": {"bytes": None, "path": f"{n}.jpg"},
            "raw": None,
            "q": f"é{n}",
            "images": [{"bytes": None, "path": f"{n}.jpg"}] * (n % 3),
        }
        for n in range(5)
    ]
    assert len(ParquetFile.open(path).head(99)) == 7
    pq.write_table(pa.table({"raw": [b"x"] * 3}), path)
    assert ParquetFile.open(path).head(2) == [{"raw": None}] * 2


def test_spans_are_row_groups_and_count_images_that_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    inside = pa.table({"image": pa.array([{"bytes": b"x" * 500, "path": "a"}] * 10, IMAGE)})
    outside = pa.table({"image": ["a.jpg"] * 10})
    sizes = []
    for table in (inside, outside):
        pq.write_table(table, path, row_group_size=4, use_dictionary=False)
        spans = ParquetFile.open(path).spans()
        assert [(span.first_row, span.num_rows, span.place) for span in spans] == [
            (0, 4, 0), (4, 4, 1), (8, 2, 2),
        ]  # fmt: skip
        sizes.append(spans[0].num_bytes // 4)
    assert 2000 < sizes[0] < 2500
    assert 101_000 < sizes[1] < 102_000


def test_a_url_reads_as_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    images = [{"bytes": rng.randbytes(5000), "path": f"{n}.jpg"} for n in range(90)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "n": range(90)}), path, row_group_size=40)
    same_from_a_url(monkeypatch, path)


def test_formats_are_told_by_suffix_else_by_content(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "one")
    (tmp_path / "two").write_text(' \n[{"a": 1}]')
    (tmp_path / "three.txt").write_text('\ufeff{"a": 1}\n')
    (tmp_path / "four.TSV").write_text("a\tb\n1\t2\n")
    names = {"one": "parquet", "two": "json", "three.txt": "json", "four.TSV": "csv"}
    for name, wanted in names.items():
        assert format_of(tmp_path / name) == wanted
        assert open_source(tmp_path / name).num_rows == 1
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "packed").write_bytes(b"\x1f\x8b" + bytes(9))
    with pytest.raises(SourceError, match=r"format is not known.*notes\.txt.*Known are \.parquet"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match=r"this is gzip data.*Unpack it first"):
        open_source(tmp_path / "packed")
    with pytest.raises(SourceError, match="is not a file"):
        open_source(tmp_path)
