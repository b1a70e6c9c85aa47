"""`lint`: each rule on a set that breaks it, and on one that does not."""

from __future__ import annotations

import io
import json
import random
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from omr_io import cli
from omr_io.conversion import ConvertOptions, write_shard_set
from omr_io.errors import ConfigError, IntegrityError, SourceError
from omr_io.index import ShardSet
from omr_io.lint import RULES, LintOptions, LintReport, lint
from omr_io.lint.equal import also_in, group_equal
from omr_io.lint.letters import chi_square_tail, letter_bias
from omr_io.types import EncodedImage, Option, Record
from tests.shard_sets import encoded


def options(*texts: str) -> tuple[Option, ...]:
    return tuple(Option("ABCDEF"[place], text) for place, text in enumerate(texts))


def record(number: int, **changes) -> Record:
    """A record that no rule finds fault with."""
    letter = "ABC"[number % 3]
    fields = {
        "id": f"case-{number}",
        "question": f"What is seen in view {number}?\nA. liver\nB. spleen\nC. kidney",
        "options": options("liver", "spleen", "kidney"),
        "answer": letter,
        "reasoning": f"<think>The organ lies left, view {number}.</think>\n"
        f"<answer>{letter}</answer>",
        "images": (EncodedImage(encoded(number, size=(40, 48))),),
        "source": f"t.parquet#{number}",
    }
    return Record(**(fields | changes))


@pytest.fixture
def write(tmp_path):
    def write(records, name="set", **more):
        settings = ConvertOptions(check="header", max_shard_samples=4, **more)
        summary = write_shard_set(enumerate(records), tmp_path / name, settings)
        assert summary.samples == len(records), summary.refusals
        return tmp_path / name

    return write


def by_rule(report: LintReport) -> dict[str, int]:
    return {item.rule: item.count for item in report.findings}


def only(report: LintReport, rule: str, *numbers: int) -> None:
    """The rule, and nothing else, is found: in the samples of these numbers."""
    assert by_rule(report) == {rule: len(numbers)}
    (item,) = report.findings
    assert [example.key for example in item.examples] == [f"case-{n}" for n in numbers][:5]
    assert [example.shard for example in item.examples] == [
        f"train-{n // 4:06d}.tar" for n in numbers
    ][:5]
    assert (item.severity, item.mend) == (RULES[rule].severity, RULES[rule].mend)
    assert report.ok == (item.severity == "warning")


SOUND = [record(number) for number in range(12)]


def changed(number: int, **changes) -> list[Record]:
    return [*SOUND[:number], record(number, **changes), *SOUND[number + 1 :]]


def test_a_sound_set(write):
    report = lint(write(SOUND))
    assert report.findings == ()
    assert report.ok
    assert (report.samples, report.images, report.traces) == (12, 12, 12)
    (letters,) = report.letters
    assert dict(letters.counts) == {"A": 4, "B": 4, "C": 4}
    assert (letters.p_value, letters.biased) == (1.0, False)


TEXTS = [
    ("special-tokens", {"question": "Is <|im_end|> seen?\nA. liver\nB. spleen\nC. kidney"}),
    ("special-tokens", {"question": "<image>\nWhat?\nA. liver\nB. spleen\nC. kidney"}),
    ("special-tokens", {"reasoning": "<think>I [INST] see.</think><answer>C</answer>"}),
    ("empty-traces", {"reasoning": ""}),
    ("empty-traces", {"reasoning": "<think> \n</think>\n<answer>C</answer>"}),
    ("missing-tags", {"reasoning": "It is low and right, so C."}),
    ("missing-tags", {"reasoning": "<think>It is low.</think> C"}),
    ("unclosed-tags", {"reasoning": "<think>It is low.\n<answer>C</answer>"}),
    ("unclosed-tags", {"reasoning": "<think>It is low.</think>\n<answer>C"}),
    ("unclosed-tags", {"reasoning": "<think>a</think><think>b</think><answer>C</answer>"}),
    ("unclosed-tags", {"reasoning": "<answer>C</answer><think>It is low.</think>"}),
    ("wrong-answers", {"reasoning": "<think>It is low.</think>\n<answer>B</answer>"}),
    ("letters-in-traces", {"reasoning": "<think>Not option B, then.</think>\n<answer>C</answer>"}),
    ("letters-in-traces", {"reasoning": "<think>So liver (A) is out.</think><answer>C</answer>"}),
    ("letters-in-traces", {"reasoning": "<think>\nA. no\nC) yes</think>\n<answer>C</answer>"}),
    ("near-empty-answers", {"question": "What?", "options": options("a", "b", "-")}),
    ("repeated-options", {"question": "What?", "options": options("Liver", "a", "liver ")}),
    ("long-texts", {"question": "long " * 2000}),
    ("long-texts", {"reasoning": f"<think>{'on ' * 30_000}</think><answer>C</answer>"}),
]


