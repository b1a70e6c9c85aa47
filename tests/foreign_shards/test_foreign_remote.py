"""`omr-io index` of tars behind URLs, and reading their samples by ranges."""

from __future__ import annotations

import os
import pickle
import threading

import pytest

from omr_io.errors import ConfigError, IntegrityError, SourceError, TarError
from omr_io.foreign_shards import members
from omr_io.foreign_shards.build import IndexOptions, index_foreign
from omr_io.foreign_shards.locate import locate
from omr_io.index import ShardSet
from omr_io.lint import lint
from omr_io.shards import verify
from omr_io.shards.layout import read_manifest
from omr_io.tar import tar_windows
from tests.foreign_shards.test_foreign import make_tar, rejects, sample
from tests.remote.hub_server import HubServer, StorageServer
from tests.remote.servers import FileServer, S3Server, status

TARS = ("a.tar", "b.tar")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def local(tmp_path):
    """The tars in a folder, indexed there: what the remote ones must equal."""
    first = [item for n in range(5) for item in sample(f"s{n}", n)]
    second = [item for n in range(5, 9) for item in sample(f"s{n}", n)]
    bad = [("README", b"x"), ("x.jpg", b"x")]
    make_tar(tmp_path / "t" / "a.tar", [*first, *bad])
    make_tar(tmp_path / "t" / "b.tar", second)
    index_foreign([tmp_path / "t"])
    return tmp_path / "t"


@pytest.fixture
def files(local):
    return {name: (local / name).read_bytes() for name in TARS}


@pytest.fixture
def server(files):
    with FileServer({f"/d/{name}": data for name, data in files.items()}) as server:
        yield server


def same(local, remote) -> None:
    """A remote set holds what the local one holds."""
    assert (local / "index.arrow").read_bytes() == (remote / "index.arrow").read_bytes()
    assert read_manifest(local).shards == read_manifest(remote).shards
    assert rejects(local) == rejects(remote)
    with ShardSet.open(local) as here, ShardSet.open(remote) as there:
        assert here.fingerprint == there.fingerprint
        for i in range(len(here)):
            assert here.read_record(i) == there.read_record(i)
            assert here.read_images(i) == there.read_images(i)
            assert there.read_record(i, images=False).images == ()


def test_http(local, server, tmp_path):
    summary = index_foreign([f"{server.url}/d/{{a,b}}.tar"], tmp_path / "out")
    assert summary.tars == f"{server.url}/d/"
    assert summary.refusals == {"missing-text": 1, "unnamed-member": 1}
    same(local, tmp_path / "out")
    assert lint(tmp_path / "out").samples == 9


def test_names_that_http_encodes(local, files, tmp_path):
    """They were indexed, and then asked for with their %20 encoded once more."""
    with FileServer(
        {f"/my sets/{name[0]} #%+é.tar": data for name, data in files.items()}
    ) as server:
        encoded = "%20%23%25+%C3%A9.tar"
        index_foreign([f"{server.url}/my%20sets/{{a,b}}{encoded}"], tmp_path / "out")
        with ShardSet.open(local) as here, ShardSet.open(tmp_path / "out") as there:
            assert len(there) == len(here) == 9
            for i in range(9):
                assert there.read_images(i) == here.read_images(i)
                assert there.read_record(i).question == here.read_record(i).question
        for odd in ("a%2Fb.tar", "a%FF.tar"):
            with pytest.raises(SourceError, match=odd) as info:
                locate([f"{server.url}/my%20sets/{odd}"])
            assert info.value.mend


def test_a_window_may_end_within_a_sample(local, server, tmp_path, monkeypatch):
    """Windows of one member each: every sample is put together from two."""
    monkeypatch.setattr(
        members, "tar_windows", lambda file, shard: tar_windows(file, shard, window_bytes=1)
    )
    index_foreign([f"{server.url}/d/{{a,b}}.tar"], tmp_path / "out")
    same(local, tmp_path / "out")


