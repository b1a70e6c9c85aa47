"""A server that fails: bytes are right, or there is an error; never anything else."""

import random
import threading
import time

import numpy as np
import pytest

from omr_io.errors import SourceError
from omr_io.remote import RetryPolicy
from omr_io.remote_storage import RemoteOptions, RemoteStorage, hints
from tests.remote.servers import FileServer, Reply, cut, header, silent, status

PATIENT = RetryPolicy(tries=25, first_wait=0.0005, max_wait=0.002, timeout=2, stall_seconds=1)
FILES = {f"f{n}.tar": np.random.default_rng(n).bytes(40_000 + 7_777 * n) for n in range(3)}


class TrickleServer(FileServer):
    """`trickle`: seconds between single bytes of a body, for so many requests."""

    def __init__(self, files):
        self.trickles = 0
        super().__init__(files)

    def _send(self, handler, request, reply):
        with self.lock:
            slow = self.trickles > 0 and reply.status == 206 and len(reply.body) > 1
            self.trickles -= slow
        if not slow:
            return super()._send(handler, request, reply)
        handler.send_response(206)
        for name, value in reply.headers.items():
            if name != "X-Whole":
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        handler.close_connection = True
        try:
            for n in range(len(reply.body)):
                handler.wfile.write(reply.body[n : n + 1])
                handler.wfile.flush()
                time.sleep(0.01)
        except OSError:
            pass


def wrong_range(request, reply):
    """The right bytes of another place."""
    if reply.status == 206:
        first, rest = reply.headers["Content-Range"].removeprefix("bytes ").split("-", 1)
        last, total = rest.split("/")
        shift = 1 if int(last) + 1 < int(total) else -1
        reply.headers["Content-Range"] = f"bytes {int(first) + shift}-{int(last) + shift}/{total}"
    return reply


def short_body(request, reply):
    """Fewer bytes than asked for, said truly."""
    if reply.status == 206 and len(reply.body) > 1:
        first, rest = reply.headers["Content-Range"].removeprefix("bytes ").split("-", 1)
        half = len(reply.body) // 2
        reply.headers["Content-Range"] = (
            f"bytes {first}-{int(first) + half - 1}/{rest.split('/')[1]}"
        )
        reply.body = reply.body[:half]
    return reply


def no_length(request, reply):
    """The end of the body is the end of the connection."""
    reply.no_length = True
    return reply


def whole_file(request, reply):
    """Range is ignored, this once."""
    if reply.status == 206:
        name = request.path.rpartition("/")[2]
        return Reply(200, FILES[name], {"ETag": reply.headers["ETag"]})
    return reply


def reset(request, reply):
    reply.cut = random.Random(len(reply.body)).randrange(len(reply.body) + 1)
    return reply


FAULTS = [
    status(500), status(502), status(503), status(429, {"Retry-After": "0"}), status(408),
    silent, reset, cut(0), cut(1), wrong_range, short_body, no_length,
    header("Content-Range", None), header("Content-Range", "bytes 0-1/*"),
]  # fmt: skip


class FaultyServer(FileServer):
    """Each request fails with a chance of 20 %, each way as likely."""

    def __init__(self, seed: int, rate: float = 0.2) -> None:
        self.random, self.rate = random.Random(seed), rate
        self.failed = 0
        super().__init__({f"/{name}": data for name, data in FILES.items()})

    def reply(self, request):
        reply = super().reply(request)
        with self.lock:
            failing = self.random.random() < self.rate
            self.failed += failing
            fault = self.random.choice(FAULTS)
        return fault(request, reply) if failing else reply

    def _send(self, handler, request, reply):
        if getattr(reply, "no_length", False) and reply.status == 206:
            handler.send_response(206)
            for name, value in reply.headers.items():
                if name != "X-Whole":
                    handler.send_header(name, value)
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(reply.body)
            handler.close_connection = True
            return None
        return super()._send(handler, request, reply)


