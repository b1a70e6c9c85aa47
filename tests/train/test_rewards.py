r"""The table of hostile completions that pins the parser."""

from __future__ import annotations

import time

import pytest

from omr_io.train.rewards import How, parse_answer, reward
from omr_io.types import Option, Record

OPTIONS = (
    Option("A", "computed tomography"),
    Option("B", "magnetic resonance imaging"),
    Option("C", "ultrasound"),
    Option("D", "X-ray"),
)
THINK = "<think>The ribs are bright.</think>"

# completion, letter when lenient, how, letter when strict
TABLE: list[tuple[str, str | None, How, str | None]] = [
    # the corpus' own form
    (f"{THINK}<answer>B</answer>", "B", "answer", "B"),
    (f"{THINK}\n<answer>B</answer>", "B", "answer", "B"),
    (f"{THINK}\n\n  <answer> B </answer>\n", "B", "answer", "B"),
    ("<think>\nTwo\nlines.\n</think>\n\n<answer>\nD\n</answer>", "D", "answer", "D"),
    (f"{THINK}<answer>B. magnetic resonance imaging</answer>", "B", "answer", "B"),
    (f"{THINK}<answer>(B) Magnetic  resonance imaging.</answer>", "B", "answer", "B"),
    (f"{THINK}<answer>ultrasound</answer>", "C", "answer", "C"),
    (f"{THINK}<answer>Ultrasound.</answer>", "C", "answer", "C"),
    (f"{THINK}<answer>(C)</answer>", "C", "answer", "C"),
    (f"{THINK}<answer>C.</answer>", "C", "answer", "C"),
    (f"{THINK}<answer>C)</answer>", "C", "answer", "C"),
    (f"{THINK}<answer>c</answer>", "C", "answer", "C"),
    # answers that are none
    (f"{THINK}<answer>A/B</answer>", None, "unparsed", None),
    (f"{THINK}<answer>A or B</answer>", None, "unparsed", None),
    (f"{THINK}<answer>A, B</answer>", None, "unparsed", None),
    (f"{THINK}<answer>AB</answer>", None, "unparsed", None),
    (f"{THINK}<answer></answer>", None, "unparsed", None),
    (f"{THINK}<answer> </answer>", None, "unparsed", None),
    (f"{THINK}<answer>The answer is B</answer>", None, "unparsed", None),
    (f"{THINK}<answer>B. computed tomography</answer>", None, "unparsed", None),
    (f"{THINK}<answer>B. No wait, C</answer>", None, "unparsed", None),
    (f"{THINK}<answer>E</answer>", None, "unparsed", None),  # another row's letter
    (f"{THINK}<answer>F</answer>", None, "unparsed", None),
    (f"{THINK}<answer>1</answer>", None, "unparsed", None),
    (f"{THINK}<answer>not B</answer>", None, "unparsed", None),
    (f"{THINK}<answer>imaging</answer>", None, "unparsed", None),
    (f"{THINK}<answer>A fracture</answer>", None, "unparsed", None),
    # look-alikes: Cyrillic Ve and A, Greek Beta, full-width B, circled B, long s
    (f"{THINK}<answer>\u0412</answer>", None, "unparsed", None),
    (f"{THINK}<answer>\u0410</answer>", None, "unparsed", None),
    (f"{THINK}<answer>\u0392</answer>", None, "unparsed", None),
    (f"{THINK}<answer>\uff22</answer>", None, "unparsed", None),
    (f"{THINK}<answer>\u24b7</answer>", None, "unparsed", None),
    ("The answer is \u0412.", None, "unparsed", None),
    # wrong form: lenient reads it, strict does not
    ("<answer>B</answer>", "B", "answer", None),
    ("<think></think><answer>B</answer>", "B", "answer", None),
    ("<think> \n</think><answer>B</answer>", "B", "answer", None),
    (f"Sure! {THINK}<answer>B</answer>", "B", "answer", None),
    (f"{THINK}<answer>B</answer> I am sure.", "B", "answer", None),
    (f"{THINK} So: <answer>B</answer>", "B", "answer", None),
    (f"{THINK}<answer>A</answer><answer>B</answer>", "B", "answer", None),
    (f"{THINK}<answer>A</answer>{THINK}<answer>B</answer>", "B", "answer", None),
    (f"{THINK}<answer>B</answer> or <answer>A/B</answer>", None, "unparsed", None),
    (f"{THINK}<answer><answer>B</answer></answer>", "B", "answer", None),
    ("<think>Is it <answer>A</answer>?</think><answer>B</answer>", "B", "answer", None),
    ("<think>Is it <answer>A</answer>?</think>", "A", "answer", None),
    ("<think>a<think>b</think></think><answer>B</answer>", "B", "answer", None),
    ("<answer>B</answer><think>late</think>", "B", "answer", None),
    (f"{THINK}<ANSWER>B</ANSWER>", "B", "answer", None),
    # unclosed tags
    (f"{THINK}<answer>B", None, "unparsed", None),
    (f"{THINK}B</answer>", None, "unparsed", None),
    ("<think>The ribs <answer>B</answer>", "B", "answer", None),
    (f"{THINK}<answer>A</answer> wait <answer>B", "A", "answer", None),
    # boxed
    (r"So \boxed{B}", "B", "boxed", None),
    (r"So $\boxed{\text{B}}$", "B", "boxed", None),
    (r"\boxed{A}, no, \boxed{C}", "C", "boxed", None),
    (r"\boxed{A + B = 3}", None, "unparsed", None),
    (r"\boxed{42}", None, "unparsed", None),
    (r"\boxed{E}", None, "unparsed", None),
    (r"\boxed{B} but the answer is C.", "B", "boxed", None),
    # sentences
    ("The answer is B.", "B", "sentence", None),
    ("The answer is B", "B", "sentence", None),
    ("the correct answer is: (B).", "B", "sentence", None),
    ("The answer is **B**.", "B", "sentence", None),
    ("The answer is option B because of the ribs.", "B", "sentence", None),
    ("The answer is B. magnetic resonance imaging", "B", "sentence", None),
    ("The answer is B. No, wait: the answer is C.", "C", "sentence", None),
    ("The answer is B. This answer is supported by the ribs.", "B", "sentence", None),
    ("The answer is B, not C.", "B", "sentence", None),
    ("The answer is B. But then the answer is not B.", None, "unparsed", None),
    ("The answer is A/B.", None, "unparsed", None),
    ("The answer is A or B.", None, "unparsed", None),
    ("The answer is A, B.", None, "unparsed", None),
    ("The answer is A and C.", None, "unparsed", None),
    ("The answer is A fracture of the rib.", None, "unparsed", None),
    ("The answer is a fracture.", None, "unparsed", None),
    ("The answer is b.", None, "unparsed", None),
    ("The answer is A = 4 B.", None, "unparsed", None),
    ("The answer is A+B.", None, "unparsed", None),
    ("The answer is A'.", None, "unparsed", None),
    ("The answer is B12 deficiency.", None, "unparsed", None),
    ("The answer is D-dimer.", None, "unparsed", None),
    ("The answer is Absent.", None, "unparsed", None),
    ("The answer is E.", None, "unparsed", None),
    # nothing said
    ("The answer…", None, "unparsed", None),
    ("The answer", None, "unparsed", None),
    ("A", None, "unparsed", None),
    ("B.", None, "unparsed", None),
    ("I pick B", None, "unparsed", None),
    ("Let A be the area, B the base: A = B h / 2.", None, "unparsed", None),
    ("A chest X-ray.", None, "unparsed", None),
    ("", None, "unparsed", None),
]  # fmt: skip


