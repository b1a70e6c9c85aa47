"""A corpus of any format and schema: found, cut into pieces, read anywhere, never changed."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus import Corpus, Piece, ReadOptions, open_corpus, read_source
from omr_io.corpus.formats import untyped
from omr_io.errors import ConfigError, SourceError
from omr_io.types import Record, Refusal
from tests.corpus.schema_fixtures import FIXTURES, Fixture
from tests.corpus.source_files import Memory, use_remote

NAMES = [fixture.schema for fixture in FIXTURES]
MAPPED = ReadOptions(column_map=(("question", "question"),), need_reasoning=False)
Item = tuple[int, Record | Refusal]


def opened(fixture: Fixture, folder: Path) -> Corpus:
    """A fixture's files on disk as a corpus."""
    path, root = fixture.write(folder)
    return open_corpus(path, ReadOptions(image_root=root, **fixture.options))


def expected(fixture: Fixture) -> list[Item]:
    return [
        (row, item.record(fixture.file, row) if item.reason is None else item.reason)  # type: ignore[misc]
        for row, item in enumerate(fixture.expected)
    ]


def comparable(items: list[Item]) -> list[Any]:
    """Refusals by their reason."""
    return [(row, item.reason if isinstance(item, Refusal) else item) for row, item in items]


def read_all(corpus: Corpus, max_bytes: int = 1 << 30, max_rows: int = 10**9) -> list[Item]:
    return [item for piece in corpus.pieces(max_bytes, max_rows) for item in corpus.read(piece)]


def qa(number: int) -> dict[str, Any]:
    """A row of OpenMedReason without an image."""
    return {
        "images": [],
        "question": f"Question {number}?\nA. x\nB. y",
        "reasoning": "<think>z</think><answer>A</answer>",
        "answer": "A" if number % 7 else "C",
    }


def write_qa(path: Path, rows: int, first: int = 0, group: int = 3) -> Path:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {name: pa.string() for name in qa(0)} | {"images": pa.list_(image)}
    made = [qa(first + n) for n in range(rows)]
    columns = {name: pa.array([row[name] for row in made], kinds[name]) for name in qa(0)}
    pq.write_table(pa.table(columns), path, row_group_size=group, compression="none")
    return path


@pytest.mark.parametrize("fixture", FIXTURES, ids=NAMES)
def test_every_schema_reads_from_its_file_on_disk(fixture: Fixture, tmp_path: Path) -> None:
    corpus = opened(fixture, tmp_path)
    assert corpus.schemas == (fixture.schema,)
    assert corpus.num_rows == len(fixture.rows)
    assert comparable(read_all(corpus)) == expected(fixture)
    path = tmp_path / fixture.file
    assert list(read_source(path, corpus.options)) == read_all(corpus)


@pytest.mark.parametrize("fixture", FIXTURES, ids=NAMES)
def test_every_schema_reads_alike_span_by_span_and_in_another_process(
    fixture: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_all(opened(fixture, tmp_path))
    monkeypatch.setattr(untyped, "_SPAN_ROWS", 2)
    owner = opened(fixture, tmp_path)
    corpus = pickle.loads(pickle.dumps(owner))
    assert read_all(corpus, 1, 1) == whole
    assert len(corpus.fingerprint) == 16
    assert corpus.fingerprint == opened(fixture, tmp_path).fingerprint


def read_piece(corpus: Corpus, piece: Piece) -> list[Item]:
    return list(corpus.read(piece))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(tmp_path: Path, method: str) -> None:
    """Images in a packed tar: unpacked once, read by all; the folder goes with its owner."""
    fixture = next(item for item in FIXTURES if item.root.endswith("tar.gz"))
    corpus = opened(fixture, tmp_path)
    whole = read_all(corpus)
    pieces = corpus.pieces(1, 1)
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        parts = list(pool.map(read_piece, [corpus] * len(pieces), pieces))
    assert [item for part in parts for item in part] == whole
    assert read_all(corpus) == whole


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 20_000),
    st.integers(1, 12),
)
def test_pieces_hold_every_row_once_within_their_limits(
    tmp_path: Path, sizes: list[int], group: int, max_bytes: int, max_rows: int
) -> None:
    for old in tmp_path.glob("*.parquet"):
        old.unlink()
    for number, rows in enumerate(sizes):
        write_qa(tmp_path / f"{number}.parquet", rows, number * 100, group)
    corpus = open_corpus(tmp_path)
    pieces = corpus.pieces(max_bytes, max_rows)
    assert pieces == open_corpus(tmp_path).pieces(max_bytes, max_rows)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    for piece, after in zip(pieces, (*pieces[1:], None), strict=False):
        size = sum(item.span.num_bytes for item in piece.spans)
        assert len(piece.spans) == 1 or (size <= max_bytes and piece.num_rows <= max_rows)
        assert len(list(corpus.read(piece))) == piece.num_rows
        if after:  # the next span would not have fitted
            span = after.spans[0].span
            assert size + span.num_bytes > max_bytes or piece.num_rows + span.num_rows > max_rows
    found = [(item.source, row) for row, item in read_all(corpus, max_bytes, max_rows)]
    names = [name.partition("#")[0] for name, _ in found]
    wanted = [(f"{n}.parquet", row) for n, rows in enumerate(sizes) for row in range(rows)]
    assert list(zip(names, [row for _, row in found], strict=True)) == wanted
    assert corpus.num_rows == sum(sizes)