def run(server: FaultyServer, seed: int, tmp_path) -> int:
    """A few random reads, half of them told before, with or without a cache; gives retries."""
    rng = random.Random(seed)
    cache = tmp_path / str(seed // 7) if seed % 2 else None  # some find entries of runs before
    options = RemoteOptions(
        cache=cache, cache_bytes=1 << 20, threads=rng.choice([1, 3]), block_bytes=1 << 12,
        read_ahead_bytes=rng.choice([0, 5_000, 1 << 20]), retries=PATIENT,
    )  # fmt: skip
    storage = RemoteStorage(server.url, {name: (len(d), "") for name, d in FILES.items()}, options)
    reads = []
    for _ in range(6):
        name = rng.choice(sorted(FILES))
        start = rng.randrange(len(FILES[name]))
        reads.append((name, start, rng.randrange(min(len(FILES[name]) - start, 9_000)) + 1))
    storage.will_read([one for one in reads if rng.random() < 0.5])
    for name, start, size in reads:
        assert storage.read(name, start, size) == FILES[name][start : start + size]
    retries = storage.stats().retries
    storage.close()
    return retries


def runs(count: int, tmp_path) -> None:
    with FaultyServer(seed=count) as server:
        retries = sum(run(server, seed, tmp_path) for seed in range(count))
        assert server.failed > count / 2
        assert retries > count / 2
        assert len(server.requests) > count


def test_60_runs_with_a_fifth_of_requests_failing(tmp_path):
    runs(60, tmp_path)


@pytest.mark.slow
def test_1000_runs_with_a_fifth_of_requests_failing(tmp_path):
    runs(1000, tmp_path)


def test_a_whole_set_with_a_fifth_of_requests_failing(set_files, options, same):
    from omr_io.index import ShardSet

    rng = random.Random(1)

    def sometimes(request, reply):
        return rng.choice(FAULTS[:9])(request, reply) if rng.random() < 0.2 else reply

    with FileServer({f"/{name}": data for name, data in set_files.items()}) as server:
        server.always = sometimes
        with ShardSet.open(server.url, options(retries=PATIENT)) as shards:
            shards.will_read(range(60))
            same(shards)
            assert shards.storage_stats().retries > 0


def storage_of(server, **given) -> RemoteStorage:
    policy = {"tries": 3, "first_wait": 0.01, "max_wait": 0.02, "timeout": 100} | given.pop(
        "policy", {}
    )
    base = {"cache": None, "threads": 2, "retries": RetryPolicy(**policy)}
    return RemoteStorage(server.url, None, RemoteOptions(**(base | given)))


@pytest.mark.parametrize("code", [404, 410])
def test_what_is_not_there_fails_at_once(code):
    with FileServer() as server:
        server.always = status(code)
        storage = storage_of(server)
        with pytest.raises(SourceError, match="no such file") as info:
            storage.read("f0.tar", 0, 10)
        assert info.value.exit_code == 3
        assert len(server.requests) == 1
        storage.close()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_stays_broken(code):
    with FileServer({f"/{name}": data for name, data in FILES.items()}) as server:
        storage = storage_of(server)
        storage.read("f0.tar", 0, 10)
        server.always = status(code)
        server.requests.clear()
        with pytest.raises(SourceError, match=f"failed 3 times in a row.*{code}") as info:
            storage.read("f0.tar", 30_000, 10)
        assert info.value.exit_code == 3
        assert len(server.requests) == 3
        server.always = None
        assert storage.read("f0.tar", 30_000, 10) == FILES["f0.tar"][30_000:30_010]
        storage.close()


def test_retry_after_is_kept():
    with FileServer({f"/{name}": data for name, data in FILES.items()}) as server:
        storage = storage_of(server, policy={"max_wait": 0.4, "first_wait": 0.0})
        server.faults = [status(429, {"Retry-After": "1000"})]
        begin = time.monotonic()
        assert storage.read("f0.tar", 0, 10) == FILES["f0.tar"][:10]
        assert 0.4 <= time.monotonic() - begin < 500  # what was asked for, up to max_wait
        assert storage.stats().retries == 1
        storage.close()


def test_reading_ahead_that_fails_shows_when_it_is_read():
    with FileServer({f"/{name}": data for name, data in FILES.items()}) as server:
        storage = storage_of(server)
        storage.will_read([("none.tar", 0, 10), ("f0.tar", 0, 10)])
        assert storage.read("f0.tar", 0, 10) == FILES["f0.tar"][:10]
        with pytest.raises(SourceError, match="no such file"):
            storage.read("none.tar", 0, 10)
        storage.close()


def test_what_is_read_is_fetched_before_what_will_be(monkeypatch):
    """While every thread but one reads ahead, and hears nothing."""
    monkeypatch.setattr(hints, "MAX_GAP", 0)
    with FileServer({f"/{name}": data for name, data in FILES.items()}) as server:
        storage = storage_of(server, threads=3)
        storage.read("f0.tar", 0, 1)
        storage.read("f1.tar", 0, 1)

        begun, go = threading.Semaphore(0), threading.Event()

        def hold(request, reply):
            if request.path == "/f0.tar":
                begun.release()
                go.wait(100)
            return reply

        server.always = hold
        server.requests.clear()
        storage.will_read([("f0.tar", 10_000 * n, 10) for n in range(1, 4)])
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)  # all that may read ahead are at it
        assert storage.read("f1.tar", 20_000, 10) == FILES["f1.tar"][20_000:20_010]
        assert not go.is_set()
        # And one that is at work is joined, not asked for again.
        threading.Timer(0.1, go.set).start()
        assert storage.read("f0.tar", 10_000, 10) == FILES["f0.tar"][10_000:10_010]
        asked = [r.range for r in server.requests if r.path == "/f0.tar"]
        assert len(asked) == len(set(asked))
        storage.close()


