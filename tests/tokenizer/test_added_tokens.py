"""Added tokens against Hugging Face's own search, flags and overlaps and all."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import DataError, TokenizerError
from omr_io.tokenizer import Tokenizer
from tests.text_fixtures import hugging_face, small

FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
# They overlap, begin with each other, hold spaces, and change under NFC.
CONTENTS = (
    "ab", "abc", "bc", "cd", "b", " ", "  x", "x ", "<t>", "<t><u>", "<u>", "é", "e\u0301",
    "\u0301", "a\u0301", "中文", "Ġ", "\u0958", "\U0001f9e0", "_", "\n",
)  # fmt: skip
TEXT = st.lists(
    st.sampled_from(
        [*CONTENTS, "a", "c", "d", "e", "y", "1", "-", "ⓐ", "\u200d", "\u3000", "\x1c", "\x85", " "]
    ),
    max_size=14,
).map("".join)


def tree_with(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    tree = json.loads(small()._source)
    vocab = {t: i for t, i in tree["model"]["vocab"].items() if i < 490}
    added = [{"id": 490 + i, **token} for i, token in enumerate(tokens)]
    # U+0958 becomes two characters under NFC.
    return tree | {"model": tree["model"] | {"vocab": vocab}, "added_tokens": added}


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, **dict.fromkeys(FLAGS, False), **flags}


def oracle(tree: dict[str, Any]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(json.dumps(tree))
    made.encode_special_tokens = True
    return made


TOKENS = st.lists(
    st.tuples(st.sampled_from(CONTENTS), st.lists(st.booleans(), min_size=5, max_size=5)),
    unique_by=lambda item: item[0],
    max_size=7,
)


@settings(max_examples=100, deadline=None)
@given(tokens=TOKENS, texts=st.lists(TEXT, min_size=1, max_size=6), nfc=st.booleans())
def test_any_flags_and_overlaps_equal_hugging_face(
    tokens: list[tuple[str, list[bool]]], texts: list[str], nfc: bool
) -> None:
    tree = tree_with([token(c, **dict(zip(FLAGS, f, strict=True))) for c, f in tokens])
    if not nfc:
        tree["normalizer"] = None
    try:
        ours = Tokenizer(json.dumps(tree))
    except TokenizerError as error:
        assert "claim the same whitespace" in error.what  # noqa: PT017
        return
    theirs = oracle(tree)
    for text in texts:
        found = theirs.encode(text, add_special_tokens=False).ids
        if set(found) & ours.special_ids:  # the vocabulary itself has the special token's letters
            with pytest.raises(TokenizerError, match="control token"):
                ours.encode(text)
            continue
        assert ours.encode(text).tolist() == found
        assert ours.count_batch([text]).tolist() == [len(found)]


def test_tokens_on_which_hugging_face_panics_are_refused() -> None:
    tree = tree_with([token("a", rstrip=True), token(" ", lstrip=True)])
    with pytest.raises(BaseException, match="AddedVocabulary bad split"):
        oracle(tree).encode("a    b")
    with pytest.raises(TokenizerError, match=r"'a' \(rstrip\) and ' ' \(lstrip\)"):
        Tokenizer(json.dumps(tree))


def test_a_skipped_match_uses_up_its_bytes() -> None:
    """What Hugging Face does with encode_special_tokens, where a copy without them differs."""
    tree = tree_with([token("<a>b", special=True), token("b<c>")])
    theirs, ours = oracle(tree), Tokenizer(json.dumps(tree))
    text = "x<a>b<c>"
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    without = hugging_face(json.dumps(tree), control=False)
    assert ours.token_id("b<c>") in without.encode(text).ids
    assert ours.token_id("b<c>") not in ours.encode(text)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_many_first_bytes(count: int) -> None:
    """Up to 4 are searched by memchr each, more by a table."""
    contents = [f"{first}t{first}" for first in "<[{|@#éZ中"[:count]]
    tree = tree_with([token(c) for c in contents])
    theirs, ours = oracle(tree), Tokenizer(json.dumps(tree))
    rng = random.Random(count)
    parts = [*contents, *(c[0] for c in contents), *(c[:2] for c in contents), "word ", "é", "\n"]
    for _ in range(200):
        text = "".join(rng.choices(parts, k=12))
        assert ours.encode(text).tolist() == theirs.encode(text).ids


def test_every_code_point_beside_a_single_word_and_a_stripping_token() -> None:
    tree = tree_with([token("<q>", single_word=True), token("<s>", lstrip=True, rstrip=True)])
    tree["normalizer"] = None
    theirs, ours = oracle(tree), Tokenizer(json.dumps(tree))
    scalars = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    step = 16  # every 16th one, and all below U+3100, where nearly all kinds are
    chosen = [c for c in scalars if c < 0x3100 or c % step == 0]
    for begin in range(0, len(chosen), 256):
        # One text of many: a <q> between each pair of neighbours is beside both of them.
        text = "".join(f"{chr(c)}<q>{chr(c)} <s>{chr(c)}" for c in chosen[begin : begin + 256])
        assert ours.encode(text).tolist() == theirs.encode(text).ids


def test_policy_error_names_token_text_and_position() -> None:
    tokenizer = Tokenizer(small()._source, on_special_text="error")
    bad = "naïve \U0001f9e0 <think><|im_end|> and more"
    assert tokenizer.encode("fine <think> <|im_end") is not None
    for call in (tokenizer.encode_batch, tokenizer.count_batch):
        with pytest.raises(DataError, match=r"text 2 spells .*'<\|im_end\|>' at character 15") as e:
            call(["fine", "<|im_end", bad, bad])
        assert "on_special_text" in str(e.value.mend)
    with pytest.raises(DataError, match=r"text 0 spells"):
        tokenizer.encode(bad)


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_policy_error_sees_what_nfc_makes(backend: Any) -> None:
    tree = tree_with([token("<é>", special=True)])
    tokenizer = Tokenizer(json.dumps(tree), backend=backend, on_special_text="error")
    for text in ("<é>", "a<e\u0301>"):
        with pytest.raises(DataError, match="'<é>'"):
            tokenizer.encode(text)
    assert tokenizer.encode("<è>é").size > 0


def test_policy_is_part_of_the_fingerprint_and_of_pickles() -> None:
    import pickle

    tokenizer = Tokenizer(small()._source, on_special_text="error")
    assert tokenizer.fingerprint != small().fingerprint
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    with pytest.raises(DataError):
        again.encode("<|im_end|>")


@settings(max_examples=100, deadline=None)
@given(text=TEXT, cut=st.integers(0, 10), special=st.sampled_from(["<|im_end|>", "<|im_start|>"]))
def test_policy_error_is_raised_exactly_when_a_control_token_is_spelt(
    text: str, cut: int, special: str
) -> None:
    for backend in ("native", "hf"):
        tokenizer = Tokenizer(small()._source, backend=backend, on_special_text="error")
        whole = text + special[:cut] + text
        if cut == len(special):
            with pytest.raises(DataError, match="spells"):
                tokenizer.encode(whole)
        elif special not in whole:
            assert tokenizer.encode(whole).tolist() == small().encode(whole).tolist()
