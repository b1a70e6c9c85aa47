"""A small shard set, and a server that has it."""

import os
import time

import pytest

from omr_io.index import ShardSet
from omr_io.remote import RetryPolicy
from omr_io.remote_storage import RemoteOptions
from omr_io.remote_storage.units import State
from tests.remote.servers import FileServer

# Quick to try again; patient with a server on a machine that has much else to do.
QUICK = RetryPolicy(tries=4, first_wait=0.01, max_wait=0.05, timeout=100, stall_seconds=100)


def settle(storage) -> None:
    """Wait until nothing is being fetched any more, whatever the machine is busy with."""
    fetcher, quiet = storage.fetcher(), 0
    while quiet < 4:
        time.sleep(0.01)
        with fetcher._lock:
            units = fetcher._plan.units.all()
            busy = fetcher._at_work_ahead or [u for u in units if u.state is not State.DONE]
        quiet = 0 if busy else quiet + 1


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nothing of the machine's own settings; no proxy."""
    known = ("AWS_", "HF_", "HUGGING", "GOOGLE_", "STORAGE_EMULATOR")
    for name in list(os.environ):
        if name.startswith(known) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")


@pytest.fixture(scope="session")
def local_set(write_shards, make_records):
    """The folder of a set of 60 samples in 6 shards."""
    return write_shards(make_records(60))


@pytest.fixture(scope="session")
def set_files(local_set):
    """Its files by name."""
    return {path.name: path.read_bytes() for path in local_set.iterdir() if path.is_file()}


@pytest.fixture
def server(set_files):
    """Serves the set under /sets/train."""
    with FileServer({f"/sets/train/{name}": data for name, data in set_files.items()}) as server:
        yield server


@pytest.fixture
def url(server):
    return f"{server.url}/sets/train"


@pytest.fixture
def options(tmp_path):
    """A function: options of a cache in a folder of its own, with small blocks."""

    def make(**given) -> RemoteOptions:
        base = {
            "cache": tmp_path / "cache",
            "cache_bytes": 64 << 20,
            "threads": 4,
            "block_bytes": 1 << 14,
            "retries": QUICK,
        }
        return RemoteOptions(**(base | given))

    return make


@pytest.fixture
def same(local_set):
    """A function: checks that every sample of a set equals the local one's."""

    def check(shards: ShardSet) -> None:
        with ShardSet.open(local_set) as here:
            assert shards.fingerprint == here.fingerprint
            assert len(shards) == len(here) == 60
            for i in range(len(here)):
                assert shards.read_record(i) == here.read_record(i)
                assert shards.read_images(i) == here.read_images(i)

    return check
