"""TraceScore against a scripted judge: exact scores, errors named, nothing asked twice."""

from __future__ import annotations

import base64
import io
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from omr_io import cli
from omr_io.cli.judge import ADVICE, PREFER_EXAMPLES, SCORE_EXAMPLES
from omr_io.cli.judge import app as judge_app
from omr_io.errors import ConfigError, DataError, SourceError
from omr_io.index import ShardSet
from omr_io.judge import estimate_traces, read_completions, score_traces
from omr_io.judge.completions import file_name
from omr_io.judge.endpoint import Prices
from omr_io.train.statistics import cluster_bootstrap
from tests.judge.conftest import KEY, TRACES, rubric_unit, write_lines
from tests.judge.judge_server import Asked, Say, scores
from tests.shard_sets import encoded, record, write

ROOT = Path(__file__).resolve().parents[2]

# What the judge says of each claim; p30 and k30 get no verdict.
SAID = {
    "p00": (2, 1), "p01": (1, -1), "k00": (2, 1), "r00": (0, 0),
    "p10": (2, 1), "r10": (1, 1),
    "k31": (2, 1),
}  # fmt: skip


def script(asked: Asked) -> Say:
    if asked.claim == "p30":
        return Say("out of memory", 500)
    if asked.claim == "k30":
        return Say("I would say it is present.")
    if asked.claim == "p10" and asked.attempt == 0:
        return Say("wait", 429, {"Retry-After": "0"})
    if asked.claim == "r10" and not asked.is_again:
        return Say("rubbish")
    return scores(*SAID[asked.claim])


@pytest.fixture
def run(place, serve, judge_of):
    """(place, server, function that scores, and gives report and lines)."""
    server = serve(script)

    def scored(**changes):
        with judge_of(server, **changes) as judge, ShardSet.open(place.shards) as shards:
            found = read_completions(place.completions, shards)
            report = score_traces(judge, shards, found, prices=Prices(2.0, 10.0))
        return report, [json.loads(line) for line in report.path.read_text().splitlines()]

    return place, server, scored


def test_scores_by_hand(run):
    place, server, scored = run
    report, (header, *lines) = scored()
    assert [line["key"] for line in lines] == place.keys
    first, second, without, failed, empty = lines
    assert first["axes"]["perception"] == {
        "presence": 0.75, "correctness": 0.5, "score": 0.375, "units": 2,
    }  # fmt: skip
    assert first["axes"]["knowledge"]["score"] == 1.0
    nothing = {"presence": 0.0, "correctness": None, "score": 0.0, "units": 1}
    assert first["axes"]["rationale"] == nothing
    assert first["score"] == pytest.approx((0.375 + 1 + 0) / 3, abs=1e-15)
    assert second["score"] == (1 + 0.5) / 2  # no unit of knowledge: a mean of two axes
    assert without["score"] is None
    assert without["units"] == []
    # Every unit of perception failed: no score, though knowledge has one.
    assert failed["score"] is None
    assert failed["unjudged"] == ["perception"]
    assert failed["axes"] == {
        "knowledge": {"presence": 1.0, "correctness": 1.0, "score": 1.0, "units": 1}
    }
    assert failed["errors"] == 2
    assert empty["score"] == 0.0
    assert not any(asked.claim in ("p40", "k40") for asked in server.asked)

    got = [(unit["unit_id"], unit["presence"], unit["correctness"]) for unit in first["units"]]
    assert got == [("id-p00", 2, 1), ("id-p01", 1, -1), ("id-k00", 2, 1), ("id-r00", 0, None)]
    errors = {unit["unit_id"]: unit for unit in failed["units"] if "error" in unit}
    assert {name: (one["presence"], one["correctness"]) for name, one in errors.items()} == {
        "id-p30": (None, None), "id-k30": (None, None),
    }  # fmt: skip
    assert "out of memory" in errors["id-p30"]["error"]
    assert "rubbish twice" in errors["id-k30"]["error"]
    assert header["header"] is True
    assert header["prompts"] == report.prompts
    assert header["errors"] == 2


