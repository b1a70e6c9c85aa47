# ruff: noqa: RUF001, SIM905
"""Pieces in C++ against Hugging Face's own Split."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from omr_io import _C

EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HUGGING_FACE = {
    name: pre_tokenizers.Split(Regex(EXPRESSION.replace("NUMBER", number)), "isolated")
    for name, number in (("qwen2", r"\p{N}"), ("llama3", r"\p{N}{1,3}"))
}
PATTERNS = pytest.mark.parametrize("pattern", list(HUGGING_FACE))
FORMS = ("scalar",) if _C.best_instructions() == "scalar" else ("scalar", "best")

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CLASSES = _C.char_class(np.array([ord(c) for c in ALL], np.uint32))
# The first and the last code point of every run of one class, and one of each UTF-8 length.
EDGES = np.flatnonzero(np.diff(CLASSES))
INTERESTING = [ALL[i] for i in sorted({*EDGES.tolist(), *(EDGES + 1).tolist(), *range(0x180)})]
# A letter, digit, space, line break, apostrophe, mark, and their kin.
NEIGHBOURS = ["a", "s", "1", " ", "\n", "'", "!", "\u0301", "\u3000", "\r"]
TRAPS = [
    *("a s S t T re RE rE ve VE m M ll LL lL d D e l r v k x ſ K é ß ŉ ﬆ ﬅ µ β".split()),
    *("'s 'S 't 're 'RE 've 'm 'll 'LL 'd 'D 'ſ 'K '' ' ’ ’s don't x'lLy".split()),
    *("1 22 333 4444 ² ½ ٣ ३ Ⅳ ⅻ 〇 ㊿ 𝟘 中 〆 の 한 ᄀ ᅡ ᆨ 𠀀 𪚥 𰀀 👍 👩‍⚕️ 🏽 ! - . … ≥ °".split()),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r", "\r\n", "\v", "\f", " \n", "\n ", " \r\n "),
    *("\x00", "\x1c", "\x1d", "\x1e", "\x1f", "\x7f", "\x85", "\xa0", "\xad", "\u1680", "\u180e"),
    *("\u2009", "\u200b", "\u200d", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"),
    *("\u0301", "\u0327", "\u093e", "\u094d", "\u20e3", "\ufe0f", "\ue000", "\U0010ffff"),
]


def hugging_face(pattern: str, text: str) -> NDArray[np.int64]:
    """(N,) ends of the pieces, in bytes; they cover the text without a gap."""
    pieces = HUGGING_FACE[pattern].pre_tokenize_str(text)
    ranges = np.array([place for _, place in pieces], np.int64).reshape(-1, 2)
    assert np.array_equal(ranges[1:, 0], ranges[:-1, 1])
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    return np.cumsum(sizes)[ranges[:, 1] - 1] if len(ranges) else np.zeros(0, np.int64)


def equal(pattern: str, text: str, capacity: int = 512) -> None:
    """Our pieces are Hugging Face's; the first difference is shown with what is around it."""
    want, data = hugging_face(pattern, text), text.encode()
    for form in FORMS:
        got = _C.split_pieces(pattern, data, form, capacity)
        assert got.dtype == np.uint32
        if not np.array_equal(want, got):
            size = min(len(want), len(got))
            at = next((i for i in range(size) if want[i] != got[i]), size)
            begin = int(want[at - 1]) if at else 0
            around = data[begin : begin + 40].decode(errors="ignore")
            pytest.fail(f"{form}, at byte {begin}, {around!a}: {got[at:][:3]}, not {want[at:][:3]}")


@PATTERNS
def test_all_code_points_in_order(pattern: str) -> None:
    equal(pattern, "".join(ALL))


# The patterns differ in digits only: the second one needs few of the neighbours.
BETWEEN = [*NEIGHBOURS, "'l", "'r", "'v", " '", "a'", "  ", "\n ", "12"]
BETWEEN_EACH = [("qwen2", text) for text in BETWEEN] + [
    ("llama3", text) for text in ("a", "1", "12")
]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "neighbour"), BETWEEN_EACH)
def test_all_code_points_between_each(pattern: str, neighbour: str) -> None:
    equal(pattern, neighbour + neighbour.join(ALL) + neighbour)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["'{}e!", "'{}l!", "'r{}!", "'v{}!", "'l{}!", "{}s!", "{}'s", "{} a"]
)
def test_all_code_points_at_each_place_of_a_contraction(text: str) -> None:
    equal("qwen2", "".join(text.format(c) for c in ALL))


