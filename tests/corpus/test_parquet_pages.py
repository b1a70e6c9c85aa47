"""Row groups read page by page in C++ against Arrow: equal rows, or left to Arrow."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from omr_io import _C
from omr_io.corpus.formats import parquet
from omr_io.corpus.formats.parquet import ParquetFile
from omr_io.corpus.formats.parquet_pages import PageBatch
from omr_io.corpus.raw import Span
from omr_io.errors import SourceError

ANY = list(HealthCheck)


# --- Files that pyarrow writes ---------------------------------------------------------------

TEXT = st.one_of(st.sampled_from(["", "A", "B", "cat", "a longer text " * 9]), st.text(max_size=6))
BYTES = st.one_of(
    st.binary(max_size=6),
    st.integers(0, 2**32).map(lambda seed: random.Random(seed).randbytes(seed % 3000)),
    st.integers(1, 5000).map(lambda size: bytes(size)),
)


@st.composite
def tables(draw: st.DrawFn, max_rows: int = 60) -> Any:
    """Columns of texts and bytes, some in a struct, with and without nulls."""
    rows = draw(st.integers(1, max_rows))

    def column(values: Any, kinds: list[Any], nullable: bool) -> Any:
        made = st.one_of(st.none(), values) if nullable else values
        # Few distinct values now and then, so that a dictionary is kept.
        pool = draw(st.lists(made, min_size=1, max_size=draw(st.sampled_from([2, rows]))))
        seed = draw(st.integers(0, 2**32))
        chosen = random.Random(seed).choices(pool, k=rows)
        return pa.array(chosen, draw(st.sampled_from(kinds)))

    texts, data = [pa.string(), pa.large_string()], [pa.binary(), pa.large_binary()]
    nullable = [draw(st.booleans()) for _ in range(4)]
    parts = [column(BYTES, data, nullable[0]), column(TEXT, texts, nullable[1])]
    absent = pa.array([nullable[2] and draw(st.booleans()) for _ in range(rows)])
    inner = [
        pa.field(name, part.type, nullable[n])
        for n, (name, part) in enumerate(zip(("bytes", "path"), parts, strict=True))
    ]
    if nullable[2]:
        image = pa.StructArray.from_arrays(parts, fields=inner, mask=absent)
    else:
        image = pa.StructArray.from_arrays(parts, fields=inner)
    text = column(TEXT, texts, nullable[3])
    fields = [
        pa.field("image", image.type, nullable[2]),
        pa.field("text", text.type, nullable[3]),
    ]
    return pa.table([image, text], schema=pa.schema(fields))


WRITING = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["snappy", "none"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "version": st.sampled_from(["1.0", "2.6"]),
        "data_page_size": st.sampled_from([1, 100, 5000, 1 << 20]),
        "write_batch_size": st.sampled_from([1, 3, 1024]),
        "row_group_size": st.sampled_from([1, 7, 50, 1000]),
        "write_page_checksum": st.booleans(),
        "dictionary_pagesize_limit": st.sampled_from([50, 1 << 20]),
        "write_statistics": st.booleans(),
    }
)


def batches(file: ParquetFile, columns: list[str]) -> Iterator[tuple[Span, int, Any]]:
    for span in file.spans():
        for first, batch in file.batches(span, columns):
            yield span, first, batch


def rows_of(path: Path, columns: list[str], batch_bytes: int = 1 << 20) -> tuple[list[Any], int]:
    """All rows by `batches`, and how many of them came in pages."""
    rows: list[Any] = []
    in_pages = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet.page_batches, "__defaults__", (batch_bytes,))
        file = ParquetFile.open(path)
        for span, first, batch in batches(file, columns):
            assert first == len(rows)
            if isinstance(batch, PageBatch):
                in_pages += batch.num_rows
            half = batch.num_rows // 2
            for start, end in ((0, half), (half, batch.num_rows)):
                part = batch.slice(start, end - start)
                part.validate()
                rows += file.rows_of(span, first + start, part)
    return rows, in_pages


@settings(deadline=None, suppress_health_check=ANY)
@given(tables(), WRITING, st.sampled_from([1, 3000, 1 << 20]), st.booleans())
def test_rows_are_arrows(
    tmp_path: Path, table: Any, writing: dict[str, Any], batch_bytes: int, swap: bool
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **writing)
    columns = ["text", "image"] if swap else ["image", "text"]
    rows, in_pages = rows_of(path, columns, batch_bytes)
    assert rows == table.select(columns).to_pylist()
    assert in_pages == table.num_rows


def test_large_pages_are_read_in_parts(tmp_path: Path) -> None:
    """Pages of megabytes, of bytes that compress well, not at all, and in turns."""
    rng = random.Random(4)
    values = [
        rng.randbytes(rng.choice([0, 10, 90_000])) + rng.randbytes(40) * rng.choice([0, 1, 2000])
        for _ in range(300)
    ]
    table = pa.table({"b": pa.array(values, pa.binary()), "t": [str(n) for n in range(300)]})
    for compression in ("snappy", "none"):
        for checksum in (False, True):
            path = tmp_path / "a.parquet"
            pq.write_table(
                table, path, compression=compression, use_dictionary=False,
                data_page_size=1 << 30, write_page_checksum=checksum,
            )  # fmt: skip
            for batch_bytes in (1, 200_000, 1 << 20):
                rows, in_pages = rows_of(path, ["b", "t"], batch_bytes)
                assert rows == table.to_pylist()
                assert in_pages == 300


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zstd"},
        {"compression": "gzip"},
        {"column_encoding": {"b": "DELTA_BYTE_ARRAY", "t": "PLAIN"}, "use_dictionary": False},
        {"column_encoding": {"b": "DELTA_LENGTH_BYTE_ARRAY"}, "use_dictionary": ["t"]},
        {"table": pa.table({"b": [[b"x"], [], None], "t": ["a", "b", None]})},
        {"table": pa.table({"b": [1, 2, 3], "t": ["a", "b", None]})},
        {"table": pa.table({"b": [{"x": "a", "n": 1}, None, None], "t": ["a", "b", None]})},
        {"table": pa.table({"b": pa.array(["x"]).dictionary_encode(), "t": ["a"]})},
        {"table": pa.table({"b": pa.array([b"xyz"], pa.binary(3)), "t": ["a"]})},
    ],
    ids=str,
)
def test_what_is_unusual_is_arrows(tmp_path: Path, how: dict[str, Any]) -> None:
    table = how.pop("table", pa.table({"b": [b"x", None, b""], "t": ["a", "b", None]}))
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **how)
    assert rows_of(path, ["b", "t"]) == (table.to_pylist(), 0)


def test_names_with_dots_are_not_mistaken(tmp_path: Path) -> None:
    inner = pa.array([{"bytes": b"inner"}], pa.struct([("bytes", pa.binary())]))
    table = pa.table({"image": inner, "image.bytes": [b"outer"]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert rows_of(path, table.column_names)[0] == table.to_pylist()


def test_a_url_is_arrows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": ["a"]}), path)
    file = ParquetFile.open(path)
    monkeypatch.setattr(file, "location", "https://host/a.parquet")
    monkeypatch.setattr(file, "check_unchanged", lambda: None)
    monkeypatch.setattr("omr_io.remote.open_url", lambda url: path.open("rb"))
    assert [type(batch) for _, _, batch in batches(file, ["t"])] == [pa.RecordBatch]


def test_arrow_goes_on_where_pages_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"t": [str(n) for n in range(100)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=40)
    whole = parquet.page_batches
    for good in range(4):

        def cut(*given: Any, good: int = good) -> Iterator[Any]:
            for number, batch in enumerate(whole(*given)):
                if number == good:
                    yield None
                    return
                yield batch

        monkeypatch.setattr(parquet, "page_batches", cut)
        for most in (1, 7, 1000):
            monkeypatch.setattr(parquet, "_MAX_BATCH_ROWS", most)
            rows, in_pages = rows_of(path, ["t"])
            assert rows == table.to_pylist()
            assert in_pages == sum(min(good * most, group) for group in (40, 40, 20))


def test_a_batch_is_only_until_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [str(n) for n in range(3000)]}), path)
    both = batches(ParquetFile.open(path), ["t"])
    _, _, first = next(both)
    assert first.slice(0, 1).to_pylist() == [{"t": "0"}]
    with pytest.raises(IndexError):
        first.slice(1, 5000)
    next(both)
    with pytest.raises(ValueError, match="other rows"):
        first.slice(0, 1)


# --- Damage ------------------------------------------------------------------------------------


def outcome(path: Path, columns: list[str]) -> tuple[list[Any] | str, int]:
    """The rows, or that reading failed; and how many came in pages."""
    try:
        return rows_of(path, columns, 2000)
    except SourceError:
        return "error", 0


def by_arrow(path: Path, columns: list[str]) -> list[Any] | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParquetFile, "_layout", lambda *_: None)
        return outcome(path, columns)[0]


def damaged(data: bytes, seed: int) -> bytes:
    """A few flipped bits, bytes that were replaced, or a stretch that is missing."""
    rng = random.Random(seed)
    made = bytearray(data)
    footer = len(made) - 8 - int.from_bytes(made[-8:-4], "little")
    end = footer if rng.random() < 0.8 else len(made)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(4, end)
        if rng.random() < 0.7:
            made[at] ^= 1 << rng.randrange(8)
        else:
            made[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if rng.random() < 0.1:
        at = rng.randrange(4, end)
        made[at : at + rng.choice([1, 100])] = b""
    return bytes(made)


def check_damage(
    path: Path, table: Any, writing: dict[str, Any], seed: int, columns: list[str]
) -> None:
    pq.write_table(table, path, **writing)
    whole = path.read_bytes()
    made = damaged(whole, seed)
    path.write_bytes(made)
    expected = by_arrow(path, columns)
    got, _ = outcome(path, columns)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    if got != expected and made[footer:] != whole[footer:]:
        # Arrow checks what a footer counts (sizes, histograms), which no row depends on.
        path.write_bytes(made[:footer] + whole[footer:])
        assert expected == "error"
        expected = by_arrow(path, columns)
    assert got == expected, (writing, seed)


@settings(deadline=None, suppress_health_check=ANY, max_examples=60)
@given(tables(25), WRITING, st.integers(0, 2**40))
def test_damage_has_arrows_outcome(
    tmp_path: Path, table: Any, writing: dict[str, Any], seed: int
) -> None:
    check_damage(tmp_path / "a.parquet", table, writing, seed, ["image", "text"])


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=ANY, max_examples=4000)
@given(tables(25), WRITING, st.integers(0, 2**40))
def test_damage_has_arrows_outcome_at_length(
    tmp_path: Path, table: Any, writing: dict[str, Any], seed: int
) -> None:
    check_damage(tmp_path / "a.parquet", table, writing, seed, ["image", "text"])


@pytest.mark.parametrize("compression", ["snappy", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_flip_that_a_checksum_covers_is_never_silent(
    tmp_path: Path, compression: str, version: str
) -> None:
    rng = random.Random(2)
    values = [rng.randbytes(rng.randrange(500)) for _ in range(80)]
    table = pa.table({"b": pa.array(values, pa.binary()), "t": ["cat", "dog"] * 40})
    path = tmp_path / "a.parquet"
    pq.write_table(
        table, path, compression=compression, data_page_version=version, write_page_checksum=True,
        data_page_size=4000, write_batch_size=8, write_statistics=False,
    )  # fmt: skip
    whole = path.read_bytes()
    rows, in_pages = rows_of(path, ["b", "t"])
    assert (rows, in_pages) == (table.to_pylist(), 80)
    file = ParquetFile.open(path)
    layout = file._layout(file.spans()[0], ["b", "t"])
    assert layout is not None
    errors = 0
    for _ in range(150):
        start, size, *_ = rng.choice(layout.chunks)
        at = start + rng.randrange(size)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        got, _ = outcome(path, ["b", "t"])
        assert got in ("error", table.to_pylist())  # a header may hold what nobody reads
        errors += got == "error"
    assert errors > 130


def test_the_error_is_arrows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [os.urandom(400) for _ in range(100)]
    table = pa.table({"b": pa.array(values, pa.binary())})
    pq.write_table(
        table, path, write_page_checksum=True, data_page_size=4000, use_dictionary=False,
        write_batch_size=5, row_group_size=50, write_statistics=False,
    )  # fmt: skip
    made = bytearray(path.read_bytes())
    made[made.index(values[90])] ^= 1
    path.write_bytes(made)
    with pytest.raises(SourceError, match=r"row group 1 \(rows 50 to 99\) cannot be read .*CRC"):
        rows_of(path, ["b"], 1)


# --- Pages made by hand --------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def struct(fields: dict[int, Any]) -> bytes:
    """A Thrift struct of the compact protocol: int is i32, bool, dict a struct, bytes."""
    out, last = b"", 0
    for number, value in fields.items():
        kind = {bool: 1 if value is True else 2, int: 5, bytes: 8, dict: 12}[type(value)]
        out += bytes([number - last << 4 | kind])
        last = number
        if isinstance(value, dict):
            out += struct(value)
        elif isinstance(value, bytes):
            out += varint(len(value)) + value
        elif not isinstance(value, bool):
            out += varint((value << 1 ^ value >> 31) & 0xFFFFFFFF)
    return out + b"\0"


def data_page(
    body: bytes, values: int, size: int | None = None, encoding: int = 0, **other: Any
) -> bytes:
    """A page of version 1; `size` is of the body when decoded."""
    own = {1: values, 2: encoding, 3: 3, 4: 3} | other.get("own", {})
    fields: dict[int, Any] = {1: 0, 2: len(body) if size is None else size, 3: len(body)}
    if "crc" in other:
        fields[4] = other["crc"]
    return struct(fields | {5: own} | other.get("fields", {})) + body


def plain(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def read_pages(
    path: Path, data: bytes, num_rows: int, level: int = 0, snappy: bool = False,
    max_bytes: int = 1 << 20, max_rows: int = 1 << 20,
) -> tuple[list[bytes | None], bool]:  # fmt: skip
    """The values of a chunk of one column, and whether all could be read."""
    path.write_bytes(data)
    with path.open("rb") as file:
        rows = _C.PageRows(file.fileno(), [(0, len(data), level, snappy, 0, 0)], num_rows)
    values: list[bytes | None] = []
    while count := rows.next(max_rows, max_bytes):
        valid, offsets, made = rows.column(0).copied(0, count)
        for row in range(count):
            there = valid[row // 8] >> row % 8 & 1
            values.append(made[offsets[row] : offsets[row + 1]] if there else None)
    return values, count == 0


def test_pages_made_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "chunk"
    values = [b"one", b"", b"three"]
    page = data_page(plain(values), 3)
    assert read_pages(path, page * 2, 6) == (values * 2, True)
    assert read_pages(path, page + data_page(b"", 0) + page, 6)[0] == values * 2
    # As in Arrow, no page behind the last value is read. What a page has too much is doubtful.
    assert read_pages(path, page + b"junk", 3) == (values, True)
    much = data_page(plain(values) + b"x", 3)
    assert read_pages(path, page + much, 6, max_rows=3) == (values, False)
    assert read_pages(path, page + much, 6) == ([], False)
    good = zlib.crc32(plain(values))
    signed = good - (1 << 32) if good >> 31 else good
    assert read_pages(path, data_page(plain(values), 3, crc=signed), 3) == (values, True)
    assert read_pages(path, data_page(plain(values), 3, crc=signed ^ 1), 3) == ([], False)
    levels = b"\x02\0\0\0\x03\x05"  # a group of 8 packed bits: rows 0 and 2 are there
    page = data_page(levels + plain([b"a", b"c"]), 3)
    assert read_pages(path, page, 3, level=1) == ([b"a", None, b"c"], True)


@pytest.mark.parametrize(
    "page",
    [
        b"", b"\0", b"\xff" * 40,
        data_page(plain([b"a"]), 2),  # more rows than values
        data_page(plain([b"a"]), 1, own={2: 6}),  # another encoding
        data_page(plain([b"a"]), 1, own={1: -1}),
        data_page(plain([b"a"]), 1, fields={1: 1}),  # an index page, it says
        data_page(plain([b"a"]), 1, fields={1: 2}),
        data_page(plain([b"a"]), 1, fields={1: 3}),
        data_page(plain([b"a"]), 1, size=9),
        data_page(plain([b"a"]), 1)[:-1],
        data_page(b"\x02\0\0\0a", 1), data_page(b"\xff\xff\xff\xffa", 1), data_page(b"\1\0\0", 1),
        data_page(b"\0", 1, encoding=8),  # a dictionary that is not there
        data_page(b"\x21\x02\0", 1, encoding=8),
        data_page(b"", 1, encoding=8),
        data_page(plain([b"a"]), 1)[:-6] + struct({8: {}})[:-1] + b"\0",
        struct({1: 0, 2: 5, 3: 5}) + plain([b"a"]),
        struct({1: 0, 2: 5, 3: 5, 5: {1: 1, 2: 0}}) + plain([b"a"]),
        struct({1: 0, 2: 5, 3: 5, 5: {1: 1, 2: 0, 3: 3, 4: 3}, 6: b"x" * 70_000}) + plain([b"a"]),
        b"\x15\0" + b"\x1c" * 5000,  # structs in structs
        b"\x15\0\x79\xfc\xff\xff\xff\xff\x0f",  # a list of four billion structs
    ],
    ids=range(23),
)  # fmt: skip
def test_pages_that_are_refused(tmp_path: Path, page: bytes) -> None:
    assert read_pages(tmp_path / "chunk", page, 1) == ([], False)


# --- Snappy ---------------------------------------------------------------------------------------


@st.composite
def snappy_blocks(draw: st.DrawFn) -> tuple[bytes, int]:
    """Elements in any order, sound for the most part; and the size that they should give."""
    out, size = b"", 0
    for _ in range(draw(st.integers(0, 30))):
        kind = draw(st.sampled_from(["literal", "long", "near", "far", "farthest", "wrong"]))
        if kind == "wrong":
            if draw(st.integers(0, 9)) == 0:
                out += draw(st.binary(max_size=6))
            continue
        if kind in ("literal", "long") or size == 0:
            length = draw(st.integers(1, 59) if kind != "long" else st.integers(1, 70_000))
            data = random.Random(length).randbytes(length)
            if length <= 60 and draw(st.booleans()):
                out += bytes([length - 1 << 2]) + data
            else:
                more = draw(st.integers((length - 1).bit_length() + 7 >> 3 or 1, 4))
                out += bytes([59 + more << 2]) + (length - 1).to_bytes(more, "little") + data
        else:
            most = {"near": 2047, "far": 65_535, "farthest": 2**32 - 1}[kind]
            wrong = draw(st.integers(0, 40)) == 0
            offset = draw(st.integers(0, most) if wrong else st.integers(1, min(size, most)))
            length = draw(st.integers(4, 11) if kind == "near" else st.integers(1, 64))
            if kind == "near":
                out += bytes([1 | length - 4 << 2 | offset >> 8 << 5, offset & 0xFF])
            elif kind == "far":
                out += bytes([2 | length - 1 << 2]) + offset.to_bytes(2, "little")
            else:
                out += bytes([3 | length - 1 << 2]) + offset.to_bytes(4, "little")
        size += length
    size += draw(st.sampled_from([0] * 12 + [1, -1]))
    return varint(max(size, 0)) + out, max(size, 0)


@settings(deadline=None, suppress_health_check=ANY, max_examples=300)
@given(snappy_blocks())
@example((b"\x80\x80\x80\x80\x80\x01", 5))
@example((b"\x05\x10abc", 5))
@example((b"\x01\x00a\x00", 1))
def test_snappy_decodes_as_snappy(tmp_path: Path, block: tuple[bytes, int]) -> None:
    """One value that is the block's bytes: its length stands before it, as a literal of its own."""
    data, size = block
    body = varint(size + 4) + b"\x0c" + size.to_bytes(4, "little") + data[len(varint(size)) :]
    try:
        decoded = pa.Codec("snappy").decompress(body, size + 4).to_pybytes()
    except (OSError, pa.ArrowException):
        decoded = None
    page = data_page(body, 1, size + 4)
    expected = ([], False) if decoded is None else ([decoded[4:]], True)
    assert read_pages(tmp_path / "chunk", page, 1, snappy=True) == expected
