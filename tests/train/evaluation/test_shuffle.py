"""Options in another order: exact texts, back again, and what cannot be reordered is refused."""

from __future__ import annotations

from collections import Counter
from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.corpus.options import parse_options
from omr_io.errors import DataError
from omr_io.train.evaluation.shuffle import Shuffled, permutation, shuffle_options
from omr_io.train.rewards import parse_answer
from omr_io.types import Option, Record


def record(question: str, texts: list[str], answer: str = "A") -> Record:
    options = tuple(Option(letter, text) for letter, text in zip(ascii_uppercase, texts))  # noqa: B905
    return Record(id="k", question=question, options=options, answer=answer, reasoning="")


# Words that no label or separator is made of, and that do not speak of other options.
WORDS = st.text(st.sampled_from("abcdexyzéß漢 -"), min_size=1, max_size=12).map(
    lambda text: "t" + " ".join(text.split())
)
TEXTS = st.lists(WORDS, min_size=2, max_size=6, unique_by=lambda text: text.casefold())


@st.composite
def questions(draw):
    texts = draw(TEXTS)
    stem = draw(
        st.sampled_from(["Which plane is it?", "What?\nA. not an option", "A or B?\n\nSay."])
    )
    style = draw(
        st.sampled_from(["\n{}. ", "\n{}) ", "\n({}) ", "\n{}: ", "\r\n  {}.\t", "inline", ","])
    )
    lettered = list(zip(ascii_uppercase, texts, strict=False))
    if style == "inline":
        question = stem + "".join(f" {letter}) {text}" for letter, text in lettered)
    elif style == ",":
        question = stem + " " + ", ".join(f"{letter}){text}" for letter, text in lettered)
    else:
        gap = draw(st.sampled_from(["", "\n", " "]))
        question = stem + "".join(style.format(letter) + text + gap for letter, text in lettered)
    if style not in ("inline", ",") and draw(st.booleans()):  # no such form is in the grammar
        question += "\nAnswer with the letter."
    order = draw(st.permutations(range(len(texts))))
    return record(question, texts, draw(st.sampled_from(ascii_uppercase[: len(texts)]))), order


@given(questions())
def test_there_and_back_is_the_question(made) -> None:
    original, order = made
    shuffled = shuffle_options(original, order)
    assert [option.text for option in shuffled.record.options] == [
        original.options[number].text for number in order
    ]
    assert [option.letter for option in shuffled.record.options] == [
        option.letter for option in original.options
    ]
    back = sorted(range(len(order)), key=order.__getitem__)
    again = shuffle_options(shuffled.record, back)
    assert again.record == original
    # Whatever stands between the options' words is where it was.
    removed = [original.question, shuffled.record.question]
    for option in sorted(original.options, key=lambda o: -len(o.text)):
        removed = [text.replace(option.text, "*") for text in removed]
    assert removed[0] == removed[1]


@given(questions(), st.sampled_from(["<answer>{}</answer>", "<answer>{}. {}</answer>", "text"]))
def test_who_knows_the_text_is_right_in_every_order(made, form: str) -> None:
    original, order = made
    shuffled = shuffle_options(original, order)
    right = next(o.text for o in original.options if o.letter == original.answer)
    place = next(o.letter for o in shuffled.record.options if o.text == right)
    said = f"<answer>{right}</answer>" if form == "text" else form.format(place, right)
    parsed = parse_answer(said, shuffled.record.options, strict=False)
    assert parsed.letter == shuffled.record.answer == place
    assert shuffled.original(parsed.letter) == original.answer
    assert shuffled.original(None) is None


def test_what_it_looks_like() -> None:
    shuffled = shuffle_options(
        record("Which?\nA. one\nB) two\n C:  three ", ["one", "two", "three"], "B"), (2, 0, 1)
    )
    assert shuffled.record.question == "Which?\nA. three\nB) one\n C:  two "
    assert shuffled.letters == "CAB"
    assert shuffled.record.answer == "C"
    assert [shuffled.original(letter) for letter in "ABC"] == ["C", "A", "B"]


def test_a_run_that_stands_in_the_stem_too_is_left_alone() -> None:
    question = "Of A. one B. two, which?\nA. one\nB. two"
    shuffled = shuffle_options(record(question, ["one", "two"]), (1, 0))
    assert shuffled.record.question == "Of A. one B. two, which?\nA. two\nB. one"


def test_one_text_within_another() -> None:
    texts = ["lung", "left lung", "lung B. left lung"]
    question = "Where?\nA. lung\nB. left lung\nC. lung B. left lung"
    shuffled = shuffle_options(record(question, texts, "C"), (2, 1, 0))
    assert shuffled.record.question == "Where?\nA. lung B. left lung\nB. left lung\nC. lung"
    assert parse_options(shuffled.record.question)[1] == shuffled.record.options


@pytest.mark.parametrize(
    "text",
    ["All of the above", "none of the above.", "Both A and B", "A and B", "A, B, and C", "A/B",
     "B & C only", "Neither A nor B", "Options A and B", "Either of the above options",
     "The same as option A", "a or b", "All of the following"],
)  # fmt: skip
def test_options_that_speak_of_each_other_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="option B speaks of the others"):
        shuffle_options(record(f"Which?\nA. one\nB. {text}\nC. x", ["one", text, "x"]), (0, 1, 2))


@pytest.mark.parametrize(
    "text",
    ["Above the diaphragm", "below the knee", "Hepatitis A and B", "Vitamin A", "None", "Both",
     "None of these", "B", "Group A streptococcus", "All lobes", "both lungs", "AB"],
)  # fmt: skip
def test_options_that_only_look_so_are_not(text: str) -> None:
    made = shuffle_options(record(f"Which?\nA. {text}\nB. other", [text, "other"]), (1, 0))
    assert made.record.question == f"Which?\nA. other\nB. {text}"


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("Which?", ["one", "two"]),  # options apart from the question
        ("Which?\nA. one\nB. two", ["one", "three"]),
        ("Which?\nA. one\nB. two", ["one", "two", "three"]),
        ("Which?\nA. one\nB. two\nC. three", ["one", "two"]),
        ("Which?\nA. one", ["one"]),
    ],
)
def test_a_question_that_does_not_hold_its_options_is_refused(question, texts) -> None:
    with pytest.raises(DataError, match="do not stand in the question as the record has them"):
        shuffle_options(record(question, texts), range(len(texts)))


def test_an_order_must_be_one() -> None:
    with pytest.raises(DataError, match="no order of its 2 options"):
        shuffle_options(record("W?\nA. one\nB. two", ["one", "two"]), (0, 0))
    with pytest.raises(DataError, match="no order of its 0 options"):
        shuffle_options(record("W?", []), ())


def test_options_of_columns_keep_their_own_words() -> None:
    """The record's text may differ from the question's in case and white space."""
    shuffled = shuffle_options(record("W?\nA. One\nB. two  x", ["one", "two x"], "A"), (1, 0))
    assert shuffled.record.question == "W?\nA. two  x\nB. One"
    assert [option.text for option in shuffled.record.options] == ["two x", "one"]
    assert shuffled == Shuffled(shuffled.record, "BA")
    assert shuffled.record.answer == "B"


def test_orders_follow_from_seed_and_key_and_are_even() -> None:
    assert permutation(0, "k", 4) == permutation(0, "k", 4)
    orders = Counter(permutation(0, f"k{i}", 3) for i in range(6000))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 130  # 4.5 standard deviations
    assert len({permutation(seed, "k", 6) for seed in range(50)}) > 40
