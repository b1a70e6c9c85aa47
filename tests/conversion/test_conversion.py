"""Writing shard sets: deterministic, atomic, and every row accounted for."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_io.conversion import ConvertOptions, ConvertProgress, convert, write_shard_set
from omr_io.conversion.workers import Cores
from omr_io.errors import ConfigError, DataError, DiskError, SourceError
from omr_io.index import ShardSet
from omr_io.shards import verify
from omr_io.shards.layout import UNFINISHED_NAME
from omr_io.shards.sample_json import FIELDS
from omr_io.shards.tar_writer import tar_header
from omr_io.types import Refusal
from tests.conversion.small_corpora import mixed_corpus
from tests.shard_sets import contents, encoded, mixed_records, record, single_records, write

ROOT = Path(__file__).parents[2]


def members(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened]


def test_a_shard_holds_images_then_json(tmp_path):
    records = mixed_records(8)
    write(tmp_path, records)
    expected = []
    for item in records:
        key = item.id.replace(".", "%2E")
        several = len(item.images) > 1
        names = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp"}
        names |= {b"GI": "gif", b"II": "tiff"}
        for number, image in enumerate(item.images):
            extension = names[image.data[:2]]
            middle = f"img{number}." if several else ""
            expected.append((f"{key}.{middle}{extension}", image.data))
        expected.append((f"{key}.json", None))
    found = members(tmp_path / "train-000000.tar")
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(data in (None, got) for (_, got), (_, data) in zip(found, expected, strict=True))


def test_the_json_has_always_the_same_fields(tmp_path):
    records = mixed_records(8)
    write(tmp_path, records)
    texts = [data for name, data in members(tmp_path / "train-000000.tar") if "json" in name]
    fields = list(FIELDS)
    assert " ".join(fields) == ("id question options answer reasoning rubric images source extra")
    for text, item in zip(texts, records, strict=True):
        value = json.loads(text)
        assert list(value) == fields
        assert value["id"] == item.id
        assert value["rubric"] == [dataclasses.asdict(unit) for unit in item.rubric]
        assert [image["name"] for image in value["images"]] == [i.name for i in item.images]
        assert json.loads(value["extra"]) == item.extra
        assert "é".encode() in text  # not escaped


def test_tars_are_plain_ustar(tmp_path):
    write(tmp_path, mixed_records(8))
    with tarfile.open(tmp_path / "train-000000.tar") as opened:
        infos = opened.getmembers()
    assert all(not info.pax_headers and info.type == tarfile.REGTYPE for info in infos)
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {
        (0, 0, 0, "", "", 0o644)
    }
    data = (tmp_path / "train-000000.tar").read_bytes()
    last = infos[-1]
    assert len(data) == last.offset_data + -(-last.size // 512) * 512 + 1024
    assert data.endswith(bytes(1024))


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), ("k" * 100, 8**11 - 1), ("%7E.json", 9)])
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("", 0), ("k" * 101, 0), ("a", 8**11), ("a", -1)])
def test_what_does_not_fit_a_header(name, size):
    with pytest.raises(ValueError, match="does not fit"):
        tar_header(name, size)


def test_the_dali_index_is_wds2idxs(tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    write(tmp_path, mixed_records(30), max_shard_samples=12)
    for tar in sorted(tmp_path.glob("*.tar")):
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "theirs").read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_bytes_are_a_function_of_the_input_alone(tmp_path):
    records = [*mixed_records(30), record(3), record(900, [b"no image"])]
    write(tmp_path / "one", records, max_shard_samples=7, threads=1)
    time.sleep(0.01)
    write(tmp_path / "two", records, max_shard_samples=7, threads=5)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(one) == 5 * 2 + 3


def test_shards_are_cut_by_bytes_and_by_samples(tmp_path):
    records = single_records(20)
    write(tmp_path / "samples", records, max_shard_samples=6)
    shards = ShardSet.open(tmp_path / "samples")
    assert [shard.samples for shard in shards.manifest.shards] == [6, 6, 6, 2]
    write(tmp_path / "bytes", records, max_shard_bytes=10_000)
    shards = ShardSet.open(tmp_path / "bytes")
    sizes = [shard.bytes for shard in shards.manifest.shards]
    assert len(sizes) > 3
    assert all(size <= 10_000 for size in sizes)
    per_sample = [(e.bytes - 1024) // e.samples for e in shards.manifest.shards]
    assert all(size + max(per_sample) > 10_000 for size in sizes[:-1])  # none cut too early
    write(tmp_path / "tiny", records, max_shard_bytes=1)
    assert len(ShardSet.open(tmp_path / "tiny").shard_names) == 20


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def bad_records() -> list[tuple[str, object]]:
    """(reason, row) pairs; "" for good rows."""
    jpeg = encoded(5, size=(64, 64))
    return [
        ("", record(0, [jpeg])),
        ("image-truncated", record(1, [jpeg[: len(jpeg) // 2]])),
        ("image-too-large", record(2, [huge_png(30_000, 30_000)])),
        ("image-empty", record(3, [b""])),
        ("image-format", record(4, [b"%PDF-1.4 not an image"])),
        ("duplicate-id", record(5, id="case.0000")),
        ("bad-id", record(6, id="")),
        ("bad-id", record(7, id="\ud800")),
        ("not-json", record(8, question="lone \udc80 surrogate")),
        ("not-json", record(9, extra={"x": float("nan")})),
        ("not-json", record(10, extra={"x": b"bytes"})),
        ("not-json", record(11, extra={"x": {1: 2}})),
        ("null-image", Refusal("t.parquet", 12, "case.0012", "null-image", "bytes is null")),
        ("image-truncated", record(13, [jpeg, jpeg[:-30]])),
        ("too-many-images", record(14, [jpeg] * 1001)),
        ("", record(15)),
    ]


def test_every_row_is_a_sample_or_a_named_refusal(tmp_path):
    rows = bad_records()
    summary = write(tmp_path, [item for _, item in rows])
    assert (summary.rows, summary.samples) == (len(rows), 2)
    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [(item["row"], item["reason"]) for item in rejects] == [
        (row, reason) for row, (reason, _) in enumerate(rows) if reason
    ]
    assert {item["source"] for item in rejects} == {"t.parquet"}
    assert all(item["detail"] for item in rejects)
    assert sum(summary.refusals.values()) == len(rejects) == summary.rows - summary.samples
    assert rejects[6]["id"] == "\\ud800"
    assert rejects[4]["detail"] == "the id is that of t.parquet#0"
    assert rejects[12]["detail"].startswith("image 1: ")
    assert {item.reason for item in summary.examples} == set(summary.refusals)
    manifest = ShardSet.open(tmp_path).manifest
    assert manifest.refusals == summary.refusals
    assert manifest.counts == {"rows": 16, "samples": 2, "images": 1, "refused": 14}
    assert verify(tmp_path, decode=True).ok


def test_header_check_takes_what_only_a_decode_finds(tmp_path):
    jpeg = encoded(5, size=(64, 64))
    half = jpeg[: len(jpeg) // 2]
    rows = [record(0, [half + jpeg[-2:]]), record(1, [b"no"])]
    assert write(tmp_path / "a", rows, check="header").refusals == {"image-format": 1}
    with pytest.raises(DataError, match="image-corrupt"):
        write(tmp_path / "b", rows[:1])
    rows[0] = record(0, [half])  # without an end it is not certain what is metadata
    with pytest.raises(DataError, match="image-metadata"):
        write(tmp_path / "c", rows[:1], check="header")
    assert write(tmp_path / "d", rows[:1], check="header", keep_metadata=True).refusals == {}


def test_keys_that_collide_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("omr_io.conversion.prepare.key_for", lambda _: "same")
    summary = write(tmp_path, single_records(2))
    assert summary.refusals == {"duplicate-key": 1}
    assert "that of t.parquet#0 with id 'case.0000'" in summary.examples[0].detail


def test_no_sample_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"not one of 2 rows .* t.parquet row 0: image-format"):
        write(tmp_path / "a", [record(0, [b"x"]), record(1, [b"y"])])
    with pytest.raises(DataError, match="no rows"):
        write(tmp_path / "b", [])
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == {}


def test_progress_counts_every_row(tmp_path):
    seen: list[ConvertProgress] = []
    rows = [*single_records(5), record(9, [b"x"])]
    write_shard_set(enumerate(rows), tmp_path, ConvertOptions(), seen.append, total_rows=6)
    assert [at.rows for at in seen] == [1, 2, 3, 4, 5, 6]
    assert (seen[-1].samples, seen[-1].refused, seen[-1].total_rows) == (5, 1, 6)


def test_a_complete_set_is_kept_unless_overwritten(tmp_path):
    write(tmp_path, single_records(20), max_shard_samples=5)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"already holds a complete shard set. .*--overwrite"):
        write(tmp_path, single_records(3))
    assert contents(tmp_path) == before
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, single_records(3), overwrite=True, split="test")
    assert sorted(contents(tmp_path)) == [
        "index.arrow", "manifest.json", "notes.txt", "test-000000.idx", "test-000000.tar",
    ]  # fmt: skip
    assert len(ShardSet.open(tmp_path)) == 3


def test_other_peoples_files_are_never_touched(tmp_path):
    (tmp_path / "train-000000.tar").write_bytes(b"a foreign WebDataset")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"not empty .* for example train-000000.tar"):
            write(tmp_path, single_records(3), overwrite=overwrite)
    assert contents(tmp_path) == {"train-000000.tar": b"a foreign WebDataset"}


def test_two_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / UNFINISHED_NAME).mkdir()
    with (tmp_path / UNFINISHED_NAME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing"):
            write(tmp_path, single_records(3))
    write(tmp_path, single_records(3))


SLOW_RUN = """
    import sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests.shard_sets import single_records, write
    def rows():
        for item in single_records(20):
            print(item.id, flush=True)
            if {pause} and item.id == "case.0014":
                time.sleep(1000)  # until it is killed
            yield item
    write(Path({out!r}), rows(), max_shard_samples=3, threads=1, overwrite=True)
