"""Plain rows in C++ against the way that every row can go: equal bytes, or left to that way."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from omr_io import _C
from omr_io.conversion import ConvertOptions, convert
from omr_io.conversion.piece_writer import _index_row
from omr_io.conversion.plain_rows import PlainRows
from omr_io.conversion.prepare import ImageChecks, Prepared, prepare
from omr_io.corpus.formats.parquet import ParquetFile
from omr_io.corpus.formats.parquet_pages import PageBatch, page_batches
from omr_io.corpus.pieces import RowBatch, open_file
from omr_io.corpus.raw import Span
from omr_io.corpus.rows import ReadOptions
from omr_io.shards.layout import Part
from omr_io.shards.tar_writer import ShardWriter, tar_header
from tests.conversion.small_corpora import parquet, row, tree_digest
from tests.shard_sets import encoded

CHECKS = ImageChecks(max_pixels=10_000, max_bytes=20_000, decode=False)
QUESTION = "Which is it?\nA. one\nB) two \nC: \u00b5-opioid \u201cthree\u201d\n"
TRACE = "<think>So \u2265 2.</think>\n<answer>B</answer>"


def picture(kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new(how.pop("mode", "RGB"), how.pop("size", (16, 12)), how.pop("colour", 7)).save(
        file, kind, **how
    )
    return file.getvalue()


PLAIN = [
    encoded(1, size=(24, 32)),
    encoded(2, size=(40, 48), progressive=True),
    picture("JPEG", mode="L"),
    picture("JPEG", mode="CMYK"),
]
OTHERS = [
    b"",
    b"\xff\xd8",
    PLAIN[0][:-1],
    PLAIN[0] + b"more",
    encoded(3, size=(24, 32), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    encoded(3, size=(24, 32), comment=b"who"),
    picture("PNG"),
    picture("JPEG", size=(101, 100)),  # too many pixels
    picture("JPEG", size=(4, 808)),  # too narrow
    encoded(5, size=(96, 100), quality=100) + bytes(20_000),  # too many bytes
]

# What the rules turn on, put together in any order.
PIECES = [
    "A", "B", "C", "D", "Z", "a", "A.", "B.", "C.", "A)", "B)", "(A)", "(B)", "A:", "B:", "one",
    "two", "?", ".", ")", " ", "  ", "\t", "\n", "\n\n", "\nA. x", "\nB. y", "\nC. z", "\n(A) x",
    "\r", "\r\n", "\x0b", "\x1c", "\x7f", "\x00", "\x85", "\xa0", "\u2003", "\u2028", "\u3000",
    "\ufeff", "\u200b", "\u00e9", "\u4e2d", "\U0001f600", '"', "\\", "/", "<answer>", "</answer>",
    "<think>", "</think>", "<answer>A</answer>", "<answer>(B) x</answer>", "<answer> C </answer>",
    "<answer>B. x</answer>", "<answer>B.\xa0x</answer>", "<image>", "%", "~", "_", "__", "-", "#",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
USUAL = st.sampled_from([QUESTION, "Which?\nA. x\nB. y", "Caf\u00e9?\nA) 1\nB) 2\nC) 3"])
BROKEN = st.sampled_from(
    [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"x\x80", b"\xf8"]
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Usual texts, hostile ones, nulls, and bytes that are not UTF-8."""
    hostile = st.one_of(
        TEXT, st.tuples(usual, TEXT).map("".join), st.tuples(TEXT, usual).map("".join)
    )
    as_bytes = st.one_of(usual, usual, hostile).map(lambda text: text.encode())
    return st.one_of(
        as_bytes, as_bytes, as_bytes, st.none(), st.tuples(as_bytes, BROKEN).map(b"".join)
    )


ROW = st.fixed_dictionaries(
    {
        "id": mostly(st.sampled_from(["case-1", "a_b", "x" * 80, "fig.1/2", "_x"])),
        "bytes": st.one_of(st.sampled_from(PLAIN), st.sampled_from([*PLAIN, *OTHERS, None])),
        "path": mostly(st.sampled_from(["a.jpg", "im/\u00e4.jpg"])),
        "question": mostly(USUAL),
        "reasoning": mostly(st.just(TRACE)),
        "answer": mostly(st.sampled_from(["A", "B", "B", "(B)", "b"])),
        "null image": st.integers(0, 9).map(lambda number: number == 0),
    }
)


