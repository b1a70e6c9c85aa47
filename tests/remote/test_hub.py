"""hf://, against a small server that speaks the Hub's API, through huggingface_hub itself."""

import sys
import traceback

import numpy as np
import pytest

pytest.importorskip("huggingface_hub")

import hashlib

from omr_io.errors import ConfigError, SourceError
from omr_io.remote import RetryPolicy, identity, list_urls, open_url
from tests.remote.hub_server import HubServer, StorageServer, blob_id
from tests.remote.servers import cut, no_ranges, silent, status

QUICK = RetryPolicy(tries=4, first_wait=0.01, max_wait=0.05, timeout=100)
DATA = np.random.default_rng(0).bytes(2_000_000)
FILES = {
    "README.md": b"# card",
    "data/train-0.parquet": DATA,
    "data/train-1.parquet": b"one",
    "data/train-2.parquet": b"two",
    "data/test-0.parquet": b"test",
    "data/more/x.parquet": b"x",
    "meta/a.jsonl": b'{"a": 1}\n' * 1000,
    "meta/notes.txt": b"n",
    "d e/f%20é?.parquet": b"odd",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with StorageServer() as storage, HubServer(storage) as hub:
        hub.commit(dict(FILES))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def pinned(hub, *paths, ref="main"):
    return tuple(f"hf://datasets/lab/corpus@{hub.refs[ref]}/{path}" for path in paths)


def test_lists_files_folders_and_patterns(hub):
    root = "hf://datasets/lab/corpus"
    trains = [f"data/train-{n}.parquet" for n in range(3)]
    assert list_urls(f"{root}/data/train-1.parquet", QUICK) == pinned(hub, trains[1])
    assert list_urls(f"{root}/data/train-*.parquet", QUICK) == pinned(hub, *trains)
    every = ["data/test-0.parquet", *trains]
    assert list_urls(f"{root}/data", QUICK) == pinned(hub, *every)
    assert list_urls(f"{root}/data/", QUICK) == pinned(hub, *every)
    assert list_urls(f"{root}/meta", QUICK) == pinned(hub, "meta/a.jsonl")
    assert list_urls(f"{root}/**/x.parquet", QUICK) == pinned(hub, "data/more/x.parquet")
    assert list_urls(f"{root}/d e/*.parquet", QUICK) == pinned(hub, "d e/f%20é?.parquet")
    with pytest.raises(SourceError, match=r"has none of.*There are some in d e/"):
        list_urls(root, QUICK)
    with pytest.raises(SourceError, match="no file matches"):
        list_urls(f"{root}/data/none-*", QUICK)
    with pytest.raises(SourceError, match="no such file or folder"):
        list_urls(f"{root}/none", QUICK)


def test_a_revision_is_pinned_once(hub):
    (url,) = list_urls("hf://datasets/lab/corpus/data/train-0.parquet", QUICK)
    before = identity(url, QUICK)
    hub.commit({"data/train-0.parquet": b"changed"})
    assert identity(url, QUICK) == before
    with open_url(url, QUICK) as file:
        assert file.read() == DATA
    (now,) = list_urls("hf://datasets/lab/corpus/data/train-0.parquet", QUICK)
    assert now != url
    with open_url(now, QUICK) as file:
        assert file.read() == b"changed"
    with open_url("hf://datasets/lab/corpus/data/train-0.parquet", QUICK) as file:
        hub.commit({"data/train-0.parquet": b"again, longer"})
        assert file.read() == b"changed"


def test_other_revisions(hub):
    hub.commit({"data/train-0.parquet": b"branch"}, "refs/convert/parquet")
    (url,) = list_urls("hf://datasets/lab/corpus@refs/convert/parquet/data/train-0.parquet", QUICK)
    assert (url,) == pinned(hub, "data/train-0.parquet", ref="refs/convert/parquet")
    with open_url(url, QUICK) as file:
        assert file.read() == b"branch"
    with pytest.raises(SourceError, match="no revision 'v9'"):
        list_urls("hf://datasets/lab/corpus@v9/data", QUICK)


def test_identity_is_the_hash(hub):
    base = pinned(hub, "")[0]
    oid = hashlib.sha256(DATA).hexdigest()
    assert identity(base + "data/train-0.parquet", QUICK) == ("train-0.parquet", len(DATA), oid)
    git = blob_id(FILES["README.md"])
    assert identity(base + "README.md", QUICK) == ("README.md", 6, git)
    hub.commit({"other": b"o"})  # another commit, the same file
    assert identity("hf://datasets/lab/corpus/README.md", QUICK) == ("README.md", 6, git)
    with pytest.raises(SourceError, match="no such file"):
        identity(base + "none.parquet", QUICK)


def test_reads_without_asking_the_api(hub):
    url = pinned(hub, "data/train-0.parquet")[0]
    hub.requests.clear()
    with open_url(url, QUICK) as file:
        assert file.read() == DATA
    assert [request.path.split("/")[1] for request in hub.requests] == ["datasets"]
    for path in ("d e/f%20é?.parquet", "meta/a.jsonl"):
        with open_url(pinned(hub, path)[0], QUICK) as file:
            assert file.read() == FILES[path]
    with pytest.raises(SourceError, match="no such file in the dataset"):
        open_url(pinned(hub, "none.parquet")[0], QUICK)


def test_gated(hub, monkeypatch):
    url = pinned(hub, "data/train-0.parquet")[0]
    hub.gated = True
    for action in (open_url, list_urls, identity):
        with pytest.raises(SourceError, match=r"gated.*Accept its terms.*HF_TOKEN") as info:
            action(url, QUICK)
        assert f"{hub.url}/datasets/lab/corpus" in str(info.value)
        assert info.value.exit_code == 3
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with open_url(url, QUICK) as file:
        assert file.read() == DATA  # the storage server refuses requests that carry the token
    assert hub.storage.requests
    assert list_urls(url, QUICK) == (url,)
    monkeypatch.setenv("HF_TOKEN", "hf_S3CR3TS3CR3TS3CR3T")
    for action in (open_url, list_urls, identity):
        with pytest.raises(SourceError, match="gated") as info:
            action(url, QUICK)
        assert "S3CR3T" not in "".join(traceback.format_exception(info.value))
        assert info.value.__context__ is None


@pytest.mark.parametrize("code", [400, 401, 403, 404, 418, 500, 503])
def test_no_secret_in_any_error(hub, monkeypatch, code):
    monkeypatch.setenv("HF_TOKEN", "hf_S3CR3TS3CR3TS3CR3T")

    def echo(request, reply):
        reply = status(code, {"X-Error-Message": request.headers["authorization"]})(request, reply)
        reply.body = request.headers["authorization"].encode()
        return reply

    url = pinned(hub, "data/train-0.parquet")[0]
    hub.always = echo
    for action in (open_url, list_urls, identity):
        with pytest.raises(SourceError) as info:
            action(url, QUICK)
        assert "S3CR3T" not in "".join(traceback.format_exception(info.value))
        assert info.value.__context__ is None


def test_no_such_dataset(hub):
    hub.exists = False
    with pytest.raises(SourceError, match="no such dataset, or no access"):
        list_urls("hf://datasets/lab/corpus/data", QUICK)
    with pytest.raises(SourceError, match="no such dataset, or no access"):
        list_urls("hf://datasets/lab/other/data", QUICK)


def test_what_may_pass_is_tried_again(hub):
    for fault in (status(503), status(429), status(500), silent):
        hub.faults = [fault] * 2
        assert len(list_urls("hf://datasets/lab/corpus/data/train-*", QUICK)) == 3
        hub.faults, hub.storage.faults = [fault], [cut(100_000), fault, fault]
        with open_url(pinned(hub, "data/train-0.parquet")[0], QUICK) as file:
            assert file.read() == DATA
    hub.always = status(503)
    hub.requests.clear()
    with pytest.raises(SourceError, match=r"failed 4 times.*503"):
        list_urls("hf://datasets/lab/corpus/data", QUICK)
    assert len(hub.requests) == 4


def test_a_signed_address_that_expires(hub):
    with open_url(pinned(hub, "data/train-0.parquet")[0], QUICK) as file:
        hub.storage.expired = 1
        assert file.read() == DATA


def test_small_files_from_a_host_without_ranges(hub, monkeypatch):
    def whole(request, reply):
        return no_ranges(request, reply) if request.path.startswith("/datasets/") else reply

    def cut_short(request, reply):
        return cut(100)(request, whole(request, reply))

    hub.faults, hub.always = [cut_short, cut_short], whole
    with open_url(pinned(hub, "meta/a.jsonl")[0], QUICK) as file:
        assert file.read(20) == FILES["meta/a.jsonl"][:20]
        assert file.read() == FILES["meta/a.jsonl"][20:]
    assert len(hub.requests) == 3
    monkeypatch.setattr("omr_io.remote.hub._MAX_PLAIN", 100)
    with pytest.raises(SourceError, match="ignores Range"):
        open_url(pinned(hub, "meta/a.jsonl")[0], QUICK)


def test_offline(hub, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        list_urls("hf://datasets/lab/corpus/data", QUICK)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for action in (list_urls, open_url, identity):
        with pytest.raises(ConfigError, match=r"pip install omr_io\[remote\]"):
            action(f"hf://datasets/a/b@{'0' * 40}/c.parquet", QUICK)