"""


def walked(folder: Path) -> list[str]:
    """Names of all files, while another process makes and removes them."""
    return [name for _, _, names in os.walk(folder) for name in names]


def script(out: Path, pause: bool) -> list[str]:
    text = textwrap.dedent(SLOW_RUN).format(root=str(ROOT), out=str(out), pause=pause)
    return [sys.executable, "-c", text]


@pytest.mark.parametrize("over_old", [False, True])
def test_a_killed_run_leaves_nothing_that_counts(tmp_path, over_old):
    if over_old:
        write(tmp_path / "set", single_records(50), max_shard_samples=2)
    process = subprocess.Popen(script(tmp_path / "set", True), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "case.0014":
            break
    deadline = time.monotonic() + 100
    while not any(name.endswith(".tar.tmp") for name in walked(tmp_path / "set")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = contents(tmp_path / "set")
    assert any(name.endswith(".tar.tmp") for name in left)
    if over_old:  # a set stays until the one that replaces it is whole
        assert len(ShardSet.open(tmp_path / "set")) == 50
        assert verify(tmp_path / "set").ok
    else:
        with pytest.raises(SourceError, match="unfinished conversion"):
            ShardSet.open(tmp_path / "set")
        assert all(name.startswith(UNFINISHED_NAME) for name in left)
    for name, data in left.items():
        if name.endswith(".tar") and name.startswith(UNFINISHED_NAME):
            assert data.endswith(bytes(1024))
            with tarfile.open(fileobj=io.BytesIO(data)) as opened:
                assert len(opened.getmembers()) == 6
    write(tmp_path / "set", single_records(20), max_shard_samples=3, overwrite=over_old)
    write(tmp_path / "clean", single_records(20), max_shard_samples=3)
    assert contents(tmp_path / "set") == contents(tmp_path / "clean")


def test_a_disk_that_fills_up(tmp_path):
    """A limit on file sizes stands in for a full disk: the error is one line, and no half file."""
    text = script(tmp_path / "set", False)[2].replace(
        "import sys, time",
        "import sys, time, resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))",
    )
    text += "\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 1
    assert "omr_io.errors.DiskError: writing " in done.stderr
    assert "File too large. The file system cannot hold such files" in done.stderr
    left = sorted(contents(tmp_path / "set"))
    assert [name.rpartition("/")[2] for name in left if not name.endswith("/")] == [
        "lock", "plan.json",
    ]  # fmt: skip
    write(tmp_path / "set", single_records(3))
    assert verify(tmp_path / "set").ok


def test_a_disk_error_in_arrow_is_a_disk_error(tmp_path, monkeypatch):
    from omr_io.storage import AtomicFile

    real = AtomicFile.write

    def write_or_fail(self, data):
        if self.path.name == "index.arrow" and self.num_bytes:
            raise DiskError("writing failed")
        return real(self, data)

    monkeypatch.setattr(AtomicFile, "write", write_or_fail)
    with pytest.raises(DiskError, match="writing failed"):
        write(tmp_path, single_records(3))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="Not a directory"):
        write(tmp_path / "file" / "set", single_records(1))


@pytest.mark.parametrize(
    "options",
    [
        {"split": "a/b"}, {"split": ""}, {"check": "maybe"}, {"max_shard_bytes": 0},
        {"max_shard_samples": 0}, {"threads": 0}, {"max_image_bytes": 1 << 40},
    ],
)  # fmt: skip
def test_options_that_cannot_be_right(options):
    with pytest.raises(ConfigError):
        ConvertOptions(**options)


def parquet(path: Path, rows: list[dict]) -> Path:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = [(name, pa.string()) for name in ("question", "reasoning", "answer")]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("image", image), *text])), path)
    return path


def row(number: int, data: bytes | None) -> dict:
    return {
        "image": {"bytes": data, "path": f"{number}.jpg"},
        "question": f"Which, {number}?\nA. one\nB. two",
        "reasoning": "<think>So.</think>\n<answer>A</answer>",
        "answer": "A",
    }


def test_convert_reads_parquet(tmp_path):
    jpeg = encoded(1)
    one = parquet(tmp_path / "train-0.parquet", [row(0, jpeg), row(1, None), row(2, jpeg)])
    two = parquet(tmp_path / "train-1.parquet", [row(0, jpeg), row(1, jpeg[:-300])])
    seen: list[ConvertProgress] = []
    summary = convert([one, two], tmp_path / "set", progress=seen.append)
    assert (summary.rows, summary.samples) == (5, 3)
    assert seen[-1].total_rows == 5
    rejects = pq.read_table(tmp_path / "set" / "rejects.parquet").to_pylist()
    assert [(item["source"], item["row"]) for item in rejects] == [
        ("train-0.parquet", 1), ("train-1.parquet", 1),
    ]  # fmt: skip
    shards = ShardSet.open(tmp_path / "set")
    assert [shards.read_record(i).source for i in range(3)] == [
        "train-0.parquet#0", "train-0.parquet#2", "train-1.parquet#0",
    ]  # fmt: skip
    assert shards.read_images(2) == (jpeg,)
    assert shards.manifest.sources == ("train-0.parquet", "train-1.parquet")
    assert verify(tmp_path / "set", decode=True).ok


def test_sources_are_checked_before_anything_is_written(tmp_path):
    good = parquet(tmp_path / "train-0.parquet", [row(0, encoded(1))])
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "train-1.parquet")
    with pytest.raises(SourceError, match=r"no known schema.*train-1\.parquet"):
        convert([good, tmp_path / "train-1.parquet"], tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(SourceError):
        convert(tmp_path / "none.parquet", tmp_path / "set")


def test_a_folder_whose_path_is_no_unicode_is_refused_before_any_work(tmp_path):
    out = tmp_path / "bad\udcff"
    with pytest.raises(ConfigError, match=r"not UTF-8.*another folder"):
        write(out, mixed_records(2))
    assert not out.exists()


def test_a_run_that_is_stopped_at_its_duplicates_leaves_no_attempts(tmp_path):
    corpus = mixed_corpus(tmp_path / "corpus")
    calls = []

    def run(job, tasks, count, tell):
        calls.append(count)
        if len(calls) == 2:  # a worker that is killed leaves what it had begun
            job.attempt(0).mkdir()
            raise KeyboardInterrupt
        Cores(1)(job, tasks, count, tell)

    out, options = tmp_path / "set", ConvertOptions(max_shard_samples=6)
    with pytest.raises(KeyboardInterrupt):
        convert(corpus, out, options, runner=run)
    assert len(calls) == 2
    assert list(out.rglob("*.tmp")) == []
