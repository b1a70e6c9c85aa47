"""The cache on disk: bounded, checked, shared by threads and processes."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from omr_io.errors import OmrWarning
from omr_io.remote_storage import RemoteStorage
from omr_io.remote_storage.block_cache import TRAILER_BYTES, BlockCache
from tests.remote.servers import FileServer

DATA = np.random.default_rng(0).bytes(1_000_000)
BLOCK = 1 << 14


def key(n) -> str:
    return sha256(str(n).encode()).hexdigest()[:40]


def body(n: int, size: int = 1000) -> bytes:
    return random.Random(n).randbytes(size)


def store(cache: BlockCache, n: int, size: int = 1000) -> bool:
    claim = cache.claim(key(n))
    assert claim is not None
    return claim.commit([body(n, size)[:100], body(n, size)[100:]], size)


def files(cache: BlockCache) -> list:
    return [p for p in cache.folder.rglob("*") if p.is_file() and p.name != "usage"]


def held(cache: BlockCache) -> int:
    return sum(path.stat().st_size for path in files(cache))


def test_entries_are_what_was_stored(tmp_path):
    cache = BlockCache(tmp_path / "c", 1 << 20)
    assert cache.read(key(1), 0, 10) is None
    assert not cache.has(key(1))
    assert cache.used_bytes() == 0
    assert store(cache, 1)
    for other in (cache, BlockCache(tmp_path / "c", 1 << 20)):
        assert other.has(key(1))
        assert other.read(key(1), 0, 1000) == body(1)
        assert other.read(key(1), 990, 10) == body(1)[990:]
        assert other.read(key(1), 990, 11) is None
        assert other.used_bytes() == 1000 + TRAILER_BYTES == held(cache)
    cache.discard(key(1))
    assert (cache.used_bytes(), files(cache)) == (0, [])


def test_the_bound_holds_and_the_longest_unused_goes_first(tmp_path):
    cache = BlockCache(tmp_path / "c", 20_000)
    for n in range(15):
        assert store(cache, n)
        os.utime(cache.path(key(n)), (n, n))
    assert cache.read(key(3), 0, 1000) == body(3)  # counts as new now
    for n in range(15, 25):
        assert store(cache, n)
        assert held(cache) <= 20_000
        assert cache.used_bytes() <= 20_000
    assert cache.has(key(3))
    assert not cache.has(key(0))
    assert not cache.has(key(4))
    assert cache.has(key(24))
    assert not store(cache, 99, 20_000)  # larger than all
    assert not cache.has(key(99))
    assert store(cache, 98, 15_000)
    assert held(cache) <= 20_000


def test_a_claim_is_held_by_one_and_free_when_it_ends(tmp_path):
    cache, other = BlockCache(tmp_path / "c", 1 << 20), BlockCache(tmp_path / "c", 1 << 20)
    claim = cache.claim(key(1))
    assert other.claim(key(1)) is None
    assert cache.claim(key(1)) is None
    claim.release()
    claim.release()
    again = other.claim(key(1))
    assert again is not None
    assert not again.commit([b"short"], 1000)
    assert not other.has(key(1))
    assert (other.used_bytes(), files(other)) == (0, [])
    third = cache.claim(key(1))

    def broken():
        yield b"x" * 10
        raise ValueError("from the network")

    with pytest.raises(ValueError, match="from the network"):
        third.commit(broken(), 1000)
    assert (other.used_bytes(), files(other)) == (0, [])
    assert store(cache, 1)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "trailer", "longer"])
def test_a_damaged_entry_is_found_and_removed(tmp_path, damage):
    cache = BlockCache(tmp_path / "c", 1 << 20)
    store(cache, 1)
    path = cache.path(key(1))
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[500] ^= 1
    elif damage == "trailer":
        data[-1] ^= 1
    changed = {"cut": data[:600], "empty": b"", "longer": data + b"x"}.get(damage, data)
    path.write_bytes(changed)
    fresh = BlockCache(tmp_path / "c", 1 << 20)  # as another process, or after a restart
    assert fresh.read(key(1), 0, 10) is None
    assert not path.exists()
    assert store(fresh, 1)
    assert fresh.read(key(1), 0, 10) == body(1)[:10]


def test_a_wrong_count_heals(tmp_path):
    cache = BlockCache(tmp_path / "c", 20_000)
    for n in range(5):
        store(cache, n)
    for wrong in (b"", b"\xff" * 8, b"123456789"):
        (cache.folder / "usage").write_bytes(wrong)
        assert store(cache, 10)
        assert cache.used_bytes() == held(cache)
        cache.discard(key(10))
    (cache.folder / "usage").unlink()
    assert store(cache, 10)
    assert cache.used_bytes() == held(cache) == 6 * (1000 + TRAILER_BYTES)


def test_deleted_while_it_is_used(tmp_path):
    import shutil

    cache = BlockCache(tmp_path / "c", 1 << 20)
    store(cache, 1)
    claim = cache.claim(key(2))
    shutil.rmtree(cache.folder)
    assert cache.read(key(1), 0, 10) is None
    with pytest.raises(OSError, match="No such file"):
        claim.commit([body(2)], 1000)
    assert store(cache, 1)
    assert cache.read(key(1), 0, 10) == body(1)[:10]


def test_threads_at_once(tmp_path):
    """Random stores and reads by 8 threads, over the bound: right bytes or none."""
    cache = BlockCache(tmp_path / "c", 30_000)
    found = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            n = rng.randrange(60)
            data = cache.read(key(n), 10, 50)
            if data is not None:
                assert data == body(n)[10:60]
                found.append(n)
            else:
                claim = cache.claim(key(n))
                if claim is not None:
                    claim.commit([body(n)], 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert found
    assert held(cache) <= 30_000
    assert not [path for path in files(cache) if path.name.startswith(".")]


# Through a storage


def storage_of(server, options, **given) -> RemoteStorage:
    return RemoteStorage(server.url, {"f.tar": (len(DATA), "")}, options(**given))


def read_all(storage: RemoteStorage) -> None:
    ranges = [("f.tar", at, min(5000, len(DATA) - at)) for at in range(0, len(DATA), 5000)]
    storage.will_read(ranges)
    for name, at, size in ranges:
        assert storage.read(name, at, size) == DATA[at : at + size]


WORKER = """
import random, sys
sys.path.insert(0, {root!r})
from omr_io.remote_storage import RemoteOptions, RemoteStorage, hints
hints._RECENT = {recent}  # ranges by which it is judged what is read from at present
DATA = open({data!r}, "rb").read()
PART = 100_000
options = RemoteOptions(cache={cache!r}, cache_bytes={cache_bytes}, threads=4, block_bytes={block})
storage = RemoteStorage({url!r}, {{f"{{n}}.tar": (PART, "") for n in range(10)}}, options)
for turn in range({turns}):
    order = list(range(10))
    ranges = [(at, min(5000, PART - at)) for at in range(0, PART, 5000)]
    if {shuffled}:
        random.Random(int(sys.argv[1]) * 1000 + turn).shuffle(order)
        random.Random(int(sys.argv[1]) * 1000 + turn).shuffle(ranges)
    for n in order:
        storage.will_read([(f"{{n}}.tar", *one) for one in ranges])
        for at, size in ranges:
            first = n * PART + at
            assert storage.read(f"{{n}}.tar", at, size) == DATA[first : first + size]