def record(reasoning: str = "", options: tuple[Option, ...] = OPTIONS, answer: str = "B") -> Record:
    return Record("id", "Which?", options, answer, reasoning)


def test_the_table_is_long_and_has_no_twins() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("completion", "letter", "how", "strict"), TABLE)
def test_hostile_completion(
    completion: str, letter: str | None, how: How, strict: str | None
) -> None:
    lenient = parse_answer(completion, OPTIONS, strict=False)
    assert (lenient.letter, lenient.how) == (letter, how)
    strictly = parse_answer(completion, OPTIONS, strict=True)
    assert strictly.letter == strict
    assert strictly.how == ("answer" if strict else "unparsed")
    # What strict takes, lenient reads alike.
    assert strict in (None, letter)


def test_letters_come_from_the_row() -> None:
    two = OPTIONS[:2]
    assert parse_answer("The answer is C.", two, strict=False).letter is None
    assert parse_answer("The answer is C.", OPTIONS, strict=False).letter == "C"
    six = (*OPTIONS, Option("E", "PET"), Option("F", "SPECT"))
    assert parse_answer(f"{THINK}<answer>F</answer>", six, strict=True).letter == "F"
    assert parse_answer(f"{THINK}<answer>A</answer>", (), strict=True).letter is None


def test_option_texts_that_look_alike() -> None:
    cases = (Option("A", "abl"), Option("B", "ABL"), Option("C", "C"), Option("D", "A"))
    assert parse_answer("<answer>abl</answer>", cases, strict=False).letter == "A"
    assert parse_answer("<answer>ABL</answer>", cases, strict=False).letter == "B"
    assert parse_answer("<answer>Abl</answer>", cases, strict=False).letter is None  # either
    # A letter is a letter first, even where another option's text is that letter.
    assert parse_answer("<answer>A</answer>", cases, strict=False).letter == "A"
    same = (Option("A", "left"), Option("B", "left"))
    assert parse_answer("<answer>left</answer>", same, strict=False).letter is None