def texts(values: list[Any], kind: Any) -> Any:
    """An array of text from bytes that need not be UTF-8."""
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    made = pa.array(values, pa.large_binary() if large else pa.binary())
    return pa.Array.from_buffers(kind, len(made), made.buffers(), made.null_count)


def batch_of(rows: list[dict[str, Any]], large: bool, with_id: bool) -> pa.RecordBatch:
    text = pa.large_string() if large else pa.string()
    data = pa.large_binary() if large else pa.binary()
    columns = {
        name: texts([row[name] for row in rows], text)
        for name in ("id", "question", "reasoning", "answer")
        if with_id or name != "id"
    }
    parts = [texts([r["bytes"] for r in rows], data), texts([r["path"] for r in rows], text)]
    absent = pa.array([row["null image"] for row in rows])
    columns["image"] = pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=absent)
    return pa.record_batch(columns)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """A file of each kind, to bind the schema to; its rows are not read."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}
    for with_id in (False, True):
        for mismatch in ("refuse", "keep"):
            name = "train-0.of.2.parquet"
            path = parquet(folder / f"{with_id}-{mismatch}" / name, [row("a", PLAIN[0])])
            if not with_id:
                pq.write_table(pq.read_table(path).drop_columns(["id"]), path)
            options = ReadOptions(answer_mismatch=mismatch)  # type: ignore[arg-type]
            made[with_id, mismatch] = open_file(path, options)
    return made


def check(sources: Any, rows: list[dict[str, Any]], large: bool, kind: Any, skip: int) -> int:
    """Every row that C++ calls plain is what Python makes of it; how many there are."""
    source = sources[kind]
    arrow = batch_of(rows, large, kind[0]).slice(skip)
    batch = RowBatch(source, Span(0, 10**8, 0, 0), 99_999_990 + skip, arrow, None)
    finder = PlainRows.of(source, CHECKS)
    assert finder is not None
    found = finder.find(batch)
    assert found is not None
    plain = [is_plain for first, last, is_plain in found.runs() for _ in range(first, last)]
    assert len(plain) == len(rows) - skip
    for number, (at, item) in enumerate(batch.read(0, len(plain))):
        prepared = prepare(at, item, CHECKS) if hasattr(item, "images") else item
        if plain[number]:
            assert isinstance(prepared, Prepared), prepared
            same(found, number, prepared)
        else:
            assert found.starts[number] == found.starts[number + 1]
    return sum(plain)


def same(found: _C.PlainBatch, number: int, prepared: Prepared) -> None:
    record = prepared.record
    assert found.names(number, number + 1) == ([prepared.key], [record.id], [record.source])
    begin, end = found.starts[number : number + 2].tolist()
    tar, offset = memoryview(found), 10 * 512
    places, line = found.place(number, number + 1, offset)
    (image, _), (json, text) = prepared.members
    assert [bytes(tar[place]) for place in places] == [prepared.members[0][1]]
    assert (image, json) == ("jpg", "json")
    about = found.columns(number, number + 1)
    expected = [(about["places"] - begin + offset).tolist(), about["sizes"].tolist()]
    expected.append(about["crcs"].tolist())
    sample = io.BytesIO(tar[begin:end])
    with tarfile.open(fileobj=sample) as members:
        assert [member.offset_data + offset for member in members] == expected[0]
    pieces = [
        piece
        for extension, data in prepared.members
        for piece in (
            tar_header(f"{prepared.key}.{extension}", len(data)), data, bytes(-len(data) % 512)
        )
    ]  # fmt: skip
    assert tar[begin:end] == b"".join(pieces)
    assert tar[expected[0][1] - offset + begin :][: expected[1][1]] == text
    assert expected[2] == [google_crc32c.value(data) for _, data in prepared.members]
    names = (f"{prepared.key}.jpg", f"{prepared.key}.json")
    parts = [Part(*values) for values in zip(names, *expected, strict=True)]
    words = [
        f"{part.name.rpartition('.')[2]} {part.offset} {part.size} {part.name}" for part in parts
    ]
    assert line == " ".join(words) + "\n"
    assert index_row(about, parts, prepared.hashes) == _index_row(0, parts, prepared)


def index_row(about: Any, parts: Any, hashes: Any) -> Any:
    """A row of the index from the columns of one."""

    def text(name: str) -> str:
        lengths, data = about[name]
        assert int(lengths.sum()) == len(data)
        return str(data, "utf-8")

    sizes = [int(about[name][0]) for name in ("widths", "heights")]
    assert text("names") == "".join(part.name for part in parts)
    image = (*sizes, text("formats"), text("modes"), 1, hashes[0])
    counts = [int(about[name][0]) for name in ("question_bytes", "reasoning_bytes", "num_options")]
    return (0, text("keys"), parts, (image,), *counts, text("answers"))


KINDS = st.tuples(st.booleans(), st.sampled_from(["refuse", "keep"]))


@settings(deadline=None, max_examples=100)
@given(st.lists(ROW, min_size=2, max_size=20), st.booleans(), KINDS, st.integers(0, 1))
def test_what_is_plain_is_what_python_makes_of_it(
    sources: Any, rows: list[dict[str, Any]], large: bool, kind: Any, skip: int
) -> None:
    check(sources, rows, large, kind, skip)


@pytest.mark.slow
@settings(deadline=None, max_examples=3000)
@given(st.lists(ROW, min_size=2, max_size=40), st.booleans(), KINDS, st.integers(0, 1))
def test_what_is_plain_is_what_python_makes_of_it_at_length(
    sources: Any, rows: list[dict[str, Any]], large: bool, kind: Any, skip: int
) -> None:
    check(sources, rows, large, kind, skip)


def usual_row(**other: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": b"case-1", "bytes": PLAIN[0], "path": b"a.jpg", "question": QUESTION.encode(),
        "reasoning": TRACE.encode(), "answer": b"B", "null image": False,
    }  # fmt: skip
    return made | other


USUAL_ROWS = [
    *[usual_row(bytes=image) for image in PLAIN],
    usual_row(reasoning=None, path=None),
    usual_row(id="\u00e9.~_x".encode(), answer=b" (B)\n"),
    usual_row(id=b"_a", reasoning=b"<answer>A</answer> <answer> B. two</answer>"),
    usual_row(question=b"Which?\n\tA is it.\nA. 1\nB. 2", reasoning=b"no tags"),
    usual_row(question=b"Q\n" + b"".join(b"%c. x\n" % letter for letter in range(65, 91))),
]


@pytest.mark.parametrize("kind", [(True, "refuse"), (False, "refuse"), (True, "keep")])
def test_usual_rows_are_plain(sources: Any, kind: Any) -> None:
    assert check(sources, USUAL_ROWS, False, kind, 0) == len(USUAL_ROWS)


@pytest.mark.parametrize(
    "other",
    [
        {"bytes": None}, {"null image": True}, *[{"bytes": image} for image in OTHERS],
        {"path": b"a\0"}, {"question": None}, {"question": b"Which?"},
        {"question": b"\xff?\nA. x\nB. y"},
        {"question": b"Which?\r\nA. x\r\nB. y"}, {"question": b"A. x\nB. y"},
        {"question": b"Which?\n\nA. x\nB. y"}, {"question": b"Which?\nA. x\nB."},
        {"question": b"Which?\n(A) x\nB. y"}, {"question": "Q\xa0?\nA. x\nB. y".encode()},
        {"question": b"Which?\nA. x\nC. y"}, {"question": b"Which?\x0b\nA. x\nB. y"},
        {"question": b"Which?\nA. 1\nB. 2\nA. 3\nB. 4"},
        {"answer": None}, {"answer": b""}, {"answer": b"b"}, {"answer": b"D"}, {"answer": b"AB"},
        {"reasoning": b"<answer>C</answer>"}, {"reasoning": "<answer>\xa0B</answer>".encode()},
        {"reasoning": b"\x80"}, {"reasoning": b"\x00"},
        {"id": None}, {"id": b""}, {"id": b" "}, {"id": b"x" * 81}, {"id": b"." * 27},
        {"id": b"\x01"},
    ],
)  # fmt: skip
def test_other_rows_are_left_to_python(sources: Any, other: dict[str, Any]) -> None:
    assert check(sources, [usual_row(), usual_row(**other)], False, (True, "refuse"), 0) == 1


def corpus(folder: Path, count: int, rows_a_group: int = 50) -> Path:
    """Plain rows, others between them, and keys that come again."""
    made = []
    for at in range(count):
        image = (PLAIN + OTHERS)[at % 9] if at % 5 == 0 else PLAIN[at % 4]
        known = at - 7 if at % 31 == 30 else at
        made.append(row(f"case {known}", image, "B" if at % 17 == 8 else "A"))
    return parquet(folder / "train-0.parquet", made, rows_a_group)


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_shard_samples": 7}, {"max_shard_bytes": 9000}, {"max_shard_bytes": 1}],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 60, 400])
def test_a_conversion_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], rows: int
) -> None:
    digests, rows_taken = both_ways(tmp_path, monkeypatch, corpus(tmp_path, rows), **limits)
    assert digests[0] == digests[1]
    assert rows_taken > rows // 2


def test_batches_of_the_index_end_at_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(tmp_path, 9000, rows_a_group=3000)
    digests, rows_taken = both_ways(tmp_path, monkeypatch, source)
    assert digests[0] == digests[1]
    assert rows_taken > 6000
    with pa.memory_map(str(tmp_path / "plain" / "index.arrow")) as mapped:
        assert pa.ipc.open_file(mapped).get_batch(0).num_rows == 4096


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "none"},
        {"data_page_version": "2.0", "data_page_size": 2000, "write_batch_size": 3},
        {"use_dictionary": False, "write_page_checksum": True, "data_page_size": 9000},
        {"compression": "zstd"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_bytes", [1, 5000, 1 << 20])
def test_pages_and_arrow_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], batch_bytes: int
) -> None:
    """With rows between that are not plain, which Python takes from either."""
    source = corpus(tmp_path / "in", 150)
    table = pq.read_table(source)
    pq.write_table(
        table, source, row_group_size=40, write_batch_size=how.pop("write_batch_size", 5), **how
    )
    monkeypatch.setattr(page_batches, "__defaults__", (batch_bytes,))
    sliced = 0
    whole_slice = PageBatch.slice

    def counted(self: PageBatch, first: int, length: int) -> Any:
        nonlocal sliced
        sliced += length
        return whole_slice(self, first, length)

    monkeypatch.setattr(PageBatch, "slice", counted)
    options = ConvertOptions(check="header", workers=1, threads=1)
    convert(source, tmp_path / "pages", options)
    in_pages = sliced > 0
    assert in_pages == (how.get("compression") != "zstd")
    with monkeypatch.context() as patch:
        patch.setattr(ParquetFile, "_layout", lambda *_: None)
        before = sliced
        convert(source, tmp_path / "arrow", options)
        assert sliced == before
    assert tree_digest(tmp_path / "pages") == tree_digest(tmp_path / "arrow")


def test_memory_that_is_used_again_holds_nothing_of_before(sources: Any) -> None:
    source = sources[True, "refuse"]
    finder = PlainRows.of(source, CHECKS)
    assert finder is not None

    def found(rows: list[dict[str, Any]], into: _C.PlainBatch | None) -> _C.PlainBatch:
        batch = RowBatch(source, Span(0, len(rows), 0, 0), 0, batch_of(rows, False, True), None)
        made = finder.find(batch, into)
        assert made is not None
        return made

    def content(batch: _C.PlainBatch, count: int) -> Any:
        columns = {name: str(value) for name, value in batch.columns(0, count).items()}
        return bytes(memoryview(batch)), batch.starts.tolist(), batch.runs(), columns

    first = found(USUAL_ROWS, None)
    for rows in (USUAL_ROWS[3:6], [usual_row(bytes=b"")] * 2, USUAL_ROWS):
        again = found(rows, first)
        assert again is first
        assert content(again, len(rows)) == content(found(rows, None), len(rows))


def both_ways(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: Path, **limits: int
) -> tuple[list[str], int]:
    taken = 0
    add = ShardWriter.add_plain

    def counted(self: ShardWriter, batch: _C.PlainBatch, first: int, last: int) -> Any:
        nonlocal taken
        done = add(self, batch, first, last)
        taken += done.last - first
        return done

    monkeypatch.setattr(ShardWriter, "add_plain", counted)
    options = ConvertOptions(check="header", workers=1, threads=1, **limits)  # type: ignore[arg-type]
    convert(source, folder / "plain", options)
    with monkeypatch.context() as patch:
        patch.setattr(PlainRows, "of", lambda *_: None)
        before = taken
        convert(source, folder / "one by one", options)
        assert taken == before
    return [tree_digest(folder / name) for name in ("plain", "one by one")], taken


def test_what_no_row_is_taken_of(tmp_path: Path) -> None:
    """Columns that go to `extra`, rubrics, ids that are numbers, decoding: one by one."""
    plain = parquet(tmp_path / "a.parquet", [row("a", PLAIN[0])])
    assert PlainRows.of(open_file(plain, ReadOptions()), CHECKS) is not None
    decode = ImageChecks(max_pixels=10_000, max_bytes=20_000, decode=True)
    assert PlainRows.of(open_file(plain, ReadOptions()), decode) is None
    given_ = pq.read_table(plain)
    for names in (["more"], ["perception", "knowledge", "rationale"]):
        path = tmp_path / f"{names[0]}.parquet"
        table = given_
        for name in names:
            table = table.append_column(name, pa.array(["[]"]))
        pq.write_table(table, path)
        assert PlainRows.of(open_file(path, ReadOptions()), CHECKS) is None
    numbered = given_.set_column(0, "id", pa.array([5]))
    pq.write_table(numbered, tmp_path / "n.parquet")
    source = open_file(tmp_path / "n.parquet", ReadOptions())
    finder = PlainRows.of(source, CHECKS)
    assert finder is not None
    for batch in source.batches(source.file.spans()[0], None):
        assert finder.find(batch) is None


def test_offsets_that_lead_nowhere_are_no_rows() -> None:
    """Arrow's own are sound; if others ever came, nothing outside the data is read."""
    good = (None, np.array([0, 1, 2], np.int32), b"ab", 0, 4)
    for places in ([0, 3, 2], [-1, 1, 2], [2, 1, 0], [0, 9, 9], [0]):
        bad = (None, np.array(places, np.int32), b"ab", 0, 4)
        found = _C.plain_rows(
            bad, bad, bad, bad, bad, bad, count=2, file_name="f", id_prefix="f", first_row=0,
            max_image_bytes=9, max_pixels=9, max_aspect=9, check_trace=True,
        )  # fmt: skip
        assert found.runs() == [(0, 2, False)]
    with pytest.raises(ValueError, match="missing"):
        _C.plain_rows(
            None, good, good, good, None, None, count=2, file_name="f", id_prefix="f", first_row=0,
            max_image_bytes=9, max_pixels=9, max_aspect=9, check_trace=True,
        )  # type: ignore[arg-type]  # fmt: skip


def test_rows_that_are_not_there(sources: Any) -> None:
    source = sources[True, "refuse"]
    for rows in ([usual_row(), usual_row(bytes=b"")], [usual_row(bytes=b"")]):
        batch = RowBatch(source, Span(0, 2, 0, 0), 0, batch_of(rows, False, True), None)
        finder = PlainRows.of(source, CHECKS)
        assert finder is not None
        found = finder.find(batch)
        assert found is not None
        assert len(memoryview(found)) == found.starts[-1]
        with pytest.raises(ValueError, match="not plain"):
            found.place(0, len(rows), 0)
        for method in (found.names, found.columns):
            with pytest.raises(IndexError):
                method(0, 3)
        with pytest.raises(IndexError):
            found.place(2, 1, 0)


@example(b"123456789")
@given(st.binary(max_size=70))
def test_crc32c(data: bytes) -> None:
    assert _C.crc32c(data) == _C.crc32c(data, by_table=True) == google_crc32c.value(data)


@pytest.mark.parametrize("size", [2047, 2048, 6143, 6144, 6145, 12_287, 12_288, 50_001])
def test_crc32c_of_many_bytes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert _C.crc32c(data) == _C.crc32c(data, by_table=True) == google_crc32c.value(data)
