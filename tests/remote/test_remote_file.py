"""RemoteFile over ranges held in memory: the same as BytesIO, in few requests."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omr_io.remote import remote_file
from omr_io.remote.ranges import Stat
from omr_io.remote.remote_file import RemoteFile

SMALL = {"FIRST_READ": 16, "MAX_AHEAD": 64, "MAX_HELD": 200, "TAIL": 40}
DATA = b"".join(b"line %d\n" % number for number in range(600))


class Memory:
    """Ranges of bytes; keeps what is asked for."""

    def __init__(self, data):
        self.data, self.asked, self.closed = data, [], False
        self.stat = Stat(len(data), "tag")

    def fetch(self, offset, size):
        assert offset >= 0
        assert size > 0
        assert offset + size <= len(self.data)
        self.asked.append((offset, size))
        return self.data[offset : offset + size]

    def close(self):
        self.closed = True


def opened(data):
    memory = Memory(data)
    return memory, RemoteFile(memory, "m")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(-5, len(DATA) + 50), st.just(0)),
        st.tuples(st.just("seek"), st.integers(-60, 60), st.just(1)),
        st.tuples(st.just("seek"), st.integers(-len(DATA) - 5, 50), st.just(2)),
        st.tuples(st.just("read"), st.one_of(st.integers(-1, 300), st.none())),
        st.tuples(st.just("readinto"), st.integers(0, 100)),
        st.tuples(st.just("readline"), st.integers(-1, 80)),
    ),
    max_size=40,
)


def run(file, step):
    name, *arguments = step
    try:
        if name == "readinto":
            buffer = bytearray(arguments[0])
            return file.readinto(buffer), bytes(buffer), file.tell()
        return getattr(file, name)(*arguments), file.tell()
    except ValueError:
        return "ValueError", file.tell()


@given(steps)
@example([("readline", -1), ("readline", -1), ("readline", 3)])  # over the edge of a window
@settings(max_examples=100, deadline=None)
def test_any_steps_equal_those_of_bytesio(steps):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(remote_file, name, value)
        _, ours = opened(DATA)
        oracle = io.BytesIO(DATA)
        for step in steps:
            # BytesIO takes a seek before the start, relative to here or the end, as 0; files do not
            if step[0] == "seek" and step[2]:
                base = oracle.tell() if step[2] == 1 else len(DATA)
                if base + step[1] < 0:
                    with pytest.raises(ValueError, match="before the start"):
                        ours.seek(*step[1:])
                    continue
            assert run(ours, step) == run(oracle, step)
            held = sum(len(window.data) for window in ours._windows)
            assert held <= SMALL["MAX_HELD"] + SMALL["MAX_AHEAD"]


def test_small_reads_in_order_make_few_requests():
    data = np.random.default_rng(0).bytes(30 << 20)
    memory, file = opened(data)
    out = bytearray()
    while piece := file.read(1000):
        out += piece
    assert out == data
    assert len(memory.asked) <= 14  # 256 KiB, doubled up to 4 MiB
    assert sum(size for _, size in memory.asked) == len(data)  # nothing twice
    assert max(size for _, size in memory.asked) <= remote_file.MAX_AHEAD


def table(rows, seed=0):
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "image": [random.bytes(20_000) for _ in range(rows)],
            "question": [random.bytes(200).hex() for _ in range(rows)],
            "answer": ["A"] * rows,
        }
    )


def test_parquet_with_twenty_row_groups_in_few_requests():
    sink = io.BytesIO()
    expected = table(1000)
    pq.write_table(expected, sink, row_group_size=50)
    memory, file = opened(sink.getvalue())
    whole = len(sink.getvalue())
    parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=1 << 20)
    assert parquet.metadata.num_row_groups == 20
    assert len(memory.asked) == 1  # the footer
    batches = [
        batch
        for group in range(20)
        for batch in parquet.iter_batches(50, row_groups=[group], use_threads=False)
    ]
    assert pa.Table.from_batches(batches).equals(expected)
    assert len(memory.asked) <= 20
    assert sum(size for _, size in memory.asked) <= whole * 1.2


def test_columns_read_in_turns_keep_a_window_each():
    """One large row group: pyarrow reads a MiB of a column, then one of the next."""
    sink = io.BytesIO()
    expected = table(1500)
    pq.write_table(expected, sink, row_group_size=1500, data_page_size=1 << 18)
    memory, file = opened(sink.getvalue())
    parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=1 << 20)
    batches = list(parquet.iter_batches(64, use_threads=False))
    assert pa.Table.from_batches(batches).equals(expected)
    assert len(memory.asked) <= 20
    assert sum(size for _, size in memory.asked) <= len(sink.getvalue()) * 1.2


def test_other_readers_take_it():
    text = "a,b\n" + "".join(f"{n},é{n}\n" for n in range(1000))
    _, file = opened(text.encode())
    rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")))
    assert rows == list(csv.DictReader(io.StringIO(text)))

    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(1000))
    memory, file = opened(lines.encode())
    assert [json.loads(line)["n"] for line in file] == list(range(1000))
    assert len(memory.asked) == 1

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number in range(50):
            about = tarfile.TarInfo(f"{number}.bin")
            about.size = number * 100
            tar.addfile(about, io.BytesIO(bytes([number]) * about.size))
    _, file = opened(sink.getvalue())
    with tarfile.open(fileobj=file) as tar:
        found = {item.name: tar.extractfile(item).read() for item in tar}
    assert found == {f"{n}.bin": bytes([n]) * (n * 100) for n in range(50)}


def test_large_reads_are_not_held():
    data = np.random.default_rng(1).bytes(12 << 20)
    memory, file = opened(data)
    file.seek(100)
    assert file.read(9 << 20) == data[100 : 100 + (9 << 20)]
    assert not any(window.data for window in file._windows)
    assert file.read(10) == data[100 + (9 << 20) :][:10]
    assert len(memory.asked) == 2


def test_closing():
    memory, file = opened(b"abc")
    with file:
        assert file.read(1) == b"a"
    assert memory.closed
    for action in (file.read, file.tell, lambda: file.seek(0), file.readline):
        with pytest.raises(ValueError, match="closed"):
            action()


def test_empty():
    memory, file = opened(b"")
    assert file.read() == b""
    assert file.readline() == b""
    assert file.seek(0, 2) == 0
    assert memory.asked == []
