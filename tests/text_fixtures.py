"""Small tokenizers and their independent oracles, for the tests of tokenizer and chat."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
from base64 import b64decode
from pathlib import Path

import tokenizers

from omr_io.tokenizer import Tokenizer, train_bpe
from omr_io.tokenizer.qwen_bpe import QWEN_PLAIN_TOKENS, QWEN_SPECIAL_TOKENS
from omr_io.types import Option, Record

_WORDS = (  # noqa: SIM905
    "the image shows computed tomography of chest abdomen brain magnetic resonance axial coronal "
    "sagittal which quadrant is brightest opacity effusion pneumothorax lobe lesion µm naïve 12.5 "
    "mg/dL β-catenin don't it's contrast inverted 上腹部 рентген apex lucent αβ"
).split()
CONTROL_TEXTS = (*QWEN_SPECIAL_TOKENS, *QWEN_PLAIN_TOKENS, "<answer>", "</answer>", "<tool_call>")


def corpus(rows: int = 400) -> list[str]:
    """Seeded medical-looking sentences."""
    rng = random.Random(7)
    return [
        f"{' '.join(rng.choices(_WORDS, k=20)).capitalize()}?\nA. {rng.choice(_WORDS)}\n\n"
        f"<think>{' '.join(rng.choices(_WORDS, k=12))}.</think>\n\n<answer>A</answer>"
        for _ in range(rows)
    ]


@functools.cache
def small() -> Tokenizer:
    """A Qwen-like tokenizer of 500 entries."""
    return train_bpe(corpus(), vocab_size=500)


def hugging_face(source: str, *, control: bool) -> tokenizers.Tokenizer:
    """Hugging Face's own tokenizer of a tokenizer.json; `control` keeps the special=True tokens.

    Without them it is the oracle of "special-looking text is plain text": they are not there.
    """
    tree = json.loads(source)
    if not control:
        tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["special"]]
    return tokenizers.Tokenizer.from_str(json.dumps(_fill_ids(tree)))


def _fill_ids(tree: dict[str, object]) -> dict[str, object]:
    """Hugging Face renumbers added tokens that leave a gap, so name each by its id in the vocab."""
    vocab = tree["model"]["vocab"]  # type: ignore[index]
    for token in tree["added_tokens"]:  # type: ignore[attr-defined]
        vocab.setdefault(token["content"], token["id"])
    return tree


def record(question: str, reasoning: str = "<think>Fine.</think>\n<answer>B</answer>") -> Record:
    """A record of a question and a completion, without images."""
    options = (Option("A", "yes"), Option("B", "no"))
    return Record("r1", question, options, "B", reasoning, source="train.parquet#17")


def qwen_tiktoken() -> Path | None:
    """The real Qwen vocabulary, from the package dashscope or $OMR_QWEN_TIKTOKEN, if there."""
    if "OMR_QWEN_TIKTOKEN" in os.environ:
        return Path(os.environ["OMR_QWEN_TIKTOKEN"])
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("qwen.tiktoken"), None)


def qwen_source(ranks_file: Path) -> str:
    """The tokenizer.json of Qwen2.5-VL, from its tiktoken ranks."""
    lines = (line.split() for line in ranks_file.read_bytes().splitlines() if line)
    ranks = {b64decode(token): int(rank) for token, rank in lines}
    letters = _byte_letters()
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1 and (pair := _last_pair(token, rank, ranks)) is not None:
            merges.append((rank, ["".join(letters[b] for b in part) for part in pair]))
    vocab = {"".join(letters[b] for b in token): rank for token, rank in ranks.items()}
    tree = json.loads(train_bpe(["a"], vocab_size=266)._source)
    tree["model"]["vocab"] = vocab
    tree["model"]["merges"] = [pair for _, pair in sorted(merges)]
    tree["added_tokens"] = [
        {
            "id": 151643 + i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i < 14,
        }
        for i, content in enumerate(_QWEN_ADDED)
    ]
    return json.dumps(tree)


_QWEN_ADDED = (  # noqa: SIM905
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> "
    "<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter of each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _last_pair(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts left when `token` is encoded with lower ranks only: its merge."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= rank:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return (parts[0], parts[1])
