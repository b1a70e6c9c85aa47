"""What is fetched when: any hints and reads, against a file in memory."""

import itertools
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import IntegrityError, SourceError
from omr_io.remote.ranges import Stat
from omr_io.remote_storage import RemoteOptions, RemoteStorage, fetcher, hints
from omr_io.remote_storage.hints import Hints
from omr_io.remote_storage.units import State, Unit, UnitTable
from tests.remote_storage.conftest import settle

FILES = {name: np.random.default_rng(n).bytes(size) for n, (name, size) in enumerate(
    {"a": 30_000, "b": 4096, "c": 50_001, "d": 1}.items()
)}  # fmt: skip


class MemoryOrigin:
    """Files in memory; every so often a request fails for good."""

    pinned = False

    def __init__(self, failing: float = 0.0) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.failing, self.random = failing, random.Random(0)

    def stat(self, name: str) -> Stat:
        if name not in FILES:
            raise SourceError("none")
        return Stat(len(FILES[name]), '"tag"')

    def fetch_into(self, out, name: str, offset: int, size: int, stat: Stat) -> None:
        assert 0 <= offset < offset + size <= len(FILES[name])
        self.asked.append((name, offset, size))
        if self.random.random() < self.failing:
            raise SourceError("failed")
        out.append(FILES[name][offset : offset + size])

    def close(self) -> None: ...


@pytest.fixture
def origin(monkeypatch):
    made = MemoryOrigin()
    monkeypatch.setattr(fetcher, "make_origin", lambda *_: made)
    return made


def storage_of(cache=None, *, known=True, **given) -> RemoteStorage:
    base = {"cache": cache, "threads": 3, "block_bytes": 1 << 12, "cache_bytes": 1 << 20}
    sizes = {name: (len(data), "") for name, data in FILES.items()} if known else None
    return RemoteStorage("http://memory/", sizes, RemoteOptions(**(base | given)))


def check(storage: RemoteStorage) -> None:
    """The table agrees with itself, and holds no more than it may."""
    with storage.fetcher()._lock:
        table = storage.fetcher()._plan.units
        units = table.all()
        assert table.held_bytes == sum(unit.size for unit in units)
        for name in FILES:
            ends = [(unit.start, unit.stop) for unit in table.between(name, 0, 1 << 40)]
            assert all(start < stop for start, stop in ends)
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(ends))
        for unit in units:
            assert unit.readers >= 0
            if unit.state is State.DONE:
                assert (unit in table._unread) == (unit.readers > 0)
                assert (unit in table._spent) == (unit.readers == 0)
            assert (
                unit.data is None or bytes(unit.data) == (FILES[unit.name][unit.start : unit.stop])
            )


@st.composite
def a_range(draw) -> tuple[str, int, int]:
    name = draw(st.sampled_from(sorted(FILES)))
    start = draw(st.integers(0, len(FILES[name]) - 1))
    return name, start, draw(st.integers(1, min(9_000, len(FILES[name]) - start)))