def test_a_trickle_counts_as_dead_and_is_gone_on_with():
    """100 bytes a second, where 10,000 are wanted: what came is kept, the rest is asked anew."""
    with TrickleServer({f"/{name}": data for name, data in FILES.items()}) as server:
        policy = {"tries": 20, "stall_seconds": 0.5}
        storage = storage_of(server, policy=policy)
        storage.read("f0.tar", 0, 1)
        server.trickles = 1
        server.requests.clear()
        assert storage.read("f0.tar", 1000, 20_000) == FILES["f0.tar"][1000:21_000]
        first, second = (int(r.range.split("=")[1].split("-")[0]) for r in server.requests[:2])
        assert first == 1000 < second < 11_000
        assert server.requests[1].headers["if-match"] == server.requests[0].headers["if-match"]
        storage.close()
        storage = storage_of(server, policy={"stall_seconds": 1})
        storage.read("f1.tar", 0, 1)
        server.trickles = 99
        with pytest.raises(SourceError, match=r"failed 3 times in a row.*stalled"):
            storage.read("f1.tar", 22_000, 10_000)
        storage.close()


def test_a_change_in_the_middle_is_an_error_never_mixed_bytes():
    """The transfer breaks off, and when it is gone on with the file is another one."""
    for tell, conditions in (("etag", True), ("etag", False), ("date", True)):
        with FileServer({f"/{name}": data for name, data in FILES.items()}) as server:
            server.knows_conditions = conditions
            storage = storage_of(server)
            told = header("ETag", None) if tell == "date" else header("X", "y")
            server.always = told
            storage.read("f0.tar", 0, 1)

            def break_off(request, reply, server=server, tell=tell, told=told):
                other = bytes(len(FILES["f0.tar"]))
                server.files["/f0.tar"] = other
                reply = told(request, reply)
                reply.cut = 500
                later = header("Last-Modified", "Thu, 22 Oct 2015 07:28:00 GMT")
                server.always = lambda q, r: later(q, told(q, r)) if tell == "date" else r
                return reply

            server.faults = [break_off]
            with pytest.raises(SourceError, match="changed while it was read"):
                storage.read("f0.tar", 1000, 10_000)
            storage.close()
