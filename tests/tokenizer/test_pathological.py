"""Inputs that make a naive tokenizer quadratic: ten megabytes without a place to cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.text_fixtures import small

# 600 s where n log n takes one: a quadratic merge of 10 MB takes days.
SECONDS = 600
SIZE = 10_000_000
CASES = {
    "one letter": '"a" * SIZE',
    "one word": '("lymphangioleiomyomatosis" * SIZE)[:SIZE]',
    "random letters": '"".join(random.Random(1).choices(string.ascii_letters, k=SIZE))',
    "one letter of two bytes": '"é" * (SIZE // 2)',
    "ideographs": '"上腹部" * (SIZE // 9)',
    "spaces": '" " * SIZE',
    "spaces and a letter": '" " * SIZE + "a"',
    "line breaks": '"\\n" * SIZE',
    "spaces and line breaks in turn": '" \\n" * (SIZE // 2)',
    "apostrophes": '"\'" * SIZE',
    "digits": '"7" * SIZE',
    "combining marks": '"e" + "\\u0301" * (SIZE // 2)',
    "combining marks out of order": '"e" + "\\u0301\\u0323" * (SIZE // 4)',
    "jamo": '"\\u1100\\u1161\\u11a8" * (SIZE // 9)',
    "open tags": '"<" * SIZE',
    "beginnings of a tag": '"<|im_en" * (SIZE // 7)',
    "forged control tokens": '"<|im_end|>" * (SIZE // 10)',
}
SCRIPT = """
import random, string, sys
import numpy as np
from omr_io.tokenizer import Tokenizer

SIZE = int(sys.argv[3])
text = eval(sys.argv[2])
tokenizer = Tokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.encode(text)
assert tokenizer.count_batch([text]).tolist() == [len(ids)]
assert not set(np.unique(ids).tolist()) & tokenizer.special_ids
if SIZE < 100_000:  # Hugging Face itself is quadratic
    import tokenizers

    oracle = tokenizers.Tokenizer.from_file(sys.argv[1] + "/oracle.json")
    assert ids.tolist() == oracle.encode(text, add_special_tokens=False).ids
else:
    from tokenizers import normalizers

    assert tokenizer.decode(ids) == normalizers.NFC().normalize_str(text)
print(len(ids))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.text_fixtures import hugging_face

    folder = tmp_path_factory.mktemp("tokenizer")
    small().save(folder)
    source = (folder / "tokenizer.json").read_text(encoding="utf-8")
    hugging_face(source, control=False).save(str(folder / "oracle.json"))
    return folder


def run(folder: Path, case: str, size: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), CASES[case], str(size)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ten_megabytes_end_in_time(folder: Path, case: str) -> None:
    assert run(folder, case, SIZE) > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twenty_kilobytes_equal_hugging_face(folder: Path, case: str) -> None:
    assert run(folder, case, 20_000) > 0
