"""What a judge left beside the completions, read and compared."""

from __future__ import annotations

import dataclasses
import json

import pytest

from omr_io.errors import IntegrityError
from omr_io.index import ShardSet
from omr_io.judge import Endpoint, Judge, prefer, read_completions, score_traces
from omr_io.train.completions_digest import completions_digest
from omr_io.train.evaluation.comparison import compare
from omr_io.train.evaluation.judged import Judged
from omr_io.train.evaluation.options import EvaluationOptions, Named
from omr_io.train.statistics import Interval, cluster_bootstrap, paired_difference
from omr_io.train.trace_score import JudgedUnit, trace_score
from tests.judge.conftest import rubric_unit
from tests.judge.judge_server import JudgeServer, Say, scores
from tests.shard_sets import write
from tests.train.evaluation.scripted import (
    Scripted,
    always,
    answer,
    question,
    right,
    write_questions,
)

OPTIONS = EvaluationOptions(variants=("plain",))


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Named:
    folder = tmp_path_factory.mktemp("sets") / "test"
    return Named("test", str(write_questions(folder, 12)))


def facts(of: Named) -> tuple[list[str], str]:
    with ShardSet.open(of.path) as shards:
        return [shards.key(i) for i in range(len(shards))], shards.fingerprint


def said(of: Named) -> str:
    """The digest of what `right` says, of either model."""
    with ShardSet.open(of.path) as shards:
        pairs = zip(facts(of)[0], shards.answers(), strict=True)
        return completions_digest((key, 0, answer(letter)) for key, letter in pairs)


def write_scores(folder, of: Named, model: str, presence, **head) -> None:
    """A trace score for each key: knowledge and rationale units with this presence."""
    keys, fingerprint = facts(of)
    rows = [
        {"header": True, "kind": "trace-scores", "model": model, "set_name": of.name,
         "judge_model": "judge-1", "fingerprint": fingerprint, "completions": said(of)} | head
    ]  # fmt: skip
    for number, key in enumerate(keys):
        units = [JudgedUnit("knowledge", presence(number), 1), JudgedUnit("rationale", 2, 1)]
        score = trace_score(units)
        rows.append(
            {"key": key, "model": model, "run": 0, "score": score.score,
             "axes": {axis: dataclasses.asdict(one) for axis, one in score.axes.items()},
             "units": [], "errors": score.judge_errors, "unjudged": []}
        )  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"trace-scores-{model}-{of.name}.jsonl").write_text(text)


def write_preference(folder, of: Named, **changes) -> None:
    row = {
        "kind": "preference", "a": "sft", "b": "base", "set_name": of.name,
        "judge_model": "judge-1", "fingerprint": facts(of)[1],
        "completions_a": said(of), "completions_b": said(of),
        "share": {"mean": 0.75, "low": 0.5, "high": 0.9, "n": 12, "clusters": 12}, "p": 0.04,
        "judged": 12, "wins_a": 8, "wins_b": 2, "ties": 2, "errors": 1,
    }  # fmt: skip
    (folder / "preference-sft-base-test.json").write_text(json.dumps(row | changes))


def judged(of: Named, folder) -> Judged:
    models = [Scripted("base", right), Scripted("sft", right)]
    return compare(models, [of], folder, OPTIONS).judged


def test_without_a_judge_there_is_nothing(test_set, tmp_path) -> None:
    assert judged(test_set, tmp_path) == Judged()


def test_scores_are_averaged_and_models_compared(test_set, tmp_path) -> None:
    judged(test_set, tmp_path)
    write_scores(tmp_path, test_set, "base", lambda number: 0 if number % 2 else 1)
    write_scores(tmp_path, test_set, "sft", lambda number: 2 if number else None)
    write_preference(tmp_path, test_set)
    found = judged(test_set, tmp_path)
    base, sft = found.traces
    values = [0.5 if number % 2 else 0.75 for number in range(12)]  # means of two axes
    assert base.score.mean == pytest.approx(sum(values) / 12)
    assert (base.traces, base.scored, base.errors, base.judge_model) == (12, 12, 0, "judge-1")
    assert list(base.axes) == ["knowledge", "rationale"]
    assert base.axes["knowledge"].mean == pytest.approx(0.25)
    assert (sft.score.mean, sft.errors) == (1, 1)
    assert sft.axes["knowledge"].n == 11
    assert sft.axes["rationale"].n == 12
    (difference,) = found.differences
    assert (difference.set, difference.first, difference.second) == ("test", "base", "sft")
    # Of number 0 an axis was not judged at all, so it has no score to compare.
    assert difference.difference.interval.mean == pytest.approx(1 - sum(values[1:]) / 11)
    assert difference.difference.p == 2 / 2**11  # all eleven in one direction
    (preference,) = found.preferences
    assert preference.share == Interval(0.75, 0.5, 0.9, 12, 12)
    assert (preference.wins_a, preference.ties, preference.errors) == (8, 2, 1)


def test_intervals_are_those_of_the_clusters(test_set, tmp_path) -> None:
    write_scores(tmp_path, test_set, "base", lambda number: (0, 1, 2)[number % 3])
    write_scores(tmp_path, test_set, "sft", lambda number: (1, 1, 2)[number % 3])
    found = judged(test_set, tmp_path)
    from omr_io.train.evaluation.items import read_items

    with ShardSet.open(test_set.path) as shards:
        clusters = [item.cluster for item in read_items(test_set, shards, OPTIONS).items]
    values = [(0.5, 0.75, 1.0)[number % 3] for number in range(12)]
    more = [(0.75, 0.75, 1.0)[number % 3] for number in range(12)]
    wanted = cluster_bootstrap(values, clusters, seed=0, bounds=(0.0, 1.0))
    assert found.traces[0].score == wanted
    assert found.differences[0].difference == paired_difference(
        more, values, clusters, seed=0, bounds=(-1.0, 1.0)
    )


