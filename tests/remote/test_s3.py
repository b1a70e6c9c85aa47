"""s3://, against a small server that speaks it."""

import os
import ssl
import subprocess
import sys
import traceback

import numpy as np
import pytest

pytest.importorskip("obstore")

from omr_io.errors import ConfigError, SourceError
from omr_io.remote import RetryPolicy, buckets, identity, list_urls, open_url
from tests.remote.servers import S3Server, certificate, cut, etag, header, no_ranges, silent, status

QUICK = RetryPolicy(tries=4, first_wait=0.01, max_wait=0.05, timeout=100)
DATA = np.random.default_rng(0).bytes(2_000_000)
OBJECTS = {
    **{f"data/train-{n}.parquet": b"%d" % n for n in range(7)},
    "data/test-0.parquet": b"t",
    "data/notes.txt": b"n",
    "data/deep/er/x.parquet": b"x",
    "data/a b?é*.parquet": b"odd",
    "database/y.parquet": b"y",
    "only/deeper/z.parquet": b"z",
    "tables/t.csv": b"a,b",
    "plain": b"no suffix",
    "big.bin": DATA,
}


@pytest.fixture
def server(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with S3Server(dict(OBJECTS)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def urls(*keys):
    return tuple(f"s3://bucket/{key}" for key in keys)


def test_lists_files_folders_and_patterns(server):
    trains = [f"data/train-{n}.parquet" for n in range(7)]
    of_data = sorted([*trains, "data/test-0.parquet", "data/a b?é*.parquet"])
    assert list_urls("s3://bucket/data/train-3.parquet", QUICK) == urls(trains[3])
    assert list_urls("s3://bucket/data/train-*.parquet", QUICK) == urls(*trains)
    assert list_urls("s3://bucket/data", QUICK) == urls(*of_data)
    assert list_urls("s3://bucket/data/", QUICK) == urls(*of_data)
    assert list_urls("s3://bucket/*/y.parquet", QUICK) == urls("database/y.parquet")
    assert list_urls("s3://bucket/data/**/x.parquet", QUICK) == urls("data/deep/er/x.parquet")
    assert list_urls("s3://bucket/tables", QUICK) == urls("tables/t.csv")
    assert list_urls("s3://bucket/plain", QUICK) == urls("plain")


def test_a_file_needs_no_list(server):
    assert list_urls("s3://bucket/big.bin", QUICK) == urls("big.bin")
    assert [request.method for request in server.requests] == ["HEAD"]


def test_a_pattern_in_one_folder_does_not_list_those_below(server):
    list_urls("s3://bucket/data/train-*.parquet", QUICK)
    assert all(request.query["delimiter"] == ["/"] for request in server.requests)
    assert len(server.requests) == 4  # 11 names in pages of 3


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("data/none.parquet", "no such object"),
        ("data/none*.parquet", "no object matches"),
        ("none/", "no such file or folder"),
        ("only", "has none of .*There are some in only/deeper/"),
    ],
)
def test_nothing_found(server, key, what):
    with pytest.raises(SourceError, match=what):
        list_urls(f"s3://bucket/{key}", QUICK)


def test_no_such_bucket(server):
    with pytest.raises(SourceError, match="no such object or bucket"):
        list_urls("s3://other/*.parquet", QUICK)


def test_reads(server):
    with open_url("s3://bucket/big.bin", QUICK) as file:
        assert file.size == len(DATA)
        file.seek(1_234_567)
        assert file.read(1000) == DATA[1_234_567:1_235_567]
        file.seek(0)
        assert file.read() == DATA
    with open_url("s3://bucket/data/a b?é*.parquet", QUICK) as file:
        assert file.read() == b"odd"
    assert identity("s3://bucket/big.bin", QUICK) == ("big.bin", len(DATA), etag(DATA))
    with pytest.raises(SourceError, match="no such object"):
        open_url("s3://bucket/none", QUICK)


def test_anonymous_without_credentials_and_signed_with(server, monkeypatch):
    identity("s3://bucket/plain", QUICK)
    assert "authorization" not in server.requests[-1].headers
    server.private = True
    with pytest.raises(SourceError, match=r"no access.*AWS_ACCESS_KEY_ID") as info:
        list_urls("s3://bucket/data/*", QUICK)
    assert info.value.exit_code == 3
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAS3CR3T")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CR3TKEY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "S3CR3TTOKEN")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    identity("s3://bucket/plain", QUICK)
    sent = server.requests[-1].headers
    assert "AKIAS3CR3T/" in sent["authorization"]
    assert "/eu-north-1/s3/" in sent["authorization"]
    assert sent["x-amz-security-token"] == "S3CR3TTOKEN"


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 412, 418, 500, 503])
def test_no_secret_in_any_error(server, monkeypatch, code):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAS3CR3T")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CR3TKEY")

    def echo(request, reply):
        reply = status(code)(request, reply)
        reply.body = b"S3CR3T-in-body " + request.headers["authorization"].encode()
        return reply

    with open_url("s3://bucket/big.bin", QUICK) as file:
        server.always = echo
        for action in (file.read, lambda: list_urls("s3://bucket/data/*", QUICK)):
            with pytest.raises(SourceError) as info:
                action()
            assert "S3CR3T" not in "".join(traceback.format_exception(info.value))
            assert info.value.__context__ is None
        assert "S3CR3T" not in repr(file) + repr(file._ranges) + repr(file._ranges._bucket._store)


