"""Shard sets in S3, served by moto: listing, reading all, credentials that expire."""

import os
import subprocess
import sys
import time
import traceback
from contextlib import suppress

import pytest

from omr_io.errors import ConfigError, SourceError
from omr_io.index import ShardSet
from omr_io.remote import list_urls
from omr_io.remote_storage import RemoteStorage
from tests.remote.servers import S3Server, cut, etag, silent, status
from tests.remote_storage.conftest import QUICK

pytest.importorskip("obstore")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")

URL = "s3://corpora/sets/train"
POLICY = """{"Version": "2012-10-17", "Statement":
 [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}"""


@pytest.fixture(scope="module")
def moto():
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(moto, set_files, monkeypatch):
    """The endpoint of a fresh moto that has the set, with keys in the environment."""
    import urllib.request

    urllib.request.urlopen(f"{moto}/moto-api/reset", data=b"").close()
    client = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1",
        aws_access_key_id="AKIAFIRST", aws_secret_access_key="x",
    )  # fmt: skip
    client.create_bucket(Bucket="corpora")
    for name, data in set_files.items():
        client.put_object(Bucket="corpora", Key=f"sets/train/{name}", Body=data)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFIRST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    return moto


@pytest.mark.parametrize("cached", [True, False])
def test_equals_the_local_set(s3, options, same, cached):
    chosen = options() if cached else options(cache=None)
    for place in (URL, URL + "/"):
        with ShardSet.open(place, chosen) as shards:
            shards.will_read(range(len(shards)))
            same(shards)
            stats = shards.storage_stats()
            assert stats.retries == 0
            assert stats.cache_misses == 0 or place == URL or not cached


def test_lists_and_reads_whole_shards(s3, set_files, options):
    tars = [name for name in sorted(set_files) if name.endswith(".tar")]
    assert list_urls(f"{URL}/*.tar", QUICK) == tuple(f"{URL}/{name}" for name in tars)
    storage = RemoteStorage(URL, None, options())
    for name in tars:
        size = storage.size(name)
        storage.will_read([(name, 0, size)])
        assert storage.read(name, 0, size) == set_files[name]
    storage.close()


def test_what_is_missing(s3, options):
    with pytest.raises(SourceError, match=r"manifest cannot be had: there is no such object"):
        ShardSet.open("s3://corpora/sets/none", options())
    with pytest.raises(SourceError, match="no such object or bucket") as info:
        ShardSet.open("s3://no-such-bucket/x", options())
    assert info.value.exit_code == 3
    with pytest.raises(SourceError, match="Credentials belong into the environment"):
        ShardSet.open("s3://key:secret@corpora/sets/train", options())


# Credentials


class Keys:
    """moto's users and keys, made and ended by its own IAM."""

    def __init__(self, endpoint):
        self.iam = boto3.client(
            "iam", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="x",
        )  # fmt: skip
        self.iam.create_user(UserName="trainer")
        self.iam.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=POLICY)

    def make(self):
        key = self.iam.create_access_key(UserName="trainer")["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def end(self, key_id):
        self.iam.delete_access_key(UserName="trainer", AccessKeyId=key_id)


@pytest.fixture
def checked(s3, monkeypatch):
    """moto that checks who asks; what is asked before that makes the users and keys."""
    import urllib.request

    keys = Keys(s3)
    first, second = keys.make(), keys.make()

    def check(since: int) -> None:
        request = urllib.request.Request(
            f"{s3}/moto-api/reset-auth", str(since).encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    check(0)
    yield keys, first, second, check
    check(10**9)


def end(keys, check, key_id):
    check(10**9)
    keys.end(key_id)
    check(0)


def test_keys_that_end_are_replaced_by_those_in_the_environment(
    checked, options, same, monkeypatch
):
    keys, first, second, check = checked
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", first[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", first[1])
    with ShardSet.open(URL, options(cache=None)) as shards:
        shards.read_record(3)
        end(keys, check, first[0])
        with pytest.raises(SourceError, match=r"no access \(403\).*AWS_ACCESS_KEY_ID") as info:
            shards.read_record(33)
        assert info.value.exit_code == 3
        assert first[0] not in "".join(traceback.format_exception(info.value))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", second[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", second[1])
        shards.will_read(range(60))
        same(shards)


def test_keys_in_the_shared_file_are_rotated(checked, options, same, monkeypatch, tmp_path):
    """As tools do that renew them: the file is written anew while the run goes on."""
    keys, first, second, check = checked
    file = tmp_path / "credentials"

    def write(key):
        file.write_text(
            f"[other]\naws_access_key_id = no\n\n[lab]\naws_access_key_id = {key[0]}\n"
            f"aws_secret_access_key = {key[1]}\n"
        )

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    write(first)
    with ShardSet.open(URL, options(cache=None)) as shards:
        shards.read_record(3)
        write(second)
        end(keys, check, first[0])
        same(shards)
        retries = shards.storage_stats().retries
        assert 1 <= retries <= 8  # once for each thread at most: then all have the new ones
    file.write_text("[lab\nthis = S3CR3T")
    with pytest.raises(ConfigError, match=r"credentials file .* cannot be read") as info:
        ShardSet.open(URL, options(cache=None))
    assert "S3CR3T" not in "".join(traceback.format_exception(info.value))


