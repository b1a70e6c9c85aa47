"""CSV files read as Python's csv and pandas read them; ragged rows and open quotes are told."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus.formats import untyped
from omr_io.corpus.formats.csv_file import CsvFile
from omr_io.corpus.raw import BadRow, BadText, ColumnType
from omr_io.errors import SourceError
from tests.corpus.source_files import all_rows, same_from_a_url

FIELD = st.text(st.sampled_from("ab é😀,;\t\"\n\r'\u2028\x00"), max_size=8)
NAMES = ("Figure_path", "Question", "Answer")


def csv_text(rows: list[list[str]], delimiter: str = ",", end: str = "\r\n") -> str:
    out = io.StringIO(newline="")
    # QUOTE_ALL where a row would else be a blank line, and for bare carriage returns.
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(FIELD, min_size=3, max_size=3), max_size=25),
    st.sampled_from(",\t;"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 6),
)
def test_what_csv_writes_is_read_back_whatever_the_spans(
    tmp_path: Path, rows: list[list[str]], delimiter: str, end: str, mark: bool, span: int
) -> None:
    text = csv_text([list(NAMES), *rows], delimiter, end)
    path = write(tmp_path / "a.csv", ("\ufeff" if mark else "") + text)
    with path.open(newline="", encoding="utf-8-sig") as file:
        theirs = list(csv.DictReader(file, delimiter=delimiter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untyped, "_SPAN_ROWS", span)
        ours = CsvFile.open(path)
        assert all_rows(ours) == theirs == [dict(zip(NAMES, row, strict=True)) for row in rows]
        assert len(ours.spans()) == -(-len(rows) // span)


def test_pandas_reads_the_same_and_names_columns_alike(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"q": ["a\nb", 'say "x", é'], "n": ["1", "2"]})
    path = tmp_path / "a.csv"
    frame.to_csv(path)
    theirs = pandas.read_csv(path, dtype=str, keep_default_na=False)
    ours = CsvFile.open(path)
    assert list(ours.columns) == list(theirs.columns) == ["Unnamed: 0", "q", "n"]
    assert all_rows(ours) == theirs.to_dict("records")
    assert set(ours.columns.values()) == {ColumnType("text")}


def test_ragged_rows_are_refused_one_by_one(tmp_path: Path) -> None:
    data = 'a,b\n1,2\n3\n\n4,5,6\n"x\ny",7\n8,9'
    rows = all_rows(CsvFile.open(write(tmp_path / "a.csv", data)))
    assert rows == [
        {"a": "1", "b": "2"},
        BadRow("ragged-row", "byte 8: 1 fields, the header has 2"),
        BadRow("ragged-row", "byte 11: 3 fields, the header has 2"),
        {"a": "x\ny", "b": "7"},
        {"a": "8", "b": "9"},
    ]


def test_text_that_is_not_utf8_is_marked_in_its_row_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'a,b\n"x\n\xe9",1\nfine,2\n')
    assert all_rows(CsvFile.open(path)) == [
        {"a": BadText(b"x\n\xe9", "character 2: not UTF-8"), "b": "1"},
        {"a": "fine", "b": "2"},
    ]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"a,a\n1,2\n", "the column a appears twice"),
        (b"a,\xff\n1,2\n", "a column's name is not UTF-8"),
        (b'a,b\n1,2\n"x,y\n3,4\n5,6\n', r"byte 8 .*a quote opens and never closes.*row 1"),
        (b'a,"b\n1,2\n', r"byte 0 .*a quote opens and never closes"),
        (b"a,b\n1,2\r3,4\n", "new-line character"),
        (b"a,b\n1," + b"x" * 200_000, "field larger than field limit.*as JSON Lines or Parquet"),
        ("a,b\n1,2\n".encode("utf-16"), r"this is UTF-16.*Write it again as UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        CsvFile.open(write(tmp_path / "a.csv", data))
    assert "a.csv" in str(caught.value)


def test_cut_anywhere_it_keeps_all_whole_rows_or_is_an_error(tmp_path: Path) -> None:
    rows = [[f"{n}", f'a "{n}"\n, é'] for n in range(8)]
    data = csv_text([["n", "text"], *rows]).encode()
    whole = [dict(zip(("n", "text"), row, strict=True)) for row in rows]
    errors = 0
    for end in range(len(data)):
        path = write(tmp_path / "a.csv", data[:end])
        try:
            found = all_rows(CsvFile.open(path))
        except SourceError:
            errors += 1
            continue
        before = [row for row in found if not isinstance(row, BadRow)]
        assert before[:-1] == whole[: len(before)][:-1]
        assert len(found) in (len(before), len(before) + 1)
    assert errors > 20


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    rng = random.Random(7)
    data = csv_text([["n", "text"], *([str(n), 'x, "y"\nz'] for n in range(9))]).encode()
    outcomes = set()
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] = rng.randrange(256)
        try:
            outcomes.add(len(all_rows(CsvFile.open(write(tmp_path / "a.csv", bytes(broken))))))
        except SourceError:
            outcomes.add(-1)
    assert {-1, 9} <= outcomes


def test_spans_count_the_images_that_rows_name(tmp_path: Path) -> None:
    plain = csv_text([["a", "b"], *([str(n), "x"] for n in range(2500))])
    named = csv_text([["a", "Figure_path"], *([str(n), "x"] for n in range(2500))])
    sizes = []
    for name, text in (("a", plain), ("b", named)):
        spans = CsvFile.open(write(tmp_path / f"{name}.csv", text)).spans()
        assert [span.num_rows for span in spans] == [1000, 1000, 500]
        sizes.append(spans[0].num_bytes // 10_000_000)
    assert sizes == [0, 10]


def test_a_url_reads_as_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[str(n), 'x, "y"\nz é'] for n in range(1500)]
    same_from_a_url(monkeypatch, write(tmp_path / "a.tsv", csv_text([["n", "t"], *rows], "\t")))