def test_what_may_pass_is_tried_again(server):
    for fault in (status(503), status(429), status(500), silent):
        server.faults = [fault] * 2
        assert len(list_urls("s3://bucket/data/train-*", QUICK)) == 7
        with open_url("s3://bucket/big.bin", QUICK) as file:
            server.faults = [fault, fault, cut(1000)]
            assert file.read() == DATA
    server.always = status(503)
    server.requests.clear()
    with pytest.raises(SourceError, match=r"failed 4 times.*503"):
        identity("s3://bucket/plain", QUICK)
    assert len(server.requests) == 4


def test_an_object_that_changes(server):
    with open_url("s3://bucket/big.bin", QUICK) as file:
        file.read(10)
        server.objects["big.bin"] = b"x" + DATA[1:]
        with pytest.raises(SourceError, match="changed while it was read"):
            file.read()


def test_ranges_ignored_and_another_region(server):
    with open_url("s3://bucket/plain", QUICK) as file:
        server.always = no_ranges
        with pytest.raises(SourceError, match="ignores Range"):
            file.read()
    server.always = status(301)
    with pytest.raises(SourceError, match=r"another region.*AWS_REGION"):
        list_urls("s3://bucket/data/*", QUICK)


def test_a_forked_child_is_told_instead_of_waiting_for_ever(server):
    assert identity("s3://bucket/plain", QUICK)[1] == 9
    code = (
        "import os, sys\n"
        "from omr_io.remote import identity\n"
        "from omr_io.errors import ConfigError\n"
        "identity('s3://bucket/plain')\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try:\n"
        "        identity('s3://bucket/plain')\n"
        "    except ConfigError as error:\n"
        "        os._exit(7 if 'spawn' in str(error) else 8)\n"
        "    os._exit(9)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 7


def test_without_obstore(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install omr_io\[remote\]") as info:
        list_urls("s3://bucket/x.parquet", QUICK)
    assert info.value.exit_code == 2
    assert buckets.parse("s3://bucket/x") == ("bucket", "x")


@pytest.mark.parametrize(
    "key", ["/plain", "data//train-1.parquet", "./plain", "data/../plain", "."]
)
def test_keys_that_obstore_would_take_for_others(server, key):
    """It read `plain` for `/plain`."""
    for action in (open_url, identity, list_urls):
        with pytest.raises(SourceError, match="an empty part") as info:
            action(f"s3://bucket/{key}", QUICK)
        assert info.value.mend
    assert not server.requests


def test_a_folder_with_a_key_that_cannot_be_listed_is_told(server):
    server.objects["data/deep//y.parquet"] = b"y"
    with pytest.raises(SourceError, match="an empty part") as info:
        list_urls("s3://bucket/data/**/*.parquet", QUICK)
    assert info.value.mend
    assert list_urls("s3://bucket/data/train-*.parquet", QUICK)


def test_odd_keys_are_read_as_they_stand(server):
    for key in (
        "a%20b",
        "a+b",
        "a#b",
        "a?b=c",
        "a&b",
        r"C:\d\x",
        "\u65e5\u672c",
        "'\"",
        "{b}",
        "~",
        "a:b@c",
    ):
        server.objects[key] = key.encode()
        with open_url(f"s3://bucket/{key}", QUICK) as file:
            assert file.read() == key.encode()


def test_weak_etags_are_compared_and_not_asked_for(server):
    """If-Match never holds for a weak one, so that every object seemed to have changed."""
    server.always = header("ETag", 'W/"5"')
    with open_url("s3://bucket/big.bin", QUICK) as file:
        assert file.read(5) == DATA[:5]
        server.always = header("ETag", 'W/"6"')
        with pytest.raises(SourceError, match="changed"):
            file.read()


@pytest.mark.parametrize(
    ("scheme", "name", "value"),
    [
        ("s3", "AWS_ENDPOINT_URL", "name:S3CR3TWORD@127.0.0.1:1"),
        ("s3", "AWS_ENDPOINT_URL", "ftp://127.0.0.1"),
        ("s3", "AWS_SKIP_SIGNATURE", "perhaps"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY", "{S3CR3TWORD"),
    ],
)
def test_settings_that_cannot_be(server, monkeypatch, scheme, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as info:
        open_url(f"{scheme}://bucket/plain", QUICK)
    assert info.value.mend
    assert "S3CR3TWORD" not in "".join(traceback.format_exception(info.value))
    assert not server.requests


def test_why_a_connection_failed_is_told(server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match="it was refused"):
        open_url("s3://bucket/plain", QUICK)
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, tmp_path / "key.pem")
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.other.replace("http:", "https:"))
    with pytest.raises(SourceError, match="certificate is not trusted") as info:
        open_url("s3://bucket/plain", RetryPolicy(tries=100, first_wait=100))  # not tried again
    assert info.value.mend
