"""Writes unicode_tables.hpp and .cpp: what Hugging Face `tokenizers` takes code points for.

    python csrc/tokenizer/generate_tables.py            write both files beside this one
    python csrc/tokenizer/generate_tables.py --check    exit 1 if they are not what would be written

Nothing here comes from Python's `unicodedata`, nor from the Unicode database: tokenizers 0.23.3
mixes versions of it (classes as of Unicode 16, reordering as of 9 or 10), so every fact is an
answer of the installed package itself.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
SCALARS = [c for c in range(CODE_POINTS) if c not in SURROGATES]
EVERYTHING = "".join(map(chr, SCALARS))
BLOCK = 128  # code points; the least memory of 32, 64, 128, 256
OTHER, LETTER, NUMBER, SPACE, LINE = range(5)  # CharClass of unicode.hpp

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]


class AssumptionError(Exception):
    """Hugging Face does something that the C++ beside this file is not written for."""


def expect(holds: bool, what: str) -> None:
    """Raise AssumptionError unless an assumption of the C++ code holds."""
    if not holds:
        raise AssumptionError(what)


# ---- classes -------------------------------------------------------------------------------------


def members(pattern: str) -> Flags:
    """Which of the code points `pattern` matches: bool, one for each of 0x110000."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    matched = np.ones(len(SCALARS), bool)
    for _, (begin, end) in split.pre_tokenize_str(EVERYTHING):
        matched[begin:end] = False
    out = np.zeros(CODE_POINTS, bool)
    out[SCALARS] = matched
    return out


def ask_classes() -> Bytes:
    """The class of each code point, and that every class of the patterns is made of them."""
    letter, number, space = members(r"\p{L}"), members(r"\p{N}"), members(r"\s")
    exists = members(r"[\s\S]")
    line = np.zeros(CODE_POINTS, bool)
    line[[0x0A, 0x0D]] = True
    for one, two in ((letter, number), (letter, space), (number, space)):
        expect(not (one & two).any(), "a code point is of two classes")
    for pattern, want in (
        (r"\S", ~space),
        (r"[\r\n]", line),
        (r"[^\r\n\p{L}\p{N}]", ~(line | letter | number)),
        (r"[^\s\p{L}\p{N}]", ~(space | letter | number)),
    ):
        expect(np.array_equal(members(pattern), want & exists), f"{pattern} is not its parts")
    expect(bool((space | ~line).all()), "a line break is no space")
    classes = np.full(CODE_POINTS, OTHER, np.uint8)
    for flags, of_class in ((letter, LETTER), (number, NUMBER), (space, SPACE), (line, LINE)):
        classes[flags] = of_class
    return classes


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def contraction(text: str) -> int:
    """How many characters of `text`, from its start, split_scalar.cpp takes for a contraction."""
    lower = text.replace("\u017f", "s")
    lower = "".join(c.lower() if c.isascii() else c for c in lower)
    if lower[:1] != "'":
        return 0
    return 2 if lower[1:2] in tuple("stmd") else 3 if lower[1:3] in ("re", "ve", "ll") else 0


def check_contractions() -> None:
    """Every code point at every place of a contraction: no case fold but those in C++."""
    split = pre_tokenizers.Split(Regex(CONTRACTIONS), "removed")
    letters = {ord(c) for c in "'strevmldSTREVMLD\u017f"}
    for template in ("?s", "'?", "'?e", "'?l", "'r?", "'v?", "'l?"):
        before, _, after = template.partition("?")
        probes = [f"{before}{chr(c)}{after}!" for c in SCALARS]
        kept = np.zeros((len(probes), len(probes[0])), bool)
        flat = kept.reshape(-1)
        for _, (begin, end) in split.pre_tokenize_str("".join(probes)):
            flat[begin:end] = True
        unlike = (kept != kept_by_us(probes[0])).any(axis=1)  # U+0000 is no letter
        for i in [*np.flatnonzero(unlike).tolist(), *(i for i in letters)]:
            expect(kept[i].tolist() == kept_by_us(probes[i]), f"contraction {probes[i]!a}")


def kept_by_us(text: str) -> list[bool]:
    """Which characters belong to no contraction."""
    kept, at = [True] * len(text), 0
    while at < len(text):
        taken = contraction(text[at:])
        kept[at : at + taken] = [False] * taken
        at += max(taken, 1)
    return kept


# ---- normalisation -------------------------------------------------------------------------------

HANGUL = range(0xAC00, 0xD7A4)
LEADS, VOWELS, TRAILS = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)
DECOMPOSES, SUSPECT = 0x40, 0x80  # bits of code_points.hpp
PLAIN = 0x300  # nfc.cpp skips bytes below 0xCC: code points below this one

nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


