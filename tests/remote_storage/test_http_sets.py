"""Shard sets behind http(s): the same bytes as in a folder, with and without a cache."""

import pickle
import shutil
import subprocess
import sys
import threading
import traceback
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from omr_io.errors import ConfigError, IntegrityError, OmrWarning, SourceError
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteOptions, RemoteStorage, hints
from omr_io.storage import StorageStats
from tests.remote.servers import FileServer, etag, header, ranged, status
from tests.remote_storage.conftest import settle

SECRET = "S3CR3TxyZ"


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_equals_the_local_set(url, options, same, cached, told):
    chosen = options() if cached else options(cache=None)
    with ShardSet.open(url, chosen) as shards:
        if told:
            shards.will_read(range(len(shards)))
        same(shards)
        stats = shards.storage_stats()
        assert stats.fetched_bytes > 0
        assert stats.retries == 0
        assert stats.cache_hits + stats.cache_misses > 0
        assert (stats.cache_bytes > 0) == cached


def test_read_again_from_the_cache(server, url, options, same):
    with ShardSet.open(url, options()) as shards:
        shards.will_read(range(len(shards)))
        same(shards)
    server.requests.clear()
    with ShardSet.open(url, options()) as shards:
        same(shards)
        stats = shards.storage_stats()
    # The manifest is asked for each time, of the rest what it is now: its ETag.
    asked = {(r.path.rpartition("/")[2], r.range) for r in server.requests}
    assert {name for name, wanted in asked if wanted != "bytes=0-0"} == {"manifest.json"}
    assert stats.cache_misses == 0
    assert stats.cache_hits >= 60


def test_blocks_are_fetched_once_and_ranges_only_at_first(server, url, options):
    """A tenth of a set is read as ranges; with all of it told, blocks come whole, each once."""
    with ShardSet.open(url, options()) as shards:
        shards.will_read(range(len(shards)))
        for i in range(len(shards)):
            shards.read_record(i)
        fetched = shards.storage_stats().fetched_bytes
    total = sum(len(data) for name, data in server.files.items() if name.endswith(".tar"))
    index = len(server.files["/sets/train/index.arrow"])
    manifest = len(server.files["/sets/train/manifest.json"])
    assert fetched <= 1.1 * total + index + manifest
    blocks = [(r.path, r.range) for r in server.requests if r.path.endswith(".tar") and r.range]
    assert len(set(blocks)) == len(blocks)


def test_little_is_fetched_for_little(server, url, options):
    with ShardSet.open(url, options(cache=None)) as shards:
        server.requests.clear()
        before = shards.storage_stats().fetched_bytes
        sizes = [sum(part.size for part in shards.parts(i)) + 2048 for i in (3, 31)]
        shards.will_read([3, 31])
        shards.read_record(3)
        shards.read_record(31)
        assert shards.storage_stats().fetched_bytes - before <= sum(sizes)


def test_reading_ahead_goes_in_the_order_told(server, url, options, monkeypatch):
    """With one thread, and neighbours not taken together: requests come in the order of hints."""
    monkeypatch.setattr(hints, "MAX_GAP", 0)
    with ShardSet.open(url, options(cache=None, threads=1)) as shards:
        order = np.random.default_rng(0).permutation(60)[:20].tolist()
        starts = {(shards.shard(i), shards.parts(i)[0].offset): i for i in range(60)}
        server.requests.clear()
        shards.will_read(order)
        for i in order:
            shards.read_record(i)
        seen = []
        for request in server.requests:
            first = int(request.range.removeprefix("bytes=").split("-")[0])
            number = starts.get((request.path.rpartition("/")[2], first))
            if number is not None and request.range != "bytes=0-0":
                seen.append(number)
        assert seen == order


def test_neighbours_are_one_request(server, url, options):
    with ShardSet.open(url, options(cache=None, threads=1)) as shards:
        ten = [i for i in range(60) if shards.shard(i) == shards.shard_names[0]]
        server.requests.clear()
        shards.will_read(ten)
        for i in ten:
            shards.read_record(i)
        assert len(server.gets()) <= 3  # what the file is, and all of it


def test_without_hints_reading_on_is_read_ahead(server, url, options):
    with ShardSet.open(url, options(cache=None)) as shards:
        server.requests.clear()
        for i in range(60):
            shards.read_record(i)
        assert len(server.gets()) < 60


