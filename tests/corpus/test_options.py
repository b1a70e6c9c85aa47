"""The option grammar: what it takes, what it refuses, and that rendering and parsing agree."""

from __future__ import annotations

from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.corpus import options as module
from omr_io.corpus.options import parse_comma_options, parse_letter, parse_options, trace_letter
from omr_io.errors import RecordError
from omr_io.types import Option

LINE_STYLES = ("{}. ", "{}) ", "{}: ", "({}) ", "{}.", "{})", "{}:", "({})", "  {}.\t")
INLINE_STYLES = ("{}. ", "{}) ", "({}) ")


def options(*texts: str) -> tuple[Option, ...]:
    return tuple(Option(letter, text) for letter, text in zip(ascii_uppercase, texts, strict=False))


def render(stem: str, texts: list[str], style: str, separator: str) -> str:
    lines = [
        style.format(letter) + text for letter, text in zip(ascii_uppercase, texts, strict=False)
    ]
    return separator.join([stem, *lines])


PRINTABLE = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
OPTION_TEXT = st.text(PRINTABLE, min_size=1, max_size=30).map(str.strip).filter(bool)
# A stem's last line must not itself be a labelled line; anything goes in the lines before.
STEM_LINE = st.one_of(
    st.text(PRINTABLE, max_size=40),
    st.sampled_from(
        ["A. lumbricoides is shown.", "B) and C) are axial.", "(A)", "A.", "Vitamin A. is low"]
    ),
)
STEM = st.tuples(st.lists(STEM_LINE, max_size=3), st.just("Which one is it?")).map(
    lambda parts: "\n".join([*parts[0], parts[1]]).strip()
)


@given(
    STEM,
    st.lists(OPTION_TEXT, min_size=2, max_size=26),
    st.sampled_from(LINE_STYLES),
    st.sampled_from(["\n", "\n\n", "\r\n", "\n \n", "\r"]),
    st.sampled_from(["", "\n", "\n\n \t\n"]),
)
def test_line_form_gives_back_what_was_rendered(
    stem: str, texts: list[str], style: str, separator: str, tail: str
) -> None:
    question = render(stem, texts, style, separator) + tail
    assert parse_options(question) == (stem, options(*texts))


WORD = st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=12)


@given(
    st.lists(WORD, min_size=1, max_size=6).map(" ".join),
    st.lists(st.lists(WORD, min_size=1, max_size=4).map(" ".join), min_size=2, max_size=26),
    st.sampled_from(INLINE_STYLES),
    st.sampled_from([" ", "   ", "\t"]),
)
def test_inline_form_gives_back_what_was_rendered(
    stem: str, texts: list[str], style: str, separator: str
) -> None:
    question = render(stem + "?", texts, style, separator)
    assert parse_options(question) == (stem + "?", options(*texts))


@given(st.text(st.sampled_from("AB.C):( \n?x"), max_size=40))
def test_any_text_parses_or_is_refused_and_what_parses_is_a_proper_list(question: str) -> None:
    try:
        stem, found = parse_options(question)
    except RecordError:
        return
    assert stem == stem.strip()
    assert stem in question
    assert len(found) != 1
    assert "".join(option.letter for option in found) == ascii_uppercase[: len(found)]
    position = question.find(stem) + len(stem)
    for option in found:  # in order, after the stem, nothing made up
        assert option.text
        assert option.text == option.text.strip()
        position = question.index(option.text, position) + len(option.text)


def test_stem_line_that_looks_like_an_option_is_stem() -> None:
    question = "A. lumbricoides is shown.\nA. egg\nB. larva"
    assert parse_options(question) == ("A. lumbricoides is shown.", options("egg", "larva"))
    question = "B. burgdorferi is suspected.\nA) yes\nB) no"
    assert parse_options(question) == ("B. burgdorferi is suspected.", options("yes", "no"))


def test_inline_options_after_an_instruction_are_not_mistaken_for_the_list() -> None:
    with pytest.raises(RecordError, match="option B is followed by"):
        parse_options("Which?\nA. x\nB. y\nChoose A) or B) now")


def test_a_list_in_the_stem_does_not_matter_when_text_stands_between() -> None:
    question = "Panels:\nA. axial\nB. coronal\nWhich shows it?\nA. the first\nB. the second"
    stem, found = parse_options(question)
    assert stem == "Panels:\nA. axial\nB. coronal\nWhich shows it?"
    assert found == options("the first", "the second")


def test_lines_come_before_inline_and_styles_may_differ_between_lines() -> None:
    question = "Which?\nA. Both B. and C. species\n(B) none"
    assert parse_options(question)[1] == options("Both B. and C. species", "none")


def test_unicode_letters_and_spaces_around_labels() -> None:
    assert parse_options("Wo?\n\u00a0A.\u00a0Fußknöchel\n B) \u00a0胸部")[1] == options(
        "Fußknöchel", "胸部"
    )