@dataclass(frozen=True)
class Normalisation:
    """NFC as data: what nfc.cpp needs."""

    bits: Bytes  # by code point: rank of a mark, DECOMPOSES, SUSPECT
    decompositions: dict[int, str]  # full and in order; without Hangul's
    compositions: dict[tuple[int, int], int]  # without Hangul's


def ask_ranks() -> dict[str, int]:
    """Rank of each combining mark, from 1, equal where Hugging Face keeps the order of a pair.

    A mark that is not the least moves before one that is less, so it swaps with U+0334 or, if it
    is not the greatest, with U+0345. That these two are the least and the greatest is checked.
    """

    def moves(one: str, two: str) -> bool:
        return nfd(f"a{one}{two}") == f"a{two}{one}" != f"a{one}{two}"

    least, greatest = "\u0334", "\u0345"
    single = [c for c in EVERYTHING if nfd(c) == c]
    marks = [c for c in single if moves(c, least) or moves(greatest, c)]
    greater = np.array([[moves(one, two) for two in marks] for one in marks])
    below = greater.sum(axis=1)
    levels = sorted(set(below.tolist()))
    ranks = {mark: 1 + levels.index(n) for mark, n in zip(marks, below.tolist(), strict=True)}
    order = np.array(list(ranks.values()))
    expect(np.array_equal(greater, order[:, None] > order), "marks are not ordered by a rank")
    expect(len(levels) < DECOMPOSES, "more ranks than their bits hold")
    expect((ranks[least], ranks[greatest]) == (1, len(levels)), "a mark may have been missed")
    return ranks


def ask_compositions(decompositions: dict[int, str], ranks: dict[str, int]) -> dict[str, str]:
    """Every pair that becomes one code point, of all that decompositions are made of."""
    firsts = set("".join(decompositions.values())) | {chr(c) for c in decompositions}
    firsts |= {nfc(text[:n]) for text in decompositions.values() for n in range(1, len(text))}
    firsts = {c for c in firsts if len(c) == 1 and nfc(c) == c and c not in ranks}
    seconds = {c for text in decompositions.values() for c in text[1:]}
    pairs = {one + two: nfc(one + two) for one, two in product(firsts, seconds)}
    # e-acute and cedilla become one, too, but by way of e-cedilla: not a pair of the table.
    return {
        pair: whole
        for pair, whole in pairs.items()
        if len(whole) == 1 and nfd(whole) == nfd(pair[0]) + pair[1]
    }


def check_hangul(decomposed: dict[int, str]) -> None:
    """Hangul is composed by arithmetic: a lead and a vowel, then a trail."""
    for n, (lead, vowel) in enumerate(product(LEADS, VOWELS)):
        syllable = HANGUL[n * (len(TRAILS) + 1)]
        jamo = chr(lead) + chr(vowel)
        expect(decomposed[syllable] == jamo and nfc(jamo) == chr(syllable), "Hangul: lead, vowel")
        for i, trail in enumerate(TRAILS, 1):
            whole = jamo + chr(trail)
            expect(decomposed[syllable + i] == whole, "Hangul: trail")
            expect(nfc(whole) == nfc(chr(syllable) + chr(trail)) == chr(syllable + i), "Hangul")
    for outside in (VOWELS.start - 1, VOWELS.stop, TRAILS.start - 1, TRAILS.stop):
        for text in (f"{chr(LEADS[0])}{chr(outside)}", f"{chr(HANGUL[0])}{chr(outside)}"):
            expect(nfc(text) == text, "Hangul: more jamo than thought")


def ask_normalisation() -> Normalisation:
    """All of NFC, and that it has the properties on which nfc.cpp relies."""
    decomposed = {c: text for c in SCALARS if (text := nfd(chr(c))) != chr(c)}
    check_hangul(decomposed)
    decompositions = {c: text for c, text in decomposed.items() if c not in HANGUL}
    ranks = ask_ranks()
    compositions = ask_compositions(decompositions, ranks)
    bits = np.zeros(CODE_POINTS, np.uint8)
    bits[list(decompositions)] = DECOMPOSES
    bits[[ord(mark) for mark in ranks]] = list(ranks.values())
    seconds = {ord(pair[1]) for pair in compositions}
    bits[[*seconds, *VOWELS, *TRAILS]] |= SUSPECT
    bits[[c for c in SCALARS if nfc(chr(c)) != chr(c)]] |= SUSPECT
    expect(not (bits[:PLAIN] & ~np.uint8(DECOMPOSES)).any(), "marks below U+0300")
    for c, text in decompositions.items():
        # A starter that is not suspect ends what can change before it, and so must its parts.
        expect(bool(bits[c] & SUSPECT) or bits[ord(text[0])] == 0, f"U+{c:04X} is no boundary")
        expect(
            not any(bits[ord(part)] & DECOMPOSES for part in text), f"U+{c:04X} decomposes twice"
        )
    pairs = {(ord(pair[0]), ord(pair[1])): ord(whole) for pair, whole in compositions.items()}
    return Normalisation(bits, decompositions, pairs)