steps = st.lists(
    st.one_of(
        st.lists(a_range(), min_size=1, max_size=6).map(lambda ranges: ("told", ranges)),
        a_range().map(lambda one: ("read", one)),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(
    steps=steps, cached=st.booleans(), budget=st.sampled_from([0, 3_000, 20_000, 1 << 20]),
    threads=st.sampled_from([1, 3]), cache_bytes=st.sampled_from([1 << 14, 40_000, 1 << 20]),
    known=st.booleans(), gap=st.sampled_from([0, 500, 1 << 16]), failing=st.sampled_from([0, 0.2]),
)  # fmt: skip
def test_any_hints_and_reads(steps, cached, budget, threads, cache_bytes, known, gap, failing):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        origin = MemoryOrigin(failing)
        patch.setattr(fetcher, "make_origin", lambda *_: origin)
        patch.setattr(hints, "MAX_GAP", gap)
        storage = storage_of(
            Path(folder) / "c" if cached else None, read_ahead_bytes=budget, threads=threads,
            cache_bytes=cache_bytes, known=known,
        )  # fmt: skip
        waiting = []
        for kind, what in steps:
            if kind == "told":
                storage.will_read(what)
                waiting += what
            else:
                read(storage, what, failing)
            check(storage)
        for one in waiting:
            read(storage, one, failing)
        check(storage)
        if not failing:
            assert not storage.fetcher()._plan.units._unread
        storage.close()


def read(storage, one, failing) -> None:
    name, start, size = one
    while True:
        try:
            assert storage.read(name, start, size) == FILES[name][start : start + size]
            return
        except SourceError:
            assert failing


def test_threads_with_hints_of_their_own(origin, tmp_path):
    for cache in (None, tmp_path / "c"):
        storage = storage_of(cache, read_ahead_bytes=30_000)

        def work(seed: int, storage=storage) -> None:
            rng = random.Random(seed)
            for _ in range(20):
                told = []
                for _ in range(8):
                    name = rng.choice("ac")
                    start = rng.randrange(len(FILES[name]) - 3_000)
                    told.append((name, start, rng.randrange(1, 3_000)))
                storage.will_read(told)
                for name, start, size in told:
                    if rng.random() < 0.9:
                        assert storage.read(name, start, size) == FILES[name][start : start + size]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        check(storage)
        storage.close()


def test_beyond_the_end_and_unknown_files(origin):
    for known in (True, False):
        storage = storage_of(known=known)
        storage.will_read([("b", 4000, 5000), ("b", 9000, 10), ("none", 0, 5), ("b", -5, 5)])
        with pytest.raises(
            IntegrityError, match=r"5000 bytes are expected here .* has 96.*shard b"
        ):
            storage.read("b", 4000, 5000)
        with pytest.raises(IntegrityError, match="has 0"):
            storage.read("b", 9000, 10)
        with pytest.raises(SourceError, match="none"):
            storage.read("none", 0, 5)
        assert storage.read("b", 4000, 0) == b""
        assert storage.read("b", 4000, 96) == FILES["b"][4000:]
        storage.close()


def test_a_block_is_taken_whole_when_a_sixteenth_of_it_is_wanted(origin, tmp_path):
    storage = storage_of(tmp_path / "c")
    for n in range(8):
        storage.read("a", 8192 + 500 * n, 32)
    # 256 of 4096 bytes: the eighth read brings the block.
    assert origin.asked == [*(("a", 8192 + 500 * n, 32) for n in range(7)), ("a", 8192, 4096)]
    storage.read("a", 10_000, 2_000)
    assert len(origin.asked) == 8
    storage.close()


def test_no_blocks_where_the_cache_cannot_hold_what_is_read_from(origin, tmp_path):
    """All files together are more than half of the cache: ranges alone, nothing twice."""
    storage = storage_of(tmp_path / "c", cache_bytes=50_000)
    told = [(name, at, 1000) for at in range(0, 29_000, 1000) for name in "ac"]
    storage.will_read(told)
    for name, at, size in told:
        storage.read(name, at, size)
    assert sum(size for _, _, size in origin.asked) <= 60_000
    assert storage.stats().cache_bytes == 0
    storage.close()


def test_ahead_no_further_than_the_bound(monkeypatch):
    """With 10,000 bytes of room: what is told is fetched up to there, and on as it is read."""
    made = MemoryOrigin()
    monkeypatch.setattr(fetcher, "make_origin", lambda *_: made)
    monkeypatch.setattr(hints, "MAX_GAP", 0)
    storage = storage_of(read_ahead_bytes=10_000)
    told = [("a", 2_000 * n, 1_000) for n in range(15)]
    storage.will_read(told)
    settle(storage)
    assert sorted(made.asked) == told[:10]
    for one in told[:4]:
        storage.read(*one)
    settle(storage)
    assert sorted(made.asked) == told[:14]
    storage.close()


def test_hints_that_were_overtaken_are_given_up():
    all_hints = Hints({"a": 1 << 20}, 1 << 12, max_lag=1_000)
    for n in range(20):
        all_hints.add("a", 1_000 * n, 1_000 * n + 100)
    late = all_hints.find("a", 15_000)
    done = all_hints.read(late, 15_000, 15_100)
    assert [hint.start for hint in done] == [15_000, *range(0, 5_000, 1_000)]
    assert all_hints.find("a", 0) is None
    assert all_hints.find("a", 5_000) is not None
    assert all_hints.next().start == 5_000


def test_a_hint_is_done_with_when_both_its_ends_were_read():
    """A sample's images and its text are read apart; headers between them are not read."""
    all_hints = Hints({}, 1 << 12, 1 << 20)
    all_hints.add("a", 100, 1000)
    all_hints.add("a", 100, 1000)
    hint = all_hints.find("a", 900)
    assert all_hints.read(hint, 900, 1000) == []
    assert all_hints.find("a", 100) is hint
    assert all_hints.read(hint, 100, 600) == [hint]
    again = all_hints.find("a", 100)
    assert again is not hint
    assert all_hints.read(again, 0, 2000) == [again]
    assert all_hints.find("a", 100) is None


def test_a_table_of_units():
    table = UnitTable(100)
    units = [Unit("a", start, start + 10, block=False, ahead=True) for start in (30, 0, 10)]
    for unit in units:
        table.add(unit)
    assert table.at("a", 9) is units[1]
    assert table.at("a", 10) is units[2]
    assert table.at("a", 20) is None
    assert table.next_start("a", 20) == 30
    assert table.next_start("a", 31) is None
    assert table.between("a", 5, 31) == [units[1], units[2], units[0]]
    assert table.between("b", 0, 100) == []
    for unit in units:
        unit.state = State.DONE
    units[0].readers = 1
    units[0].position = 7
    for unit in units:
        table.file(unit)
    assert not table.make_room(95)  # what is spent goes, what is not read yet stays
    assert table.all() == [units[0]]
    assert not table.make_room(95, before=7)
    assert table.make_room(95, before=8)
    assert table.held_bytes == 0


def test_the_counts_are_of_one_reader_each(origin):
    storage = storage_of()
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        storage.read("c", 100, 50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = storage.stats()
    assert stats.cache_hits + stats.cache_misses == 4
    assert origin.asked == [("c", 100, 50)]
    storage.close()


def test_a_defect_in_a_thread_reaches_the_reader(origin, monkeypatch):
    """Rather than leave it waiting for ever."""

    def broken(*_):
        raise ZeroDivisionError("a defect")

    storage = storage_of()
    storage.read("a", 0, 10)
    monkeypatch.setattr(storage.fetcher()._plan, "next_ahead", broken)
    storage.will_read([("a", 5000, 10)])
    with pytest.raises(ZeroDivisionError):
        [storage.read("a", 20_000 + 100 * n, 10) for n in range(100)]
    storage.close()
    assert storage.read("a", 0, 10) == FILES["a"][:10]  # a new beginning
    storage.close()
