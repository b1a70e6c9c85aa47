"""http(s): faults of servers and networks, redirects, secrets."""

import http.client
import os
import socket
import ssl
import threading
import time
import traceback
from email.utils import formatdate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_io.errors import ConfigError, SourceError
from omr_io.remote import RetryPolicy, identity, list_urls, open_url
from omr_io.remote.retries import retry_after
from tests.remote.servers import (
    FileServer,
    Reply,
    certificate,
    cut,
    etag,
    header,
    no_ranges,
    silent,
    slow,
    status,
)

# Quick to try again; patient with a server on a machine that has much else to do.
QUICK = RetryPolicy(tries=4, first_wait=0.01, max_wait=0.05, timeout=100)
DATA = np.random.default_rng(0).bytes(3_000_000)
SECRET = "S3CR3T"
SMALL = b"0123456789" * 100


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with FileServer({"/d/a b.bin": DATA, "/small": SMALL, "/empty": b""}) as server:
        yield server


def read(url, policy=QUICK):
    with open_url(url, policy) as file:
        return file.read()


def trace(info):
    return "".join(traceback.format_exception(info.value))


def test_reads_what_is_there(server):
    url = server.url + "/d/a%20b.bin"
    assert list_urls(url) == (url,)
    assert read(url) == DATA
    assert identity(url, QUICK) == ("a b.bin", len(DATA), etag(DATA))
    with open_url(url, QUICK) as file:
        assert (file.size, file.tag) == (len(DATA), etag(DATA))
        file.seek(-5, os.SEEK_END)
        assert file.read() == DATA[-5:]
        assert repr(file) == f"<RemoteFile {url}, {len(DATA)} bytes>"


def test_small_and_empty(server):
    assert read(server.url + "/small") == SMALL
    assert read(server.url + "/empty") == b""
    assert identity(server.url + "/empty", QUICK)[1] == 0


def test_small_reads_are_one_request_and_one_connection(server):
    with open_url(server.url + "/small", QUICK) as file:
        assert b"".join(iter(lambda: file.read(3), b"")) == SMALL
    assert len(server.requests) == 1  # opening brings the first 256 KiB
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


def test_ranges_are_read_over_one_connection(server):
    url = server.url + "/d/a%20b.bin"
    with open_url(url, QUICK) as file:
        for at in (2_000_000, 500_000, 1_200_000):
            file.seek(at)
            assert file.read(1000) == DATA[at : at + 1000]
    assert len(server.requests) >= 4
    assert len({request.client for request in server.requests}) == 1


def test_parquet_over_http(server):
    table = pa.table({"n": list(range(10_000)), "b": [os.urandom(100) for _ in range(10_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=500)
    server.files["/t.parquet"] = sink.getvalue().to_pybytes()
    with open_url(server.url + "/t.parquet", QUICK) as file:
        assert pq.read_table(pa.PythonFile(file, mode="r"), pre_buffer=False).equals(table)
    assert len(server.requests) <= 6  # 20 row groups


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server, code):
    server.faults = [status(code)] * 3
    assert read(server.url + "/small") == SMALL
    server.faults = [status(code)] * 4
    with pytest.raises(SourceError, match=f"failed 4 times in a row.* answers {code}") as info:
        read(server.url + "/small")
    assert info.value.exit_code == 3


def test_retry_after_is_kept(server):
    server.faults = [status(503, {"Retry-After": "1000"})]
    assert read(server.url + "/small") == SMALL  # but no longer than max_wait
    assert retry_after("7") == 7.0
    assert 1000 < retry_after(formatdate(time.time() + 2000, usegmt=True)) <= 2000
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is retry_after("") is retry_after("-1") is None
    assert retry_after("1 Jan 99999999999999999999 00:00:00") is None
    policy = RetryPolicy(tries=2, first_wait=30, max_wait=30, timeout=100)
    server.faults = [status(503, {"Retry-After": "0"})]
    assert read(server.url + "/small", policy) == SMALL


def test_connections_that_break(server):
    server.faults = [silent, silent]
    assert read(server.url + "/small") == SMALL
    server.faults = [slow(300)]
    hasty = RetryPolicy(tries=20, first_wait=0.01, max_wait=0.05, timeout=0.5)
    assert read(server.url + "/small", hasty) == SMALL
    server.always = slow(300)
    with pytest.raises(SourceError, match="silent too long"):
        read(server.url + "/small", RetryPolicy(tries=1, timeout=0.1))


def test_bodies_cut_short_go_on_where_they_stopped(server):
    server.always = cut(200_000)
    assert read(server.url + "/d/a%20b.bin") == DATA
    starts = [int(request.range.split("=")[1].split("-")[0]) for request in server.requests]
    assert len(starts) < 30
    server.always = cut(0)
    with pytest.raises(SourceError, match="stopped in the middle"):
        read(server.url + "/small")


def test_a_server_that_sends_less_than_asked(server):
    def less(request, reply):
        if reply.status == 206 and len(reply.body) > 100:
            first = int(reply.headers["Content-Range"].split()[1].split("-")[0])
            total = reply.headers["Content-Range"].split("/")[1]
            return Reply(
                206, reply.body[:100], {"Content-Range": f"bytes {first}-{first + 99}/{total}"}
            )
        return reply

    server.always = less
    assert read(server.url + "/small") == SMALL


def test_ranges_ignored(server):
    server.always = no_ranges
    with pytest.raises(SourceError, match=r"ignores Range.*Download the file"):
        read(server.url + "/small")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (header("Content-Range", None), "without saying which"),
        (header("Content-Range", "bytes 0-9/*"), "without saying which"),
        (header("Content-Range", "bytes 5-9/1000"), "sends bytes 5 to 9"),
        (header("Content-Encoding", "gzip"), "encodes"),
    ],
)
def test_answers_that_are_no_range(server, fault, what):
    server.always = fault
    with pytest.raises(SourceError, match=what):
        read(server.url + "/small")
    assert len(server.requests) == QUICK.tries  # it may be one proxy of many
    server.always = None
    server.faults = [fault]
    assert read(server.url + "/small") == SMALL


