"""What the model families put around their vocabularies, which a rank file does not say.

Facts of the tokenizer.json of Qwen2.5, Qwen3, Llama 3 and Llama 3.1 on the Hugging Face hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omr_io.tokenizer.pipeline import PATTERNS

Family = Literal["qwen2", "qwen3", "llama3", "llama3.1"]
"""qwen2: Qwen2.5 and Qwen2.5-VL too. llama3.1: Llama 3.2 (text) and 3.3 too."""

_QWEN2_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
)
_QWEN2_PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
)
_QWEN3_PLAIN = f"{_QWEN2_PLAIN} <tool_response> </tool_response> <think> </think>"
_LLAMA3 = {
    0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id",
}  # fmt: skip
_LLAMA3_1 = _LLAMA3 | {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}


def added_tokens(family: Family) -> list[tuple[str, bool]]:
    """(content, special) of a family's added tokens; their ids follow those of the ranks."""
    if family == "qwen2" or family == "qwen3":
        plain = _QWEN2_PLAIN if family == "qwen2" else _QWEN3_PLAIN
        return [(t, True) for t in _QWEN2_SPECIAL.split()] + [(t, False) for t in plain.split()]
    named = _LLAMA3 if family == "llama3" else _LLAMA3_1
    reserved = (f"reserved_special_token_{i}" for i in range(256))
    return [(f"<|{named.get(i) or next(reserved)}|>", True) for i in range(256)]


def tokenizer_json(
    family: Family,
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of the tokenizer.json of a family.

    Args:
        family: decides normaliser, pre-tokeniser and whether merges are ignored for whole tokens.
        vocab, merges: as a tokenizer.json has them.
        added: its added tokens as a tokenizer.json has them; None: `added_tokens(family)`.
    """
    llama = family.startswith("llama3")
    if added is None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        contents = enumerate(added_tokens(family), start=len(vocab))
        added = [{"id": i, "content": t, **flags, "special": s} for i, (t, s) in contents]
    name = "llama3" if llama else "qwen2"
    regex = next(regex for regex, pattern in PATTERNS.items() if pattern == name)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": llama}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None if llama else {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"use_regex": False}],
        },
        "post_processor": _begin_of_text(len(vocab)) if llama else None,
        "decoder": byte_level | {"use_regex": llama},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": llama,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))


def tokenizer_config(family: Family) -> str:
    """A tokenizer_config.json, so that transformers' AutoTokenizer reads the folder."""
    ends = {
        "qwen2": "<|im_end|>", "qwen3": "<|im_end|>",
        "llama3": "<|end_of_text|>", "llama3.1": "<|end_of_text|>",
    }  # fmt: skip
    tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": ends[family],
        "clean_up_tokenization_spaces": False,
    }
    if family.startswith("llama3"):
        tree["bos_token"] = "<|begin_of_text|>"  # noqa: S105
    else:
        tree["pad_token"] = "<|endoftext|>"  # noqa: S105
    return json.dumps(tree, indent=2) + "\n"


def _begin_of_text(number: int) -> dict[str, Any]:
    """Llama 3's post-processor. omr_io never applies it; transformers does."""
    token = "<|begin_of_text|>"  # noqa: S105
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    second = {"SpecialToken": {"id": token, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, a],
        "pair": [begin, a, second, b],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