def test_s3(local, files, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    with S3Server({f"data/{name}": data for name, data in files.items()}) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        index_foreign(["s3://bucket/data"], tmp_path / "out")
        assert read_manifest(tmp_path / "out").foreign.root == "s3://bucket/data/"
        same(local, tmp_path / "out")


def test_the_hub(local, files, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with StorageServer() as storage, HubServer(storage) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.commit({f"data/{name}": data for name, data in files.items()})
        commit = hub.refs["main"]
        index_foreign(["hf://datasets/lab/corpus/data"], tmp_path / "out")
        assert read_manifest(tmp_path / "out").foreign.root == (
            f"hf://datasets/lab/corpus@{commit}/data/"
        )
        hub.commit({"data/a.tar": b"another"})  # the set goes on reading the commit it was made of
        same(local, tmp_path / "out")


def test_the_loader_and_threads_and_pickles(local, server, tmp_path, tokenizer, vision):
    from omr_io import DataLoader

    index_foreign([f"{server.url}/d/{{a,b}}.tar"], tmp_path / "out")
    loader = DataLoader(
        tmp_path / "out",
        tokenizer=tokenizer,
        vision=vision,
        seq_len=512,
        packs_per_step=1,
        seed=0,
    )
    keys = [key for batch in loader for pack in batch.keys for key in pack]
    assert sorted(keys) == [f"s{n}" for n in range(9)]
    with ShardSet.open(local) as here, ShardSet.open(tmp_path / "out") as there:
        again = pickle.loads(pickle.dumps(there))
        found = {}

        def read(worker: int) -> None:
            for i in range(9):
                found[worker, i] = again.read_record(i)

        threads = [threading.Thread(target=read, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        again.close()
        assert found == {(w, i): here.read_record(i) for w in range(4) for i in range(9)}


def test_bytes_that_changed_are_refused(server, tmp_path):
    index_foreign([f"{server.url}/d/{{a,b}}.tar"], tmp_path / "out")
    with ShardSet.open(tmp_path / "out") as shards:
        part = shards.parts(2)[0]
        damaged = bytearray(server.files["/d/a.tar"])
        damaged[part.offset + 9] ^= 1
        server.files["/d/a.tar"] = bytes(damaged)
        with pytest.raises(IntegrityError, match=r"CRC-32C.*a\.tar, key s2, part s2\.jpg"):
            shards.read_record(2)
    server.files["/d/a.tar"] = bytes(damaged[: part.offset + 5])
    with ShardSet.open(tmp_path / "out") as shards:
        with pytest.raises((IntegrityError, SourceError)):
            shards.read_record(2)
        del server.files["/d/a.tar"]
    with ShardSet.open(tmp_path / "out") as shards, pytest.raises(SourceError, match="404"):
        shards.read_record(2)  # not as a failing sample: the run stops


def test_what_cannot_be_indexed(server, tmp_path):
    url = f"{server.url}/d/a.tar"
    with pytest.raises(ConfigError, match="Give -o FOLDER"):
        index_foreign([url])
    whole = server.files["/d/a.tar"]
    for data, error, match in (
        (whole[:3000], TarError, r"shard a\.tar, offset"),
        (b"", TarError, "empty"),
        (b"\x1f\x8b" + whole, SourceError, "compressed.*gunzip"),
    ):
        server.files["/d/a.tar"] = data
        with pytest.raises(error, match=match):
            index_foreign([url], tmp_path / "out")
    server.always = status(403)
    with pytest.raises(SourceError, match="403"):
        index_foreign([url], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_secret_never_reaches_the_manifest(server, tmp_path):
    secret = server.url.replace("http://", "http://me:S3CR3T@")
    for url in (f"{secret}/d/a.tar", f"{server.url}/d/a.tar?X-Amz-Signature=S3CR3T"):
        with pytest.raises(ConfigError) as info:
            index_foreign([url], tmp_path / "out")
        assert "S3CR3T" not in str(info.value)


def test_remote_sets_are_verified_as_local_copies(local, server, tmp_path):
    index_foreign([f"{server.url}/d/{{a,b}}.tar"], tmp_path / "out")
    with pytest.raises(ConfigError, match="Copy them"):
        verify(tmp_path / "out")


def test_places_in_common():
    tars = locate(["https://h/d/x/1.tar", "https://h/d/y/1.tar"])
    assert (tars.root, tars.names) == ("https://h/d/", ("x/1.tar", "y/1.tar"))
    assert tars.location("y/1.tar") == "https://h/d/y/1.tar"
    tars = locate(["https://h/1.tar"])
    assert (tars.root, tars.names) == ("https://h/", ("1.tar",))
    with pytest.raises(ConfigError, match="no place in common"):
        locate(["https://h/1.tar", "https://g/1.tar"])


def test_header_only_and_other_options(server, tmp_path):
    options = IndexOptions(decode=False, threads=2, split="test", qualify_keys=True)
    index_foreign([f"{server.url}/d/a.tar"], tmp_path / "out", options)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.split, manifest.options["decode"]) == ("test", False)
    with ShardSet.open(tmp_path / "out") as shards:
        assert shards.key(0) == "a/s0"
        assert shards.read_record(0).id == "a/s0"
