"""Pieces to ids (csrc/tokenizer/vocabulary.cpp) against Hugging Face's BPE model: equal.

The oracle gets a piece as GPT-2's letters for bytes and no pre-tokenizer, so that any bytes are a
piece, valid UTF-8 or not.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import random
import struct
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import models

from omr_io import _C
from tests.text_fixtures import corpus, qwen_tiktoken, small
from tests.vocabularies import byte_letters, last_pair

LETTERS = byte_letters()
MAX_MERGES = 40


def spelt(data: bytes) -> str:
    return "".join(LETTERS[b] for b in data)


@dataclass(frozen=True)
class Source:
    """Tokens by id and merges as pairs of tokens; both forms of a vocabulary are made of it."""

    tokens: list[bytes]
    merges: list[tuple[bytes, bytes]]
    ignore_merges: bool = False

    def ours(self) -> _C.Vocabulary:
        ids = {token: i for i, token in enumerate(self.tokens)}
        triples = [(ids[a], ids[b], ids[a + b]) for a, b in self.merges]
        merges = np.array(triples, np.uint32).reshape(-1, 3)
        return _C.Vocabulary.build(self.tokens, merges, ignore_merges=self.ignore_merges)

    def theirs(self) -> tokenizers.Tokenizer:
        vocab = {spelt(token): i for i, token in enumerate(self.tokens)}
        merges = [(spelt(a), spelt(b)) for a, b in self.merges]
        return tokenizers.Tokenizer(
            models.BPE(vocab=vocab, merges=merges, ignore_merges=self.ignore_merges)
        )


def joined(pieces: list[bytes]) -> tuple[bytes, NDArray[np.uint32]]:
    return b"".join(pieces), np.cumsum([len(p) for p in pieces], dtype=np.uint32)


def expected(oracle: tokenizers.Tokenizer, pieces: list[bytes]) -> list[int]:
    return [i for piece in pieces for i in oracle.encode(spelt(piece)).ids]


@cache
def trained() -> Source:
    """A vocabulary of 490 tokens, trained on medical-looking sentences."""
    model = json.loads(small()._source)["model"]
    of_letter = {letter: bytes([b]) for b, letter in LETTERS.items()}

    def raw(token: str) -> bytes:
        return b"".join(of_letter[letter] for letter in token)

    tokens = {i: raw(t) for t, i in model["vocab"].items() if all(c in of_letter for c in t)}
    by_id = [tokens[i] for i in range(len(tokens))]
    return Source(by_id, [(raw(a), raw(b)) for a, b in model["merges"]])


@st.composite
def sources(draw: st.DrawFn, letters: bytes = b"abc") -> Source:
    """Merge lists in any order and with repeats, so that some tokens cannot be arrived at."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    tokens = [bytes([b]) for b in range(256)]
    rng.shuffle(tokens)
    parts = [bytes([b]) for b in letters]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(0, MAX_MERGES))):
        pair = (rng.choice(parts), rng.choice(parts))
        merges.append(pair)
        if pair[0] + pair[1] not in parts:
            parts.append(pair[0] + pair[1])
    if draw(st.booleans()):
        rng.shuffle(merges)
    merges += [rng.choice(merges) for _ in range(len(merges) // 4)]
    tokens += parts[len(letters) :]
    extra = draw(st.sets(st.text("abcd", min_size=2, max_size=24).map(str.encode), max_size=4))
    tokens += sorted(extra - set(tokens))  # tokens that no merge makes
    return Source(tokens, merges, draw(st.booleans()))


pieces_of_few_letters = st.lists(
    st.text("abc", min_size=1, max_size=40).map(str.encode), min_size=1, max_size=30
)


@given(sources(), pieces_of_few_letters)
@settings(deadline=None)
def test_any_merge_list(source: Source, pieces: list[bytes]) -> None:
    pieces = [*pieces, *(t for t in source.tokens if len(t) > 1), *pieces]
    ours = source.ours().encode_pieces(*joined(pieces))
    assert ours.dtype == np.int32
    assert ours.tolist() == expected(source.theirs(), pieces)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20))
