"""Commands that only read sets, given a URL: what they say of the folder they say of the URL."""

import json

import pytest

from omr_io.index import ShardSet
from omr_io.lint import lint
from omr_io.remote_storage import RemoteOptions
from omr_io.shards import verify
from tests.remote.servers import status
from tests.remote_storage.conftest import QUICK
from tests.remote_storage.test_s3_sets import URL as S3_URL
from tests.remote_storage.test_s3_sets import moto, s3  # noqa: F401  # fixtures
from tests.test_cli import omr_io  # noqa: F401  # a fixture

SECRET = "S3CR3TxyZ"


@pytest.fixture
def cache(tmp_path):
    """Options of the command line: a cache of the test's own."""
    return ["--remote-cache", tmp_path / "cache", "--remote-cache-bytes", 64 << 20]


@pytest.fixture(params=["http", "s3"])
def place(request):
    """The set's URL, on a server of ranges or in a bucket."""
    if request.param == "http":
        return request.getfixturevalue("url")
    request.getfixturevalue("s3")
    return S3_URL


def answer(run, *arguments):
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_info_says_the_same(omr_io, place, local_set, cache):  # noqa: F811
    here, there = answer(omr_io, "info", local_set), answer(omr_io, "info", place, *cache)
    assert there.pop("folder") == place
    assert here.pop("folder") == str(local_set)
    assert here == there
    code, out, _ = omr_io("info", local_set, place, *cache)
    assert code == 0
    assert out.splitlines()[0].split() == [local_set.name, "train"]


def test_plan_says_the_same(omr_io, place, local_set, cache, tokenizer, vision, tmp_path):  # noqa: F811
    tokenizer.save(tmp_path / "tokenizer")
    options = [
        "--tokenizer", tmp_path / "tokenizer", "--family", "qwen3_vl", "--seq-len", 256,
        "--packs-per-step", 2, "--min-pixels", vision.min_pixels,
        "--max-pixels", vision.max_pixels, "--no-cache",
    ]  # fmt: skip
    here = answer(omr_io, "plan", local_set, *options)
    there = answer(omr_io, "plan", place, *options, *cache)
    assert [one.pop("shards") for one in there["sources"]] == [place]
    assert [one.pop("shards") for one in here["sources"]] == [str(local_set)]
    assert here.pop("sources")[0].pop("name") == local_set.name
    assert there.pop("sources")[0].pop("name") == "train"
    assert here == there
    assert (tmp_path / "cache").is_dir()
    assert any((tmp_path / "cache").rglob("*"))


def test_lint_says_the_same(omr_io, place, local_set, cache):  # noqa: F811
    def without(found):
        return {name: found[name] for name in found if name not in ("folder", "seconds")}

    options = ["--ignore", "answer-bias", "--pixels"]
    codes, found = [], []
    for one in (local_set, place):
        code, out, _ = omr_io("lint", one, *options, *cache, "--json")
        codes.append(code)
        found.append(json.loads(out))
    assert codes[0] == codes[1]
    assert without(found[0]) == without(found[1])
    assert found[1]["folder"] == place
    code, _, err = omr_io("lint", local_set, "--against", place, *cache)
    assert code == 2
    assert "compared with itself" in err


def test_lint_finds_leaks_into_a_split_behind_a_url(
    url, options, local_set, write_shards, make_records
):
    records = [record for record in make_records(60) if record.images]
    other = write_shards(records[:5])
    report = lint(other, [url], remote=options())
    [leak] = [one for one in report.findings if one.rule == "leaked-images"]
    assert leak.detail.startswith(f"into {url}: ")
    assert [one.count for one in lint(other, [local_set]).findings if one.rule == leak.rule] == [
        leak.count
    ]


def test_view_shows_the_same_page(omr_io, place, local_set, cache, tmp_path):  # noqa: F811
    pages = [tmp_path / "here.html", tmp_path / "there.html"]
    options = ["--limit", 12, "--seed", 4, "--filter", "text=e"]
    for one, page in zip((local_set, place), pages, strict=True):
        code, _, err = omr_io("view", one, "-o", page, *options, *cache)
        assert (code, err) == (0, "")
    here, there = (page.read_text() for page in pages)
    name = ShardSet.open(local_set).fingerprint  # on the page, as the set's name is
    assert name in here
    assert here.replace(local_set.name, "train") == there.replace(local_set.name, "train")


