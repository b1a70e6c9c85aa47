"""Preference of two models' traces: both orders, ties, bias, intervals."""

from __future__ import annotations

import json

import pytest

from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.judge import estimate_preference, prefer, read_completions
from omr_io.train.statistics import cluster_bootstrap
from tests.judge.conftest import write_lines
from tests.judge.judge_server import Asked, Say
from tests.judge.test_traces import omr_io  # noqa: F401  # a fixture


def say(word: str) -> Say:
    return Say(json.dumps({"reason": "So.", "better": word}))


def stands_first(asked: Asked, text: str) -> bool:
    return asked.user.index(text) < asked.user.index("The second trace:")


# By the trace of A: what the judge says when A stands first, and when B does.
SAID = {
    "a0 good": ("first", "second"),
    "a1 worse": ("second", "first"),
    "a2 even": ("tie", "tie"),
    "a3 first": ("first", "first"),
    "a4 half": ("first", "tie"),
}


def script(asked: Asked) -> Say:
    own = next(text for text in SAID if text in asked.user)
    return say(SAID[own][0 if stands_first(asked, own) else 1])


@pytest.fixture
def files(place):
    """Completions of two models to the five records."""
    folder = place.completions.parent
    a = write_lines(folder / "a.jsonl", place.lines("model/a", list(SAID)))
    b = write_lines(folder / "b.jsonl", place.lines("b", [f"b{number}" for number in range(5)]))
    return a, b


@pytest.fixture
def run(place, files, serve, judge_of):
    server = serve(script)

    def preferred(one=files[0], other=files[1], **changes):
        with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
            a, b = (read_completions(path, shards) for path in (one, other))
            return prefer(judge, shards, a, b, **changes)

    return server, preferred


def test_both_orders(run, place):
    server, preferred = run
    report = preferred()
    assert len(server.asked) == 10
    assert (report.wins_a, report.wins_b, report.ties) == (1, 1, 3)
    assert (report.disagreements, report.identical) == (2, 0)
    assert (report.first_in_both, report.second_in_both) == (1, 0)
    # Choices: first, second; second, first; first, first; first: 5 of 7.
    assert report.first_share == 5 / 7
    values = [1, 0, 0.5, 0.5, 0.5]
    assert report.share.mean == 0.5
    assert (report.share.n, report.share.clusters) == (5, 5)
    expected = cluster_bootstrap(values, list("abcde"), seed=0, bounds=(0, 1))
    assert report.share.high == pytest.approx(expected.high)
    assert report.p == 1.0
    assert all(len(asked.images) == 1 for asked in server.asked)
    whole = json.loads(report.path.read_text())
    assert report.path.name.startswith("preference-model-a~")
    assert report.path.name.endswith("-b-test.json")
    assert [(item["outcome"], item["agrees"]) for item in whole["items"]] == [
        ("a", True), ("b", True), ("tie", True), ("tie", False), ("tie", False),
    ]  # fmt: skip
    assert [item["key"] for item in whole["items"]] == place.keys
    again = preferred()
    assert len(server.asked) == 10
    assert (again.usage.requests, again.usage.cached) == (0, 10)
    assert again.share == report.share


def test_a_clear_winner(place, serve, judge_of):
    server = serve(lambda asked: say("first" if stands_first(asked, "good") else "second"))
    folder = place.completions.parent
    lines = [place.lines("a", ["good"] * 5, run=run) for run in range(2)]
    others = [place.lines("b", [f"b{run}{n}" for n in range(5)], run=run) for run in range(2)]
    a = write_lines(folder / "a.jsonl", [*lines[0], *lines[1]])
    b = write_lines(folder / "b.jsonl", [*others[0], *others[1]])
    with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
        both = [read_completions(path, shards) for path in (a, b)]
        report = prefer(judge, shards, *both, images=False)
    assert not any(asked.images for asked in server.asked)
    assert (report.pairs, report.wins_a, report.share.mean) == (10, 10, 1.0)
    assert report.share.clusters == 5
    assert report.share.low < 1.0
    assert report.p == 2 / 2**5  # all signs of five clusters, two of them as extreme
    assert report.first_share == 0.5


