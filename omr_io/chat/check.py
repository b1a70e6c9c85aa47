"""Compare a chat format with the jinja chat template that a Hugging Face folder brings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omr_io.errors import ConfigError, TokenizerError
from omr_io.tokenizer.files import read_text
from omr_io.types import Record

Encode = Callable[[Record, Sequence[int], str | None], list[int]]

_COMPLETION = "<think>\nThe apex is lucent.\n\nNo markings.\n</think>\n\n<answer>B</answer>"
_QUESTION = "What does the image show?\nA. naïve T-cells, 12.5 µm\nB. pneumothorax"
# Question, image tokens, completion (None: the generation prompt). Templates are known to trim
# texts, to drop or add a <think> block, and to put numbers or line breaks around images.
_PROBES: tuple[tuple[str, tuple[int, ...], str | None], ...] = (
    (_QUESTION, (4,), _COMPLETION),
    (_QUESTION, (4,), None),
    (_QUESTION, (), "B"),
    (_QUESTION, (1, 7, 3), "<answer>B</answer>"),
    ("  leading and trailing space \n\n", (2,), "both kept \n"),
    ("\n\nleading line breaks", (), "kept"),
    ("", (2,), None),
)


def check_template(
    encode: Encode, folder: Path, *, system: str | None, instruction: str | None
) -> None:
    """Raise TokenizerError where the folder's template and tokenizer give other ids than `encode`.

    The template is chat_template.json's if there is one, as Qwen2.5-VL's processor has it, and
    else the tokenizer's own.

    Args:
        encode: (record, image_tokens, completion) → the ids of a chat format.
        folder: of Hugging Face.
        system, instruction: those of the chat format.

    Raises:
        TokenizerError: other ids, no template, or a template that fails on a probe.
        ConfigError: transformers is not installed.
    """
    hf, template = _load(folder)
    for question, image_tokens, completion in _PROBES:
        record = Record(id="probe", question=question, options=(), answer="B", reasoning="")
        ours = encode(record, image_tokens, completion)
        messages = _messages(system, instruction, question, len(image_tokens), completion)
        try:
            text = hf.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=completion is None,
            )
        except Exception as error:  # a template may raise anything
            raise TokenizerError(
                f"the chat template of {folder} fails on a probe conversation: {error}",
                mend="Use the folder of a Qwen VL Instruct model",
            ) from error
        theirs = hf(_expand(text, image_tokens), add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise TokenizerError(
                f"the chat template of {folder} gives other ids: {_difference(hf, ours, theirs)}",
                mend="Use ChatFormat.for_family with the family of that model (Qwen2-VL and "
                "Qwen2.5-VL put in a system turn), or a VL Instruct model's tokenizer",
            )


def _load(folder: Path) -> tuple[Any, str | None]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            "check_against needs transformers", mend="pip install 'omr_io[train]'"
        ) from error
    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        source = read_text(folder / "chat_template.json")
        template = None if source is None else str(json.loads(source)["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"transformers cannot read {folder}: {error}") from error
    if template is None and not hf.chat_template:
        raise TokenizerError(
            f"{folder} has no chat template", mend="Use the folder of a Qwen VL Instruct model"
        )
    return hf, template


def _messages(
    system: str | None, instruction: str | None, question: str, images: int, completion: str | None
) -> list[dict[str, Any]]:
    def turn(role: str, text: str, images: int = 0) -> dict[str, Any]:
        return {
            "role": role,
            "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
        }

    if instruction is not None:
        question = f"{question}\n{instruction}"
    opening = [] if system is None else [turn("system", system)]
    answer = [] if completion is None else [turn("assistant", completion)]
    return [*opening, turn("user", question, images), *answer]


def _expand(text: str, image_tokens: tuple[int, ...]) -> str:
    """Repeat each placeholder, as Qwen's processors do before they encode."""
    head, *tails = text.split("<|image_pad|>")
    if len(tails) != len(image_tokens):
        raise TokenizerError(
            f"the chat template gives {len(tails)} image placeholders for {len(image_tokens)}"
            f" images: {text!r}",
            mend="Use the tokenizer of a Qwen VL model",
        )
    return head + "".join(
        "<|image_pad|>" * count + tail for count, tail in zip(image_tokens, tails, strict=True)
    )


def _difference(hf: Any, ours: list[int], theirs: list[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    begin = max(0, at - 4)
    here, there = (hf.decode(ids[begin : at + 8]) for ids in (ours, theirs))
    return f"from token {at} on, around {here!r} here and {there!r} there"