@settings(deadline=None)
def test_all_byte_values(pieces: list[bytes]) -> None:
    vocabulary, oracle = trained_pair()
    assert vocabulary.encode_pieces(*joined(pieces)).tolist() == expected(oracle, pieces)


@cache
def trained_pair() -> tuple[_C.Vocabulary, tokenizers.Tokenizer]:
    return trained().ours(), trained().theirs()


def test_words_of_every_length() -> None:
    vocabulary, oracle = trained_pair()
    text = " ".join(corpus(60)).encode()
    rng = random.Random(3)
    pieces = []
    while text:
        length = rng.randint(1, 40)
        pieces.append(text[:length])
        text = text[length:]
    pieces += [b"\0" * n for n in range(1, 80)] + [b"a\0" * n for n in range(1, 10)]
    assert vocabulary.encode_pieces(*joined(pieces)).tolist() == expected(oracle, pieces)


@given(sources(), st.data())
@settings(deadline=None, max_examples=40)
def test_long_pieces_in_windows_of_any_size(source: Source, data: st.DataObject) -> None:
    """Windows as small as tokens make every way through merge_long common."""
    length = data.draw(st.integers(1, 700))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    unit = bytes(rng.choices(b"abc", k=data.draw(st.sampled_from([1, 2, 5, length]))))
    piece = (unit * length)[:length]
    vocabulary = source.ours()
    by_merges = Source(source.tokens, source.merges).theirs().encode(spelt(piece)).ids
    for window in (1, 2, 3, 5, 8, 16, 33, 64, 200, 4096):
        assert vocabulary.encode_long(piece, window).tolist() == by_merges, window


def test_what_follows_decides_what_comes_before() -> None:
    """Merges zy, yx, ..., ba, ranked so that a run pairs up from its end: windows do not agree.

    A window that cuts a run of odd length pairs up all of it the wrong way.
    """
    letters = bytes(range(ord("A"), ord("z") + 1))
    pairs = [(letters[i : i + 1], letters[i + 1 : i + 2]) for i in range(len(letters) - 1)]
    pairs.reverse()
    longer = [(a + b, letters[letters.index(b) + 1 :][:1]) for a, b in pairs[1::3]]
    source = Source([bytes([b]) for b in range(256)], [*pairs, *longer])
    source.tokens.extend(a + b for a, b in source.merges)
    vocabulary, oracle = source.ours(), source.theirs()
    rng = random.Random(4)
    for _ in range(300):
        runs = [letters[(at := rng.randrange(50)) : at + rng.randint(1, 50)] for _ in range(12)]
        piece = b"".join(runs)
        by_merges = expected(oracle, [piece])
        for window in (3, 4, 8, 16, 24, 32, 48, 64):
            assert vocabulary.encode_long(piece, window).tolist() == by_merges, window


@pytest.mark.parametrize("length", [63, 64, 65, 127, 1000, 4095, 4096, 4097, 30_000, 100_000])
@pytest.mark.parametrize("letters", [b"a", b"ab", b"the lsion", bytes(range(256))])
def test_long_pieces(length: int, letters: bytes) -> None:
    vocabulary, oracle = trained_pair()
    rng = random.Random(length)
    piece = bytes(rng.choices(letters, k=length))
    ours = vocabulary.encode_pieces(*joined([b"a", piece, b"the"])).tolist()
    assert ours == expected(oracle, [b"a", piece, b"the"])


def test_equal_letters_merged_in_doubles() -> None:
    """The heaviest case for a heap: every pair is a merge, at every level."""
    units = [b"a" * 2**i for i in range(8)]
    tokens = [bytes([b]) for b in range(256)] + units[1:]
    source = Source(tokens, [(u, u) for u in units[:-1]])
    vocabulary, oracle = source.ours(), source.theirs()
    for length in (1, 2, 3, 64, 65, 127, 128, 129, 4096, 10_001, 65_537):
        piece = b"a" * length
        assert vocabulary.encode_pieces(*joined([piece])).tolist() == expected(oracle, [piece])