def test_the_report(run):
    place, _, scored = run
    report, _ = scored()
    values = [(0.375 + 1 + 0) / 3, 0.75, 0.0]
    assert report.score.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert (report.score.n, report.score.clusters) == (3, 3)
    # The images are the clusters; with one trace an image their names do not matter.
    with ShardSet.open(place.shards) as shards:
        names = ["".join(map(str, shards.image_hashes[number])) for number in (0, 1, 4)]
        of = [one.cluster for one in read_completions(place.completions, shards).items]
    assert len(set(of)) == 5
    by_hand = cluster_bootstrap(values, sorted(names), seed=0, bounds=(0.0, 1.0))
    assert (report.score.low, report.score.high) == pytest.approx((by_hand.low, by_hand.high))
    perception, knowledge, rationale = (
        report.axes[axis] for axis in ("perception", "knowledge", "rationale")
    )
    assert perception.score.mean == pytest.approx((0.375 + 1 + 0) / 3)
    assert perception.presence == pytest.approx((0.75 + 1 + 0) / 3)
    assert perception.correctness == pytest.approx((0.5 + 1) / 2)
    counts = ("traces", "nothing_present", "without_units", "unjudged", "units", "errors")
    assert [getattr(perception, name) for name in counts] == [3, 1, 1, 1, 5, 1]
    assert [getattr(knowledge, name) for name in counts] == [3, 1, 2, 0, 4, 1]
    assert [getattr(rationale, name) for name in counts] == [2, 1, 3, 0, 2, 0]
    assert rationale.presence == 0.25
    assert (report.traces, report.scored, report.without_rubric, report.left_out) == (5, 3, 1, 2)
    assert (report.samples, report.units, report.errors) == (5, 11, 2)
    assert report.error_share == 2 / 11
    named = [(error.key, error.asked) for error in report.named_errors]
    assert named == [
        (place.keys[3], "perception unit id-p30"), (place.keys[3], "knowledge unit id-k30"),
    ]  # fmt: skip
    assert report.model == "lab/model-a"
    assert (
        report.path
        == place.completions.parent / f"trace-scores-{file_name('lab/model-a')}-test.jsonl"
    )


def test_requests_are_counted_and_nothing_is_asked_twice(run):
    _, server, scored = run
    report, _ = scored()
    # 9 units of traces that are not empty; p30 fails 4 times, p10 once; r10, k30 are asked again.
    assert report.usage.questions == 9
    assert len(server.asked) == report.usage.requests == 9 + 3 + 1 + 2
    assert (report.usage.retries, report.usage.asked_again) == (3 + 1, 2)
    answered = 15 - 4 - 1
    assert report.usage.prompt_tokens == 100 * answered
    assert report.usage.completion_tokens == 10 * answered
    assert report.cost == pytest.approx((100 * answered * 2 + 10 * answered * 10) / 1e6)
    before, bytes_before = len(server.asked), report.path.read_bytes()

    server.script = lambda asked: scores(0, 0)  # what failed is asked again, and nothing else
    again, _ = scored()
    assert {asked.claim for asked in server.asked[before:]} == {"p30", "k30"}
    assert (again.usage.requests, again.usage.cached, again.errors) == (2, 7, 0)
    assert again.path.read_bytes() != bytes_before

    third, _ = scored()
    assert len(server.asked) == before + 2
    assert (third.usage.requests, third.usage.cached, third.usage.questions) == (0, 9, 9)
    assert third.axes == again.axes
    assert third.path.read_bytes() == again.path.read_bytes()


def test_images_go_with_perception_alone(run):
    place, server, scored = run
    scored()
    by_claim = {asked.claim: asked for asked in server.asked}
    assert {claim for claim, asked in by_claim.items() if asked.images} == {
        "p00", "p01", "p10", "p30",
    }  # fmt: skip
    for claim, number, media in (("p00", 0, "jpeg"), ("p10", 1, "png")):
        (url,) = by_claim[claim].images
        head, data = url.split(",")
        assert head == f"data:image/{media};base64"
        assert base64.b64decode(data) == place.images[number]  # as it is stored
    (url,) = by_claim["p30"].images  # WebP
    assert url.startswith("data:image/png;base64,")
    seen = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    stored = Image.open(io.BytesIO(place.images[3])).convert("RGB")
    assert np.array_equal(np.asarray(seen), np.asarray(stored))
    for asked in server.asked:
        assert "trace" in asked.user