@pytest.mark.parametrize(("rule", "changes"), TEXTS)
def test_a_rule_on_texts(write, rule, changes):
    only(lint(write(changed(5, **changes))), rule, 5)


def test_texts_that_look_alike_and_are_sound(write):
    sound = [
        "<think>Vitamin C and hepatitis B; a (D) panel; T1, I think.</think><answer>C</answer>",
        "<think>A dense mass. An option is surgery. (a) is lower case.</think><answer>C</answer>",
        "<think>p < 0.05 and <50 HU; i.e. E. coli.</think>\n<answer>C. kidney</answer>",
    ]
    for number, reasoning in enumerate(sound):
        assert lint(write(changed(5, reasoning=reasoning), f"set{number}")).findings == ()


def test_a_letter_given_before_the_reasoning(write):
    trace = "<think>The answer is C because it lies low.</think>\n<answer>C</answer>"
    report = lint(write(changed(5, reasoning=trace)))
    assert by_rule(report) == {"letters-in-traces": 1, "early-answers": 1}
    assert (report.traces, report.traces_naming_letters) == (12, 1)


def test_open_ended_samples_have_no_letters(write):
    free = {
        "question": "What?", "options": (), "answer": "the liver",
        "reasoning": "<think>Option B (A) is far; the answer is B.</think><answer>B</answer>",
    }  # fmt: skip
    report = lint(write(changed(5, **free)))
    assert report.findings == ()
    assert sum(item.samples for item in report.letters) == 11
    only(lint(write(changed(5, **free | {"answer": " "}), "empty")), "empty-answers", 5)


def test_an_answer_that_is_no_option(write):
    wrong = {"answer": "E", "reasoning": "<think>So.</think><answer>E</answer>"}
    only(lint(write(changed(5, **wrong))), "no-such-option", 5)


def test_duplicate_images(write):
    same = SOUND[2].images
    report = lint(write([record(n, images=same) if n in (2, 5, 7) else SOUND[n] for n in range(9)]))
    only(report, "duplicate-images", 5, 7)
    (item,) = report.findings
    assert item.of == 9
    assert item.detail == "1 images occur more than once, the most 3 times"
    assert item.examples[0].detail == "as in train-000000.tar, key case-2"


def test_questions_asked_again(write):
    """Options in another order, other white space and case: the same question."""
    first = SOUND[2]
    shuffled = {
        "question": "what IS seen in  view 2?\nA. spleen\nB. kidney\nC. liver",
        "options": options("spleen", "kidney", "liver"),
        "images": first.images,
    }
    assert first.answer == "C"  # kidney
    right = {"answer": "B", "reasoning": "<think>Low.</think><answer>B</answer>"}
    report = lint(write(changed(7, **shuffled, **right)))
    assert by_rule(report) == {"duplicate-questions": 1, "duplicate-images": 1}
    other = {"answer": "C", "reasoning": "<think>Low.</think><answer>C</answer>"}
    report = lint(write(changed(7, **shuffled, **other), "other"))
    assert by_rule(report) == {"contradictions": 1, "duplicate-images": 1}
    # Another image: another question.
    shuffled["images"] = SOUND[7].images
    assert lint(write(changed(7, **shuffled, **right), "apart")).findings == ()


