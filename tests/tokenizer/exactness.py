"""Our tokenizer beside Hugging Face's, of one tokenizer.json; and texts that set them apart."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import tokenizers
from tokenizers import normalizers

from omr_io.tokenizer import Tokenizer
from tests.text_fixtures import hugging_face
from tests.vocabularies import (
    LLAMA3_ADDED,
    QWEN2_5_ADDED,
    QWEN3_ADDED,
    llama3_json,
    openai_json,
    qwen_json,
    vocabulary,
)

FAMILIES = ("qwen2_5", "qwen3", "llama3")
CHUNK = 2048  # texts a batch: Hugging Face's Encoding objects are large


@dataclass(frozen=True)
class Pair:
    """Ours and Hugging Face's tokenizer, where control tokens stay text in both."""

    ours: Tokenizer
    oracle: tokenizers.Tokenizer
    nfc: bool
    added: tuple[str, ...]

    def differing(self, texts: Iterable[str], *, decode: bool = True) -> list[str]:
        """Those of the texts whose ids, count or decoded text are not Hugging Face's."""
        found: list[str] = []
        for piece in _batched(texts):
            found += self._differing(piece, decode)
        return found

    def _differing(self, texts: Sequence[str], decode: bool) -> list[str]:
        want = [e.ids for e in self.oracle.encode_batch_fast(list(texts), add_special_tokens=False)]
        ids, offsets = self.ours.encode_batch(texts)
        assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
        assert len(offsets) == len(texts) + 1
        counts = self.ours.count_batch(texts)
        found = []
        for i, text in enumerate(texts):
            got = ids[offsets[i] : offsets[i + 1]]
            same = got.tolist() == want[i] and counts[i] == len(want[i])
            if not same or (decode and self.ours.decode(got) != self.normal(text)):
                found.append(text)
        return found

    def normal(self, text: str) -> str:
        """What comes back of a text: NFC, as Hugging Face has it, between plain added tokens."""
        return "".join(
            part if part in self.plain or not self.nfc else normalizers.NFC().normalize_str(part)
            for part in self._parts(text)
        )

    @cached_property
    def plain(self) -> tuple[str, ...]:
        """The added tokens that text may become: those with special=False."""
        ids = {token: self.ours.token_id(token) for token in self.added}
        return tuple(token for token in self.added if ids[token] not in self.ours.special_ids)

    def _parts(self, text: str) -> Iterator[str]:
        """The text cut at them, leftmost first."""
        while text:
            at, token = min(
                ((text.find(token), token) for token in self.plain if token in text),
                default=(len(text), ""),
            )
            if at:
                yield text[:at]
            if token:
                yield token
            text = text[at + len(token) :]


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while piece := list(itertools.islice(stream, CHUNK)):
        yield piece


@cache
def pair(family: str) -> Pair:
    """The two tokenizers of a real vocabulary; the test is skipped where it cannot be had."""
    if family.startswith("qwen"):
        source = qwen_json(family, vocabulary("qwen.tiktoken"))
        added = QWEN3_ADDED if family == "qwen3" else QWEN2_5_ADDED
    elif family == "llama3":
        source, added = llama3_json(vocabulary("llama3.tiktoken")), LLAMA3_ADDED
    else:
        source, added = openai_json(vocabulary(f"{family}.tiktoken")), []
    return Pair(
        Tokenizer(source),
        hugging_face(source, control=False),
        family.startswith("qwen"),
        tuple(added),
    )


# --- texts ----------------------------------------------------------------------------------------

# One or more of each class that a pattern, a normaliser or a vocabulary knows.
NEIGHBOURS = (
    "a", "Z", "é", "ß", "я", "א", "中", "ｱ", "가", "ᄀ", "ᅡ", "ᆨ", "𝐀",  # letters, jamo  # noqa: RUF001
    "5", "٣", "½", "Ⅷ", "²", "𝟗",  # numbers  # noqa: RUF001
    " ", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\x1c", "\x1f", "\x0b", "\n", "\r",  # blanks
    "'", "'s", "'S", "'ſ", "'l", "’", ".", "-", "_", "<", "|", "€", "😀", "\u200d", "\ufe0f",  # noqa: RUF001
    "\u0301", "\u0323", "\u0327", "\u05b0", "\u0f71", "\u3099", "\u1dce", "\u0345", "\x00", "\x7f",
)  # fmt: skip