def test_memory_is_bounded(url, options, local_set):
    bound = 60_000
    with ShardSet.open(url, options(cache=None, read_ahead_bytes=bound)) as shards:
        table = shards._storage.fetcher()._plan.units
        held = []
        shards.will_read(range(60))
        for i in range(60):
            shards.read_record(i)
            held.append(table.held_bytes)
        largest = max(sum(part.size for part in shards.parts(i)) + 2048 for i in range(60))
    assert max(held) <= bound + largest
    assert max(held) > bound / 4


def test_hints_that_are_given_up_do_not_stop_reading_ahead(url, options, local_set):
    """A loader that begins another order: what was read ahead makes way."""
    with (
        ShardSet.open(local_set) as here,
        ShardSet.open(url, options(cache=None, read_ahead_bytes=40_000)) as shards,
    ):
        shards.will_read(range(10))
        shards.read_record(0)
        order = list(range(59, 9, -1))
        shards.will_read(order)
        for i in order[:30]:
            assert shards.read_record(i) == here.read_record(i)
        before = shards.storage_stats().cache_hits
        for i in order[30:]:
            settle(shards._storage)
            assert shards.read_record(i) == here.read_record(i)
        assert shards.storage_stats().cache_hits - before >= 15


def test_threads_read_at_once(url, options, local_set):
    with ShardSet.open(local_set) as here, ShardSet.open(url, options()) as shards:
        expected = [here.read_record(i) for i in range(60)]
        found = {}

        def read(worker: int) -> None:
            order = np.random.default_rng(worker).permutation(60).tolist()
            shards.will_read(order)
            for i in order:
                found[worker, i] = shards.read_record(i)

        threads = [threading.Thread(target=read, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert found == {(w, i): expected[i] for w in range(6) for i in range(60)}


def test_pickles_and_closed_sets(url, options, same):
    before = set(threading.enumerate())
    shards = ShardSet.open(url, options())
    again = pickle.loads(pickle.dumps(shards))
    same(again)
    again.close()
    same(again)  # reading opens anew
    stats = again.storage_stats()
    assert isinstance(stats, StorageStats)
    again.close()
    assert again.storage_stats().requests >= stats.requests
    shards.close()
    left = set(threading.enumerate()) - before
    ours = [thread for thread in left if thread.name.startswith("omr-io")]
    for thread in ours:  # closing waits for a second at most
        thread.join(60)
    assert not [thread for thread in ours if thread.is_alive()]


def test_a_set_that_was_replaced_is_refused_when_reopened(
    server, url, options, write_shards, make_records
):
    frozen = pickle.dumps(ShardSet.open(url, options()))
    for path in write_shards(make_records(10)).iterdir():
        if path.is_file():
            server.files[f"/sets/train/{path.name}"] = path.read_bytes()
    with pytest.raises(IntegrityError, match="replaced since it was opened"):
        pickle.loads(frozen)


def test_a_fork_reads_on(url, local_set, tmp_path):
    code = f"""
import os, sys
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteOptions
options = RemoteOptions(cache={str(tmp_path / "c")!r}, threads=2, block_bytes=1 << 14)
shards = ShardSet.open({url!r}, options)
here = ShardSet.open({str(local_set)!r})
shards.will_read(range(60))
first = [shards.read_record(i) for i in range(5)]
pid = os.fork()
good = all(shards.read_record(i) == here.read_record(i) for i in range(60))
if not pid:
    os._exit(7 if good else 8)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(code if good else 9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 7


def test_a_process_ends_though_transfers_are_at_work(server, url):
    """And nothing keeps it: neither threads nor the server's silence."""
    code = f"""
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteOptions
shards = ShardSet.open({url!r}, RemoteOptions(cache=None))
print("open", flush=True)
input()
shards.will_read(range(60))
import time; time.sleep(0.5)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "open\n"

    def hang(request, reply):
        reply.pause = 300
        return reply

    server.always = hang
    process.communicate("go\n", timeout=200)
    assert process.returncode == 0


# Errors


def test_what_is_no_set(server, url, options):
    with pytest.raises(SourceError, match=r"manifest cannot be had.*404.*manifest\.json") as info:
        ShardSet.open(f"{server.url}/sets/none", options())
    assert info.value.exit_code == 3
    server.files["/sets/train/manifest.json"] = b"{}"
    with pytest.raises(IntegrityError, match="broken manifest"):
        ShardSet.open(url, options())
    server.files["/sets/train/manifest.json"] = b""
    with pytest.raises(IntegrityError, match="broken manifest"):
        ShardSet.open(url, options())


@pytest.mark.parametrize("place", ["ftp://h/x", "file:///x", "gopher://h", "webdav://h/x"])
def test_other_schemes_are_refused(place):
    with pytest.raises(SourceError, match=r"no URL that omr_io reads.*hf://, s3://, gs://"):
        ShardSet.open(place)
    with pytest.raises(SourceError):
        RemoteStorage(place)


def test_a_missing_shard_ends_the_run_at_once(server, url, options):
    with ShardSet.open(url, options()) as shards:
        del server.files[f"/sets/train/{shards.shard(5)}"]
        server.requests.clear()
        with pytest.raises(SourceError, match="no such file on the server") as info:
            shards.read_record(5)
        assert info.value.exit_code == 3
        assert len(server.requests) == 1


def test_a_shard_of_another_size(server, url, options):
    with ShardSet.open(url, options()) as shards:
        server.files[f"/sets/train/{shards.shard(0)}"] += b"x"
        with pytest.raises(IntegrityError, match=r"bytes, the manifest says .*shard"):
            shards.read_record(0)


def test_a_shard_that_changes_while_it_is_read(server, url, options):
    for chosen in (options(), options(cache=None)):
        with ShardSet.open(url, chosen) as shards:
            name = f"/sets/train/{shards.shard(59)}"
            before = server.files[name]
            shards.read_record(55)
            server.files[name] = before[:-1] + b"\1"
            with pytest.raises(SourceError, match="changed while it was read"):
                [shards.read_record(i) for i in range(50, 60)]
            server.files[name] = before


@pytest.mark.parametrize("tag", ["5f3a-1b", 'W/"5f3a"', "Wed", None])
def test_etags_of_any_form_are_held_to(server, url, options, same, tag):
    """Many small servers forget the quotes: they are compared as they stand, and not asked for."""
    tags = {}

    def tagged(request, reply):
        return header("ETag", tags.get(request.path, tag))(request, reply)

    server.always = tagged
    with ShardSet.open(url, options(threads=4)) as shards:
        shards.will_read(range(len(shards)))
        same(shards)
    assert not [r for r in server.requests if "if-match" in r.headers]
    if tag is not None:
        with ShardSet.open(url, options(cache=None)) as shards:
            shards.read_record(0)
            tags[f"/sets/train/{shards.shard(0)}"] = "another"
            with pytest.raises(SourceError, match="changed while it was read: its ETag is another"):
                [shards.read_record(i) for i in range(1, len(shards))]


def test_an_index_that_is_another(server, url, options):
    whole = server.files["/sets/train/index.arrow"]
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for chosen in (options(), options(cache=None)):
        server.files["/sets/train/index.arrow"] = bytes(damaged)
        with pytest.raises(IntegrityError, match="index is not what was written"):
            ShardSet.open(url, chosen)
        server.files["/sets/train/index.arrow"] = whole
        ShardSet.open(url, chosen).close()  # nothing of it was kept


def test_an_index_damaged_in_the_cache(url, options, tmp_path, same):
    ShardSet.open(url, options()).close()
    entry = max((tmp_path / "cache").rglob("[0-9a-f]*"), key=lambda p: p.is_file())
    data = bytearray(entry.read_bytes())
    data[100] ^= 1
    entry.write_bytes(data)
    with ShardSet.open(url, options()) as shards:
        same(shards)


def test_a_block_that_is_damaged_during_a_run_is_fetched_again(
    server, url, options, tmp_path, same
):
    """After its hash was checked: the parts' own CRCs find it."""
    with ShardSet.open(url, options()) as shards:
        shards.will_read(range(60))
        same(shards)
        size = server.files["/sets/train/index.arrow"]
        for path in (tmp_path / "cache").rglob("[0-9a-f]" * 40):
            data = bytearray(path.read_bytes())
            if len(data) == len(size) + 24:
                continue  # the index, which is mapped
            for at in range(50, len(data) - 24, 100):
                data[at] ^= 1
            with path.open("r+b") as file:
                file.write(data)  # the same file, as a disk would do it
        before = shards.storage_stats().fetched_bytes
        same(shards)
        assert shards.storage_stats().fetched_bytes > before
        # Where the server itself has other bytes, it is an error.
        name = f"/sets/train/{shards.shard(0)}"
        wrong = bytearray(server.files[name])
        wrong[shards.parts(0)[0].offset] ^= 1
        tag = etag(server.files[name])
        server.files[name] = bytes(wrong)
        server.always = lambda q, r: header("ETag", tag)(
            q, ranged(q, bytes(wrong), tag) if q.path == name else r
        )
        shards._storage.forget(shards.shard(0), 0, 1000)
        with pytest.raises(IntegrityError, match="do not match their CRC-32C"):
            shards.read_record(0)


def test_no_secret_anywhere(server, url, options, tmp_path, monkeypatch):
    """In the URL: not in errors, the cache's names, nor what is printed."""
    with_user = url.replace("http://", f"http://me:{SECRET}@")
    for place in (with_user, f"{url}?signature={SECRET}"):
        with ShardSet.open(place, options()) as shards:
            shards.will_read(range(60))
            for i in range(60):
                shards.read_record(i)
            assert SECRET not in repr(shards._storage)
            assert SECRET not in repr(shards)
            server.always = status(403)
            server.files = dict(server.files)
            storage = RemoteStorage(place, None, options(cache=None))
            with pytest.raises(SourceError, match="no access") as info:
                storage.size("train-000000.tar")
            assert SECRET not in "".join(traceback.format_exception(info.value))
            with pytest.raises(SourceError, match="no access") as info:
                ShardSet.open(place, options())
            assert SECRET not in "".join(traceback.format_exception(info.value))
            server.always = None
    queries = [request.query.get("signature") for request in server.requests]
    assert [SECRET] in queries
    names = "\n".join(str(path) for path in (tmp_path / "cache").rglob("*"))
    assert names
    assert SECRET not in names
    assert "train" not in names


def test_the_cache_goes_by_the_place_not_by_who_asks(server, url, options, same):
    """A password that was changed does not make it useless."""
    for user in ("me:one@", "me:two@", ""):
        with ShardSet.open(url.replace("http://", f"http://{user}"), options()) as shards:
            shards.will_read(range(60))
            same(shards)
            misses = shards.storage_stats().cache_misses
        assert misses == 0 or user == "me:one@"


def test_a_remote_foreign_set_names_no_folder(tmp_path, options):
    from omr_io.foreign_shards.build import index_foreign
    from tests.foreign_shards.test_foreign import make_tar, sample

    tars = tmp_path / "t"
    make_tar(tars / "a.tar", [item for n in range(3) for item in sample(f"s{n}", n)])
    index_foreign([tars])
    index_foreign([tars / "a.tar"], tmp_path / "beside")
    both = {
        f"/{folder.name}/{path.name}": path.read_bytes()
        for folder in (tars, tmp_path / "beside")
        for path in folder.iterdir()
    }
    with FileServer(both) as server:
        with ShardSet.open(tars) as here, ShardSet.open(f"{server.url}/t", options()) as there:
            assert [here.read_record(i) for i in range(3)] == [
                there.read_record(i) for i in range(3)
            ]
        with pytest.raises(ConfigError, match=r"tars are in the folder .*Copy index"):
            ShardSet.open(f"{server.url}/beside", options())


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("OMR_IO_CACHE_DIR", str(tmp_path))
    assert RemoteOptions().folder() == tmp_path / "shards"
    assert RemoteOptions(cache=None).folder() is RemoteOptions(cache_bytes=0).folder() is None
    assert RemoteOptions(cache="~/x").folder() == Path.home() / "x"
    monkeypatch.setenv("OMR_IO_CACHE_DIR", "")
    assert RemoteOptions().folder() is None


def test_options_that_cannot_be():
    for bad in (
        {"threads": 0}, {"block_bytes": 1}, {"cache_bytes": -1}, {"read_ahead_bytes": -1},
        {"cache_bytes": 1}, {"cache_bytes": (4 << 20) - 1, "block_bytes": 1 << 20},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            RemoteOptions(**bad)


def test_a_disk_without_room_for_a_cache_is_told(url, same, monkeypatch, options):
    """It was left out without a word, and every epoch went over the network."""
    full = namedtuple("usage", "total used free")(1 << 30, 1 << 30, 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.warns(OmrWarning, match="no room for a cache") as told:
        shards = ShardSet.open(url, options(cache_bytes=None))
    with shards, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(shards)
        assert shards.storage_stats().cache_bytes == 0
    assert "Free space" in str(told[0].message)
