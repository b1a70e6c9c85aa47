"""Shard sets in Google Cloud Storage (a small fake of it) and on the Hub."""

import json
import traceback

import pytest

from omr_io.errors import SourceError
from omr_io.index import ShardSet
from omr_io.remote import RetryPolicy, identity, list_urls
from tests.remote.hub_server import HubServer, StorageServer
from tests.remote.servers import S3Server, cut, etag, status
from tests.remote_storage.conftest import QUICK

URL = "gs://corpora/sets/train"


@pytest.fixture
def gcs(set_files, monkeypatch):
    """obstore asks GCS by the XML interface, which is S3's in what is used here."""
    pytest.importorskip("obstore")
    objects = {f"sets/train/{name}": data for name, data in set_files.items()}
    with S3Server(objects, "corpora") as server:
        monkeypatch.setenv("HOME", "/nonexistent")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.mark.parametrize("cached", [True, False])
def test_gcs_equals_the_local_set(gcs, options, same, cached):
    chosen = options() if cached else options(cache=None)
    with ShardSet.open(URL, chosen) as shards:
        shards.will_read(range(len(shards)))
        same(shards)
    assert all("authorization" not in request.headers for request in gcs.requests)


def test_gcs_lists_and_identifies(gcs, set_files):
    tars = [name for name in sorted(set_files) if name.endswith(".tar")]
    assert list_urls(f"{URL}/*.tar", QUICK) == tuple(f"{URL}/{name}" for name in tars)
    data = set_files[tars[0]]
    assert identity(f"{URL}/{tars[0]}", QUICK) == (tars[0], len(data), etag(data))
    with pytest.raises(SourceError, match="no such object"):
        identity(f"{URL}/none.tar", QUICK)


def test_gcs_with_a_token_that_is_refused_and_replaced(gcs, options, same, monkeypatch):
    def check(request, reply):
        good = request.headers.get("authorization") == "Bearer S3CR3T-token-2"
        return reply if good else status(401)(request, reply)

    gcs.always = check
    with pytest.raises(SourceError, match=r"no access \(401\).*GOOGLE_APPLICATION_CREDENTIALS"):
        ShardSet.open(URL, options())
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "S3CR3T-token-2")
    with ShardSet.open(URL, options(cache=None)) as shards:
        shards.read_record(0)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "S3CR3T-token-1")
        gcs.always = status(403)
        with pytest.raises(SourceError, match="no access") as info:
            shards.read_record(30)
        assert "S3CR3T" not in "".join(traceback.format_exception(info.value))
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "S3CR3T-token-2")
        gcs.always = check
        same(shards)


def test_gcs_service_account_file(gcs, options, same, monkeypatch, tmp_path):
    file = tmp_path / "account.json"
    file.write_text(
        json.dumps(
            {"gcs_base_url": gcs.url, "disable_oauth": True, "client_email": "", "private_key": "",
             "private_key_id": ""}
        )
    )  # fmt: skip
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    with ShardSet.open(URL, options()) as shards:
        same(shards)


def test_gcs_faults(gcs, options, same):
    gcs.faults = [status(503), status(429), cut(500)] * 3
    policy = RetryPolicy(tries=12, first_wait=0.001, max_wait=0.01, timeout=3)
    with ShardSet.open(URL, options(retries=policy)) as shards:
        same(shards)
        assert shards.storage_stats().retries > 0


@pytest.fixture
def hub(set_files, monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with StorageServer() as storage, HubServer(storage) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.commit({f"train/{name}": data for name, data in set_files.items()})
        yield hub


def test_hub_equals_the_local_set_at_its_commit(hub, options, same):
    with ShardSet.open("hf://datasets/lab/corpus/train", options()) as shards:
        hub.commit({"train/manifest.json": b"another", "train/train-000000.tar": b"another"})
        shards.will_read(range(len(shards)))
        same(shards)
        assert hub.refs["main"] not in shards._storage.root
        asked = [r for r in hub.storage.requests if r.method == "GET"]
        assert asked
    with pytest.raises(Exception, match="manifest"):
        ShardSet.open("hf://datasets/lab/corpus/train", options())


def test_hub_signed_addresses_that_expire_and_tokens(hub, options, same, monkeypatch):
    hub.gated = True
    with pytest.raises(SourceError, match="gated"):
        ShardSet.open("hf://datasets/lab/corpus/train", options())
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with ShardSet.open("hf://datasets/lab/corpus/train", options(cache=None, threads=1)) as shards:
        shards.read_record(0)
        before = len(hub.storage.requests)
        hub.storage.expired = 1
        shards.read_record(2)
        assert len(hub.storage.requests) == before + 2
        hub.storage.expired = 99  # an address made just now is refused
        with pytest.raises(SourceError, match=r"gives no access \(403\)"):
            shards.read_record(30)
        hub.storage.expired = 0
        # A token that was replaced is asked for again.
        hub.token = "hf_anothergoodtoken1"
        monkeypatch.setenv("HF_TOKEN", hub.token)
        same(shards)


def test_hub_without_a_set(hub, options):
    with pytest.raises(SourceError, match=r"manifest cannot be had.*no such file in the dataset"):
        ShardSet.open("hf://datasets/lab/corpus/test", options())
    with pytest.raises(SourceError, match="no such dataset"):
        ShardSet.open("hf://datasets/lab/none/train", options())
    with pytest.raises(SourceError, match="no dataset of the Hub"):
        ShardSet.open("hf://models/lab/none", options())
