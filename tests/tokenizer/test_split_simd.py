# ruff: noqa: RUF001, SIM905 (look-alike characters are what is tested)
"""The vector forms of `split` against its scalar form and Hugging Face."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from omr_io import _C

ROOT = Path(__file__).parents[2]
ALL = ("scalar", "avx2", "avx512")
VECTOR = ALL[1 : ALL.index(_C.best_instructions()) + 1]
EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HUGGING_FACE = {
    "qwen2": pre_tokenizers.Split(Regex(EXPRESSION.replace("NUMBER", r"\p{N}")), "isolated"),
    "llama3": pre_tokenizers.Split(Regex(EXPRESSION.replace("NUMBER", r"\p{N}{1,3}")), "isolated"),
}
TRAPS = [
    *("a B s S t T re VE ll m d é µ β Δ Ο ж א の 中 한 ſ 's 'S 'ſ 'LL 're 've x's don't".split()),
    *("1 22 333 4444 55555 ² ½ ٣ ３ 𝟘 ' '' '' . , ! - -- ( )] … ≥ − ° ’ × · ¨ 👍 👍🏽".split()),
    *(" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r", "\r\n", "\v", "\f", " \n ", "\n \n"),
    *("\x00", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\u1680", "\u2009", "\u2028", "\u202f"),
    *("\u3000", "\ufeff", "\u0301", "\u0387", "\u03a2", "\u03f6", "\u4dc0", "\ufdd0", "\U0010ffff"),
    *("x" * 61, " " * 64, "7" * 65, "!" * 63, "\n" * 66, "中" * 22),
]

needs_vectors = pytest.mark.skipif(not VECTOR, reason="this processor has no vector form")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def by_hugging_face(pattern: str, text: str) -> list[int]:
    """Ends of its pieces, in bytes."""
    pieces = HUGGING_FACE[pattern].pre_tokenize_str(text)
    return list(itertools.accumulate(len(piece.encode()) for piece, _ in pieces))


def check(text: str, capacity: int, *, oracle: bool = True) -> None:
    data = text.encode()
    for pattern in HUGGING_FACE:
        scalar = _C.split_pieces(pattern, data, "scalar", capacity).tolist()
        if oracle:
            assert scalar == by_hugging_face(pattern, text)
        for name in VECTOR:
            assert _C.split_pieces(pattern, data, name, capacity).tolist() == scalar, name


@st.composite
def few_kinds(draw: st.DrawFn) -> str:
    """Text of few kinds of characters: long runs, and much that repeats around block edges."""
    kinds = draw(st.lists(st.sampled_from(TRAPS), min_size=1, max_size=8))
    return "x" * draw(st.integers(0, 66)) + "".join(
        draw(st.lists(st.sampled_from(kinds), max_size=100))
    )


@needs_vectors
@settings(max_examples=100, deadline=None)
@given(few_kinds(), st.integers(64, 200))
def test_traps(text: str, capacity: int) -> None:
    check(text, capacity)


@needs_vectors
@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 66))
def test_any_text(text: str, before: int) -> None:
    check(" " * before + text, 64)


@needs_vectors
def test_long_texts() -> None:
    rng = random.Random(11)
    for _ in range(40):
        kinds = rng.sample(TRAPS, rng.randrange(1, len(TRAPS)))
        text = "".join(rng.choices(kinds, k=rng.randrange(3000)))
        check(text, rng.choice([64, 65, 66, 97, 512, 100_000]))


@needs_vectors
@pytest.mark.parametrize("unit", ["a", "1", " ", "\n", "!", "'", "é", "中", "\u3000", "'s", "\n "])
def test_one_kind_alone(unit: str) -> None:
    """Runs of every length around one, two and three blocks, at the end and before a letter."""
    for count in [*range(70), *range(125, 132), *range(190, 196)]:
        check(unit * count, 64)
        check(unit * count + "z", 64)


@needs_vectors
def test_every_capacity_gives_the_same() -> None:
    text = "".join(random.Random(3).choices(TRAPS[:60], k=2000))
    whole = _C.split_pieces("llama3", text.encode(), "scalar", 100_000).tolist()
    for capacity in range(64, 400):
        for name in VECTOR:
            assert _C.split_pieces("llama3", text.encode(), name, capacity).tolist() == whole


def test_instructions_the_processor_lacks_are_refused() -> None:
    for name in ALL:
        if name in ("scalar", *VECTOR):
            continue
        with pytest.raises(ValueError, match="best_instructions"):
            _C.split_pieces("qwen2", b"a b", name, 64)


def build(folder: Path, *flags: str) -> Callable[..., int]:
    """Compiles check_split; returns what runs it and gives how many splits it compared."""
    names = ("split", "split_scalar", "split_avx2", "split_avx512", "unicode_tables")
    sources = [ROOT / "tests/csrc/check_split.cpp"]
    sources += [ROOT / f"csrc/tokenizer/{name}.cpp" for name in names]
    binary = folder / "check_split"
    subprocess.run(
        ["g++", "-std=c++20", *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", binary], check=True
    )

    def run(*arguments: str) -> int:
        done = subprocess.run([binary, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout)

    return run


@needs_vectors
@needs_compiler
def test_around_a_block_edge_and_before_a_guarded_page(tmp_path: Path) -> None:
    """With sanitizers; texts end before a page that must not be read: see check_split.cpp."""
    sanitizers = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    run = build(tmp_path, *sanitizers)
    per_text = 2 * len(VECTOR)  # patterns, instructions
    for length in (1, 2, 3):
        assert run("sequences", str(length)) == 12**length * 18 * per_text
    assert run("random", "20000") == 20_000 * per_text


@pytest.mark.slow
@needs_vectors
@needs_compiler
def test_every_sequence_and_every_code_point(tmp_path: Path) -> None:
    run = build(tmp_path, "-O2")
    per_text = 2 * len(VECTOR)
    assert run("characters") == (0x110000 - 0x800) * per_text
    assert run("sequences", "6") == 12**6 * 18 * per_text
    assert run("random", "100000") == 100_000 * per_text