@pytest.mark.parametrize(
    "question",
    [
        "",
        "   \n ",
        "What is shown?",
        "The panel (A) is axial. What is it?",
        "Hepatitis A. Which drug?",
        "a. lower\nb. case",
        "1. one\n2. two",
    ],
)
def test_no_options(question: str) -> None:
    assert parse_options(question) == (question.strip(), ())


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("Q?\nA. x\nC. y", "A, C"),
        ("Q?\nA. x\nB. y\nB. z", "A, B, B"),
        ("Q?\nB. x\nC. y", "B, C"),
        ("Q?\nA. x", "only one option"),
        ("Q?\nA. x\nB. y\nA. z", "only one option"),
        ("Q?\nA. x\nB. y\nA. z\nB. w", "two lists"),
        ("Q?\nA.\nB. y", "option A has no text"),
        ("Q?\nA. x\nB. ", "option B has no text"),
        ("Q?\nA. x\nB. y\nAnswer with a letter.", "option B is followed by"),
        ("Q?\nA. x\ngoes on\nB. y", "run A, B, C, ...: B"),
        ("Q?\nA) x  B) y\nC) z  D) w", "A, C"),
        ("Q? A) x C) y", "A, C"),
        ("Q? A) x B) y B) z", "A, B, B"),
        ("In (A) axial and (B) coronal, what is seen?", "holds a question"),
        ("Q? A) x B) y A. z B. w", "two ways"),
        ("Q? A) x B)", "option B has no text"),
        (
            "Q?\nA. x\nB. y\nC. z\nI\nD. w\nend",
            "option C is followed by a line that is not an option: 'I'",
        ),
        ("Q?\n" + "\n".join(f"{letter}. x" for letter in ascii_uppercase) + "\nAA. y", "option Z"),
    ],
)
def test_malformed_options_are_refused(question: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_options(question)
    assert says in str(caught.value)


COMMA_TEXT = st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=9)


@given(
    st.lists(st.lists(COMMA_TEXT, min_size=1, max_size=3).map(", ".join), min_size=2, max_size=26),
    st.sampled_from(["", " "]),
    st.sampled_from([", ", ",", "; "]),
    st.sampled_from(["", "\n", " \n\n"]),
)
def test_comma_form_gives_back_what_was_rendered(
    texts: list[str], gap: str, separator: str, tail: str
) -> None:
    parts = [f"{letter}){gap}{text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    question = "What was used? " + separator.join(parts) + tail
    assert parse_comma_options(question) == ("What was used?", options(*texts))


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("What?A)CT, B)X-ray", ("What?", options("CT", "X-ray"))),
        ("What?\nA)CT, B)X-ray.", ("What?", options("CT", "X-ray."))),
        ("Which (A) or (B)?", None),
        ("Q?\nA) x\nB) y", None),
        ("Vitamin A)", None),
        ("", None),
    ],
)
def test_comma_form(question: str, found: object) -> None:
    assert parse_comma_options(question) == found


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("Q? A)x, C)y", "A, C"),
        ("Q? A)x B)y", "no comma stands between option A"),
        ("Q? A), B)y", "option A has no text"),
        ("Q? A)x, B)", "option B has no text"),
        ("Is it A)x, or B)y? Or not, C)z", "no comma"),
        ("Is it A)x?, B)y", "option A holds a question"),
    ],
)
def test_malformed_comma_forms_are_refused(question: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_comma_options(question)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["B", "B.", "B)", "B:", "(B)", " B\n"])
def test_letter(text: str) -> None:
    assert parse_letter(text) == "B"


@pytest.mark.parametrize(
    "text", ["", "b", "(B", "((B))", "B,", "AB", "A B", "B. x", "2", "\u0392", "B.)"]
)
def test_not_a_letter(text: str) -> None:
    assert parse_letter(text) is None


@pytest.mark.parametrize(
    ("reasoning", "letter"),
    [
        ("<think>x</think>\n<answer>C</answer>", "C"),
        ("<think><answer>A</answer></think><answer> (B) </answer>", "B"),
        ("<answer>B. Pneumonia</answer>", "B"),
        ("<answer>A normal heart</answer>", None),
        ("<answer>C", None),
        ("no answer", None),
        ("<answer></answer>", None),
        ("</answer>", None),
        ("</answer><answer>A", None),
        ("<answer>A</answer><answer>B", "A"),
        ("<answer>A</answer><answer>B</answer>", "B"),
    ],
)
def test_letter_of_a_trace(reasoning: str, letter: str | None) -> None:
    assert trace_letter(reasoning) == letter


def test_long_adversarial_text_takes_linear_time() -> None:
    question = "A) " * 100_000
    with pytest.raises(RecordError):
        parse_options(question)
    assert parse_options(" " * 200_000 + "x") == ("x", ())
    assert trace_letter("<answer>" * 100_000) is None


LABELLED = st.sampled_from(["A. one", "B) two", "C: x", "D.", "(A) y", " B. z", "E. w", "A.b", ""])
ANY_LINES = st.lists(LABELLED | st.text(PRINTABLE, max_size=8), max_size=9)
ENDS = st.sampled_from(["", "\n", " \n\n", "\r"])


@given(
    st.one_of(
        st.builds(
            lambda stem, lines, separator, end: separator.join([stem, *lines]) + end,
            STEM_LINE, ANY_LINES, st.sampled_from(["\n", "\n", "\r\n", "\n \n", "\x0b"]), ENDS,
        ),
        st.builds(
            lambda stem, texts, style, end: render(stem, texts, style, "\n") + end,
            STEM, st.lists(OPTION_TEXT, min_size=1, max_size=5), st.sampled_from(LINE_STYLES), ENDS,
        ),
        st.text(st.sampled_from("AB.C):( \n?x"), max_size=40),
    )
)  # fmt: skip
def test_the_quick_way_gives_what_the_grammar_gives(question: str) -> None:
    quick = module._plain_options(question)
    if quick is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_plain_options", lambda question: None)
        assert quick == parse_options(question)


@pytest.mark.parametrize("style", ["{}. ", "{}) ", "{}: ", "{}."])
def test_the_quick_way_takes_what_corpora_have(style: str) -> None:
    question = render("Which one?\nLook.", ["one", "two", "three"], style, "\n")
    assert module._plain_options(question) == ("Which one?\nLook.", options("one", "two", "three"))
    assert module._plain_options(question + "\n") is not None