def test_an_image_that_exif_turns_goes_upright(tmp_path, serve, judge_of):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(3, "JPEG", exif=exif)
    units = (rubric_unit("perception", "p"),)
    write(tmp_path / "s", [record(0, [turned], rubric=units)], check="header", keep_metadata=True)
    server = serve(lambda asked: scores(2, 1))
    with judge_of(server) as judge, ShardSet.open(tmp_path / "s") as shards:
        line = {"key": shards.key(0), "model": "m", "completion": "trace"}
        path = write_lines(tmp_path / "c.jsonl", [line])
        report = score_traces(judge, shards, read_completions(path, shards))
    assert report.score.mean == 1.0
    (asked,) = server.asked
    seen = Image.open(io.BytesIO(base64.b64decode(asked.images[0].split(",")[1])))
    stored = Image.open(io.BytesIO(turned))
    assert (seen.format, seen.size) == ("PNG", (stored.size[1], stored.size[0]))


def test_an_image_that_cannot_be_sent_is_a_judge_error(tmp_path, serve, judge_of):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(3, "JPEG", exif=exif, size=(64, 64))
    units = (rubric_unit("perception", "p"), rubric_unit("knowledge", "k"))
    cut = record(0, [whole[: len(whole) // 2]], rubric=units)
    write(tmp_path / "s", [cut], check="header", keep_metadata=True)
    server = serve(lambda asked: scores(2, 1))
    with judge_of(server) as judge, ShardSet.open(tmp_path / "s") as shards:
        line = {"key": shards.key(0), "model": "m", "completion": "trace"}
        path = write_lines(tmp_path / "c.jsonl", [line])
        report = score_traces(judge, shards, read_completions(path, shards))
    assert [asked.claim for asked in server.asked] == ["k"]
    assert "its image cannot be sent" in report.named_errors[0].why
    assert (report.errors, report.score) == (1, None)
    assert report.axes["knowledge"].score.mean == 1.0


def test_two_runs_of_an_item_share_a_cluster(place, serve, judge_of):
    traces = [f"{trace}." for trace in TRACES]
    lines = [*place.lines("m", traces), *place.lines("m", traces, run=1)]
    path = write_lines(place.completions.with_name("two.jsonl"), lines)
    server = serve(lambda asked: scores(2, 1))
    with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
        report = score_traces(judge, shards, read_completions(path, shards))
    assert (report.score.n, report.score.clusters) == (8, 4)
    assert report.score.mean == 1.0
    assert report.score.low < 1.0  # unseen clusters may differ


def test_what_shares_an_image_is_one_cluster(tmp_path, serve, judge_of):
    units = (rubric_unit("knowledge", "k"),)
    one, other = encoded(1), encoded(2)
    images = ([one], [one], [other], [one, other], [], [])
    records = [record(number, own, rubric=units) for number, own in enumerate(images)]
    write(tmp_path / "s", records)
    server = serve(lambda asked: scores(2, 1))
    with judge_of(server) as judge, ShardSet.open(tmp_path / "s") as shards:
        keys = [shards.key(number) for number in range(len(shards))]
        lines = [{"key": key, "model": "m", "completion": key} for key in keys]
        found = read_completions(write_lines(tmp_path / "c.jsonl", lines), shards)
        report = score_traces(judge, shards, found)
        by_study = read_completions(found.path, shards, cluster="study")
        with pytest.raises(ConfigError, match="no column 'patient'"):
            read_completions(found.path, shards, cluster="patient")
    assert (report.score.n, report.score.clusters) == (6, 3)  # the fourth links the third
    assert len({item.cluster for item in found.items[:4]}) == 1
    assert [item.cluster for item in by_study.items] == [f"s{number}" for number in range(6)]


def test_a_dry_run_sends_nothing(run, judge_of):
    place, server, scored = run
    with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
        found = read_completions(place.completions, shards)
        estimate = estimate_traces(judge, shards, found)
    assert server.asked == []
    assert (estimate.questions, estimate.cached, estimate.requests) == (9, 0, 9)
    assert estimate.completion_tokens == 720
    assert not list(place.completions.parent.glob("trace-scores*"))
    scored()
    sent = [asked for asked in server.asked if not asked.is_again and not asked.attempt]
    texts = [
        sum(len(message["content"]) for message in asked.body["messages"])
        for asked in sent
        if not asked.images
    ]
    assert len(texts) == 5
    # 32 x 24 pixels are 2 tokens.
    whole = sum(len(asked.user) + len(asked.body["messages"][0]["content"]) for asked in sent)
    images = sum(2 * len(asked.images) for asked in sent)
    assert estimate.prompt_tokens == pytest.approx(whole / 4 + images, abs=len(sent))
    with judge_of(server) as judge, ShardSet.open(place.shards) as shards:
        assert estimate_traces(judge, shards, found).cached == 7


BAD_LINES = {
    "not JSON": ("{", DataError, "not JSON"),
    "torn": ('{"key": "K", "mod', DataError, "ends in the middle"),
    "a list": ("[]", DataError, "no JSON object"),
    "no key": ('{"model": "m", "completion": "x"}', DataError, "no field 'key'"),
    "a number": ('{"key": "K", "model": "m", "completion": 5}', DataError, "'completion' is"),
    "another set": ('{"key": "nope", "model": "m", "completion": ""}', DataError, "no key 'nope'"),
    "another answer": (
        '{"key": "K", "model": "m", "completion": "", "answer": "F"}', DataError, "'F' here and",
    ),
    "twice": (
        '{"key": "K", "model": "m", "completion": ""}\n' * 2, DataError, "comes twice",
    ),
    "two models": (
        '{"key": "K", "model": "m", "completion": ""}\n'
        '{"key": "K", "model": "n", "completion": ""}',
        ConfigError, "several models",
    ),
    "only blind": (
        '{"key": "K", "model": "m", "completion": "", "variant": "blind"}',
        ConfigError, "no completion of variant 'plain'",
    ),
    "nothing": ('{"header": true}', ConfigError, "no completion"),
    "not UTF-8": (b"\xff\xfe", DataError, "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_completions_that_cannot_be(place, text, kind, words):
    data = text if isinstance(text, bytes) else text.replace('"K"', f'"{place.keys[0]}"').encode()
    place.completions.write_bytes(data)
    with ShardSet.open(place.shards) as shards, pytest.raises(kind, match=words) as error:
        read_completions(place.completions, shards)
    assert str(place.completions) in str(error.value)


def test_completions_of_several_models(place):
    lines = [*place.lines("m", list(TRACES)), *place.lines("n", list(TRACES))]
    write_lines(place.completions, lines)
    with ShardSet.open(place.shards) as shards:
        found = read_completions(place.completions, shards, model="n")
        assert (found.model, len(found.items)) == ("n", 5)
        with pytest.raises(ConfigError, match="no completion of model 'o'"):
            read_completions(place.completions, shards, model="o")
        with pytest.raises(SourceError, match="cannot be read"):
            read_completions(place.shards / "nothing.jsonl", shards)


def test_file_names():
    assert file_name("Qwen3-VL-8B") == "Qwen3-VL-8B"
    assert file_name("a/b") != file_name("a-b") == "a-b"
    assert "/" not in file_name("../../etc/passwd")
    assert file_name("..").startswith("model~")


def test_a_set_without_rubrics(tmp_path, serve, judge_of):
    write(tmp_path / "s", [record(1)])
    server = serve(script)
    with judge_of(server) as judge, ShardSet.open(tmp_path / "s") as shards:
        line = {"key": shards.key(0), "model": "m", "completion": "x"}
        path = write_lines(tmp_path / "c.jsonl", [line])
        with pytest.raises(ConfigError, match="no record of these completions has a rubric"):
            score_traces(judge, shards, read_completions(path, shards))


@pytest.fixture
def omr_io(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omr-io", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        assert KEY not in out + err
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("name", "examples"), [("score", SCORE_EXAMPLES), ("prefer", PREFER_EXAMPLES)]
)
def test_examples_parse(name, examples):
    command = typer.main.get_command(judge_app).commands[name]
    for example in examples:
        program, group, own, *arguments = shlex.split(example)
        assert (program, group, own) == ("omr-io", "judge", name)
        command.make_context(name, arguments)  # raises for what does not parse
        assert example in command.epilog


def test_the_command(omr_io, place, serve, tmp_path):
    server = serve(lambda asked: scores(*SAID.get(asked.claim, (2, 0))))
    asked = (
        "judge", "score", place.completions, place.shards, "--endpoint", server.url,
        "--judge-model", "judge-1", "--key-variable", "JUDGE_KEY", "--cache", tmp_path / "cache",
        "--price-in", 1, "--price-out", 2,
    )  # fmt: skip
    code, out, err = omr_io(*asked, "--dry-run")
    assert (code, err, server.asked) == (0, "", [])
    assert "9, if none fails; nothing was sent" in out
    code, out, err = omr_io(*asked, "--set", "max_tokens=9")
    assert (code, err) == (0, "")
    assert server.asked[0].body["max_tokens"] == 9
    assert "nothing present" in out
    assert "judge errors  0 of 11 units (0.00%)" in out
    assert "cost          0.0011" in out  # 900 and 90 tokens
    code, out, err = omr_io(*asked, "--set", "max_tokens=9", "--json")
    told = json.loads(out)
    assert (told["usage"]["requests"], told["usage"]["cached"]) == (0, 9)
    assert len(server.asked) == 9
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_run_that_is_stopped_goes_on(place, serve, tmp_path):
    """As a process of its own, by Ctrl-C while the judge is at work."""
    server = serve(lambda asked: Say(stall=250) if asked.claim in ("k31", "r10") else scores(2, 1))
    command = [
        sys.executable, "-c", "from omr_io.cli import main; main()", "judge", "score",
        place.completions, place.shards, "--endpoint", server.url, "--judge-model", "j",
        "--cache", tmp_path / "cache", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 300
    # Seven answered and kept, two under way.
    while len(list((tmp_path / "cache").glob("*/[0-9a-f]*"))) < 7 or len(server.asked) < 9:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert time.monotonic() - begin < 100
    assert (process.returncode, out) == (130, "")
    assert err == f"stopped by SIGINT: {ADVICE}\n"
    assert not list(place.completions.parent.glob("trace-scores*"))

    server.script = lambda asked: scores(2, 1)
    before = len(server.asked)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["usage"]["cached"] == 7
    assert {asked.claim for asked in server.asked[before:]} == {"k31", "r10"}


def test_the_command_when_the_judge_fails(omr_io, place, serve, tmp_path):
    def mostly(asked: Asked) -> Say:
        return Say("no") if asked.claim in ("k00", "p10") else scores(2, 1)

    server = serve(mostly)
    asked = (
        "judge", "score", place.completions, place.shards, "--endpoint", server.url,
        "--judge-model", "j", "--cache", tmp_path / "cache",
    )  # fmt: skip
    code, out, err = omr_io(*asked)
    assert code == 1
    assert "judge errors  2 of 11 units (18.18%)" in out
    assert f"no verdict: key {place.keys[0]}, run 0, knowledge unit id-k00: rubbish twice" in out
    assert omr_io(*asked, "--max-errors", "0.2")[0] == 0
    server.script = lambda asked: Say("who are you", 401)
    code, out, err = omr_io(*asked)
    assert (code, out) == (3, "")
    assert "refuses the request (401): who are you. Set the key" in err
    assert omr_io(*asked, "--key-variable", "NO_SUCH")[0] == 2
    assert omr_io(*asked, "--set", "temperature")[0] == 2
    assert omr_io(*asked, "--set", "temperature=warm")[0] == 2
