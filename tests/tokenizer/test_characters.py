"""Pieces that are merged from whole characters (csrc/tokenizer/merge.cpp): as if from bytes.

Merge lists in which characters of two and three bytes are made early, late, in either order, or
from parts that also merge with what stands beside them.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.tokenizer.test_vocabulary import Source, expected, joined

CHARACTERS = [c.encode() for c in "éèж中丰一。、"]
LETTERS = [b" ", b"a", *CHARACTERS]


def chained(rng: random.Random, character: bytes) -> list[tuple[bytes, bytes]]:
    """The merges that make a character of its bytes, from the front or from the back."""
    if len(character) == 2:
        return [(character[:1], character[1:])]
    if rng.random() < 0.5:
        return [(character[:1], character[1:2]), (character[:2], character[2:])]
    return [(character[1:2], character[2:]), (character[:1], character[1:])]


def source(seed: int) -> Source:
    rng = random.Random(seed)
    merges: list[tuple[bytes, bytes]] = []
    for character in rng.sample(CHARACTERS, rng.randint(1, len(CHARACTERS))):
        merges += chained(rng, character)
    parts = sorted({bytes([b]) for c in LETTERS for b in c} | {a + b for a, b in merges})
    for _ in range(rng.randint(0, 40)):
        left, right = rng.choice(parts), rng.choice(parts)
        merges.insert(rng.randint(0, len(merges)) if seed % 2 else len(merges), (left, right))
        parts.append(left + right)
    if seed % 5 == 0:
        rng.shuffle(merges)
    tokens = [bytes([b]) for b in range(256)]
    tokens += sorted({a + b for a, b in merges} - set(tokens))
    if seed % 3 == 0:  # as most vocabularies: tokens in the order of their merges
        merges = list({a + b: (a, b) for a, b in merges}.values())
        tokens[256:] = [a + b for a, b in merges]
    return Source(tokens, merges, seed % 7 == 0)


def pieces(seed: int) -> list[bytes]:
    """Text, and the same with bytes lost, so that it is no UTF-8."""
    rng = random.Random(seed)
    found = []
    for _ in range(60):
        piece = b"".join(rng.choices(LETTERS, k=rng.randint(1, 40)))
        if rng.random() < 0.4:
            piece = bytes(b for b in piece if rng.random() < 0.9) or b"a"
        found.append(piece)
    return found


def whole_characters(made: Source) -> int:
    """How many characters the compiled form lets a piece begin with: its last table."""
    return int(np.count_nonzero(np.frombuffer(made.ours().compiled()[-4 * 65536 :], np.uint32)))


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_as_if_from_bytes(first: int) -> None:
    for seed in range(first, first + 50):
        made = source(seed)
        given = pieces(seed)
        ours = made.ours().encode_pieces(*joined(given)).tolist()
        assert ours == expected(made.theirs(), given), seed


def test_some_begin_with_characters_and_some_do_not() -> None:
    counts = [whole_characters(source(seed)) for seed in range(0, 400, 10)]
    assert sum(count > 0 for count in counts) >= 20
    assert any(count < len(CHARACTERS) for count in counts)