@pytest.mark.slow
@pytest.mark.parametrize("letters", [b"a", bytes(range(97, 123))])
def test_words_of_ten_megabytes(letters: bytes) -> None:
    """They end, and any stretch of the result is the result of its own bytes (merge_long, A)."""
    vocabulary, oracle = trained_pair()
    piece = np.random.default_rng(5).choice(np.frombuffer(letters, np.uint8), 10_000_000).tobytes()
    ids = vocabulary.encode_pieces(*joined([piece]))
    sizes = np.array([len(vocabulary.bytes_of(i)) for i in range(vocabulary.size)])
    starts = np.concatenate([[0], np.cumsum(sizes[ids])])
    assert starts[-1] == len(piece)
    for first in (0, len(ids) // 2, len(ids) - 5000):
        stretch = piece[starts[first] : starts[first + 5000]]
        assert expected(oracle, [stretch]) == ids[first : first + 5000].tolist()


def test_more_pieces_than_the_cache_holds() -> None:
    """Met again and again in another order, also twice in a block; of 1 to 30 ids."""
    vocabulary, oracle = trained_pair()
    rng = random.Random(11)
    words = [bytes(rng.choices(b"abcdefgh", k=rng.randint(1, 30))) for _ in range(90_000)]
    of_word = {word: oracle.encode(spelt(word)).ids for word in set(words)}
    order = words + rng.sample(words, len(words)) + words[:3000] * 2
    ids = vocabulary.encode_pieces(*joined(order)).tolist()
    assert ids == [i for word in order for i in of_word[word]]


def test_a_cache_serves_one_vocabulary_at_a_time() -> None:
    """Over many calls, and another vocabulary's ids never come out of it."""
    first = trained_pair()
    by_bytes = Source([bytes([255 - b]) for b in range(256)], [])
    second = by_bytes.ours(), by_bytes.theirs()
    pieces = [w.encode() for w in " ".join(corpus(3)).split(" ") if w] + [b"computed tomographies"]
    cache = _C.PieceCache()
    for vocabulary, oracle in (first, first, second, first, second, second):
        ids = vocabulary.encode_pieces(*joined(pieces), cache).tolist()
        assert ids == expected(oracle, pieces)


def test_threads_share_a_vocabulary() -> None:
    vocabulary, _ = trained_pair()
    text, ends = joined([w.encode() for w in " ".join(corpus(200)).split(" ") if w])
    alone = vocabulary.encode_pieces(text, ends)
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(lambda _: vocabulary.encode_pieces(text, ends), range(16)):
            assert np.array_equal(ids, alone)


def test_the_later_of_two_equal_merges_holds() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"ab", b"bc"]
    for merges in ([(b"a", b"b"), (b"b", b"c")], [(b"a", b"b"), (b"b", b"c"), (b"a", b"b")]):
        source = Source(tokens, merges)
        assert source.ours().encode_pieces(*joined([b"abc"])).tolist() == expected(
            source.theirs(), [b"abc"]
        )


def test_a_token_that_merges_do_not_arrive_at() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"bc", b"ab", b"abc", b"x" * 70]
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    text, ends = joined([b"abc", b"x" * 70])
    assert (
        Source(tokens, merges).ours().encode_pieces(text, ends).tolist() == [97, 256] + [120] * 70
    )
    whole = Source(tokens, merges, ignore_merges=True).ours()
    assert whole.encode_pieces(text, ends).tolist() == [258, 259]


def test_tokens_by_id_and_by_bytes() -> None:
    tokens = [*trained().tokens, b"", b"a token of more than fifteen bytes", b""]
    vocabulary = _C.Vocabulary.build(tokens, np.zeros((0, 3), np.uint32))
    assert vocabulary.size == len(tokens)
    assert [vocabulary.bytes_of(i) for i in range(len(tokens))] == tokens
    assert vocabulary.bytes_of(len(tokens)) == b""
    assert vocabulary.bytes_of(2**32 - 1) == b""
    assert [vocabulary.find(t) for t in tokens if t] == [i for i, t in enumerate(tokens) if t]
    for absent in (b"", b"\0\0", b"no such token", b"no such token, of 30 letters or so"):
        assert vocabulary.find(absent) == -1