def test_what_is_of_others_is_passed_over_and_said(test_set, tmp_path) -> None:
    write_scores(tmp_path, test_set, "rl", lambda number: 1)
    write_scores(tmp_path, Named("other", test_set.path), "base", lambda number: 1)
    write_scores(tmp_path, test_set, "base", lambda number: 1, fingerprint="0" * 16)
    write_preference(tmp_path, test_set, b="rl")
    found = judged(test_set, tmp_path)
    assert found.traces == found.preferences == ()
    assert dict(found.passed_over) == {
        "preference-sft-base-test.json": "it is of the model rl",
        "trace-scores-base-other.jsonl": "it is of the set other",
        "trace-scores-base-test.jsonl": "the set test was another one when it was judged",
        "trace-scores-rl-test.jsonl": "it is of the model rl",
    }
    models = [Scripted("base", right), Scripted("sft", right)]
    notes = compare(models, [test_set], tmp_path, OPTIONS).notes
    assert "trace-scores-rl-test.jsonl is not shown: it is of the model rl." in notes


def test_what_was_said_of_earlier_completions_is_not_shown(test_set, tmp_path) -> None:
    """Models that were made again under their names: another checkpoint, --overwrite."""
    write_scores(tmp_path, test_set, "base", lambda number: 1)
    write_scores(tmp_path, test_set, "sft", lambda number: 2)
    write_preference(tmp_path, test_set)
    before = judged(test_set, tmp_path)
    assert len(before.traces) == 2
    assert not before.passed_over
    models = [Scripted("base", right), Scripted("sft", always("B"), weights="trained on")]
    found = compare(models, [test_set], tmp_path, OPTIONS, overwrite=True).judged
    assert [one.model for one in found.traces] == ["base"]
    assert found.preferences == found.differences == ()
    why = "the completions of sft are others than it judged: run omr-io judge again"
    assert dict(found.passed_over) == {
        "preference-sft-base-test.json": why, "trace-scores-sft-test.jsonl": why,
    }  # fmt: skip


def test_what_the_judge_writes_is_what_is_read(tmp_path) -> None:
    units = (rubric_unit("knowledge", "k"), rubric_unit("rationale", "r"))
    records = [dataclasses.replace(question(i, image=i), rubric=units) for i in range(4)]
    write(tmp_path / "test", records)
    of, out = Named("test", str(tmp_path / "test")), tmp_path / "out"

    def evaluated() -> Judged:
        return compare([Scripted("base", right), Scripted("sft", always("A"))], [of], out,
                       OPTIONS).judged  # fmt: skip

    evaluated()

    def script(asked) -> Say:
        return scores(2, 1) if "Claim: " in asked.user else Say('{"better": "first"}')

    with JudgeServer(script) as server, ShardSet.open(of.path) as shards:
        both = [read_completions(out / f"completions-{m}-test.jsonl", shards) for m in
                ("base", "sft")]  # fmt: skip
        with Judge(Endpoint(server.url, "judge-1"), cache_bytes=0) as judge:
            score_traces(judge, shards, both[0])
            prefer(judge, shards, *both)
    found = evaluated()
    assert not found.passed_over
    assert [(one.model, one.score.mean) for one in found.traces] == [("base", 1.0)]
    (preference,) = found.preferences
    assert (preference.a, preference.b, preference.share.mean) == ("base", "sft", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("header", "head"), "does not begin with a header"),
        (('"judge_model": "judge-1"', '"judge_model": 3'), "'judge_model' is 3"),
        (('"score": 1.0', '"score": 1.5'), "is 1.5, not 0 to 1"),
        (('"score": 1.0', '"score": NaN'), "is nan, not 0 to 1"),
        (('"score": 1.0', '"store": 1.0'), "'score' is missing"),
        (('"axes"', '"axis"'), "'axes' is missing"),
        (('"knowledge"', '"taste"'), "an axis is called 'taste'"),
        (('"errors": 0', '"errors": "no"'), "'errors' is 'no'"),
        (("{", "["), "cannot be read"),
    ],
)
def test_a_damaged_file_of_scores_is_an_error(test_set, tmp_path, change, message) -> None:
    write_scores(tmp_path, test_set, "base", lambda number: 2)
    path = tmp_path / "trace-scores-base-test.jsonl"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(IntegrityError, match=message):
        judged(test_set, tmp_path)


def test_a_damaged_preference_is_an_error(test_set, tmp_path) -> None:
    for changes, message in (
        ({"share": {"mean": 1}}, "the share is no interval"),
        ({"share": {"mean": 2, "low": 0, "high": 1, "n": 1, "clusters": 1}}, "'share' is 2"),
        ({"share": {"mean": "x", "low": 0, "high": 1, "n": 1, "clusters": 1}}, "'share' is 'x'"),
        ({"p": "small"}, "'p' is 'small'"),
        ({"p": float("nan")}, "'p' is nan"),
        ({"wins_a": None}, "'wins_a' is None"),
        ({"a": 3}, "'a' is 3"),
    ):
        write_preference(tmp_path, test_set, **changes)
        with pytest.raises(IntegrityError, match=message):
            judged(test_set, tmp_path)
    (tmp_path / "preference-sft-base-test.json").write_text("[]")
    with pytest.raises(IntegrityError, match="no JSON object"):
        judged(test_set, tmp_path)
