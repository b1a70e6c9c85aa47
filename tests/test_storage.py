"""Positioned reads that are checked, and files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omr_io.errors import DiskError, IntegrityError
from omr_io.storage import AtomicFile, LocalStorage, disk_error, write_atomically


def open_files() -> set[str]:
    """What this process has open under a temporary folder."""
    names = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.add(str(entry.readlink()))
        except OSError:
            continue
    return names


def open_in(folder: Path) -> int:
    return sum(name.startswith(str(folder)) for name in open_files())


@pytest.fixture
def files(tmp_path):
    rng = random.Random(1)
    data = {f"{i}.bin": rng.randbytes(5000) for i in range(20)}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path, data


def test_reads_what_was_asked_for(files):
    folder, data = files
    storage = LocalStorage(folder)
    assert storage.read("3.bin", 17, 1000) == data["3.bin"][17:1017]
    assert storage.read("3.bin", 5000, 0) == b""
    assert storage.size("3.bin") == 5000


def test_a_short_read_is_an_error(files):
    storage = LocalStorage(files[0])
    with pytest.raises(IntegrityError, match=r"10 bytes are expected here and the file has 4"):
        storage.read("3.bin", 4996, 10)
    with pytest.raises(IntegrityError, match=r"missing \(shard no\.bin"):
        storage.read("no.bin", 0, 1)
    with pytest.raises(IntegrityError, match="missing"):
        storage.size("no.bin")
    with pytest.raises(IntegrityError, match="reading failed"):
        LocalStorage(files[0].parent).read(files[0].name, 0, 1)  # a folder


def test_pread_that_stops_short_is_continued(files, monkeypatch):
    folder, data = files
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 7), at))
    assert LocalStorage(folder).read("1.bin", 3, 100) == data["1.bin"][3:103]


def test_descriptors_are_bounded_and_closed(files):
    folder, data = files
    storage = LocalStorage(folder, max_open=4)
    for name in data:
        storage.read(name, 0, 10)
    assert open_in(folder) == 4
    storage.close()
    assert open_in(folder) == 0
    assert storage.read("0.bin", 0, 10) == data["0.bin"][:10]
    del storage
    assert open_in(folder) == 0


def test_threads_share_a_storage(files):
    folder, data = files
    storage = LocalStorage(folder, max_open=3)

    def work(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(400):
            name, at = f"{rng.randrange(20)}.bin", rng.randrange(4900)
            assert storage.read(name, at, 100) == data[name][at : at + 100]
            if rng.random() < 0.01:
                storage.close()
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 8
    assert open_in(folder) <= 3
    storage.close()
    assert open_in(folder) == 0


def test_a_fork_in_the_middle_of_a_read(files):
    """A child reads although a thread of its parent held the lock when it was forked."""
    folder, data = files
    storage = LocalStorage(folder)
    storage.read("0.bin", 0, 1)
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with storage._table()._lock:
            holding.set()
            release.wait(300)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(100)
    child = os.fork()
    if child == 0:
        good = storage.read("1.bin", 5, 50) == data["1.bin"][5:55] and open_in(folder) == 1
        os._exit(0 if good else 1)
    try:
        for _ in range(2000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            threading.Event().wait(0.05)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
    finally:
        release.set()
        thread.join()
    assert status == 0
    assert storage.read("0.bin", 0, 10) == data["0.bin"][:10]  # the parent's are still open


def test_pickle(files):
    folder, data = files
    storage = pickle.loads(pickle.dumps(LocalStorage(folder)))
    assert storage.read("2.bin", 0, 5) == data["2.bin"][:5]


def test_an_atomic_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.bin"
    with AtomicFile(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    done = write_atomically(path, b"abcdef")
    assert path.read_bytes() == b"abcdef"
    assert (done.num_bytes, done.sha256()) == (6, hashlib.sha256(b"abcdef").hexdigest())
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_in_writing_is_named(tmp_path):
    with pytest.raises(DiskError, match=r"no/a\.bin failed: No such file"):
        AtomicFile(tmp_path / "no" / "a.bin")
    full = disk_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "a.tar")
    assert "a.tar failed: No space left on device. Free space" in str(full)
    assert full.exit_code == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path):
    (tmp_path / "a.bin.tmp").symlink_to("/dev/full")
    with AtomicFile(tmp_path / "a.bin") as file:
        file.write(b"x" * 100)  # buffered
        with pytest.raises(DiskError, match=r"No space left on device\. Free space"):
            file.commit()
    assert list(tmp_path.iterdir()) == []