def test_no_pieces() -> None:
    vocabulary, _ = trained_pair()
    assert vocabulary.encode_pieces(b"", np.zeros(0, np.uint32)).tolist() == []
    assert vocabulary.encode_pieces(b"ab", np.array([0, 2, 2], np.uint32)).tolist() == (
        vocabulary.encode_pieces(b"ab", np.array([2], np.uint32)).tolist()
    )


BYTES = [bytes([b]) for b in range(256)]


@pytest.mark.parametrize(
    ("tokens", "merges", "complaint"),
    [
        (BYTES[:-1], [], r"no token is the byte '\\xff'"),
        ([*BYTES, b"ab", b"", b"ab"], [], "tokens 256 and 258 are the same bytes: 'ab'"),
        ([*BYTES, b"x" * 99, b"x" * 99], [], "tokens 256 and 257 are the same bytes: 'xxxx"),
        (BYTES, [(97, 98, 256)], "merge 0 names id 256, which has no token"),
        ([*BYTES, b""], [(97, 256, 98)], "merge 0 names id 256, which has no token"),
        ([*BYTES, b"ab", b"abb"], [(97, 98, 256), (97, 98, 257)], "merge 1 makes 'abb' of 'a' and"),
        ([*BYTES, b"ab"], [(98, 97, 256)], "merge 0 makes 'ab' of 'b' and 'a'"),
    ],
)
def test_wrong_sources(
    tokens: list[bytes], merges: list[tuple[int, int, int]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        _C.Vocabulary.build(tokens, np.array(merges, np.uint32).reshape(-1, 3))


def test_wrong_arguments() -> None:
    vocabulary, _ = trained_pair()
    with pytest.raises(TypeError, match="token 1 is no bytes"):
        _C.Vocabulary.build([b"a", "b"], np.zeros((0, 3), np.uint32))  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"shape \(n, 3\)"):
        _C.Vocabulary.build(BYTES, np.zeros((0, 2), np.uint32))
    for ends in ([3], [2, 1]):
        with pytest.raises(ValueError, match="ends have to ascend"):
            vocabulary.encode_pieces(b"ab", np.array(ends, np.uint32))


def test_nothing_beyond_the_text_is_read() -> None:
    """The text ends where a page ends that is followed by one that must not be read."""
    vocabulary, oracle = trained_pair()
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address + page), page, 0) == 0
        data = (" ".join(corpus(4)).encode() * 20)[: page - 1]
        for length in (*range(1, 40), 700, page - 1):
            memory[page - length : page] = data[-length:]
            for size in (1, 7, 15, 16, 17, 70):
                ends = np.array([*range(size, length, size), length], np.uint32)
                with memoryview(memory)[page - length : page] as text:
                    ids = vocabulary.encode_pieces(text, ends).tolist()
                    pieces = [bytes(text[i : i + size]) for i in range(0, length, size)]
                if length < 40:
                    assert ids == expected(oracle, pieces)
        assert libc.mprotect(ctypes.c_void_p(address + page), page, 3) == 0


# The compiled form.


def mapped(block: bytes, path: Path) -> _C.Vocabulary:
    path.write_bytes(block)
    return _C.Vocabulary.map(str(path))


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_compiled_form(tmp_path: Path, ignore_merges: bool) -> None:
    source = Source(trained().tokens, trained().merges, ignore_merges)
    built = source.ours()
    again = mapped(built.compiled(), tmp_path / "vocabulary")
    assert again.compiled() == built.compiled() == source.ours().compiled()
    assert [again.bytes_of(i) for i in range(again.size)] == source.tokens
    pieces = [w.encode() for w in " ".join(corpus(20)).split(" ") if w] + [b"lesion" * 50]
    assert again.encode_pieces(*joined(pieces)).tolist() == expected(source.theirs(), pieces)
    (tmp_path / "vocabulary").unlink()  # what is mapped stays
    assert again.encode_pieces(*joined(pieces)).tolist() == expected(source.theirs(), pieces)


