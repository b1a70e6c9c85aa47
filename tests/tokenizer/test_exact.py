"""0 differing documents between our tokenizer and Hugging Face's, with the real vocabularies.

The fast part; test_exact_all.py goes through all code points and megabytes of text.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.texts import biomedical, mixed
from tests.tokenizer import exactness
from tests.tokenizer.exactness import FAMILIES, NEIGHBOURS, TRAPS, Pair

ATOMS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text(st.sampled_from("".join(NEIGHBOURS)), max_size=12),
    st.sampled_from([*TRAPS, *NEIGHBOURS]),
)
TEXTS = st.lists(ATOMS, max_size=10).map("".join)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return exactness.pair(request.param)


def test_the_oracle_and_the_comparison_can_fail(pair: Pair) -> None:
    broken = Pair(pair.ours, exactness.pair("qwen2_5").oracle, nfc=not pair.nfc, added=pair.added)
    assert broken.differing(["e\u0301 12345"]) == ["e\u0301 12345"]


def test_traps(pair: Pair) -> None:
    assert pair.differing(TRAPS) == []


def test_biomedical_and_mixed_text(pair: Pair) -> None:
    assert pair.differing([*biomedical(400_000), *mixed(400_000)]) == []


def test_added_tokens_and_look_alikes(pair: Pair) -> None:
    assert pair.differing(exactness.look_alikes(pair.added[:26])) == []


def test_neighbours_of_neighbours(pair: Pair) -> None:
    pairs = [f"{a}{b}{c}" for a in NEIGHBOURS for b in NEIGHBOURS for c in ("a", " ", "'", "\n")]
    assert pair.differing(pairs) == []


def test_every_37th_code_point(pair: Pair) -> None:
    letters = list(exactness.code_points())[::37]
    assert pair.differing("".join(letters[i : i + 40]) for i in range(0, len(letters), 40)) == []
    few = [letter for letter in letters if exactness.assigned(letter)]
    assert pair.differing(exactness.with_neighbours(few[::8], NEIGHBOURS[::5])) == []


def test_random_bytes_and_soup(pair: Pair) -> None:
    assert pair.differing([*exactness.random_bytes(400), *exactness.soup(400)]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
@example(["'ſ", "\u0f71\u0f73", "\U0001d15e\u0323"])  # noqa: RUF001
def test_hypothesis(pair: Pair, texts: list[str]) -> None:
    assert pair.differing(texts) == []


def test_all_three_widths_of_a_str(pair: Pair) -> None:
    """The same words as Latin-1, UCS-2 and UCS-4, ASCII and not; alone and in one batch."""
    texts = [
        f"The patient's {c} 12.5 mg {c}\n\n {c}" for c in ("a", "\xff", "\u0101", "\uffff", "😀")
    ]
    texts += [text[cut:] for text in texts for cut in range(len(text))]
    assert pair.differing(texts) == []