def test_a_token_that_expired_as_amazon_says_it(set_files, options, same, monkeypatch):
    """Status 400 and a code in the body; to HEAD without a body."""
    objects = {f"sets/train/{name}": data for name, data in set_files.items()}
    with S3Server(objects, "corpora") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFIRST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "token-1")

        def check(request, reply):
            if request.headers.get("x-amz-security-token") != "token-2":
                reply = status(400)(request, reply)
                reply.body = b"<Error><Code>ExpiredToken</Code></Error>"
            return reply

        with ShardSet.open(URL, options(cache=None)) as shards:
            shards.read_record(3)
            server.always = check
            with pytest.raises(SourceError, match=r"400|expired"):
                shards.read_record(33)
            monkeypatch.setenv("AWS_SESSION_TOKEN", "token-2")
            same(shards)


def test_what_may_pass_is_gone_on_with(set_files, options, same, monkeypatch):
    objects = {f"sets/train/{name}": data for name, data in set_files.items()}
    import random

    rng = random.Random(3)
    faults = [status(500), status(503), status(429), silent, cut(700), cut(0)]

    def sometimes(request, reply):
        return rng.choice(faults)(request, reply) if rng.random() < 0.2 else reply

    with S3Server(objects, "corpora") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        server.always = sometimes
        with ShardSet.open(
            URL, options(retries=type(QUICK)(tries=20, first_wait=0.001, max_wait=0.01, timeout=5))
        ) as shards:
            shards.will_read(range(60))
            same(shards)
            assert shards.storage_stats().retries > 0
        resumed = [r for r in server.gets() if r.headers.get("if-match")]
        assert resumed


def test_an_object_that_changes(s3, set_files, options):
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    with ShardSet.open(URL, options(cache=None)) as shards:
        name = shards.shard(0)
        shards.read_record(0)
        client.put_object(
            Bucket="corpora", Key=f"sets/train/{name}", Body=bytes(len(set_files[name]))
        )
        with pytest.raises(SourceError, match="changed while it was read"):
            [shards.read_record(i) for i in range(10)]


def test_a_transfer_that_stalls(set_files, options, monkeypatch):
    """Nothing comes for as long as the policy waits: the rest is asked for again."""
    objects = {f"sets/train/{name}": data for name, data in set_files.items()}
    with S3Server(objects, "corpora") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        policy = type(QUICK)(tries=20, first_wait=0.01, max_wait=0.01, timeout=1)
        storage = RemoteStorage(URL, None, options(cache=None, retries=policy))
        name = "train-000000.tar"
        other = "train-000001.tar"
        storage.read(name, 0, 10)

        def hang(request, reply):
            reply.pause = 300
            return reply

        server.faults = [hang]
        assert storage.read(name, 500, 600) == set_files[name][500:1100]
        assert storage.stats().retries >= 1
        storage.close()
        policy = type(QUICK)(tries=3, first_wait=0.01, max_wait=0.01, timeout=1)
        storage = RemoteStorage(URL, None, options(cache=None, retries=policy))
        storage.read(other, 0, 10)
        server.always = hang
        with pytest.raises(SourceError, match="failed 3 times"):
            storage.read(other, 5000, 10)
        storage.close()


def test_a_trickle_counts_as_dead_and_is_gone_on_with(set_files, options, monkeypatch):
    name = "train-000000.tar"
    data = set_files[name]

    class Trickle(S3Server):
        """The first range comes a byte at a time, 100 a second."""

        trickled = 0

        def _send(self, handler, request, reply):
            if reply.status != 206 or self.trickled:
                return super()._send(handler, request, reply)
            self.trickled += 1
            handler.send_response(206)
            for field, value in reply.headers.items():
                if field != "X-Whole":
                    handler.send_header(field, value)
            handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            handler.close_connection = True
            with suppress(OSError):
                for n in range(len(reply.body)):
                    handler.wfile.write(reply.body[n : n + 1])
                    handler.wfile.flush()
                    time.sleep(0.01)
            return None

    with Trickle({f"sets/train/{name}": data}, "corpora") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        policy = type(QUICK)(tries=20, first_wait=0.01, max_wait=0.01, stall_seconds=0.5)
        storage = RemoteStorage(URL, None, options(cache=None, retries=policy))
        assert storage.read(name, 1000, 3000) == data[1000:4000]
        first, second = (int(r.range.split("=")[1].split("-")[0]) for r in server.gets()[:2])
        assert first == 1000 < second < 3000  # all of it would take 30 s
        assert server.gets()[1].headers["if-match"] == etag(data)
        storage.close()


def test_a_process_ends_though_transfers_hang(set_files, tmp_path):
    objects = {f"sets/train/{name}": data for name, data in set_files.items()}
    code = f"""
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteOptions
shards = ShardSet.open({URL!r}, RemoteOptions(cache=None))
print("open", flush=True)
input()
shards.will_read(range(60))
import time; time.sleep(0.5)
"""
    with S3Server(objects, "corpora") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "AWS_ENDPOINT_URL": server.url},
        )  # fmt: skip
        assert process.stdout.readline() == "open\n"

        def hang(request, reply):
            reply.pause = 300
            return reply

        server.always = hang
        process.communicate("go\n", timeout=200)
        assert process.returncode == 0


def test_a_forked_child_is_told(s3, options, tmp_path):
    code = f"""
import os, sys
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.remote_storage import RemoteOptions
shards = ShardSet.open({URL!r}, RemoteOptions(cache=None))
shards.will_read(range(60))
shards.read_record(1)
pid = os.fork()
if not pid:
    try:
        shards.read_record(2)
    except ConfigError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(9)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
shards.read_record(3)
sys.exit(code)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=300, env=dict(os.environ)).returncode
        == 7
    )