# ---- files ---------------------------------------------------------------------------------------


def two_stage(values: Bytes) -> tuple[Bytes, Bytes]:
    """(block of code point >> 7, values of the distinct blocks one after the other)."""
    numbers: dict[bytes, int] = {}
    index = [
        numbers.setdefault(values[i : i + BLOCK].tobytes(), len(numbers))
        for i in range(0, CODE_POINTS, BLOCK)
    ]
    expect(len(numbers) <= 256, "more blocks than a byte counts")
    return np.array(index, np.uint8), np.frombuffer(b"".join(numbers), np.uint8)


def array(kind: str, name: str, values: list[str]) -> tuple[str, str]:
    """A C++ array's declaration and its definition."""
    head = f"const {kind} {name}[{len(values)}]"
    lines, line = [], "   "
    for value in values:
        if len(line) + len(value) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {value},"
    return f"extern {head};", "\n".join([f"{head} = {{", *lines, line, "};"])


def constants(values: NDArray[np.integer] | list[int]) -> list[str]:
    """Numbers as C++ writes them."""
    return [str(value) for value in np.asarray(values).tolist()]


def all_tables() -> list[tuple[str, str, str, list[str]]]:
    """(comment, type, name, values) of each table, in the order of the files."""
    check_contractions()
    class_index, class_block = two_stage(ask_classes())
    normal = ask_normalisation()
    nfc_index, nfc_block = two_stage(normal.bits)
    decompositions = sorted(normal.decompositions.items())
    pool = "".join(text for _, text in decompositions)
    ends = np.cumsum([0, *(len(text) for _, text in decompositions)])
    expect(len(pool) < 1 << 16, "decompositions beyond 16 bits")
    pairs = sorted(normal.compositions.items())
    byte, short, char = "std::uint8_t", "std::uint16_t", "char32_t"
    keys = [f"0x{one:X}{two:08X}" for (one, two), _ in pairs]
    return [
        ("By code point >> 7: which block of 128 holds it.", byte, "class_index",
         constants(class_index)),
        ("CharClass by block * 128 + the low 7 bits.", byte, "class_block",
         constants(class_block)),
        ("Likewise the bits of code_points.hpp.", byte, "nfc_index", constants(nfc_index)),
        ("", byte, "nfc_block", constants(nfc_block)),
        ("What decomposes, in order; Hangul syllables, which do by arithmetic, are left out.",
         char, "decomposed", constants([c for c, _ in decompositions])),
        ("Number i becomes decomposition[decomposition_begin[i]] up to that of i + 1.",
         short, "decomposition_begin", constants(ends)),
        ("", char, "decomposition", constants([ord(c) for c in pool])),
        ("Pairs that compose, (first << 32 | second) in order, and what they become.",
         "std::uint64_t", "composition_pair", keys),
        ("", char, "composition", constants([whole for _, whole in pairs])),
    ]  # fmt: skip


def render() -> dict[str, str]:
    """The text of both files, by name."""
    made_by = f"// Generated by generate_tables.py from tokenizers {tokenizers.__version__}; "
    declared, defined = [], []
    for note, kind, name, values in all_tables():
        head, body = array(kind, name, values)
        declared.append(f"// {note}\n{head}" if note else head)
        defined.append(body)
    declarations, definitions = "\n".join(declared), "\n\n".join(defined)
    return {
        "unicode_tables.hpp": f"""{made_by}do not edit.
#pragma once

#include <cstdint>

namespace omr::tables {{

{declarations}

}}  // namespace omr::tables
""",
        "unicode_tables.cpp": f"""{made_by}do not edit.
#include "tokenizer/unicode_tables.hpp"

namespace omr::tables {{

{definitions}

}}  // namespace omr::tables
""",
    }


def main() -> int:
    """Write the files, or say whether they are what would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check: bool = parser.parse_args().check
    folder = Path(__file__).parent
    differing = []
    for name, text in render().items():
        path = folder / name
        have = path.read_text(encoding="utf-8") if path.is_file() else ""
        # The first line names a version; another one with the same answers is as good.
        if have != text and not (check and have.partition("\n")[2] == text.partition("\n")[2]):
            differing.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and differing:
        made = f"tokenizers {tokenizers.__version__}"
        print(f"error: {', '.join(differing)}: not what {made} gives. Run this without --check")
        return 1
    print(f"{'unchanged' if not differing else 'wrote ' + ', '.join(differing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