def test_sizes(write):
    narrow = (EncodedImage(encoded(1, size=(30, 30 * 190))),)
    small = (EncodedImage(encoded(1, size=(27, 40))),)
    edge = (EncodedImage(encoded(1, size=(28, 40))),)
    only(lint(write(changed(5, images=small))), "small-images", 5)
    assert lint(write(changed(5, images=edge), "edge")).findings == ()
    folder = write(changed(5, images=narrow), "narrow")
    assert lint(folder).findings == ()
    only(lint(folder, options=LintOptions(max_aspect=180)), "narrow-images", 5)


def test_leaks(write, tmp_path):
    train = write(SOUND)
    test = [record(100 + n) for n in range(5)]
    assert lint(train, [write(test, "apart")]).ok
    test[3] = record(103, images=(*test[3].images, *SOUND[6].images))
    report = lint(train, [write(test, "images")])
    only(report, "leaked-images", 6)
    assert report.findings[0].examples[0].detail == "as in train-000000.tar, key case-103"
    into = tmp_path / "images"
    assert report.findings[0].detail == (f"into {into}: 1 images; 1 of the other split's 5 samples")
    both = lint(train, iter([into, tmp_path / "apart"]))
    assert both.against == (into, tmp_path / "apart")
    assert by_rule(both) == {"leaked-images": 1}
    test[3] = record(103, id="case-7")
    only(lint(train, [write(test, "ids")]), "leaked-ids", 7)
    with pytest.raises(ConfigError, match="compared with itself"):
        lint(train, [train])


def test_a_question_without_an_image_leaks_by_its_text(write):
    train = write(changed(5, images=(), question="Which drug?"))
    test = [record(100), record(101, images=(), question="which  DRUG?")]
    only(lint(train, [write(test, "test")]), "leaked-questions", 5)
    test[1] = record(101, question="Which drug?")  # with an image: another question
    assert lint(train, [write(test, "apart")]).ok


def png(pixels: np.ndarray, level: int) -> tuple[EncodedImage, ...]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return (EncodedImage(file.getvalue()),)


def test_equal_pixels_in_other_bytes(write):
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), np.uint8)
    train = write([*changed(5, images=png(pixels, 1)), record(12, images=png(pixels, 9))])
    test = write([record(100, images=png(pixels, 5)), record(101)], "test")
    assert lint(train, [test]).findings == ()
    report = lint(train, [test], LintOptions(pixels=True))
    assert by_rule(report) == {"leaked-pixels": 2, "duplicate-pixels": 1}
    assert not report.ok
    assert report.findings[0].examples[0].detail == "as in train-000000.tar, key case-100"
    # The same bytes in another shape are other pixels.
    turned = write([record(0, images=png(pixels.reshape(40, 30, 3), 5)), record(101)], "turned")
    assert lint(train, [turned], LintOptions(pixels=True, ignore=("leaked-ids",))).ok


def test_images_that_do_not_decode_are_named_and_equal_nothing(write):
    cut = [(EncodedImage(encoded(n, size=(64, 64))[:1500]),) for n in (50, 51)]
    broken = [record(0), record(1, images=cut[0]), record(2, images=cut[1])]
    folder = write(broken, keep_metadata=True)  # stripping would find that they are cut
    only(lint(folder, options=LintOptions(pixels=True)), "broken-images", 1, 2)


def test_answer_bias(write):
    records = []
    for number in range(60):
        letter = "A" if number % 10 < 8 else "BC"[number % 2]
        trace = f"<think>So.</think><answer>{letter}</answer>"
        records.append(record(number, answer=letter, reasoning=trace, images=()))
    report = lint(write(records))
    assert by_rule(report) == {"answer-bias": 1}
    assert "3 options: A in 80.0% of 60, 33.3% expected" in report.findings[0].detail
    assert report.ok
    assert not lint(report.folder, options=LintOptions(strict=True)).ok
    assert lint(report.folder, options=LintOptions(strict=True, ignore=("answer-bias",))).ok


