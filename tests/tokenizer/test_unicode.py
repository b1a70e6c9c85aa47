# ruff: noqa: RUF001
"""Classes and NFC in C++ against Hugging Face `tokenizers` itself."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Regex, normalizers, pre_tokenizers

from omr_io import _C

GENERATOR = Path(__file__).parents[2] / "csrc/tokenizer/generate_tables.py"
ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
OTHER, LETTER, NUMBER, SPACE, LINE = range(5)
nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str

# What composes with something before it, or stands around it: a starter or a mark of each kind.
NEIGHBOURS = [
    *("a", "e", "o", "ê", "ộ", "A", "Å", "Ω", "α", "が", "ب", "1", "\u0d46", "\u09c7", "\u0dd9"),
    *("\u0300", "\u0301", "\u0302", "\u0308", "\u031b", "\u0323", "\u0327", "\u0334", "\u0345"),
    *("\u0316", "\u05b4", "\u0653", "\u093c", "\u094d", "\u09be", "\u0dcf", "\u3099", "\u1dfa"),
    *("\u1100", "\u1161", "\u11a7", "\u11a8", "가", "각", "\uac01\u11a8", "\U000110ba"),
]
# Marks, what decomposes, and Hugging Face's marks that Unicode has as starters, and the reverse.
CHANGES = [c for c in ALL if nfd(c) != c and not "가" <= c <= "힣"]
MARKS = [c for c in ALL if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Mc")]
SECONDS = sorted({c for text in map(nfd, CHANGES) for c in text[1:]})
ALPHABET = st.one_of(
    st.sampled_from([*NEIGHBOURS, *SECONDS, "\u212b", "\u2126", "\u0344", "\u0340", "\ufb1d", "x"]),
    st.sampled_from(MARKS),
    st.sampled_from(CHANGES),
    st.characters(exclude_categories=["Cs"]),
)


def equal(text: str) -> None:
    """Our NFC is Hugging Face's; the first difference is shown with what is around it."""
    want, got = nfc(text), _C.normalize_nfc(text.encode()).decode()
    if want != got:
        at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), 0)
        assert got[max(at - 8, 0) :][:16] == want[max(at - 8, 0) :][:16]
        assert len(got) == len(want)
    if want != text:
        assert _C.may_need_nfc(text.encode())


