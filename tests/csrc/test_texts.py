"""Texts and tar headers in C++ against Python's own: json, re, tarfile."""

from __future__ import annotations

import json
import re
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omr_io import _C

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ANY = st.characters()  # halves of surrogate pairs too
SPECIAL = st.sampled_from([*map(chr, range(0x21)), '"', "\\", "/", "\x7f", "\x80", "\u2028", "😀"])
TEXT = st.text(ANY | SPECIAL, max_size=150) | st.text(SPECIAL, max_size=150)
TREE = st.recursive(
    TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


@given(TEXT)
@example("")
@example("a" * 63 + "\x7f")
@example("a" * 64 + "\x1f" + "b" * 64)
def test_printable_is_what_the_pattern_says(text: str) -> None:
    assert _C.is_printable(text) == (is_unicode(text) and not CONTROL.search(text))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 200])
def test_every_character_is_seen_at_every_place(length: int) -> None:
    plain = "x" * length
    assert _C.is_printable(plain)
    assert _C.json_of_texts(plain) == dump(plain).encode()
    for code in (*range(0x20), 0x22, 0x5C, 0x7F, 0x80, 0xFF, 0x1F600):
        for at in range(length + 1):
            text = plain[:at] + chr(code) + plain[at:]
            assert _C.is_printable(text) == (CONTROL.search(text) is None)
            assert _C.json_of_texts(text) == dump(text).encode()


@given(TREE)
@example([])
@example({})
@example({"": ""})
def test_json_is_pythons_or_none(tree: object) -> None:
    text = dump(tree)
    assert _C.json_of_texts(tree) == (text.encode() if is_unicode(text) else None)


def test_tuples_are_lists_and_places_need_not_be_distinct() -> None:
    text = "twice"
    tree = {"a": (text, [text], ()), "b": {text: text}}
    assert _C.json_of_texts(tree) == dump(tree).encode()


class Text(str):
    """A subclass may have its own idea of what it is."""


@pytest.mark.parametrize(
    "value", [None, 1, 1.5, True, b"a", Text("a"), {1: "a"}, {"a": 1}, [{}, 2]]
)
def test_json_of_anything_else_is_none(value: object) -> None:
    assert _C.json_of_texts(value) is None
    assert _C.json_of_texts([value]) is None


def test_json_of_a_list_in_itself_is_none() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert _C.json_of_texts(loop) is None


@given(
    st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=105) | TEXT,
    st.integers(-2, 8**11 + 2) | st.sampled_from([0, 8**11 - 1, 8**11]),
)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    fits = 0 < len(name) <= 100 and name.isascii() and "\0" not in name and 0 <= size < 8**11
    if not fits:
        with pytest.raises(ValueError, match="does not fit"):
            _C.tar_header(name, size)
        return
    info = tarfile.TarInfo(name)
    info.size = size
    # tarfile cuts a trailing slash off no name that it is given so.
    assert _C.tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