def test_a_refusal_of_any_range_is_no_empty_file(server):
    """416 means empty where the server says so; taken for it otherwise, all of a file was lost."""
    server.always = status(416)
    with pytest.raises(SourceError, match=r"\(416\)") as info:
        read(server.url + "/small")
    assert info.value.mend
    server.always = status(416, {"Content-Range": "bytes */0"})
    assert read(server.url + "/small") == b""


def test_an_encoding_without_a_name_is_none(server):
    server.always = header("Content-Encoding", "")
    assert read(server.url + "/small") == SMALL


@pytest.mark.parametrize("host", ["\xfc" + 70 * "a" + ".example", "a..example"])
def test_a_host_that_can_have_no_such_name(server, host):
    with pytest.raises(SourceError, match="no host's name"):
        read(f"http://{host}/file")
    server.redirects["/moved"] = f"http://{host}/file"
    with pytest.raises(SourceError, match="no host's name"):
        read(server.url + "/moved")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda server: server.files.update({"/d/a b.bin": DATA[:-1]}), "bytes and had"),
        (lambda server: server.files.update({"/d/a b.bin": DATA[:9]}), "no byte"),
        (lambda server: server.files.update({"/d/a b.bin": b""}), "it has 0 bytes"),
        (lambda server: server.files.update({"/d/a b.bin": b"x" + DATA[1:]}), None),
    ],
)
def test_a_file_that_changes(server, change, what):
    for told in (header("X", "as it is"), header("ETag", None)):
        server.files["/d/a b.bin"], server.always = DATA, told
        with open_url(server.url + "/d/a%20b.bin", QUICK) as file:
            file.read(1000)
            change(server)
            by_tag = file.tag.startswith('"')
            if not by_tag and what is None:  # the same size, the same date: nothing tells
                continue
            expected = "its ETag" if by_tag else what
            with pytest.raises(SourceError, match=f"changed while it was read: .*{expected}"):
                file.read()
    assert all("if-match" in r.headers for r in server.requests[1:2])


def test_a_change_told_by_the_date_alone(server):
    server.always = header("ETag", None)
    url = server.url + "/d/a%20b.bin"
    assert identity(url, QUICK)[2] == "Wed, 21 Oct 2015 07:28:00 GMT"
    with open_url(url, QUICK) as file:
        assert file.read(10) == DATA[:10]

        def later(request, reply):
            reply = header("ETag", None)(request, reply)
            return header("Last-Modified", "Thu, 22 Oct 2015 07:28:00 GMT")(request, reply)

        server.always = later
        with pytest.raises(SourceError, match="its Last-Modified is another"):
            file.read()


@pytest.mark.parametrize("size", ["9" * 20, "9" * 5000])
def test_a_range_of_a_size_that_no_file_has(server, size):
    server.always = header("Content-Range", f"bytes 0-9/{size}")
    with pytest.raises(SourceError, match="without saying which"):
        read(server.url + "/small")


def test_identity_where_the_server_tells_nothing(server):
    def nothing(request, reply):
        return header("ETag", None)(request, header("Last-Modified", None)(request, reply))

    server.always = nothing
    first = identity(server.url + "/d/a%20b.bin", QUICK)
    assert first[2].startswith("edges-sha256:")
    assert identity(server.url + "/d/a%20b.bin", QUICK) == first
    server.files["/d/a b.bin"] = DATA[:-1] + b"!"
    assert identity(server.url + "/d/a%20b.bin", QUICK) != first


@pytest.mark.parametrize(
    ("code", "what"),
    [(404, "no such file"), (401, "gives no access.*signed URL"), (403, "gives no access"),
     (410, "no such file"), (418, "answers 418"), (501, "answers 501")],
)  # fmt: skip
def test_refusals_are_final(server, code, what):
    server.always = status(code)
    with pytest.raises(SourceError, match=what) as info:
        read(f"{server.url}/small?X-Amz-Signature={SECRET}")
    assert len(server.requests) == 1
    assert server.requests[0].query == {"X-Amz-Signature": [SECRET]}
    assert SECRET not in trace(info)
    assert info.value.__context__ is None


