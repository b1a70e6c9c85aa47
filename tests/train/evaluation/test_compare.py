"""Exact figures from a model whose answers are known; kills, resumes, and what is refused."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from omr_io.errors import ConfigError, DiskError, IntegrityError, ResumeError
from omr_io.index import ShardSet
from omr_io.train.evaluation import run
from omr_io.train.evaluation.comparison import RESULTS, compare
from omr_io.train.evaluation.items import read_items
from omr_io.train.evaluation.log import CompletionsLog, Line, alone, read_completions
from omr_io.train.evaluation.options import EvaluationOptions, Named
from omr_io.train.evaluation.scoring import Said
from omr_io.train.statistics import accuracy_interval, paired_difference, wilson_interval
from tests.shard_sets import record, write
from tests.train.evaluation.scripted import (
    Scripted,
    always,
    answer,
    question,
    right,
    write_questions,
)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Named:
    """40 questions of 4 options, the right one A, B, C, D, A, ...; two share each image."""
    folder = tmp_path_factory.mktemp("sets") / "test"
    write(folder, [question(i, image=i // 2) for i in range(40)])
    return Named("test", str(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Named:
    return Named("small", str(write_questions(tmp_path_factory.mktemp("sets") / "small", 12)))


def clusters_of(of: Named) -> list[str]:
    """Two items each; the bootstrap draws them in the order of their names."""
    with ShardSet.open(of.path) as shards:
        names = [item.cluster for item in read_items(of, shards, EvaluationOptions()).items]
    assert names[::2] == names[1::2]
    assert len(set(names)) == len(names) // 2
    return names


def number(ask) -> int:
    return int(ask.record.id.split(".")[1])


def test_exact_figures_of_every_baseline(test_set, tmp_path) -> None:
    """Right on 3 of 4, blind on 1 of 4, and with a love of A when options are reordered."""

    def script(ask, run):
        if ask.variant == "blind":
            return always("A")(ask, run)
        if ask.variant == "shuffled":
            return always("A")(ask, run)
        if number(ask) == 39:
            return "no answer at all"
        return right(ask) if number(ask) % 4 != 3 else answer("A")

    model = Scripted("sft", script)
    made = compare([model], [test_set], tmp_path, EvaluationOptions())
    (score,), (facts,) = made.figures.scores, made.figures.sets
    clusters = clusters_of(test_set)
    plain = [float(i % 4 != 3) for i in range(40)]
    blind = [float(i % 4 == 0) for i in range(40)]
    lines = read_completions(tmp_path / "completions-sft-test.jsonl")
    assert len(lines) == 120
    by_key = {(line.variant, line.key): line for line in lines}
    first = [by_key["shuffled", f"case%2E{i:04d}"].order[0] for i in range(40)]
    shuffled = [float(letter == "ABCD"[i % 4]) for i, letter in enumerate(first)]
    assert 0 < sum(shuffled) < 20  # near a quarter: A is right by chance

    assert facts.items == 40
    assert facts.clusters == 20
    assert facts.majority.mean == 0.25
    assert dict(facts.majority_letters) == {0: "A", 4: "A"}
    assert facts.majority_is_upper_bound
    assert "upper bound" in made.notes[0]
    assert score.plain.accuracy == accuracy_interval(plain, clusters, seed=0)
    assert score.plain.accuracy.mean == 0.75
    assert score.plain.wilson == wilson_interval(30, 40)
    assert score.plain.unparsed == 1
    assert score.plain.letters == {"": 1, "A": 19, "B": 10, "C": 10}
    assert score.blind.accuracy.mean == 0.25
    assert score.over_blind == paired_difference(plain, blind, clusters, seed=0, bounds=(-1.0, 1.0))
    assert score.over_majority == score.over_blind  # the same answers
    assert score.shuffled.accuracy.mean == sum(shuffled) / 40
    assert score.shuffled.letters == {"A": 40}  # as they were shown
    assert score.over_shuffled == paired_difference(
        plain, shuffled, clusters, seed=0, bounds=(-1.0, 1.0)
    )
    assert model.closed == 1


def test_majority_letters_of_a_train_set(test_set, tmp_path) -> None:
    train = tmp_path / "train"
    write(train, [question(i, image=i, right=2) for i in range(5)] +
          [record(9, question="W?", options=(), answer="free", reasoning="")] +
          [record(10 + i, answer=("", "AB")[i % 2]) for i in range(12)])  # fmt: skip
    made = compare(
        [Scripted("m", right)], [test_set], tmp_path / "out", EvaluationOptions(), train=str(train)
    )
    (facts,) = made.figures.sets
    assert facts.majority_of == str(train)
    assert dict(facts.majority_letters) == {0: "C", 4: "C"}
    assert facts.majority.mean == 0.25
    assert not any("upper bound" in note for note in made.notes)


def test_who_knows_is_right_in_every_variant_and_order(test_set, tmp_path) -> None:
    for seed in range(3):
        options = EvaluationOptions(seed=seed)
        made = compare([Scripted("m", right)], [test_set], tmp_path / str(seed), options)
        (score,) = made.figures.scores
        assert score.plain.accuracy.mean == score.shuffled.accuracy.mean == 1
        assert score.over_shuffled.p == 1
        assert score.plain.accuracy.low < 0.9


def test_the_prompt_of_a_shuffled_item_shows_its_new_order(test_set, tmp_path) -> None:
    model = Scripted("m", right)
    compare([model], [test_set], tmp_path, EvaluationOptions())
    moved = 0
    for ask in model.asked:
        lines = ask.record.question.split("\n")[1:]
        assert lines == [f"{option.letter}. {option.text}" for option in ask.record.options]
        texts = [option.text.split()[0] for option in ask.record.options]
        moved += ask.variant == "shuffled" and texts != ["liver", "spleen", "heart", "lung"]
        assert ask.variant == "shuffled" or texts == ["liver", "spleen", "heart", "lung"]
    assert moved > 30


def test_differences_of_models_on_the_same_items(test_set, small, tmp_path) -> None:
    base = Scripted("base", always("A"))
    sft = Scripted("sft", lambda ask, run: right(ask) if number(ask) % 2 else answer("A"))
    rl = Scripted("rl", right)
    options = EvaluationOptions(variants=("plain",))
    made = compare([base, sft, rl], [test_set, small], tmp_path, options)
    pairs = {(one.set, one.first, one.second): one.difference for one in made.figures.differences}
    counts = [(one.better, one.worse) for one in made.figures.differences]
    assert counts == [(20, 0), (30, 0), (10, 0), (6, 0), (9, 0), (3, 0)]
    assert list(pairs) == [
        (of, *two)
        for of in ("test", "small")
        for two in (("base", "sft"), ("base", "rl"), ("sft", "rl"))
    ]
    first = [float(i % 4 == 0) for i in range(40)]
    second = [float(i % 2 or i % 4 == 0) for i in range(40)]
    assert pairs["test", "base", "sft"] == paired_difference(
        second, first, clusters_of(test_set), seed=0, bounds=(-1.0, 1.0)
    )
    assert pairs["test", "base", "sft"].interval.mean == 0.5
    assert pairs["test", "sft", "rl"].interval.mean == 0.25
    assert made.figures.averages == ()  # of the VQA sets there is only one


def test_the_mean_over_vqa_sets_weighs_sets_and_not_items(tmp_path) -> None:
    sets = [
        Named(name, str(write_questions(tmp_path / name, count)))
        for name, count in (("test", 8), ("slake", 8), ("pvqa", 40))
    ]

    def script(ask, run):
        return right(ask) if ask.number < 4 else "?"

    models = [Scripted("base", lambda ask, run: "?"), Scripted("sft", script)]
    made = compare(models, sets, tmp_path / "out", EvaluationOptions(variants=("plain",)))
    base, sft = made.figures.averages
    assert sft.sets == ("slake", "pvqa")
    assert sft.accuracy.mean == pytest.approx((0.5 + 0.1) / 2)
    assert base.accuracy.mean == 0
    assert base.accuracy.high > 0.05
    (between,) = made.figures.average_differences
    assert (between.better, between.worse) == (8, 0)
    assert between.difference.interval.mean == pytest.approx(0.3)
    assert between.difference.p == pytest.approx(2 / 2**8, abs=0.005)  # 8 clusters differ
    assert made.figures.differences[0].difference.interval.mean == 0.5


def test_runs_of_an_item_are_one_item(test_set, tmp_path) -> None:
    options = EvaluationOptions(temperature=1.0, runs=4, variants=("plain", "shuffled"))
    model = Scripted("m", lambda ask, run: right(ask) if run else "?")
    made = compare([model], [test_set], tmp_path, options)
    (score,) = made.figures.scores
    assert score.plain.completions == 160
    assert score.plain.unparsed == 40
    assert score.plain.accuracy.n == 40
    assert score.plain.accuracy.clusters == 20
    assert score.plain.accuracy.mean == 0.75
    assert score.plain.accuracy == accuracy_interval([0.75] * 40, np.arange(40) // 2, seed=0)
    # No narrower than for 20 independent items: not 160.
    assert score.plain.accuracy.high - score.plain.accuracy.low > 0.25
    runs = {
        (line.key, line.run) for line in read_completions(tmp_path / "completions-m-test.jsonl")
    }
    assert len(runs) == 160


def test_files_and_results(test_set, tmp_path) -> None:
    def script(ask, run):
        if number(ask) == 3:
            return Said("<think>cut", finished=False)
        if number(ask) == 5:
            return Said(right(ask), failure="image-corrupt: x")
        return right(ask)

    made = compare([Scripted("m", script)], [test_set], tmp_path, EvaluationOptions())
    sidecar = json.loads((tmp_path / "completions-m-test.json").read_text())
    assert sidecar["made_by"]["weights"] == "m"
    assert sidecar["made_by"]["seed"] == 0
    assert sidecar["about"] == {"model_path": "folder of m", "set_path": test_set.path}
    row = next(
        row
        for row in map(json.loads, (tmp_path / "completions-m-test.jsonl").open())
        if row["key"] == "case%2E0003" and row["variant"] == "plain"
    )
    assert row == {
        "key": "case%2E0003", "set": "test", "model": "m", "run": 0, "variant": "plain",
        "completion": "<think>cut", "finished": False, "letter": None, "how": "unparsed",
        "answer": "D", "correct": False, "reasoning": "cut", "order": "ABCD", "failure": None,
        "options": [
            {"letter": "A", "text": "liver 3"}, {"letter": "B", "text": "spleen 3"},
            {"letter": "C", "text": "heart 3"}, {"letter": "D", "text": "lung 3"},
        ],
    }  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["figures"]["scores"][0]["plain"]["accuracy"]["mean"] == 39 / 40
    assert results["figures"]["scores"][0]["plain"]["cut"] == 1
    assert results["figures"]["scores"][0]["plain"]["failed_images"] == 1
    assert results["models"]["m"]["weights"] == "m"
    assert results["paper"][0]["after"] == 78.51
    assert results["options"]["seed"] == 0
    assert any("3 prompts had an image that cannot be decoded" in note for note in made.notes)


# Going on


class Killed(BaseException):
    pass


def test_a_killed_evaluation_goes_on_and_is_the_uninterrupted_one(
    test_set, small, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(run, "BLOCK", 8)
    sets, options = [test_set, small], EvaluationOptions(temperature=1.0, runs=2)

    def script(ask, run):
        return answer("ABCD"[(number(ask) + run) % 4])

    whole = compare([Scripted("m", script)], sets, tmp_path / "whole", options)
    calls = 0

    def killed(ask, run):
        nonlocal calls
        calls += 1
        if calls % 50 == 0:
            raise Killed
        return script(ask, run)

    kills = 0
    blocks: set[tuple[int, int]] = set()
    while True:
        model = Scripted("m", killed)
        try:
            resumed = compare([model], sets, tmp_path / "killed", options)
            break
        except Killed:
            kills += 1
            blocks |= set(model.blocks)
            assert model.closed == 1
            path = tmp_path / "killed/completions-m-test.jsonl"
            with path.open("ab") as file:  # as if it had died within a write
                file.write(b'{"key": "case%2E00')
    assert kills > 4
    assert resumed.figures == whole.figures
    for name in ("test", "small"):
        path = f"completions-m-{name}.jsonl"
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    reference = Scripted("m", script)
    compare([reference], sets, tmp_path / "again", options)
    assert blocks <= set(reference.blocks)  # the same prompts with the same seeds
    assert len(set(reference.blocks)) == len(reference.blocks)


def test_half_a_block_is_made_again_without_lines_that_are_there(test_set, tmp_path) -> None:
    compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())
    path = tmp_path / "completions-m-test.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:100]) + lines[100][:30])
    model = Scripted("m", lambda ask, run: "?")
    made = compare([model], [test_set], tmp_path, EvaluationOptions())
    assert len(model.asked) == 40  # one block: all of "shuffled"
    assert path.read_bytes().splitlines(keepends=True)[:100] == lines[:100]
    (score,) = made.figures.scores
    assert score.shuffled.unparsed == 20
    assert score.plain.unparsed == 0


def test_what_is_complete_asks_no_model(test_set, tmp_path) -> None:
    first = compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())
    model = Scripted("m", lambda ask, run: 1 / 0)
    assert compare([model], [test_set], tmp_path, EvaluationOptions()).figures == first.figures
    assert model.asked == []
    # Fewer variants are a matter of figures only.
    less = compare([model], [test_set], tmp_path, EvaluationOptions(variants=("plain",)))
    assert less.figures.scores[0].blind is None
    # And several processes may have made what one puts together.
    compare([Scripted("n", right)], [test_set], tmp_path, EvaluationOptions())
    both = compare(
        [model, Scripted("n", lambda ask, run: 1 / 0)], [test_set], tmp_path, EvaluationOptions()
    )
    assert both.figures.models == ("m", "n")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"weights": "other"}, {}, r"weights \(there 'm', here 'other'\)"),
        ({}, {"seed": 1}, r"seed \(there 0, here 1\)"),
        ({}, {"max_new_tokens": 7}, r"max_new_tokens \(there 1024, here 7\)"),
        ({}, {"temperature": 0.5}, r"temperature \(there 0.0, here 0.5\)"),
        ({}, {"limit": 3}, r"limit \(there None, here 3\)"),
    ],
)
def test_completions_that_something_else_made_are_refused(
    test_set, tmp_path, model, options, message: str
) -> None:
    compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())
    before = (tmp_path / "completions-m-test.jsonl").read_bytes()
    other = Scripted("m", always("A"), **model)
    with pytest.raises(ResumeError, match=message):
        compare([other], [test_set], tmp_path, EvaluationOptions(**options))
    assert (tmp_path / "completions-m-test.jsonl").read_bytes() == before
    made = compare([other], [test_set], tmp_path, EvaluationOptions(**options), overwrite=True)
    items = options.get("limit", 40)
    assert made.figures.sets[0].items == items
    assert made.figures.scores[0].plain.letters == {"A": items}


def test_another_set_of_the_same_name_is_refused(test_set, small, tmp_path) -> None:
    compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())
    with pytest.raises(ResumeError, match="set_fingerprint"):
        compare([Scripted("m", right)], [Named("test", small.path)], tmp_path, EvaluationOptions())


def test_damaged_files_are_named(test_set, tmp_path) -> None:
    def evaluated():
        return compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())

    evaluated()
    path, sidecar = (tmp_path / f"completions-m-test.{end}" for end in ("jsonl", "json"))
    whole, made_by = path.read_bytes(), sidecar.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged, message in (
        (lines[0] + b"{}\n" + lines[1], "line 2 is not a completion"),
        (lines[0] + lines[1] + lines[0], "line 3 is there twice"),
        (b"\xff\n" + whole, "line 1 is not a completion"),
        (lines[0].replace(b'"run":0', b'"run":"0"') + whole, "line 1 is not a completion"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=message):
            evaluated()
    path.write_bytes(lines[0].replace(b'"ABCD"', b'"DCBA"'))
    with pytest.raises(ResumeError, match="would not have asked for"):
        evaluated()
    path.write_bytes(lines[0].replace(b"case%2E", b"none%2E"))
    with pytest.raises(ResumeError, match="would not have asked for"):
        evaluated()
    path.write_bytes(whole)
    for text in (b"", b"{}", b'{"format": 9, "made_by": {}}'):
        sidecar.write_bytes(text)
        with pytest.raises(ResumeError, match="does not say what made the completions"):
            evaluated()
    sidecar.write_bytes(made_by)
    evaluated()


def test_a_full_disk_is_an_error_of_ours(tmp_path) -> None:
    """Closing tries to write once more what could not be written, and fails as well."""
    made_by = {"model": "m", "set": "s"}
    line = Line("k", "s", "m", 0, "plain", "x" * 5000, True, None, "", "A", (), False, "", "A")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with (
            pytest.raises(DiskError, match="completions-m-s"),
            CompletionsLog(tmp_path, made_by, {}) as log,
        ):
            log.add([line])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with CompletionsLog(tmp_path, made_by, {}) as log:  # let go of, and the torn line cut off
        assert log.lines == []
        log.add([line])
    assert read_completions(log.path) == [line]


def test_lines_that_another_parser_read_are_read_again(test_set, tmp_path) -> None:
    model = Scripted("m", right)
    first = compare([model], [test_set], tmp_path, EvaluationOptions())
    path = tmp_path / "completions-m-test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.update(letter=None, how="unparsed", correct=False)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = compare([model], [test_set], tmp_path, EvaluationOptions())
    assert again.figures == first.figures
    assert all(line.correct for line in read_completions(path))
    assert len(model.asked) == 120


def test_two_processes_do_not_write_one_file(test_set, tmp_path) -> None:
    def script(ask, run):
        with pytest.raises(ConfigError, match="another process is writing"):
            compare([Scripted("m", right)], [test_set], tmp_path, EvaluationOptions())
        return right(ask)

    compare([Scripted("m", script)], [test_set], tmp_path, EvaluationOptions(limit=2))
    assert len(read_completions(tmp_path / "completions-m-test.jsonl")) == 6


def test_an_instruction_for_nobody(test_set, tmp_path) -> None:
    options = EvaluationOptions(instructions={"bse": "Answer."})
    with pytest.raises(ConfigError, match="'bse', which is no model here"):
        compare([Scripted("base", right)], [test_set], tmp_path, options)
    assert options.instruction_for("bse") == "Answer."
    assert EvaluationOptions(instruction="x", instructions={"a": "y"}).instruction_for("b") == "x"


def test_notes_say_where_models_differ(test_set, tmp_path) -> None:
    models = [Scripted("a", right, dtype="float32"), Scripted("b", right, dtype="bfloat16")]
    made = compare(models, [test_set], tmp_path, EvaluationOptions(variants=("plain",)))
    assert any("differ in dtype" in note for note in made.notes)
    assert made.models["b"]["dtype"] == "bfloat16"


def test_items_that_cannot_be_shuffled_are_named(tmp_path) -> None:
    odd = record(
        50, question="Which?\nA. one\nB. Both A and C\nC. x",
        options=(question(0).options[0].__class__("A", "one"),
                 question(0).options[0].__class__("B", "Both A and C"),
                 question(0).options[0].__class__("C", "x")), answer="B",
        reasoning=answer("B"),
    )  # fmt: skip
    write(tmp_path / "s", [question(0), question(1), odd])
    model = Scripted("m", right)
    made = compare([model], [Named("s", str(tmp_path / "s"))], tmp_path / "o", EvaluationOptions())
    (facts,), (score,) = made.figures.sets, made.figures.scores
    assert list(facts.not_shuffled) == ["case%2E0050"]
    assert "speaks of the others" in facts.not_shuffled["case%2E0050"]
    assert score.plain.accuracy.n == 3
    assert score.shuffled.accuracy.n == score.over_shuffled.interval.n == 2
    assert any("1 of 3 questions cannot be asked" in note for note in made.notes)
    write(tmp_path / "t", [odd])
    only = [Named("t", str(tmp_path / "t"))]
    made = compare([model], only, tmp_path / "p", EvaluationOptions())
    assert made.figures.scores[0].shuffled is None
    path = tmp_path / "p/completions-m-t.jsonl"  # as a version left it that could shuffle this one
    plain = path.read_text().splitlines()[0]
    with path.open("a") as file:
        file.write(plain.replace('"variant":"plain"', '"variant":"shuffled"') + "\n")
    with pytest.raises(ResumeError, match="would not have asked for"):
        compare([model], only, tmp_path / "p", EvaluationOptions())
    compare([model], only, tmp_path / "p", EvaluationOptions(variants=("plain", "blind")))


def test_results_are_written_where_asked(test_set, tmp_path) -> None:
    folder: Path = tmp_path / "a/b"
    compare([Scripted("m", right)], [test_set], folder, EvaluationOptions(variants=("plain",)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions-m-test.json", "completions-m-test.jsonl", RESULTS,
    ]  # fmt: skip


def test_results_wait_for_those_of_another_process(test_set, tmp_path) -> None:
    options = EvaluationOptions(variants=("plain",), limit=2)
    done = threading.Event()

    def other() -> None:
        compare([Scripted("m", right)], [test_set], tmp_path, options)
        done.set()

    with alone(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(1)
        assert not (tmp_path / RESULTS).exists()
    thread.join(300)
    assert done.is_set()
    assert (tmp_path / RESULTS).exists()
