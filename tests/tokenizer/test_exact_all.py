"""The complete part of test_exact.py: all code points, megabytes of text, other vocabularies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from benchmarks.texts import biomedical, mixed
from tests.tokenizer import exactness
from tests.tokenizer.exactness import FAMILIES, NEIGHBOURS, Pair
from tests.tokenizer.test_exact import TEXTS

pytestmark = pytest.mark.slow
EVERY = (*FAMILIES, "cl100k", "o200k")


@pytest.fixture(scope="module", params=EVERY)
def pair(request: pytest.FixtureRequest) -> Pair:
    return exactness.pair(request.param)


@pytest.fixture(scope="module", params=("qwen2_5", "llama3"))
def one_of_each(request: pytest.FixtureRequest) -> Pair:
    """One of each pattern: the vocabulary makes no difference here."""
    return exactness.pair(request.param)


def test_megabytes_of_text(pair: Pair) -> None:
    assert pair.differing([*biomedical(2_000_000, seed=11), *mixed(2_000_000, seed=12)]) == []


def test_real_text(pair: Pair) -> None:
    """$OMR_TEXT names a JSONL file with a "text" a line."""
    name = os.environ.get("OMR_TEXT")
    if not name:
        pytest.skip("needs $OMR_TEXT: a JSONL file of real text")
    with Path(name).open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert texts
    assert pair.differing(texts) == []


def test_every_code_point_alone(one_of_each: Pair) -> None:
    assert one_of_each.differing(exactness.code_points()) == []


def test_every_code_point_with_neighbours(one_of_each: Pair) -> None:
    known = filter(exactness.assigned, exactness.code_points())
    assert one_of_each.differing(exactness.with_neighbours(known, NEIGHBOURS[::4])) == []


def test_every_other_code_point_among_others(one_of_each: Pair) -> None:
    """The 830,000 that are not assigned, which no table tells apart: 64 a document."""
    rest = [c for c in exactness.code_points() if not exactness.assigned(c)]
    texts = (
        "".join(f"a{c}\u0301 {c}{c}\n" for c in rest[i : i + 64]) for i in range(0, len(rest), 64)
    )
    assert one_of_each.differing(texts) == []


def test_every_added_token_and_look_alike(pair: Pair) -> None:
    assert pair.differing(exactness.look_alikes(pair.added)) == []


def test_random_bytes_and_soup(pair: Pair) -> None:
    assert (
        pair.differing([*exactness.random_bytes(6000, seed=13), *exactness.soup(6000, seed=14)])
        == []
    )


@settings(max_examples=1000, deadline=None)
@given(texts=TEXTS)
def test_hypothesis(one_of_each: Pair, texts: str) -> None:
    assert one_of_each.differing([texts]) == []