def test_no_such_host_and_no_server():
    with pytest.raises(SourceError, match="no such host"):
        read("http://no-such-host.invalid/x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SourceError, match=r"failed 4 times.*ConnectionRefusedError") as info:
            read(f"http://u:{SECRET}@127.0.0.1:{port}/x")
    assert SECRET not in trace(info)


def test_name_and_password(server):
    assert read(server.url.replace("//", "//us%65r:p%40ss@") + "/small") == SMALL
    assert {request.headers["authorization"] for request in server.requests} == {
        "Basic dXNlcjpwQHNz"  # user:p@ss
    }


def test_redirects_within_and_beyond_the_host(server):
    with FileServer({"/there": DATA}) as elsewhere:
        server.redirects = {"/a": "/b", "/b": elsewhere.url + "/there?sig=1", "/c": "small"}
        home = server.url.replace("//", "//user:pass@")
        assert read(home + "/a") == DATA
        assert all("authorization" in request.headers for request in server.requests)
        assert all("authorization" not in request.headers for request in elsewhere.requests)
        assert len(server.requests) == 2  # later requests go where it led
        assert len(elsewhere.requests) >= 2
        server.requests.clear()
        assert read(home + "/c") == SMALL
        assert all("authorization" in request.headers for request in server.requests)


def test_an_expired_address_is_asked_for_again(server):
    with FileServer({"/there": DATA}) as elsewhere:
        server.redirects = {"/a": elsewhere.url + "/there"}
        with open_url(server.url + "/a", QUICK) as file:
            elsewhere.faults = [status(403)]
            assert file.read() == DATA
        assert len(server.requests) == 2
        elsewhere.always = status(403)
        with pytest.raises(SourceError, match="no access"):
            read(server.url + "/a")


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://host/x", "pipe:cat", "http://[bad/", "http://h:x/"],
)
def test_redirects_to_anything_else(server, location):
    server.redirects = {"/a": location}
    with pytest.raises(SourceError, match=r"not http\(s\)") as info:
        read(server.url + "/a")
    assert info.value.__context__ is None


def test_redirects_in_a_circle(server):
    server.redirects = {"/a": "/b", "/b": "/a"}
    with pytest.raises(SourceError, match="in a circle"):
        read(server.url + "/a")


def test_an_idle_connection_that_the_server_closed(server):
    with open_url(server.url + "/d/a%20b.bin", RetryPolicy(tries=1)) as file:
        file.read(10)
        for connection in file._ranges._connections._open.values():
            connection.sock.shutdown(socket.SHUT_RDWR)
        assert file.read() == DATA[10:]


def test_https_certificates_and_downgrades(tmp_path, monkeypatch):
    pem = certificate(tmp_path)
    with FileServer({"/x": SMALL}) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, tmp_path / "key.pem")
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        url = server.other.replace("http:", "https:")
        with pytest.raises(SourceError, match="certificate is not trusted"):
            read(url + "/x")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert read(url + "/x") == SMALL
        server.redirects = {"/down": f"http://localhost/x?token={SECRET}"}
        with pytest.raises(SourceError, match="from https to http") as info:
            read(url + "/down")
        assert SECRET not in trace(info)


def test_a_proxy(server, monkeypatch):
    class Proxy(FileServer):
        pass

    with Proxy() as proxy:
        seen = []

        def forward(request, reply):
            seen.append(request)
            return Reply(206, SMALL, {"Content-Range": f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}"})

        proxy.always = forward
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//name:word@"))
        assert identity("http://a.invalid/file", QUICK)[:2] == ("file", len(SMALL))
    assert seen[0].host == "a.invalid"
    assert seen[0].headers["proxy-authorization"] == "Basic bmFtZTp3b3Jk"


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(
    "proxy",
    ["socks5://127.0.0.1:1080", "https://127.0.0.1:1", f"http://name:{SECRET}/x@127.0.0.1:1",
     f"http://name:{SECRET}@127.0.0.1:port", "http://", ":"],
)  # fmt: skip
def test_a_proxy_of_another_kind_is_told_without_its_password(monkeypatch, kind, proxy):
    monkeypatch.setenv(f"{kind}_proxy", proxy)
    with pytest.raises(ConfigError, match=f"{kind}_proxy") as info:
        open_url(f"{kind}://a.invalid/file", QUICK)
    assert SECRET not in trace(info)


def test_threads_with_a_file_each(server):
    out = [None] * 8

    def work(place):
        out[place] = read(server.url + "/d/a%20b.bin")

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == [DATA] * 8


def test_a_policy_that_cannot_be():
    with pytest.raises(ConfigError):
        RetryPolicy(tries=0)


def test_the_fake_server_can_fail_a_client():
    """The oracle of the oracles: the standard library's client sees the planned faults too."""
    with FileServer({"/x": SMALL}) as server:
        server.faults = [cut(10), status(503), silent]
        port = int(server.url.rpartition(":")[2])

        def get():
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/x")
            return connection.getresponse()

        with pytest.raises(http.client.IncompleteRead):
            get().read()
        assert get().status == 503
        with pytest.raises(http.client.RemoteDisconnected):
            get()
        assert get().read() == SMALL
