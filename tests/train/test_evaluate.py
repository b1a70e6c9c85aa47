"""Counting by hand against evaluate; the metrics log through kills, tears and resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DiskError, IntegrityError, ResumeError
from omr_io.train.evaluate import (
    ScoredItem,
    evaluate,
    reward_change,
    score,
)
from omr_io.train.history import History, curve, read_history
from omr_io.train.statistics import majority_letters
from omr_io.train.trace_score import JudgedUnit, trace_score
from omr_io.types import EncodedImage, Option, Record


def item(key: int, *, letter: str | None, answer: str = "B", **changes: object) -> ScoredItem:
    base = ScoredItem(
        key=f"k{key}",
        cluster=f"s{key % 8}",
        task="plane" if key % 2 else "modality",
        answer=answer,
        letter=letter,
        how="answer tag" if letter else "unparsed",
        num_options=4,
        completion=f"<answer>{letter}</answer>",
        reward=float(letter == answer),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_counts() -> None:
    items = [item(k, letter=("B", "B", "C", None)[k % 4]) for k in range(40)]
    result = evaluate(items)
    assert result.accuracy.mean == 0.5
    assert result.accuracy.n == 40
    assert result.accuracy.clusters == 8
    assert result.unparsed == 10
    assert result.reward.mean == 0.5
    assert [task.task for task in result.by_task] == ["modality", "plane"]
    modality, plane = result.by_task
    assert (modality.accuracy.mean, modality.unparsed) == (0.5, 0)  # B or C
    assert (plane.accuracy.mean, plane.unparsed) == (0.5, 10)  # B or nothing
    assert (result.majority, result.blind, result.over_blind) == (None, None, None)
    assert not result.beats_baselines


def test_blind_is_paired_by_key_and_not_by_position() -> None:
    items = [item(k, letter="B") for k in range(80)]
    blind = [item(k, letter="B" if k < 20 else "A") for k in reversed(range(80))]
    result = evaluate(items, blind=blind, majority={0: "A"})
    assert result.blind is not None
    assert result.blind.mean == 0.25
    assert result.over_blind is not None
    assert result.over_blind.interval.mean == 0.75
    assert result.over_blind.p == 2 / 2**8  # 8 studies, all in the same direction
    assert result.beats_baselines
    by_task = {task.task: task.blind.mean for task in result.by_task if task.blind}
    assert by_task == {"modality": 0.25, "plane": 0.25}


def test_majority_uses_the_letter_of_the_number_of_options() -> None:
    items = [
        item(0, letter="A", answer="A", num_options=2),
        item(1, letter="A", answer="D", num_options=4),
        item(2, letter="A", answer="C", num_options=3),
        item(3, letter="A", answer="B", num_options=2),
    ]
    letters = majority_letters(["A", "D", "D"], [2, 4, 4])
    result = evaluate(items, majority=letters)
    assert result.majority is not None
    assert result.majority.mean == 0.5  # A right, D right, D (overall) for 3 options wrong, A wrong
    assert result.over_majority is not None
    assert result.over_majority.interval.mean == pytest.approx(0.25 - 0.5)


def test_a_model_that_is_no_better_does_not_beat_its_baselines() -> None:
    rng = np.random.default_rng(0)
    draw = [str(letter) for letter in rng.choice(list("AB"), 400)]
    items = [item(k, letter=draw[k]) for k in range(200)]
    blind = [item(k, letter=draw[200 + k]) for k in range(200)]
    result = evaluate(items, blind=blind, majority={0: "A"})
    assert not result.beats_baselines
    assert result.over_blind is not None
    assert result.over_blind.p > 0.05
    assert result.over_blind.interval.low < 0 < result.over_blind.interval.high


def test_evaluate_refuses_what_it_cannot_pair() -> None:
    items = [item(0, letter="A"), item(1, letter="A")]
    with pytest.raises(ConfigError, match="more than one item"):
        evaluate([items[0], items[0]])
    with pytest.raises(ConfigError, match="other samples"):
        evaluate(items, blind=[items[0], item(2, letter="A")])
    with pytest.raises(ConfigError):
        evaluate([])


def test_reward_change_averages_a_group_first() -> None:
    before = [item(k, letter="A", reward=r) for k in range(16) for r in (0.0, 0.0, 1.0, 0.0)]
    after = [item(k, letter="A", reward=r) for k in reversed(range(16)) for r in (1.0, 0.5)]
    change = reward_change(before, after)
    assert (change.start.mean, change.start.n, change.start.clusters) == (0.25, 16, 8)
    assert change.end.mean == 0.75
    assert change.change.interval.mean == 0.5
    assert change.change.p == 2 / 2**8
    with pytest.raises(ConfigError, match="different samples"):
        reward_change(before, after[2:])


@dataclass(frozen=True)
class Parsed:
    letter: str | None
    how: str


def parse_tag(completion: str, options: Sequence[Option]) -> Parsed:
    found = re.fullmatch(r"<answer>(.)</answer>", completion)
    valid = found is not None and found[1] in {option.letter for option in options}
    return Parsed(found[1] if found and valid else None, "tag" if valid else "unparsed")


def record(identity: str, data: bytes, **extra: object) -> Record:
    options = (Option("A", "CT"), Option("B", "MR"))
    images = (EncodedImage(data),) if data else ()
    return Record(identity, "Which?", options, "B", "", images=images, extra=extra)


def test_score() -> None:
    records = [record("a", b"1", study="s", task="t"), record("b", b"2", study="s", task="u")]
    completions = ["<answer>B</answer>", "<answer>C</answer>"]
    items = score(
        ["ka", "kb"],
        records,
        completions,
        parse=parse_tag,
        reward=lambda completion, row: float(row.answer in completion),
        cluster_field="study",
        task_field="task",
    )
    assert [one.cluster for one in items] == ["s", "s"]
    assert [one.task for one in items] == ["t", "u"]
    assert [one.letter for one in items] == ["B", None]
    assert [one.reward for one in items] == [1.0, 0.0]
    assert [one.correct for one in items] == [True, False]


def test_score_clusters_by_image_without_a_study() -> None:
    records = [record("a", b"1"), record("b", b"1"), record("c", b"2"), record("d", b"")]
    items = score("abcd", records, ["x"] * 4, parse=parse_tag, reward=lambda text, row: 0.0)
    clusters = [one.cluster for one in items]
    assert clusters[0] == clusters[1]
    assert len(set(clusters)) == 3
    with pytest.raises(ConfigError, match=r"no field 'study' .*key a"):
        score(
            "abcd", records, ["x"] * 4, parse=parse_tag, reward=lambda t, r: 0.0,
            cluster_field="study",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="3 completions"):
        score("abcd", records, ["x"] * 3, parse=parse_tag, reward=lambda text, row: 0.0)


def test_trace_score_by_hand() -> None:
    result = trace_score(
        [
            JudgedUnit("perception", 2, 1),
            JudgedUnit("perception", 1, -1),
            JudgedUnit("perception", 0, None),  # absent: correctness is not looked at
            JudgedUnit("knowledge", 2, 1),
            JudgedUnit("rationale", 2, 0),
        ]
    )
    perception = result.axes["perception"]
    assert (perception.presence, perception.correctness) == (0.5, 0.5)
    assert perception.score == 0.25
    assert result.axes["rationale"].score == 0.0
    assert result.score == pytest.approx((0.25 + 1.0 + 0.0) / 3)
    assert result.judge_errors == 0


def test_trace_score_conventions() -> None:
    absent = trace_score([JudgedUnit("knowledge", 0, 1), JudgedUnit("knowledge", 0, None)])
    assert absent.axes["knowledge"].correctness is None
    assert absent.score == 0.0
    one_axis = trace_score([JudgedUnit("rationale", 2, 1)])
    assert one_axis.score == 1.0
    assert set(one_axis.axes) == {"rationale"}
    failed = trace_score([JudgedUnit("rationale", None, 1), JudgedUnit("rationale", 1, None)])
    assert (failed.score, failed.judge_errors) == (None, 2)
    assert trace_score([]).score is None


def test_history_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "history.jsonl"
    with History.create(path) as history:
        history.add("sft", 1, loss=2.5, tokens=np.int64(7), rate=np.float32(0.5), note="a\nb")
        history.add("sft", 2, loss=float("nan"), tokens=9)
        assert len(read_history(path)) == 2  # flushed before it is closed
    first, second = read_history(path)
    assert first == {
        "phase": "sft",
        "step": 1,
        "loss": 2.5,
        "tokens": 7,
        "rate": 0.5,
        "note": "a\nb",
    }
    assert second["loss"] is None
    assert curve([first, second], "sft", "loss") == ([1.0], [2.5])
    assert curve([first, second], "sft", "tokens") == ([1.0, 2.0], [7.0, 9.0])
    assert curve([first, second], "rl", "loss") == ([], [])
    with pytest.raises(DiskError, match="exists"):
        History.create(path)


def test_history_refuses_what_is_not_a_number(tmp_path: Path) -> None:
    with History.create(tmp_path / "h.jsonl") as history, pytest.raises(ConfigError, match="loss"):
        history.add("sft", 1, loss=[1.0])
    assert read_history(tmp_path / "h.jsonl") == []


def write_run(history: History, first: int = 0) -> None:
    steps = [("sft", s) for s in range(1, 6)] + [("rl", s) for s in range(1, 4)]
    for phase, step in steps[first:]:
        history.add(phase, step, loss=1 / step)


@given(st.integers(0, 400), st.integers(0, 7))
def test_resumed_history_equals_the_uninterrupted_one(cut: int, checkpoint: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "h.jsonl"
        with History.create(path) as history:
            write_run(history)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        # Killed anywhere after the checkpoint was written, also within a line.
        least = sum(len(line) for line in lines[: checkpoint + 1])
        path.write_bytes(whole[: max(least, cut)])
        phase, step = ("sft", checkpoint + 1) if checkpoint < 5 else ("rl", checkpoint - 4)
        with History.resume(path, phase=phase, step=step) as history:
            write_run(history, checkpoint + 1)
        assert path.read_bytes() == whole


def test_resume_at_step_zero_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with History.create(path) as history:
        write_run(history)
    History.resume(path, phase="sft", step=0).close()
    assert path.read_bytes() == b""


def test_history_goes_forward_only(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with History.create(path) as history:
        write_run(history)
        for phase, step in [("rl", 2), ("sft", 9), ("other", 1)]:
            with pytest.raises(ConfigError):
                history.add(phase, step)
        history.add("rl", 3, accuracy=1.0)  # a second line of a step is fine
    with History.resume(path, phase="rl", step=2) as history, pytest.raises(ConfigError):
        history.add("rl", 1)


def test_history_refuses_a_damaged_middle_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with pytest.raises(ResumeError, match="gone"):
        History.resume(path, phase="sft", step=3)
    good = json.dumps({"phase": "sft", "step": 1}).encode()
    path.write_bytes(good + b"\n{torn\n" + good + b"\n")
    with pytest.raises(IntegrityError, match="line 2"):
        read_history(path)
    with pytest.raises(IntegrityError, match="line 2"):
        History.resume(path, phase="sft", step=3)
    with pytest.raises(ResumeError, match="none of"):
        History.resume(path, phase="other", step=3)
    path.write_bytes(good + b"\n{torn")
    assert len(read_history(path)) == 1


def test_clusters_may_be_given_for_records_whose_images_were_left_unread() -> None:
    record = Record("r", "Which?\nA. x\nB. y", (Option("A", "x"), Option("B", "y")), "A", "")

    def scored(clusters: list[str]) -> list[ScoredItem]:
        return score(
            ["k", "l"],
            [record] * 2,
            ["", ""],
            parse=parse_tag,
            reward=lambda text, record: 0.0,
            clusters=clusters,
        )

    items = scored(["c", "d"])
    assert [item.cluster for item in items] == ["c", "d"]
    with pytest.raises(ConfigError, match="2 completions in 1 clusters"):
        scored(["c"])