def test_bad_rows_of_a_format_are_refusals(tmp_path: Path) -> None:
    rows = [json.dumps(qa(1)), "{broken", json.dumps(qa(2))]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    corpus = open_corpus(tmp_path, MAPPED)
    (_, first), (row, bad), (_, last) = read_all(corpus)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, Refusal)
    assert (bad.source, bad.row, row, bad.id, bad.reason) == ("a.jsonl", 1, 1, None, "bad-json")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_file_that_changes_is_an_error_not_other_rows(tmp_path: Path, kind: str) -> None:
    def write(first: int) -> Path:
        path = tmp_path / f"a.{kind}"
        if kind == "parquet":
            return write_qa(path, 9, first)
        if kind == "csv":
            lines = ["question,answer", *(f'"Q{n + first}?\nA. x\nB. y",A' for n in range(9))]
        else:
            lines = [json.dumps(qa(n + first)) for n in range(9)]
        path.write_text("\n".join(lines))
        return path

    path = write(10)
    corpus = open_corpus(path, ReadOptions() if kind == "parquet" else MAPPED)
    before = read_all(corpus)
    os.utime(path, (1, 1))
    assert read_all(corpus) == before  # touched, the same
    size = path.stat().st_size
    write(17)  # answers come in sevens
    assert path.stat().st_size == size
    with pytest.raises(SourceError, match=rf"changed while it was being converted.*a\.{kind}"):
        read_all(corpus)
    path.unlink()
    with pytest.raises(SourceError, match="does not exist"):
        read_all(corpus)


def test_a_corpus_at_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_qa(tmp_path / f"train-{n}.parquet", 5, n * 10) for n in range(2)]
    local = open_corpus(paths)
    whole = read_all(local)
    base = "hf://datasets/owner/name/"
    files = {base + path.name: path.read_bytes() for path in paths}
    remote = use_remote(monkeypatch, files)
    far = open_corpus(base)
    assert far.names == local.names
    assert far.fingerprint == local.fingerprint
    assert read_all(far) == whole
    assert all(file.closed for file in remote.opened)
    url = base + "train-1.parquet"
    remote.files[url] = remote.files[url] + b"x"
    with pytest.raises(SourceError, match="changed while it was being converted"):
        read_all(far)


def test_secrets_in_urls_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://host/folder/a.parquet?signature=SECRET"
    use_remote(monkeypatch, {url: b"PAR1 nonsense"})
    with pytest.raises(SourceError, match=r"https://host/folder/a\.parquet\?\*{3}\)") as caught:
        open_corpus(url)
    assert "SECRET" not in str(caught.value)
    data = write_qa(tmp_path / "a.parquet", 2).read_bytes()
    use_remote(monkeypatch, {url: data})
    assert "SECRET" not in repr(read_all(open_corpus(url)))
    assert open_corpus(url).names == ("a.parquet",)


def test_image_roots_are_checked_first(tmp_path: Path) -> None:
    path = write_qa(tmp_path / "a.parquet", 1)
    (tmp_path / "notes.txt").write_text("x")
    for root in (tmp_path / "none", tmp_path / "notes.txt", (tmp_path, tmp_path / "none.zip")):
        with pytest.raises(ConfigError, match="is not a folder"):
            open_corpus(path, ReadOptions(image_root=root))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tar", "a.parquet"])
def test_failures_while_reading_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fixture = next(item for item in FIXTURES if item.file.endswith(Path(name).suffix))
    path, root = fixture.write(tmp_path)
    url = f"s3://bucket/{path.name}"
    remote = use_remote(monkeypatch, {url: path.read_bytes()})
    options = ReadOptions(image_root=root, **fixture.options)
    corpus = open_corpus(url, options)

    class Failing(Memory):
        def read(self, *given: Any) -> bytes:
            raise OSError(5, "Input/output error")

        readinto = read  # type: ignore[assignment]

    monkeypatch.setattr("omr_io.remote.open_url", lambda url: Failing(remote.files[url]))
    for call in (lambda: open_corpus(url, options), lambda: read_all(corpus)):
        with pytest.raises(SourceError, match=rf"Input/output error.*{path.name}"):
            call()