print(storage.stats().fetched_bytes, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """A function: starts a process that reads the file over and over."""
    (tmp_path / "data").write_bytes(DATA)
    started = []

    def begin(server, cache_bytes, turns=1, shuffled=False, number=0, recent=4096):
        code = WORKER.format(
            root=str(Path.cwd()), data=str(tmp_path / "data"), cache=str(tmp_path / "cache"),
            cache_bytes=cache_bytes, block=BLOCK, url=server.url, turns=turns, shuffled=shuffled,
            recent=recent,
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


PARTS = {f"/{n}.tar": DATA[n * 100_000 : (n + 1) * 100_000] for n in range(10)}


def blocks_asked(server) -> list[tuple[str, str]]:
    return [(r.path, r.range) for r in server.gets() if r.range != "bytes=0-0"]


def test_processes_fetch_a_block_once(tmp_path, start):
    """Three at once, reading the same: the server sends each block once."""
    with FileServer(PARTS) as server:
        processes = [start(server, 1 << 24) for _ in range(3)]
        assert [process.wait(300) for process in processes] == [0, 0, 0]
        asked = blocks_asked(server)
        assert len(asked) == len(set(asked)) == 10 * -(-100_000 // BLOCK)
        fetched = [int(process.stdout.read()) for process in processes]
        assert sum(fetched) <= len(DATA) + 3 * 10  # and what each file is: a byte


def test_the_bound_holds_under_two_processes(tmp_path, start):
    bound = 20 * BLOCK  # a third of all
    cache = BlockCache(tmp_path / "cache", bound)
    with FileServer(PARTS) as server:
        processes = [start(server, bound, 3, True, number, recent=20) for number in range(2)]
        largest = 0
        while any(process.poll() is None for process in processes):
            largest = max(largest, held_now(cache))
            time.sleep(0.005)
        assert [process.wait() for process in processes] == [0, 0]
        largest = max(largest, held_now(cache))
    assert bound / 3 < largest <= bound
    assert held(cache) <= bound


def held_now(cache) -> int:
    """Bytes of all files while others work: nobody takes room meanwhile, renames count once."""
    with cache._usage():
        sizes = {}
        for path in files(cache):
            with suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def test_kill_in_the_middle_leaves_a_cache_that_works(tmp_path, start):
    """At work on its first block, on a few, on many: what it fetches is held back, so it waits."""
    with FileServer(PARTS) as server:
        for count in (0, 3, 30):
            left, held_back, over = [count], threading.Semaphore(0), threading.Event()

            def hold(request, reply, left=left, held_back=held_back, over=over):
                with server.lock:
                    left[0] -= request.range != "bytes=0-0"
                    late = left[0] < 0
                if late:
                    held_back.release()
                    over.wait(300)
                return reply

            server.always = hold
            process = start(server, 1 << 24)
            assert held_back.acquire(timeout=200)
            assert [path for path in files(BlockCache(tmp_path / "cache", 1 << 24))
                    if path.name.startswith(".")]  # fmt: skip
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            over.set()
        server.always = None
        assert start(server, 1 << 24).wait(300) == 0  # equal bytes, and no lock is waited for
        cache = BlockCache(tmp_path / "cache", 1 << 24)
        assert not [path for path in files(cache) if path.name.startswith(".")]
        server.requests.clear()
        assert start(server, 1 << 24).wait(300) == 0
        assert blocks_asked(server) == []


def test_what_the_dead_left_counts_and_goes(tmp_path):
    """Unfinished entries that nobody holds are removed when room is needed."""
    cache = BlockCache(tmp_path / "c", 10_000)
    code = (
        "import os, sys, pathlib\n"
        "from omr_io.remote_storage.block_cache import BlockCache\n"
        f"cache = BlockCache(pathlib.Path({str(tmp_path / 'c')!r}), 10_000)\n"
        "def pieces():\n"
        "    yield b'x' * 100\n"
        "    os.kill(os.getpid(), 9)\n"
        f"cache.claim({key(0)!r}).commit(pieces(), 5000)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == -9
    left = [path for path in files(cache) if path.name.startswith(".")]
    assert len(left) == 1
    assert cache.used_bytes() == 5000 + TRAILER_BYTES
    for n in range(1, 12):
        assert store(cache, n)
        assert held(cache) <= 10_000
    assert not left[0].exists()
    alive = cache.claim(key(50))
    for n in range(12, 30):
        assert store(cache, n)
    assert alive.commit([body(50)], 1000)  # what is being made is left alone
    assert cache.read(key(50), 0, 1000) == body(50)


def test_a_damaged_entry_is_fetched_again(options, tmp_path):
    with FileServer({"/f.tar": DATA}) as server:
        storage = storage_of(server, options)
        read_all(storage)
        storage.close()
        cache = BlockCache(tmp_path / "cache", 1 << 24)
        for n, path in enumerate(sorted(files(cache))):
            data = bytearray(path.read_bytes())
            if n % 3 == 0:
                data[len(data) // 2] ^= 4
                path.write_bytes(data)
            elif n % 3 == 1:
                path.write_bytes(data[: len(data) // 2])
        storage = storage_of(server, options)
        read_all(storage)
        assert storage.stats().fetched_bytes > len(DATA) / 2
        storage.close()
        storage = storage_of(server, options)
        read_all(storage)
        storage.close()


def test_an_entry_of_another_version_of_the_file_is_not_used(options):
    with FileServer({"/f.tar": DATA}) as server:
        storage = storage_of(server, options)
        read_all(storage)
        storage.close()
        other = DATA[::-1]
        server.files["/f.tar"] = other
        storage = storage_of(server, options)
        assert storage.read("f.tar", 0, 50_000) == other[:50_000]
        storage.close()


def test_a_cache_that_cannot_be_written(options, tmp_path):
    """A warning, once, that says what to do; and the right bytes."""
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with FileServer({"/f.tar": DATA}) as server, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        storage = storage_of(server, options)
        read_all(storage)
        storage.close()
    told = [w for w in found if issubclass(w.category, OmrWarning)]
    assert len(told) == 1
    assert "cache=None" in str(told[0].message)


def test_a_block_that_a_stopped_process_holds_is_waited_for_and_then_fetched(options, tmp_path):
    """The other one hangs: after some time its blocks are fetched here too, and not kept."""
    from omr_io.remote import RetryPolicy

    with FileServer({"/f.tar": DATA}) as server:
        policy = RetryPolicy(tries=20, first_wait=0.01, timeout=1)
        storage = storage_of(server, options, retries=policy)
        cache = BlockCache(tmp_path / "cache", 1 << 24)
        claim = cache.claim(storage.fetcher().key("f.tar", 0))
        descriptor = os.open(cache._unfinished(storage.fetcher().key("f.tar", 0)), os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        begin = time.monotonic()
        storage.will_read([("f.tar", 0, BLOCK)])
        assert storage.read("f.tar", 0, 100) == DATA[:100]
        assert time.monotonic() - begin >= 1.5  # one and a half times the timeout
        claim.release()
        storage.close()


def test_closing_wakes_who_waits(options, tmp_path):
    from omr_io.errors import SourceError

    with FileServer({"/f.tar": DATA}) as server:
        storage = storage_of(server, options)
        storage.size("f.tar")

        asked, answer = threading.Event(), threading.Event()

        def hang(request, reply):
            asked.set()
            answer.wait(300)
            return reply

        server.always = hang
        failed = []

        def read() -> None:
            try:
                storage.read("f.tar", 0, 10)
            except SourceError as error:
                failed.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert asked.wait(60)
        storage.close()
        thread.join(60)
        assert not thread.is_alive()
        answer.set()
        assert "was closed" in str(failed[0])
