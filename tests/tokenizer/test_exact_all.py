"""The complete part of test_exact.py: all code points, megabytes of text, other vocabularies."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from benchmarks.texts import biomedical, mixed
from omr_io.errors import TokenizerError
from omr_io.tokenizer import Tokenizer
from tests.text_fixtures import hugging_face
from tests.tokenizer import exactness
from tests.tokenizer.exactness import FAMILIES, NEIGHBOURS, Pair
from tests.tokenizer.test_exact import TEXTS
from tests.vocabularies import vocabulary

pytestmark = pytest.mark.slow
EVERY = (*FAMILIES, "cl100k", "o200k", "p50k")


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


@pytest.mark.parametrize(
    ("name", "reason"), [("anthropic.json", "NFKC"), ("deepseek.json", "Split")]
)
def test_other_pipelines_are_refused_by_name_and_exact_by_the_other_backend(
    name: str, reason: str, tmp_path: Path
) -> None:
    source = vocabulary(name).read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(source, encoding="utf-8")
    with pytest.raises(TokenizerError, match=reason) as refused:
        Tokenizer.from_pretrained(tmp_path)
    assert 'backend="hf"' in str(refused.value)
    ours = Tokenizer.from_pretrained(tmp_path, backend="hf")
    oracle = hugging_face(source, control=False)
    texts = [*exactness.soup(300), *mixed(100_000), *biomedical(100_000)]
    ids, offsets = ours.encode_batch(texts)
    want = [e.ids for e in oracle.encode_batch_fast(texts, add_special_tokens=False)]
    got = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert [text for text, x, y in zip(texts, got, want, strict=True) if x != y] == []


@pytest.mark.parametrize(
    ("family", "file", "kind"),
    [("qwen2_5", "qwen.tiktoken", "qwen2"), ("llama3", "llama3.tiktoken", "llama3.1")],
)
def test_rank_files_give_the_same_ids(family: str, file: str, kind: str) -> None:
    """Read from its ranks, a vocabulary has merges of its own finding."""
    known = exactness.pair(family)
    from_ranks = Tokenizer.from_tiktoken(vocabulary(file), kind)  # type: ignore[arg-type]
    ranked = dataclasses.replace(known, ours=from_ranks)
    assert ranked.differing([*exactness.soup(2000), *exactness.random_bytes(2000)]) == []
    assert ranked.differing([*biomedical(1_000_000), *mixed(1_000_000)]) == []
