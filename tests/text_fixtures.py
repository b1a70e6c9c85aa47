"""Small tokenizers and their independent oracles, for the tests of tokenizer and chat."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import tokenizers

from omr_io.tokenizer import Tokenizer, train_bpe
from omr_io.tokenizer.qwen_bpe import QWEN_PLAIN_TOKENS, QWEN_SPECIAL_TOKENS
from omr_io.types import Option, Record
from tests.vocabularies import qwen_json, vocabulary

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


def qwen_tiktoken() -> Path:
    """The real Qwen vocabulary; the test is skipped, in CI failed, where it cannot be had."""
    return vocabulary("qwen.tiktoken")


def qwen_source(ranks_file: Path) -> str:
    """The tokenizer.json of Qwen2.5-VL, from its tiktoken ranks."""
    return qwen_json("qwen2_5", ranks_file)