def matched(pattern: str) -> NDArray[np.bool_]:
    """Which code points, surrogates left out, Hugging Face's regular expressions match."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    out = np.ones(len(ALL), bool)
    for _, (begin, end) in split.pre_tokenize_str("".join(ALL)):
        out[begin:end] = False
    return out


def test_classes_of_all_code_points() -> None:
    classes = _C.char_class(np.array([ord(c) for c in ALL], np.uint32))
    assert classes.dtype == np.uint8
    line = np.array([c in "\r\n" for c in ALL])
    for pattern, number in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER)):
        assert np.array_equal(classes == number, matched(pattern))
    assert np.array_equal(classes == LINE, line)
    assert np.array_equal((classes == SPACE) | line, matched(r"\s"))
    assert set(np.unique(classes).tolist()) == {OTHER, LETTER, NUMBER, SPACE, LINE}


def test_classes_are_hugging_faces_and_not_pythons() -> None:
    """The traps, so that a later Hugging Face that mends them is noticed."""
    separators = np.array([0x1C, 0x1D, 0x1E, 0x1F], np.uint32)
    assert all(chr(c).isspace() for c in separators)
    assert _C.char_class(separators).tolist() == [OTHER] * 4
    assert _C.char_class(np.array([0x85, 0x2028, 0x180E, 0x200B], np.uint32)).tolist() == [
        SPACE,
        SPACE,
        OTHER,
        OTHER,
    ]


def test_classes_of_what_is_no_code_point_are_refused() -> None:
    with pytest.raises(ValueError, match=r"code_points\[1\] is 1114112"):
        _C.char_class(np.array([1, 0x110000], np.uint32))
    with pytest.raises(TypeError):
        _C.char_class(np.array([1.5]))
    with pytest.raises(ValueError, match="one-dimensional"):
        _C.char_class(np.zeros((2, 2), np.uint32))


def test_nfc_of_all_code_points_singly() -> None:
    equal(" ".join(ALL))


def test_a_false_of_the_quick_check_proves_nfc_and_is_not_idle() -> None:
    flagged = {c for c in ALL if _C.may_need_nfc(c.encode())}
    assert flagged >= {c for c in ALL if nfc(c) != c}
    jamo = {chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    # Besides what changes alone, exactly what composes with something before it.
    wholes = [c for c in CHANGES if nfc(c) == c]
    composing = {nfd(c)[-1] for c in wholes if nfc(nfc(nfd(c)[:-1]) + nfd(c)[-1]) == c}
    assert flagged == {c for c in ALL if nfc(c) != c} | composing | jamo


@pytest.mark.parametrize(
    "text",
    ["plain", "µg/mL ± é ñ ÿ", "Ελληνικά άέή", "中文字符，。", "한국어", "日本語がぎ",
     "кириллица й", "हिन्दी", "ไทยนี้", "עִברִית", "😀 ≥ −"],
)  # fmt: skip
def test_common_scripts_pass_the_quick_check(text: str) -> None:
    for n in (1, 7, 40):
        assert not _C.may_need_nfc((text * n).encode())


def test_nfc_of_all_pairs_of_marks() -> None:
    """Order of every two marks, after a letter, and both after one that composes with many."""
    assert len(MARKS) > 1500
    for start in ("a", "ộ"):
        equal("".join(f"{start}{one}{two}" for one, two in product(MARKS, SECONDS)))
        equal("".join(f"{start}{two}{one}" for one, two in product(MARKS, SECONDS)))
    ordered = [
        c for c in MARKS if any(nfd(f"a{x}") != f"a{x}" for x in (c + "\u0334", "\u0345" + c))
    ]
    assert len(ordered) > 700
    equal("".join(f"x{one}{two}" for one, two in product(ordered, ordered)))


def test_nfc_of_what_decomposes_with_every_mark_that_composes() -> None:
    equal("".join(c + mark for c, mark in product(CHANGES, SECONDS)))
    equal("".join(c + mark + more for c in CHANGES for mark, more in permutations("̣̂̀", 2)))


def test_nfc_of_all_hangul() -> None:
    syllables = [chr(c) for c in range(0xAC00, 0xD7A4)]
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    equal("".join(map(nfd, syllables)))
    equal("".join(a + b for a, b in product(jamo, jamo)))
    equal("".join(a + b for a, b in product(syllables[::7], jamo)))
    equal("".join(a + "\u0323" + b for a, b in product(syllables[::97], jamo)))


@pytest.mark.parametrize("neighbour", ["a", "\u0301", "\u1161"])
def test_nfc_of_all_code_points_beside(neighbour: str) -> None:
    equal(neighbour + neighbour.join(ALL) + neighbour)


@pytest.mark.slow
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_nfc_of_all_code_points_between_each(neighbour: str) -> None:
    equal(neighbour + neighbour.join(ALL) + neighbour)
    for other in ("\u0323", "\u0345", "x"):
        equal("".join(f"{neighbour}{c}{other}" for c in ALL))


@pytest.mark.slow
def test_nfc_of_all_code_points_before_every_mark_that_composes() -> None:
    for second in SECONDS:
        equal("".join(c + second for c in ALL))


@settings(max_examples=100, deadline=None)
@given(st.lists(ALPHABET, max_size=30), st.integers(0, 130))
def test_nfc_of_traps(parts: list[str], before: int) -> None:
    text = "".join(parts)
    equal(text)
    equal("é" * before + text + "x" * (130 - before) + text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_nfc_of_random_bytes(data: bytes) -> None:
    equal(data.decode(errors="ignore"))


def test_nfc_of_long_random_texts() -> None:
    rng = random.Random(5)
    kinds = [*NEIGHBOURS, *SECONDS, *rng.sample(CHANGES, 200), *rng.sample(MARKS, 200)]
    for _ in range(30):
        some = rng.sample(kinds, rng.randrange(1, 60)) + [" "] * rng.randrange(40)
        equal("".join(rng.choices(some, k=20_000)))


@pytest.mark.parametrize(
    "unit",
    ["\u0301", "\u0301\u0316\u0334", "\u0334\u0301", "\u0344", "\u2126", "\u1100\u1161\u11a8",
     "e\u0301", "\u1161", "\U0001d165\U0001d16e", "a", "é", "中", "\u0dd9\u0dcf\u0dca"],
)  # fmt: skip
def test_a_megabyte_of_one_thing(unit: str) -> None:
    """Nothing quadratic: with it, each of these would take minutes."""
    many = unit * (1_000_000 // len(unit.encode()))
    equal(many)
    equal("a" + many + "a")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    for bad in (b"ok \xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"cut \xe4\xb8"):
        for call in (_C.normalize_nfc, _C.may_need_nfc):
            with pytest.raises(ValueError, match="position"):
                call(bad)


def test_empty_text() -> None:
    assert _C.normalize_nfc(b"") == b""
    assert _C.may_need_nfc(b"") is False
    assert _C.char_class(np.zeros(0, np.uint32)).tolist() == []


@pytest.mark.slow
def test_tables_are_what_the_installed_hugging_face_gives() -> None:
    done = subprocess.run(
        [sys.executable, GENERATOR, "--check"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
