"""What goes wrong around a cache that several share: a killed neighbour, a full disk, no memory."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from omr_io.errors import ConfigError, OmrWarning
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteStorage, fetcher, shard_sets
from omr_io.remote_storage.block_cache import TRAILER_BYTES, BlockCache
from tests.remote.servers import FileServer

ROOT = Path(__file__).parents[2]
BLOCK = 1 << 14
DATA = np.random.default_rng(1).bytes(40 * BLOCK + 77)

READER = """
import json, sys, time, warnings
from omr_io.remote_storage import RemoteOptions, RemoteStorage, block_cache
{before}
options = RemoteOptions(cache={cache!r}, cache_bytes={cache_bytes}, threads=3, block_bytes={block})
storage = RemoteStorage({url!r}, {{"f.tar": ({size}, "")}}, options)
print("ready", flush=True)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    data = b""
    for at in range(0, {size}, 5000):
        data += storage.read("f.tar", at, min(5000, {size} - at))
import hashlib
print(json.dumps([hashlib.md5(data).hexdigest(), storage.stats().fetched_bytes,
                  [str(one.message) for one in told]]), flush=True)
"""
# Writes half of the fourth entry, says so, and waits to be killed.
STUCK = """
write, calls = block_cache._write, []
def half(descriptor, view):
    calls.append(1)
    if len(calls) == 7:  # two a entry: body and trailer
        write(descriptor, view[: len(view) // 2])
        print("stuck", flush=True)
        time.sleep(1000)
    write(descriptor, view)
block_cache._write = half
"""


@pytest.fixture
def start(tmp_path):
    """A function: starts a process that reads all of the file, once."""
    started = []

    def begin(url, before="", cache_bytes=1 << 24):
        code = READER.format(
            url=url, before=textwrap.dedent(before), cache=str(tmp_path / "cache"),
            cache_bytes=cache_bytes, block=BLOCK, size=len(DATA),
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def result(process):
    """MD5 of what was read, bytes fetched, warnings."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out)


def files(cache):
    return [path for path in cache.folder.glob("??/*") if path.is_file()]


def held(cache):
    return sum(path.stat().st_size for path in cache.folder.glob("??/.*")) + sum(
        path.stat().st_size for path in cache.folder.glob("??/[!.]*")
    )


def md5(data):
    import hashlib

    return hashlib.md5(data).hexdigest()


def test_a_neighbour_is_killed_in_the_middle_of_writing(start, tmp_path):
    """The other, which waits for that block, takes it over at once, and nothing stays behind."""
    cache = BlockCache(tmp_path / "cache", 1 << 24)
    with FileServer({"/f.tar": DATA}) as server:
        first = start(server.url, STUCK)
        assert first.stdout.readline() == "stuck\n"
        (half,) = [path for path in files(cache) if path.name.startswith(".")]
        assert half.stat().st_size == BLOCK + TRAILER_BYTES
        second = start(server.url)
        time.sleep(0.5)
        assert second.poll() is None, "it took a block that is being written"
        first.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        said, _, told = result(second)
        assert time.monotonic() - begin < 80  # not the 90 s after which a hanging one is given up
        assert (said, told) == (md5(DATA), [])
        assert not [path for path in files(cache) if path.name.startswith(".")]
        assert held(cache) <= cache.used_bytes()
        server.requests.clear()
        said, fetched, _ = result(start(server.url))
        assert (said, fetched, server.gets("/f.tar")[1:]) == (md5(DATA), 1, [])


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("limit", [100, BLOCK - 1, BLOCK + 10])
def test_no_room_for_a_file(start, tmp_path, limit):
    """The system itself refuses: right bytes, one warning, nothing kept and nothing counted."""
    cache = BlockCache(tmp_path / "cache", 1 << 24)
    with FileServer({"/f.tar": DATA}) as server:
        said, fetched, told = result(start(server.url, FULL.format(limit=limit)))
        assert said == md5(DATA)
        assert fetched >= len(DATA)
        assert len(told) == 1
        assert "File too large" in told[0]
        small = [path for path in files(cache) if path.stat().st_size > limit]
        assert not small
        assert cache.used_bytes() == held(cache)
        assert result(start(server.url))[0::2] == [md5(DATA), []]
        assert cache.used_bytes() == held(cache) == len(DATA) + 41 * TRAILER_BYTES


def test_the_disk_is_full_in_the_middle_of_an_entry(url, options, same, monkeypatch, tmp_path):
    write, room = os.write, [200_000]

    def full(descriptor, data):
        if "/cache/" not in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            return write(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, data[: room[0]])  # as a file system does: what fits, first
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    cache = BlockCache(tmp_path / "cache", 64 << 20)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with ShardSet.open(url, options()) as shards:
            same(shards)
            assert not room[0]
    ours = [one for one in told if one.category is OmrWarning]
    assert 1 <= len(ours) <= 2  # of the index, and of shards
    assert {type(one.message) for one in told} == {OmrWarning}, [str(one.message) for one in told]
    assert not [path for path in files(cache) if path.name.startswith(".")]
    assert cache.used_bytes() == held(cache) > 0
    monkeypatch.undo()
    with ShardSet.open(url, options()) as shards:
        same(shards)


def test_no_memory_for_a_block_reaches_the_reader(options, monkeypatch):
    """Rather than leave it waiting for ever for a thread that is gone."""
    buffer = fetcher.Buffer

    def refuse(size):
        if size == BLOCK:
            raise MemoryError
        return buffer(size)

    with FileServer({"/f.tar": DATA}) as server:
        storage = RemoteStorage(server.url, {"f.tar": (len(DATA), "")}, options())
        monkeypatch.setattr(fetcher, "Buffer", refuse)
        with ThreadPoolExecutor(1) as pool:
            for _ in range(5):  # more often than it has threads
                failed = pool.submit(storage.read, "f.tar", 0, BLOCK)
                assert isinstance(failed.exception(timeout=100), MemoryError)
            monkeypatch.undo()
            assert pool.submit(storage.read, "f.tar", 5, 100).result(100) == DATA[5:105]
        storage.close()


def test_what_is_counted_is_what_is_held(tmp_path):
    """Entries come, go, are given up and discarded on 6 threads, over the bound: to the byte."""
    folder = tmp_path / "c"
    caches = [BlockCache(folder, 40_000) for _ in range(3)]  # as processes

    def key(n):
        return f"{n:02x}" * 20

    def work(seed):
        rng, cache = random.Random(seed), caches[seed % 3]
        for _ in range(250):
            n = rng.randrange(40)
            size = 500 + 37 * n
            claim = cache.claim(key(n))
            if claim is not None and cache.has(key(n)):
                claim.release()
            elif claim is not None:
                # One in four comes short: given up after its room was taken.
                claim.commit([bytes(size - (rng.random() < 0.25))], size)
            if rng.random() < 0.3:
                cache.discard(key(rng.randrange(40)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert 0 < held(caches[0]) <= 40_000
    assert caches[0].used_bytes() == held(caches[0])


def test_an_index_that_is_there_and_cannot_be_read(url, options, same, monkeypatch):
    """Another user's, say (here a folder: root may read all). It was waited for 10 minutes."""
    monkeypatch.setattr(shard_sets, "_PATIENCE", 0.2)  # so that the old way would end at all
    chosen = options()
    ShardSet.open(url, chosen).close()
    (entry,) = (path for path in chosen.folder().rglob("[0-9a-f]" * 40) if path.is_file())
    entry.unlink()
    entry.mkdir()
    with pytest.warns(OmrWarning, match="the index cannot be kept"):
        shards = ShardSet.open(url, chosen)
    with shards:
        same(shards)


@pytest.mark.parametrize("allowed", [0, 2])
def test_no_more_threads_are_allowed(url, options, same, monkeypatch, allowed):
    """Of a limit of processes: who read after the first error waited for ever."""
    with ShardSet.open(url, options()) as shards:
        left, start = [allowed], threading.Thread.start

        def limited(thread):
            if thread.name.startswith("omr-io-fetch-"):
                if not left[0]:
                    raise RuntimeError("can't start new thread")
                left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        for _ in range(0 if allowed else 2):
            with pytest.raises(ConfigError, match="no thread can be started"):
                shards.read_record(0)
        left[0] = allowed or 1
        same(shards)