def test_judge_errors_are_left_out_and_named(run, place):
    server, preferred = run

    def fails(asked: Asked) -> Say:
        if "a1 worse" in asked.user and not stands_first(asked, "a1 worse"):
            return Say("hard to say")
        return script(asked)

    server.script = fails
    report = preferred()
    assert (report.pairs, report.judged, report.errors) == (5, 4, 1)
    assert report.error_share == 0.2
    assert (report.wins_a, report.wins_b, report.ties) == (1, 0, 3)
    assert report.share.mean == 2.5 / 4
    (error,) = report.named_errors
    assert (error.key, error.asked) == (place.keys[1], "B first")
    assert "rubbish twice" in error.why
    server.script = lambda asked: Say("no")
    server.asked.clear()
    other = place.lines("o", [""] * 5, run=9)
    path = write_lines(place.completions.with_name("o.jsonl"), other)
    with pytest.raises(ConfigError, match="no key and run in common"):
        preferred(other=path)
    assert server.asked == []


def test_equal_texts_are_ties_without_a_question(run, place, files):
    server, preferred = run
    lines = [*place.lines("b", ["b0", "b1", "a2 even", "b3", "b4"])[:4]]
    report = preferred(other=write_lines(files[1], lines))
    assert (report.pairs, report.unpaired_a, report.unpaired_b) == (4, 1, 0)
    assert (report.identical, report.ties) == (1, 2)
    assert len(server.asked) == 6
    assert not any("a2 even" in asked.user for asked in server.asked)


def test_names_of_one_model(run, place, files):
    _, preferred = run
    texts = [f"b{number}" for number in range(5)]
    other = write_lines(files[1], place.lines("model/a", texts))
    assert (preferred(other=other).a, preferred(other=other).b) == ("a", "b")
    with pytest.raises(ConfigError, match="the same file"):
        preferred(other=files[0])


def test_a_dry_run_sends_nothing(run, place, files, judge_of):
    server, _ = run
    with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
        a, b = (read_completions(path, shards) for path in files)
        estimate = estimate_preference(judge, shards, a, b)
    assert (estimate.requests, server.asked) == (10, [])


def test_the_command(omr_io, run, place, files, tmp_path):  # noqa: F811
    server, _ = run
    asked = (
        "judge", "prefer", *files, place.shards, "--endpoint", server.url, "--judge-model", "j",
        "--key-variable", "JUDGE_KEY", "--cache", tmp_path / "cache",
    )  # fmt: skip
    code, out, err = omr_io(*asked, "--dry-run", "--json")
    assert (code, err, server.asked) == (0, "", [])
    assert json.loads(out)["estimate"]["requests"] == 10
    code, out, err = omr_io(*asked)
    assert (code, err) == (0, "")
    assert "ties           3 (2 where the orders disagree, 0 of equal texts)" in out
    assert "first in both orders 1, second 0; the first place got 71.4% of all choices" in out
    code, out, err = omr_io(*asked, "--json")
    assert json.loads(out)["usage"]["requests"] == 0
    both = write_lines(
        tmp_path / "both.jsonl",
        [json.loads(line) for path in files for line in path.read_text().splitlines()],
    )
    asked = ("judge", "prefer", both, both, *asked[4:])
    code, out, err = omr_io(*asked)
    assert code == 2
    assert "Choose one: --model (prefer: --model-a, --model-b)" in err
    code, out, err = omr_io(*asked, "--model-a", "model/a", "--model-b", "b", "--json")
    told = json.loads(out)
    assert (told["a"], told["b"], told["pairs"], told["usage"]["requests"]) == (
        "model/a",
        "b",
        5,
        0,
    )
