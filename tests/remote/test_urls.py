"""URLs: known ones, secrets, patterns."""

import glob
import os
import socket
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import SourceError
from omr_io.remote import RetryPolicy, is_url, list_urls, open_url, redact
from omr_io.remote.buckets import parse as parse_s3
from omr_io.remote.hub import HubPath, parse
from omr_io.remote.urls import fixed_part, glob_regex, in_folder, name_of

SECRET = "S3CR3TxyZ"
WITH_SECRETS = [
    f"https://user:{SECRET}@host/a.parquet",
    f"https://{SECRET}@host/a.parquet",
    f"https://user:p@{SECRET}/x@host/a.parquet",
    f"https://user:p/{SECRET}@host/a.parquet",
    f"https://user:p?{SECRET}@host/a.parquet",
    f"https://user:p#{SECRET}@host/a.parquet",
    f"https://host/a.parquet?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"https://host/a.parquet?{SECRET}",
    f"https://host/a.parquet?token=a%20{SECRET}#b",
    f"https://host/a.parquet#{SECRET}",
    f"HTTPS://user:{SECRET}@host/a.parquet",
    f"s3://AKIA:{SECRET}@bucket/a.parquet",
    f"s3://bucket/a.parquet?X-Amz-Signature={SECRET}",
    f"hf://user:{SECRET}@datasets/o/n/a.parquet",
    f"ftp://user:{SECRET}@host/a",
    f"https://user:{SECRET}@host:notaport/a.parquet",
    f"https://user:{SECRET}@[::bad/a.parquet",
    f"https://host/a b?token={SECRET}",
]


@pytest.mark.parametrize("url", WITH_SECRETS)
def test_no_secret_is_printed(url):
    assert SECRET not in redact(url)
    assert SECRET not in redact(f"reading '{url}' failed".replace(" b?", "%20b?"))
    assert redact(url).split("://")[0] == url.split("://")[0]


@pytest.mark.parametrize("url", [url for url in WITH_SECRETS if "?X-Amz" not in url])
def test_no_secret_in_errors(url):
    def local(url):  # nothing here may reach a network, whatever the URL is taken for
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", refuse)
            open_url(url, RetryPolicy(tries=1))

    def refuse(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, SECRET)

    for action in (list_urls, local):
        failure = None
        try:
            action(url)
        except SourceError as error:
            failure = error
        if failure is None:
            assert action is list_urls  # which does not open what http(s) offers
            continue
        assert SECRET not in "".join(traceback.format_exception(failure))
        assert failure.__context__ is None


def test_redact_keeps_what_is_no_secret(monkeypatch):
    for text in (
        "https://host/a@b.parquet", "s3://bucket/a-?.parquet", "no URL: a@b?c=d",
        "hf://datasets/o/n@main/hf_dataset_for_training.parquet", "https://host:8080/a.parquet",
    ):  # fmt: skip
        assert redact(text) == text
    assert redact("https://u:p@host/a") == "https://***@host/a"
    assert redact("https://host/a?b=c") == "https://host/a?***"
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI")
    assert redact("Bearer hf_abcdefgh12345, hf_otherothertokens, wJalr/XUtn+FEMI") == (
        "Bearer ***, hf_***, ***"
    )


def test_is_url():
    assert all(map(is_url, ("hf://datasets/a/b", "s3://b", "https://h/x", "pipe://x", "S3://x")))
    assert not any(map(is_url, ("a/b", "/a://b", "C:\\x", "pipe:cat x", "")))


@pytest.mark.parametrize(
    "url",
    ["pipe:cat /etc/passwd", "pipe://cat", "file:///etc/passwd", "ftp://h/x", "x"],
)
def test_other_schemes_are_refused(url):
    for action in (list_urls, open_url):
        with pytest.raises(SourceError, match="no URL that omr_io reads"):
            action(url)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("https://h/*.parquet", "cannot list"),
        ("https://h/a[0-9].parquet", "cannot list"),
        ("https://h/folder/", "names no file"),
        ("https://h", "names no file"),
        ("https:///x", "no host"),
        ("https://h/a\nb", "control character"),
        ("hf://datasets/squad", "names no dataset"),
        ("hf://lab/corpus/x", "names no dataset"),
        ("hf://spaces/lab/corpus/x", "names no dataset"),
        ("hf://datasets/lab/corpus@/x", "names no dataset"),
        ("hf://datasets/lab/corpus/../x", "holds an empty part"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@bucket/x", "belong into the environment"),
    ],
)
def test_urls_that_cannot_be_right(url, what):
    with pytest.raises(SourceError, match=what):
        list_urls(url)


