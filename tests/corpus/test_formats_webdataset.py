"""Foreign WebDataset tars: grouped as webdataset does, but nothing skipped, merged or unpickled."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus.formats import untyped
from omr_io.corpus.formats.webdataset_file import WebDatasetFile
from omr_io.corpus.raw import BadRow, BadText
from omr_io.errors import SourceError, TarError
from omr_io.tar import scan_tar, tar_windows
from tests.corpus.source_files import all_rows, same_from_a_url

wds = pytest.importorskip("webdataset")
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def write(
    path: Path, members: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT, mtime: int = 0
) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return path


def theirs(path: Path) -> list[dict[str, Any]]:
    """The samples as webdataset groups them, undecoded."""
    found = wds.WebDataset(str(path), shardshuffle=False, handler=wds.reraise_exception)
    return [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in found
    ]


KEYS = st.lists(
    st.text(st.sampled_from("abé-_/0"), min_size=1, max_size=6)
    .filter(lambda key: not key.startswith("/") and not key.endswith("/") and "//" not in key)
    .map(lambda key: key + "k" * 120 if "b" in key else key),
    unique=True,
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    KEYS,
    st.lists(
        st.sets(st.sampled_from(["jpg", "txt", "json", "img0.png", "CLS"]), min_size=1),
        min_size=12,
        max_size=12,
    ),
    st.sampled_from(["gnu", "pax"]),
    st.integers(1, 4),
)
def test_samples_are_webdatasets_own(
    tmp_path: Path, keys: list[str], parts: list[set[str]], format: str, span: int
) -> None:
    members = []
    for number, key in enumerate(keys):
        chosen = sorted(parts[number])
        if chosen == ["img0.png"]:
            chosen = ["img0.png", "txt"]  # a dotted extension alone is another test's
        for part in chosen:
            data = {"json": json.dumps({"n": number}), "txt": f"é{number}"}.get(part, f"{number}")
            members.append((f"{key}.{part}", data.encode()))
    path = write(tmp_path / "a.tar", members, FORMATS[format])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untyped, "_SPAN_ROWS", span)
        ours = all_rows(WebDatasetFile.open(path))
    wanted = []
    for sample in theirs(path):
        row: dict[str, Any] = {"__key__": sample["__key__"]}
        for name, data in sample.items():
            if name != "__key__":
                row[name] = data
                if name in ("txt", "cls"):
                    row[name] = data.decode()
                if name == "json":
                    row[name] = json.loads(data)
        wanted.append(row)
    assert [{k: v for k, v in row.items() if v is not None} for row in ours] == wanted


def test_columns_and_types(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"\xff\xd8"), ("a.txt", b"caption"), ("a.json", b'{"id": 1, "tags": ["x"]}'),
        ("b.jpg", b"\xff\xd8"), ("b.json", b'{"id": 2, "score": 0.5}'), ("b.seg.png", b"p"),
    ]  # fmt: skip
    file = WebDatasetFile.open(write(tmp_path / "a.tar", members))
    assert {name: str(kind) for name, kind in file.columns.items()} == {
        "__key__": "text",
        "jpg": "bytes",
        "json": "struct<id: integer, tags: list<text>, score: float>",
        "seg.png": "bytes",
        "txt": "text",
    }
    second = all_rows(file)[1]
    assert second == {
        "__key__": "b", "jpg": b"\xff\xd8", "json": {"id": 2, "score": 0.5},
        "seg.png": b"p", "txt": None,
    }  # fmt: skip
    assert all_rows(file, ["json"])[0] == {"json": {"id": 1, "tags": ["x"]}}


def reasons(path: Path) -> list[str | None]:
    return [getattr(row, "reason", None) for row in all_rows(WebDatasetFile.open(path))]


def test_members_of_a_key_that_comes_again_are_never_merged_nor_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("c.jpg", b"4")]
    path = write(tmp_path / "a.tar", members)
    assert [sample["__key__"] for sample in theirs(path)] == ["a", "b", "a", "c"]
    for span in (1000, 1):  # also where the two lie in different spans
        monkeypatch.setattr(untyped, "_SPAN_ROWS", span)
        assert reasons(path) == ["interleaved-key", None, "interleaved-key", None]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["1.2.840.113.jpg", "1.2.840.113.json", "1.2.840.114.jpg"], ["dotted-key"]),
        (["1.2.jpg", "1.3.jpg"], ["dotted-key"]),
        (["PMC1.v2.jpg"], ["dotted-key"]),
        (["x.jpg", "x.json", "x.v2.jpg", "x.v2.json"], ["dotted-key"]),
        (["x.img0.jpg", "x.img1.jpg", "x.json"], [None]),
        (["x.seg.png", "x.jpg"], [None]),
        (["x.jpg", "x.JPG"], ["duplicate-member"]),
        (["x.jpg", "x.jpg"], ["duplicate-member"]),
        (["x.jpg", "README", "y.jpg"], [None, "unnamed-member", None]),
        (["x.jpg", "._x.jpg", "y.jpg"], [None, "unnamed-member", None]),
        (["a.b/x.jpg", "a.b/x.txt", "a.b/y.jpg"], [None, None]),
    ],
)
def test_groups_that_cannot_be_samples_are_told(
    tmp_path: Path, names: list[str], wanted: list[str | None]
) -> None:
    path = write(tmp_path / "a.tar", [(name, b"{}") for name in names])
    assert reasons(path) == wanted


def test_bad_json_and_bad_text_concern_their_row_only(tmp_path: Path) -> None:
    members = [
        ("a.json", b'{"x": 1}'), ("b.json", b'{"x": '), ("c.json", b'{"x": 1, "x": 2}'),
        ("d.json", b"[3]"), ("e.json", b'{"x": "\xff"}'), ("f.txt", b"\xff"),
        ("g.json", b'{"x": 2}'),
    ]  # fmt: skip
    rows = all_rows(WebDatasetFile.open(write(tmp_path / "a.tar", members)))
    kinds = [row.reason if isinstance(row, BadRow) else row["json"] for row in rows]
    text = BadText(b'{"x": "\xff"}', "JSON that is not UTF-8")
    assert kinds == [{"x": 1}, "bad-json", "bad-json", "bad-json", text, None, {"x": 2}]
    assert rows[5]["txt"] == BadText(b"\xff", "character 0: not UTF-8")
    assert rows[1].detail.startswith("b.json: ")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    data = b"cos\nsystem\n(S'false'\ntR."
    path = write(tmp_path / "a.tar", [("a.pyd", data), ("a.pickle", data)])
    (row,) = all_rows(WebDatasetFile.open(path))
    assert row == {"__key__": "a", "pickle": data, "pyd": data}


MEMBERS = [(f"{n:03d}.{part}", b'{"n": 1}' * (n * 9 + 1)) for n in range(9) for part in ("txt",)]


def test_damage_is_an_error_with_its_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", MEMBERS, tarfile.USTAR_FORMAT)
    data = path.read_bytes()
    for end in range(0, len(data) - 10240, 331):
        path.write_bytes(data[:end])
        with pytest.raises(SourceError, match=r"no whole tar.*a\.tar"):
            WebDatasetFile.open(path)
    for changed in (b"", bytes(1024), b"hello" * 400):
        path.write_bytes(changed)
        with pytest.raises(SourceError, match=r"no whole tar|the tar is empty"):
            WebDatasetFile.open(path)
    broken = bytearray(data)
    broken[512 * 2 + 3] ^= 1
    path.write_bytes(broken)
    with pytest.raises(SourceError, match=r"checksum.*offset 1024"):
        WebDatasetFile.open(path)


def test_the_digest_is_over_the_headers(tmp_path: Path) -> None:
    first = WebDatasetFile.open(write(tmp_path / "a.tar", MEMBERS)).identity()
    assert WebDatasetFile.open(write(tmp_path / "a.tar", MEMBERS)).identity() == first
    assert WebDatasetFile.open(write(tmp_path / "a.tar", MEMBERS, mtime=5)).identity() != first
    renamed = [("x" + name, data) for name, data in MEMBERS]
    assert WebDatasetFile.open(write(tmp_path / "a.tar", renamed)).identity() != first


def test_a_url_reads_as_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [(f"{'k' * 120}{n}.{part}", b"{}" * n) for n in range(1300) for part in ("a", "json")]
    same_from_a_url(monkeypatch, write(tmp_path / "a.tar", members))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 1500)), max_size=12),
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 6000),
)
def test_windows_list_what_the_whole_scan_lists(
    tmp_path: Path, sizes: list[tuple[int, int]], format: str, window: int
) -> None:
    longest = 90 if format == "ustar" else 300
    members = [
        (f"{n}{'x' * (name % longest)}.bin", bytes([n]) * size)
        for n, (name, size) in enumerate(sizes)
    ]
    data = write(tmp_path / "a.tar", members, FORMATS[format]).read_bytes()
    whole = scan_tar(data)
    names: list[str] = []
    offsets: list[int] = []
    end = 0
    for part, base, table in tar_windows(io.BytesIO(data), "a.tar", window):
        assert base == end
        assert part == data[base : base + len(part)]
        end = base + len(part)
        names += table.names
        offsets += (table.data_offsets + base).tolist()
    assert end == len(data)
    assert (tuple(names), offsets) == (whole.names, whole.data_offsets.tolist())


def test_windows_find_the_damage_that_the_whole_scan_finds(tmp_path: Path) -> None:
    rng = random.Random(11)
    data = write(tmp_path / "a.tar", MEMBERS).read_bytes()
    found = 0
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        end = len(data) if rng.random() < 0.7 else rng.randrange(len(data))
        cut = bytes(broken[:end])
        try:
            wanted = scan_tar(cut).names
        except TarError:
            found += 1
            with pytest.raises(TarError):
                list(tar_windows(io.BytesIO(cut), "a.tar", 3000))
        else:
            windows = tar_windows(io.BytesIO(cut), "a.tar", 3000)
            assert tuple(n for _, _, table in windows for n in table.names) == wanted
    assert found > 100