def test_damaged_files(tmp_path: Path) -> None:
    """Every cut of the header and every flip in it; a sample of the tables."""
    block = trained().ours().compiled()
    path = tmp_path / "vocabulary"
    rng = random.Random(1)
    for length in (*range(70), *(rng.randrange(len(block)) for _ in range(40)), len(block) - 1):
        with pytest.raises(RuntimeError, match="no compiled vocabulary"):
            mapped(block[:length], path)
    with pytest.raises(RuntimeError, match="shorter or longer than it says"):
        mapped(block + bytes(64), path)
    for at in (*range(64), *(rng.randrange(64, len(block)) for _ in range(300)), len(block) - 1):
        damaged = bytearray(block)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(RuntimeError, match="no compiled vocabulary"):
            mapped(bytes(damaged), path)
    with pytest.raises(RuntimeError, match=r"cannot read .*No such file"):
        _C.Vocabulary.map(str(tmp_path / "absent"))
    with pytest.raises(RuntimeError, match="not a file"):
        _C.Vocabulary.map(str(tmp_path))


def checksum(block: bytes) -> int:
    """What block_checksum of vocabulary_block.cpp computes."""
    mask = 2**64 - 1

    def step(lane: int, word: int) -> int:
        lane ^= word
        return ((lane << 29 | lane >> 35) & mask) * 0x9E3779B97F4A7C15 & mask

    words = struct.unpack(f"<{len(block) // 8 - 4}Q", block[32:])
    whole = len(words) // 8 * 8
    total = len(words)
    lanes = []
    for lane in range(8):
        value = lane + 1
        for word in words[lane:whole:8]:
            value = step(value, word)
        lanes.append(value)
    for word in (*words[whole:], *lanes):
        total = step(total, word)
    return total


def test_forged_files(tmp_path: Path) -> None:
    """With a checksum that fits, wrong numbers are refused or harmless: nothing is read beyond."""
    block = trained().ours().compiled()
    assert struct.unpack_from("<Q", block, 24) == (checksum(block),)
    pieces = [w.encode() for w in " ".join(corpus(5)).split(" ") if w] + [b"lesion" * 50]
    rng = random.Random(2)
    refused = 0
    for round_ in range(60):
        forged = bytearray(block)
        at = rng.randrange(8, 14) * 4 if round_ < 20 else rng.randrange(64, len(block) - 4) // 4 * 4
        struct.pack_into("<I", forged, at, rng.choice([0, 1, 500, 2**31 - 2, 2**31, 2**32 - 1]))
        struct.pack_into("<Q", forged, 24, checksum(bytes(forged)))
        try:
            vocabulary = mapped(bytes(forged), tmp_path / "vocabulary")
        except RuntimeError:
            refused += 1
            continue
        assert vocabulary.encode_pieces(*joined(pieces)).dtype == np.int32
        vocabulary.find(b"lesion")
    assert refused > 20


# The real vocabulary.


@pytest.mark.slow
def test_qwen_loads_and_is_small(tmp_path: Path) -> None:
    """All its 151,643 tokens can be arrived at; the compiled form keeps to its size."""
    source = qwen(qwen_tiktoken())
    vocabulary = source.ours()
    again = mapped(vocabulary.compiled(), tmp_path / "vocabulary")
    ids = again.encode_pieces(*joined(source.tokens))
    assert np.array_equal(ids, np.arange(len(source.tokens)))
    assert len(vocabulary.compiled()) < 25_000_000


def qwen(path: Path) -> Source:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {b64decode(token): int(rank) for token, rank in lines}
    tokens = sorted(ranks, key=ranks.__getitem__)
    pairs = (last_pair(token, ranks[token], ranks) for token in tokens if len(token) > 1)
    return Source(tokens, [pair for pair in pairs if pair is not None])