class TestVerify:
    """Hashes of all files, fetched past the cache."""

    def test_a_sound_set(self, omr_io, place, local_set):  # noqa: F811
        here, there = answer(omr_io, "verify", local_set), answer(omr_io, "verify", place)
        assert there.pop("folder") == place
        here.pop("folder")
        assert here == there
        assert there["problems"] == []

    def test_damage_is_named(self, server, url, local_set):
        with ShardSet.open(local_set) as shards:
            part = shards.parts(25)[0]
            name, key = shards.shard(25), shards.key(25)
        path = f"/sets/train/{name}"
        data = bytearray(server.files[path])
        data[part.offset + part.size // 2] ^= 4
        server.files[path] = bytes(data)
        server.files["/sets/train/train-000000.idx"] += b"\n"
        report = verify(url, remote=RemoteOptions(cache=None, retries=QUICK))
        found = [str(problem) for problem in report.problems]
        assert not report.ok
        assert len(found) == 3
        assert "bytes, the manifest says" in found[0]
        assert "train-000000.idx" in found[0]
        assert "the file's SHA-256 is not the manifest's" in found[1]
        assert name in found[1]
        assert "do not match their CRC-32C" in found[2]
        assert key in found[2]
        assert part.name in found[2]

    def test_what_is_missing_is_a_problem_and_no_access_an_error(self, omr_io, server, url):  # noqa: F811
        gone = server.files.pop("/sets/train/train-000002.tar")
        code, out, _ = omr_io("verify", url, "--json")
        assert code == 5
        [problem] = json.loads(out)["problems"]
        assert "no such file on the server" in problem["what"]
        assert problem["where"]["shard"] == "train-000002.tar"
        server.files["/sets/train/train-000002.tar"] = gone

        def refuse(request, reply):
            return (
                status(403)(request, reply) if request.path.endswith("train-000004.tar") else reply
            )

        server.always = refuse
        code, _, err = omr_io("verify", url)
        assert code == 3
        assert "403" in err

    def test_nothing_is_taken_from_the_cache(self, server, url, options):
        with ShardSet.open(url, options()) as shards:
            for i in range(len(shards)):
                shards.read_record(i)
        path = "/sets/train/train-000001.tar"
        data = bytearray(server.files[path])
        data[-1] ^= 1  # of the trailer, which no sample holds
        server.files[path] = bytes(data)
        report = verify(url, remote=options())
        assert [problem.what for problem in report.problems] == [
            "the file's SHA-256 is not the manifest's"
        ]

    def test_decoding_is_for_folders(self, omr_io, url):  # noqa: F811
        code, _, err = omr_io("verify", url, "--decode")
        assert code == 2
        assert "Leave out --decode" in err


def test_secrets_are_not_shown(omr_io, url, cache):  # noqa: F811
    secret = url.replace("http://", f"http://user:{SECRET}@") + f"?token={SECRET}"
    for arguments in (["info", secret, *cache], ["verify", secret], ["lint", secret, *cache]):
        for more in ([], ["--json"]):
            _, out, err = omr_io(*arguments, *more)
            assert SECRET not in out + err
            assert out


def test_a_url_that_names_no_set(omr_io, server):  # noqa: F811
    for command in (["info"], ["verify"], ["lint"], ["view", "-o", "page.html"]):
        code, out, err = omr_io(command[0], f"{server.url}/sets/none", *command[1:])
        assert (code, out) == (3, "")
        assert "manifest" in err
    code, _, err = omr_io("info", "ftp://host/sets")
    assert code == 3
    assert "no URL that omr_io reads" in err


@pytest.mark.parametrize("command", [["energon"], ["card"], ["push", "hf://datasets/me/set"]])
def test_commands_that_write_into_a_set_say_that_they_take_folders(omr_io, url, command):  # noqa: F811
    code, _, err = omr_io(command[0], url, *command[1:])
    assert code == 2
    assert "takes folders, not URLs. Copy the set here" in err


def test_the_bound_of_the_cache_is_kept(omr_io, url, tmp_path):  # noqa: F811
    options = ["--remote-cache", tmp_path / "cache", "--remote-cache-bytes"]
    assert omr_io("info", url, *options, 0)[0] == 0
    assert not (tmp_path / "cache").exists()
    assert omr_io("info", url, *options, -1)[0] == 2
