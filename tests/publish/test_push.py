"""Pushing: its logic on a repository in memory, the whole of it on a small Hub."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from omr_io.energon import write_energon_metadata
from omr_io.errors import ConfigError, IntegrityError, SourceError
from omr_io.publish import PushOptions, push, pushing, write_card
from omr_io.publish.pushing import push_files
from omr_io.publish.set_files import check_target, collect
from omr_io.publish.uploader import RemoteState
from omr_io.shards.layout import MANIFEST_NAME, read_manifest
from tests.publish.test_card import doctored
from tests.remote.hub_server import HubServer, StorageServer, blob_id
from tests.remote.servers import cut, silent, status
from tests.shard_sets import record, single_records, write

# huggingface_hub uploads by `data=`, which its HTTP library is about to drop; not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

ROOT = Path(pushing.__file__).parents[2]


class Killed(BaseException):
    pass


class Repository:
    """An `Uploader` in memory; stops at the `stop`-th call, before or after it took effect."""

    def __init__(self, files=None, exists=True):
        self.files = dict(files or {})
        self.contents, self.sent, self.history = {}, [], []
        self.exists, self.calls, self.stop = exists, 0, None

    def step(self):
        self.calls += 1
        if self.calls == self.stop:
            raise Killed

    def prepare(self, create, private, dry_run):
        self.step()
        return self.exists

    def state(self, names):
        self.step()
        return {
            name: RemoteState(
                len(data), blob_id(data), hashlib.sha256(data).hexdigest() if is_lfs(name) else None
            )
            for name, data in self.files.items()
            if name in names
        }

    def read(self, name):
        return self.files[name]

    def upload(self, files):
        for file in files:
            data = file.path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if digest not in self.contents:
                self.step()
                self.contents[digest] = data
                self.sent.append(file.name)

    def commit(self, files, remove, message):
        self.step()
        for name in remove:
            del self.files[name]
        self.files |= {file.name: self.contents[file.sha256] for file in files}
        self.history.append(dict(self.files))
        self.step()
        return str(len(self.history))


def is_lfs(name):
    return name.endswith((".tar", ".arrow", ".parquet"))


def sound(files, prefix=""):
    """Whether a manifest that is seen finds all that it names."""
    if prefix + MANIFEST_NAME not in files:
        return True
    fields = json.loads(files[prefix + MANIFEST_NAME])
    named = [fields["index"], *fields["shards"], *(shard["idx"] for shard in fields["shards"])]
    return all(
        hashlib.sha256(files.get(prefix + item["name"], b"")).hexdigest() == item["sha256"]
        for item in named
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    write(folder, single_records(12), max_shard_samples=2)
    (folder / "stray.tar").write_bytes(b"stray")
    (folder / "notes.txt").write_bytes(b"stray")
    return folder


@pytest.fixture
def _small_batches(monkeypatch):
    monkeypatch.setattr(pushing, "_MAX_FILES", 3)
    monkeypatch.setattr(pushing, "_AT_ONCE", 2)


def names_of(folder):
    return {file.name for file in read_manifest(folder).files()} | {MANIFEST_NAME}


@pytest.mark.usefixtures("_small_batches")
def test_sends_what_the_manifest_names_and_completes_last(folder):
    repository = Repository({"README.md": b"theirs"})
    progress = []
    summary = push_files(
        collect(folder), repository, PushOptions(), "u", lambda *now: progress.append(now)
    )
    expected = {name: (folder / name).read_bytes() for name in names_of(folder)}
    assert repository.files == {"README.md": b"theirs", **expected}
    assert len(repository.history) == summary.commits == 5  # 12 files by 3, then index, manifest
    assert all(MANIFEST_NAME not in files for files in repository.history[:-1])
    assert all("index.arrow" not in files for files in repository.history[:-1])
    assert (summary.sent, summary.there) == (14, 0)
    assert summary.sent_bytes == sum(map(len, expected.values()))
    assert progress[-1] == (summary.sent_bytes, summary.sent_bytes)
    assert sorted(progress) == progress
    again = push_files(collect(folder), repository, PushOptions(), "u")
    assert (again.sent, again.there, again.commits, again.commit) == (0, 14, 0, None)


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("before", ["nothing", "another set", "a set of one file more"])
def test_killed_anywhere_and_gone_on_with(folder, tmp_path, before):
    start, options = {}, PushOptions()
    if before != "nothing":
        other = tmp_path / "other"
        count = 30 if before == "a set of one file more" else 12
        write(other, [record(n, [], id=f"o{n}") for n in range(count)], max_shard_samples=2)
        start = {file.name: file.path.read_bytes() for file in collect(other)}
        options = PushOptions(overwrite=True)
    whole = Repository(start)
    push_files(collect(folder), whole, options, "u")
    assert set(whole.files) == names_of(folder)
    for stop in range(1, whole.calls + 1):
        repository = Repository(start)
        repository.stop = stop
        with pytest.raises(Killed):
            push_files(collect(folder), repository, options, "u")
        repository.stop = None
        push_files(collect(folder), repository, options, "u")
        assert repository.files == whole.files
        assert all(sound(files) for files in repository.history)
        assert len(repository.sent) == len(set(repository.sent)) == len(whole.sent)
    assert whole.calls > 20


def test_two_kills_in_a_row_need_no_second_overwrite(folder, tmp_path):
    other = tmp_path / "other"
    write(other, [record(0, [])])
    repository = Repository({file.name: file.path.read_bytes() for file in collect(other)})
    with pytest.raises(SourceError, match=r"another shard set is there.*--overwrite"):
        push_files(collect(folder), repository, PushOptions(), "u")
    assert repository.history == []
    repository.calls, repository.stop = 0, 8
    with pytest.raises(Killed):
        push_files(collect(folder), repository, PushOptions(overwrite=True), "u")
    assert MANIFEST_NAME not in repository.files
    repository.stop = None
    push_files(collect(folder), repository, PushOptions(), "u")
    assert set(repository.files) == names_of(folder)


def test_dry_run_changes_nothing(folder):
    repository = Repository()
    summary = push_files(collect(folder), repository, PushOptions(dry_run=True), "u")
    assert (repository.sent, repository.history) == ([], [])
    assert {file.name for file in summary.files if file.state == "sent"} == names_of(folder)
    repository = Repository(exists=False)
    assert push_files(collect(folder), repository, PushOptions(dry_run=True), "u").sent == 14


@pytest.mark.parametrize("how", ["lost", "changed"])
def test_what_does_not_arrive_is_found_before_the_manifest_is_sent(folder, how):
    class Bad(Repository):
        def commit(self, files, remove, message):
            out = super().commit(files, remove, message)
            if how == "lost":
                self.files.pop("train-000001.tar", None)
            elif "train-000001.tar" in self.files:
                self.files["train-000001.tar"] = b"x" * len(self.files["train-000001.tar"])
            return out

    repository = Bad()
    error = SourceError if how == "lost" else IntegrityError
    with pytest.raises(error, match=r"does not show it|what arrived is not"):
        push_files(collect(folder), repository, PushOptions(), "u")
    assert MANIFEST_NAME not in repository.files


def energon_names(folder):
    """What Energon needs of a set: its metadata, and the offsets beside each tar."""
    described = {f".nv-meta/{path.name}" for path in (folder / ".nv-meta").iterdir()}
    assert len(described) == 7
    return described | {f"train-{number:06d}.tar.idx" for number in range(6)}


def test_cards_and_energon(folder, tmp_path):
    write_card([folder])
    (folder / "train-000000.tar.idx").write_bytes(b"of no use without .nv-meta")
    assert {file.name for file in collect(folder)} == names_of(folder) | {"README.md"}
    write_energon_metadata(folder)
    wanted = energon_names(folder)
    (folder / ".nv-meta" / "link").symlink_to("/etc/passwd")
    found = {file.name for file in collect(folder)}
    assert found == names_of(folder) | {"README.md"} | wanted
    below = {file.name for file in collect(folder, "a/b")}
    assert below == {f"a/b/{name}" for name in found}
    card = tmp_path / "other.md"
    card.write_bytes(b"card")
    with_card = {file.name: file.path for file in collect(folder, "a", card=card)}
    assert with_card["README.md"] == card
    assert with_card["a/README.md"] == folder / "README.md"
    assert {f.name: f.path for f in collect(folder, card=card)}["README.md"] == card
    assert all(file.last for file in collect(folder) if file.name in ("README.md", "manifest.json"))


def test_nothing_of_energons_is_left_of_the_set_that_is_replaced(folder, tmp_path):
    other = tmp_path / "other"
    write(other, single_records(30), max_shard_samples=2)
    write_energon_metadata(other)
    repository = Repository({".nv-meta/mine.txt": b"kept", "notes.txt": b"kept"})
    push_files(collect(other), repository, PushOptions(), "u")
    assert ".nv-meta/index.sqlite" in repository.files
    assert "train-000014.tar.idx" in repository.files
    push_files(collect(folder), repository, PushOptions(overwrite=True), "u")
    assert set(repository.files) == names_of(folder) | {".nv-meta/mine.txt", "notes.txt"}
    write_energon_metadata(folder)
    push_files(collect(folder), repository, PushOptions(), "u")
    for name in names_of(folder) | energon_names(folder):
        assert repository.files[name] == (folder / name).read_bytes()


@pytest.mark.parametrize("there", [b"{}", b'{"format": "omr_io shard set", "version": 99}'])
def test_a_manifest_there_that_cannot_be_read(folder, there):
    repository = Repository({MANIFEST_NAME: there})
    with pytest.raises(SourceError, match=r"cannot be read.*\(source manifest.json\)") as caught:
        push_files(collect(folder), repository, PushOptions(overwrite=True), "u")
    assert "Remove that set" in str(caught.value)
    assert repository.history == []


def test_a_card_that_someone_wrote_there_stays(folder):
    write_card([folder])
    with pytest.raises(SourceError, match=r"README.md there is not as"):
        push_files(collect(folder), Repository({"README.md": b"theirs"}), PushOptions(), "u")
    ours = (folder / "README.md").read_bytes()
    (folder / "README.md").write_bytes(ours + b"more")
    repository = Repository({"README.md": ours})
    push_files(collect(folder), repository, PushOptions(), "u")
    assert repository.files["README.md"] == ours + b"more"


def test_a_set_that_is_not_as_written(folder):
    tar = folder / "train-000003.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    collect(folder)  # sizes alone do not tell
    with pytest.raises(IntegrityError, match="not as it was written"):
        collect(folder, verify=True)
    tar.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="train-000003"):
        collect(folder)
    tar.write_bytes(data)
    (folder / "train-000000.idx").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        collect(folder)
    with pytest.raises(SourceError, match="no shard set"):
        collect(folder.parent)


def test_a_manifest_cannot_name_files_elsewhere(folder):
    (folder.parent / "secret").write_bytes(b"secret")
    shards, sound = read_manifest(folder).shards, (folder / "manifest.json").read_bytes()
    for name in ("../secret", "/etc/passwd", "a/b", ".."):
        (folder / "manifest.json").write_bytes(sound)
        idx = dataclasses.replace(shards[0].idx, name=name, bytes=6)
        doctored(folder, shards=(dataclasses.replace(shards[0], idx=idx), *shards[1:]))
        with pytest.raises(IntegrityError, match="which is no file of the folder"):
            collect(folder)


@pytest.mark.parametrize("path", [".git", "a/../b", "a//b", "a/", "*", "a/.nv-meta"])
def test_folders_that_cannot_be(path):
    with pytest.raises(ConfigError, match="no folder of a repository"):
        check_target(path)


# The real adapter, huggingface_hub in between, against a small Hub.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with StorageServer() as storage, HubServer(storage) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


URL = "hf://datasets/lab/corpus"


def test_a_whole_push(hub, folder):
    write_card([folder], options=None)
    summary = push(folder, URL)
    expected = {name: (folder / name).read_bytes() for name in {*names_of(folder), "README.md"}}
    assert hub.files == expected
    assert summary.url == URL
    assert summary.commit == hub.refs["main"]
    assert hub.log[-1] == ["README.md", "index.arrow", "manifest.json"]
    assert len(hub.storage.puts) == 7  # tars and index; .idx, card and manifest are in commits
    again = push(folder, URL)
    assert (again.sent, again.commits) == (0, 0)
    assert len(hub.log) == 2
    below = push(folder, f"{URL}/test")
    assert below.sent == 15
    assert len(hub.storage.puts) == 7  # the server has the contents
    assert hub.files == {**expected, **{f"test/{name}": data for name, data in expected.items()}}
    assert hub.created == []


def test_overwriting_another_set(hub, folder, tmp_path):
    other = tmp_path / "other"
    write(other, single_records(30), max_shard_samples=2)
    push(other, URL)
    hub.commit({"kept.txt": b"kept"})
    with pytest.raises(SourceError, match="another shard set is there"):
        push(folder, URL)
    summary = push(folder, URL, PushOptions(overwrite=True))
    assert set(hub.files) == names_of(folder) | {"kept.txt"}
    assert "-manifest.json" in hub.log[2]
    assert {file.name for file in summary.files if file.state == "removed"} > {"train-000014.tar"}
    assert all(sound(files) for files in hub.commits.values())


def test_faults_are_tried_again(hub, folder, monkeypatch):
    monkeypatch.setattr("omr_io.remote.retries.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for fault in (status(503), status(500), silent):
        hub.always, calls = None, []

        def sometimes(request, reply, fault=fault, calls=calls):
            calls.append(request)
            return fault(request, reply) if len(calls) % 3 == 0 else reply

        hub.always = sometimes
        hub.storage.faults = [fault, cut(0), status(500)]
        path = f"{URL}/{len(hub.commits)}"
        push(folder, path)
        hub.always = None
        prefix = path.rpartition("/")[2]
        assert {n for n in hub.files if n.startswith(prefix + "/")} == {
            f"{prefix}/{name}" for name in names_of(folder)
        }


def test_making_the_dataset(hub, folder):
    hub.exists = False
    with pytest.raises(SourceError, match=r"no such dataset.*--create"):
        push(folder, URL)
    assert push(folder, URL, PushOptions(create=True, dry_run=True)).sent == 14
    assert hub.created == []
    push(folder, URL, PushOptions(create=True, private=True))
    assert hub.private is True
    assert set(hub.files) == names_of(folder)
    hub.private = False
    with pytest.raises(ConfigError, match="there and public"):
        push(folder, URL, PushOptions(create=True, private=True))


def test_branches(hub, folder):
    with pytest.raises(SourceError, match="no branch 'next'"):
        push(folder, URL, revision="next")
    push(folder, URL, PushOptions(create=True), revision="next")
    assert set(hub.commits[hub.refs["next"]]) == names_of(folder)
    assert hub.files == {}
    with pytest.raises(ConfigError, match="is a commit"):
        push(folder, URL, revision="0" * 40)
    with pytest.raises(ConfigError, match="with --revision"):
        push(folder, URL + "@next")
    with pytest.raises(ConfigError, match="only the Hugging Face Hub"):
        push(folder, "s3://bucket/x")


@pytest.mark.parametrize("token", [None, "hf_S3CR3TS3CR3TS3CR3T"])
@pytest.mark.parametrize("gated", [False, True])
def test_no_access(hub, folder, monkeypatch, token, gated):
    hub.gated = gated
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match=r"(gives no access|gated).*HF_TOKEN") as info:
        push(folder, URL)
    assert info.value.exit_code == 3
    assert "S3CR3T" not in "".join(traceback.format_exception(info.value))
    assert info.value.__context__ is None
    assert hub.log == []


def test_a_gitignore_there_cannot_lose_a_file(hub, folder):
    hub.ignored = {"train-000002.tar"}
    with pytest.raises(SourceError, match=r"does not show it.*gitignore"):
        push(folder, URL)
    assert MANIFEST_NAME not in hub.files


def cli(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", "from omr_io.cli import main; main()", *arguments],
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", **environment,
        },
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_killed_by_the_system_in_the_middle(hub, folder):
    """SIGKILL while the fifth shard is on its way; then the same command again."""

    killed = threading.Event()

    def wait(request, reply):
        if request.method == "PUT" and len(hub.storage.puts) >= 5:
            killed.wait(300)
        return reply

    hub.storage.always = wait
    process = cli("push", str(folder), URL)
    deadline = time.monotonic() + 300
    while len(hub.storage.puts) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    killed.set()
    assert MANIFEST_NAME not in hub.files
    hub.storage.always = None
    time.sleep(0.1)
    before = list(hub.storage.puts)
    assert len(before) < 7
    process = cli("push", str(folder), URL, "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out)["sent"] == 14
    assert set(hub.files) == names_of(folder)
    assert len(hub.storage.puts) == len(set(hub.storage.puts)) == 7  # nothing was sent twice
    assert sound(hub.files)


def test_the_command_line(hub, folder, monkeypatch, capsys):
    from omr_io.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omr-io", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            main()
        return info.value.code or 0, *capsys.readouterr()

    monkeypatch.setenv("HF_TOKEN", "hf_S3CR3TS3CR3TS3CR3T")
    code, out, err = run("push", folder, URL)
    assert code == 3
    assert "HF_TOKEN" in err
    assert "S3CR3T" not in out + err
    monkeypatch.setenv("HF_TOKEN", hub.token)
    code, out, err = run("push", folder, URL, "--dry-run")
    assert (code, err) == (0, "")
    assert "would send train-000000.tar" in out
    assert "stray" not in out
    assert hub.log == []
    code, out, err = run("push", folder, URL, "--json")
    assert code == 0
    assert json.loads(out)["sent"] == 14
    code, out, err = run("card", folder, "--license", "cc-by-4.0", "--json")
    assert code == 0
    assert json.loads(out)["splits"] == {"train": 12}
    code, out, err = run("card", folder, "--license", "n o")
    assert code == 2
    for command in ("card", "push"):
        code, out, err = run(command, "--help")
        assert "Examples:" in out
        assert "Exit codes" in out