@PATTERNS
def test_code_points_at_edges_of_classes_between_any_two(pattern: str) -> None:
    some = INTERESTING if pattern == "qwen2" else INTERESTING[::7]
    for before, after in product(NEIGHBOURS, NEIGHBOURS):
        equal(pattern, "".join(f"{before}{c}{after}" for c in some[::3]))
    for neighbour in NEIGHBOURS:
        equal(pattern, neighbour.join(some))


@PATTERNS
def test_all_triples_of_traps(pattern: str) -> None:
    """Each as a text of its own would take minutes; one text has them all in the same places."""
    some = TRAPS[::2] if pattern == "llama3" else TRAPS[1::2]
    equal(pattern, "".join(map("".join, product(some, repeat=3))), 100_000)


@PATTERNS
def test_all_short_texts(pattern: str) -> None:
    """The end of a text is a place of its own, for (?!\\S) above all."""
    kinds = ["a", "1", " ", "\n", "'", "s", "é", "\u3000", "!", "\r"]
    for length in range(4):
        for letters in product(kinds, repeat=length):
            equal(pattern, "".join(letters))


@PATTERNS
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(TRAPS), max_size=60), capacity=st.integers(64, 200))
def test_traps(pattern: str, parts: list[str], capacity: int) -> None:
    equal(pattern, "".join(parts), capacity)


@PATTERNS
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), data=st.binary(max_size=100))
def test_any_text(pattern: str, text: str, data: bytes) -> None:
    equal(pattern, text + data.decode(errors="ignore"))
    equal(pattern, data.decode(errors="replace") + text)
    equal(pattern, data.decode("latin-1"))


@PATTERNS
def test_it_goes_on_from_any_end_as_if_nothing_stood_before(pattern: str) -> None:
    """What lets `split` be called again from an end that it wrote, whatever came before."""
    rng = random.Random(2)
    for _ in range(20):
        text = "".join(rng.choices(TRAPS, k=300))
        ends = hugging_face(pattern, text)
        data = text.encode()
        for end in ends[rng.randrange(10) :: 10].tolist():
            rest = hugging_face(pattern, data[end:].decode())
            assert np.array_equal(rest + end, ends[ends > end])
        for capacity in (64, 65, 100, 10_000):
            equal(pattern, text, capacity)


@PATTERNS
@pytest.mark.parametrize(
    "unit",
    [" ", "\n", "\r\n", "1", "a", "!", "'", "\u0301", "é", "中", "\u3000", "\n ", " \n", "'s", "٣"],
)
def test_a_megabyte_of_one_thing(pattern: str, unit: str) -> None:
    """Nothing quadratic: with it, each of these would take minutes."""
    slow_oracle = unit in ("1", "٣", "'s")  # a piece each
    count = 1_000_000 // len(unit.encode())
    equal(pattern, f"x {unit * (count // 10 if slow_oracle else count)}y", 64)
    for text in (unit * count, f"a {unit * count}b"):
        for form in FORMS:
            assert _C.split_pieces(pattern, text.encode(), form, 64)[-1] == len(text.encode())


def test_hugging_face_gives_up_where_we_do_not() -> None:
    """Ten million spaces are beyond the retries of its regular expressions: it panics."""
    text = " " * 10_500_000 + "a"
    with pytest.raises(BaseException, match="retry-limit"):
        HUGGING_FACE["qwen2"].pre_tokenize_str(text)
    for form in FORMS:
        ends = _C.split_pieces("qwen2", text.encode(), form)
        assert ends.tolist() == [len(text) - 2, len(text)]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="position 3"):
        _C.split_pieces("qwen2", b"ok \xff")
    with pytest.raises(ValueError, match="pattern is 'gpt2'; take one of: qwen2, llama3"):
        _C.split_pieces("gpt2", b"")
    with pytest.raises(ValueError, match="instructions is 'neon'; take one of"):
        _C.split_pieces("qwen2", b"", "neon")
    with pytest.raises(ValueError, match="capacity is 63"):
        _C.split_pieces("qwen2", b"", "scalar", 63)