def test_http_is_one_file():
    assert list_urls("https://h/a%20b.parquet?x=1") == ("https://h/a%20b.parquet?x=1",)
    assert name_of("https://h/x/a%20b.parquet?x=/y") == "a b.parquet"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("hf://datasets/o/n", HubPath("o/n", None, "")),
        ("hf://datasets/o/n/", HubPath("o/n", None, "")),
        ("hf://datasets/o/n/d/a.parquet", HubPath("o/n", None, "d/a.parquet")),
        ("hf://datasets/o/n@v1.0/a", HubPath("o/n", "v1.0", "a")),
        ("hf://datasets/o/n@a%2Fb/c", HubPath("o/n", "a/b", "c")),
        (
            "hf://datasets/o/n@refs/convert/parquet/d/0",
            HubPath("o/n", "refs/convert/parquet", "d/0"),
        ),
        ("hf://datasets/o/n@refs/pr/3", HubPath("o/n", "refs/pr/3", "")),
        ("hf://datasets/o/n@refs%2Fpr%2F3/x", HubPath("o/n", "refs/pr/3", "x")),
    ],
)
def test_hub_urls(url, place):
    assert parse(url) == place
    assert parse(place.url) == place


def test_s3_urls():
    assert parse_s3("s3://b.c-d/e/%20f?.parquet") == ("b.c-d", "e/%20f?.parquet")


NAMES = ["a", "b.parquet", "ab.parquet", ".hidden", "x[1].y", "a!b", "-", "é"]
PATHS = [*NAMES, *(f"{d}/{n}" for d in ("d", "e", ".git", "d/f", "d/.s") for n in NAMES)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for path in PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


pattern_parts = st.lists(
    st.sampled_from(["*", "?", "a", "b", "[ab]", "[!a]", "[a-c]", ".", ".parquet", "[[]", "[1]",
                     "]", "d", "x", "y", "!", "-", "é", "[!]a]", "["]),
    min_size=1, max_size=4,
).map("".join)  # fmt: skip


@given(
    st.lists(st.one_of(pattern_parts, st.sampled_from(["**", "d", "*"])), min_size=1, max_size=4)
)
@settings(max_examples=100, deadline=None)
def test_patterns_match_what_glob_matches(tree, parts):
    pattern = "/".join(parts)
    if ".." in parts or "." in parts or "***" in pattern:
        return
    found = glob.glob(pattern, root_dir=tree, recursive=True)  # noqa: PTH207
    # "a/**" gives "a/" even for a file a: no path that anyone could open.
    expected = {
        os.path.normpath(path)
        for path in found
        if (tree / path).is_file() and not path.endswith("/")
    }
    assert set(filter(glob_regex(pattern).fullmatch, PATHS)) == expected


def test_the_fixed_part_of_a_pattern():
    assert fixed_part("a/b/c-*.parquet") == "a/b/"
    assert fixed_part("a/*/c.parquet") == "a/"
    assert fixed_part("*.parquet") == ""
    assert fixed_part("a/b") == "a/b"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.csv", "b.PARQUET", ".c.parquet", "d.txt"], ["b.PARQUET"]),
        (["b.jsonl", "a.json", ".parquet", "c"], ["a.json", "b.jsonl"]),
        (["x.tar"], ["x.tar"]),
    ],
)
def test_a_folder_means_its_parquet_or_its_only_kind(names, expected):
    assert in_folder(lambda deep: names, "", "s3://b/") == expected


def test_a_folder_of_several_kinds_or_none():
    with pytest.raises(SourceError, match=r"several formats: 1 csv, 2 json"):
        in_folder(lambda deep: ["a.csv", "b.jsonl", "c.json"], "", "s3://b/")
    with pytest.raises(SourceError, match=r"none of \*\.parquet"):
        in_folder(lambda deep: ["a.txt"], "", "s3://b/")