def test_the_corpus_own_form_gets_the_full_reward() -> None:
    """A known defect of the authors' recipe: a format reward that the corpus' own rows fail."""
    for gap in ("", "\n", "\n\n", " "):
        row = record(f"<think>Bright ribs.\nSo MRI.</think>{gap}<answer>B</answer>")
        got = reward(row.reasoning, row)
        assert (got.accuracy, got.format, got.total) == (1.0, 1.0, 1.5)


@pytest.mark.parametrize(
    ("completion", "accuracy", "form"),
    [
        (f"{THINK}<answer>A</answer>", 0.0, 1.0),
        (f"{THINK}<answer>Z</answer>", 0.0, 1.0),
        (f"{THINK}<answer></answer>", 0.0, 0.0),
        ("<answer>B</answer>", 0.0, 0.0),
        ("The answer is B.", 0.0, 0.0),
        (f"{THINK}<answer>B</answer><answer>B</answer>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_rewards(completion: str, accuracy: float, form: float) -> None:
    got = reward(completion, record(), accuracy_weight=2.0, format_weight=0.25)
    assert (got.accuracy, got.format) == (accuracy, form)
    assert got.total == 2.0 * accuracy + 0.25 * form


@pytest.mark.parametrize(
    "hostile",
    [
        "<think>" * 20_000,
        "<answer>" * 20_000,
        "<think>" + "a" * 200_000,
        "<think>x</think>" + " " * 100_000 + "<answer>",
        "\\boxed{" * 20_000,
        "answer is " * 20_000,
        "The answer is A" + " " * 100_000 + "x",
        "answer" + " " * 100_000,
        "answer is" + " " * 100_000 + "x",
        ("answer is A" + " " * 50) * 5_000 + "x",
        "\\boxed{A" + " " * 100_000,
        "<answer>A" + " " * 100_000 + "x</answer>",
        "<answer>A" + "." * 100_000 + "x</answer>",
        "<answer>" + " " * 100_000 + "</answer>",
    ],
)
def test_long_hostile_text_takes_no_time(hostile: str) -> None:
    start = time.process_time()  # whatever else the machine does
    assert parse_answer(hostile, OPTIONS, strict=False).letter is None
    assert reward(hostile, record()).total == 0.0
    assert time.process_time() - start < 5.0  # milliseconds; what is quadratic takes minutes