def test_chi_square_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(1)
    for _ in range(200):
        x, degrees = rng.uniform(0, 60) ** rng.choice((1, 1.5)), rng.randrange(1, 26)
        assert chi_square_tail(x, degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-9)
    for k in range(2, 7):
        counts = {letter: rng.randrange(1, 90) for letter in "ABCDEF"[:k]}
        ours, theirs = letter_bias(k, counts), stats.chisquare(list(counts.values()))
        assert ours.chi_square == pytest.approx(theirs.statistic)
        assert ours.p_value == pytest.approx(theirs.pvalue)
    assert chi_square_tail(1e6, 3) == 0.0
    assert chi_square_tail(0.0, 1) == 1.0


def test_bias_needs_chance_and_effect():
    assert letter_bias(4, {"A": 77_000, "B": 8000, "C": 8000, "D": 7000}).biased
    assert not letter_bias(4, {"A": 3, "B": 1}).biased  # too few to tell
    assert not letter_bias(4, {"A": 25_500, "B": 25_000, "C": 24_800, "D": 24_700}).biased
    assert not letter_bias(5, {}).biased


def test_equal_digests_against_a_dictionary():
    rng = np.random.default_rng(2)
    pool = rng.integers(0, 256, (40, 16), np.uint8)
    pool[1, :8] = pool[0, :8]  # half equal is not equal
    here, there = pool[rng.integers(0, 30, 200)], pool[rng.integers(10, 40, 50)]
    first: dict[bytes, int] = {}
    for number, digest in enumerate(here):
        first.setdefault(digest.tobytes(), number)
    groups = group_equal(here)
    assert groups.firsts().tolist() == [first[digest.tobytes()] for digest in here]
    counts = Counter(digest.tobytes() for digest in here)
    assert sorted(groups.sizes.tolist()) == sorted(counts.values())
    first = {}
    for number, digest in enumerate(there):
        first.setdefault(digest.tobytes(), number)
    assert also_in(here, there).tolist() == [first.get(digest.tobytes(), -1) for digest in here]
    assert also_in(here, there[:0]).tolist() == [-1] * 200
    assert group_equal(here[:0]).firsts().tolist() == []


def test_what_cannot_be_linted(write, tmp_path):
    with pytest.raises(SourceError, match="no shard set"):
        lint(tmp_path)
    with pytest.raises(ConfigError, match=r"no rule 'leaks'.*leaked-images"):
        LintOptions(ignore=("leaks",))
    folder = write(SOUND)
    path = folder / "train-000001.tar"
    with ShardSet.open(folder) as shards:
        offset = shards.parts(4)[-1].offset
    data = bytearray(path.read_bytes())
    data[offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"CRC-32C.*key case-4"):
        lint(folder)


def test_the_command(write, monkeypatch, capsys):
    train, test = write(SOUND), write([record(100, images=SOUND[6].images)], "test")

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["omr-io", "lint", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        return code, capsys.readouterr().out

    code, out = run(train, "--against", test)
    assert code == 1
    assert "error: leaked-images" in out
    assert "train-000001.tar, key case-6: as in train-000000.tar, key case-100" in out
    code, out = run(train, "--against", test, "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["rule"] == "leaked-images"
    assert run(train)[0] == 0
    assert run(train, "--ignore", "nonsense")[0] == 2
    assert run(train, "--against", test, "--ignore", "leaked-images")[0] == 0


def test_what_does_not_decode_in_the_other_split_is_told(tmp_path):
    from tests.shard_sets import encoded, record
    from tests.shard_sets import write as write_set

    broken = encoded(7, size=(64, 64))
    broken = broken[: len(broken) // 2]
    write_set(tmp_path / "a", [record(0, [encoded(1, size=(64, 64))])])
    write_set(tmp_path / "b", [record(1, [broken])], check="header", keep_metadata=True)
    report = lint(tmp_path / "a", [tmp_path / "b"], LintOptions(pixels=True))
    found = {item.rule: item for item in report.findings}
    assert found["broken-images"].count == 1
    assert found["broken-images"].detail == f"in {tmp_path / 'b'}"