TRAPS = (
    "'ſ x'ſ 'S 'RE 're 'Ll 'lL 'D I'M'VE'T don't DON'T d'l'l ''s '", "a'ſb 'ſ's",  # noqa: RUF001
    "\x1c\x1d\x1e\x1f a\x1cb \x1f\n \x1f", "\u0085a\u0085\n", "\u180e \u200b \ufeff \u2060",
    "   leading", "trailing   ", " \n \n  x", "\n\n\n", "\r\n\r\n", " \r", "\t\t x", "x\n ",
    "x \n\n y",
    "\u00a0\u00a0x", "\u3000\u3000中", "a\u2028b", "1234567", "12 345 6", "٣٤٥", "½⅓¾", "x²y³",
    "ⅧⅨ", "e\u0301", "e\u0323\u0301",
    "e\u0301\u0323", "q\u0307\u0323", "\u1100\u1161\u11a8", "\uac00\u11a8",
    "\u0344", "\u0958", "\u2126", "\u212b", "\ufb1d", "\u0f73", "\u1e9b\u0323", "\U0001d15e",
    "\u0301start", " \u0301", "\n\u0301", "'\u0301s", "a\u0301\u0301\u0301\u0301",
    "\u0f71\u0f72\u0f74",
    "👩‍⚕️👨🏽‍🔬🇨🇭🇨1️⃣❤️", "🏴\U000e0067\U000e0062\U000e007f", "\ufffd\uffff\U0010ffff\ue000",
    "$\\frac{\\alpha_{i}}{\\beta^{2}}$ \\\\ \\hline & %", "µg/mL μg/mL 5 µm ±2 °C 37.5℃ Å Å Ω Ω",
    "ﬁ ﬂ ﬀ ㎎ ㎏ ™ ① ２", "İi ı I K K ſ S ẞ ß", "ǅ ǆ Ǆ ʰ ˈ ː", "״ ׳ ‘s ’s ʼs `s",  # noqa: RUF001
    "<think>", "</think>", "<think", "think>", "<think >", "<<think>>", "< think>", "<|im_end|>",
    "<|im_end|",
    "", " ", "\x00", "a\x00b", "\ufeffBOM",
)  # fmt: skip


def look_alikes(tokens: Sequence[str]) -> Iterator[str]:
    """Every added token whole, in text, split at every position, doubled, cut."""
    for token in tokens:
        yield from (
            token,
            f"a{token}b",
            f" {token} ",
            f"{token}\n{token}{token}",
            f"é{token}\u0301",
        )
        yield from (token.upper(), token[1:], token[:-1], token + token[0], token[0] + token)
        for cut in range(1, len(token)):
            head, tail = token[:cut], token[cut:]
            for gap in (" ", "\n", "\u0301", "\u200b", "x", head[-1], token):
                yield f"{head}{gap}{tail}"
            yield f"{head}{head}{tail}"


def code_points(first: int = 0, last: int = 0x110000) -> Iterator[str]:
    """All but surrogates."""
    return (chr(c) for c in range(first, last) if not 0xD800 <= c < 0xE000)


def with_neighbours(letters: Iterable[str], neighbours: Sequence[str]) -> Iterator[str]:
    """A document a code point: it alone, before and after each neighbour, between two, doubled."""
    for letter in letters:
        around = [f"{n}{letter} {letter}{n}x{n}{letter}{n}" for n in neighbours]
        yield f"{letter}{letter};" + ";".join(around)


def assigned(letter: str) -> bool:
    """False for the 830,000 that no class tells apart: unassigned and private ones."""
    return unicodedata.category(letter) not in ("Cn", "Co")


def random_bytes(count: int, seed: int = 3) -> Iterator[str]:
    """Random bytes as text: of all values, and of runs that begin and end UTF-8 characters."""
    rng = random.Random(seed)
    heads = [0xC3, 0xCC, 0xE2, 0xE3, 0xEA, 0xF0, 0x20, 0x0A, 0x27, 0x41]
    for i in range(count):
        size = rng.randint(0, 300)
        if i % 3 == 0:
            data = rng.randbytes(size)
        elif i % 3 == 1:
            data = bytes(
                rng.choice(heads) if rng.random() < 0.4 else rng.randrange(128, 192)
                for _ in range(size)
            )
        else:
            yield "".join(chr(b) for b in rng.randbytes(size))  # Latin-1: a str of kind 1
            continue
        yield data.decode("utf-8", errors="replace")


def soup(count: int, seed: int = 4) -> Iterator[str]:
    """Traps, neighbours, words and blanks in random order: what no list of cases has."""
    rng = random.Random(seed)
    atoms = [
        *TRAPS,
        *NEIGHBOURS,
        *("word", "The", " of", "12", "  ", "\n", "tumor's", "中文", "x" * 40),
    ]
    for _ in range(count):
        yield "".join(rng.choices(atoms, k=rng.randint(1, 40)))
