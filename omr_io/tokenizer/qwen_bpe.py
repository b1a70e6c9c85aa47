"""Training a small byte-level BPE with Qwen's pipeline, special tokens and chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from omr_io.errors import ConfigError
from omr_io.tokenizer.texts import require_texts, surrogate

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pieces that BPE works within, as in every Qwen2, Qwen2.5 and Qwen3 tokenizer.json."""

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_PLAIN_TOKENS = ("<think>", "</think>")
"""Added with special=False, as in Qwen3. `<answer>` is no token of its own in any Qwen."""

CHATML_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('this template knows text and images only') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The jinja chat template saved with a tokenizer from `train_bpe`: ChatML as Qwen3-VL renders it.
transformers renders it; `omr_io.chat` emits the same ids without it and is checked against it."""

_CHUNK = 1024  # texts handed to the trainer at a time


def train_qwen_bpe(texts: Iterable[str], *, vocab_size: int) -> tuple[str, dict[str, str]]:
    """The text of a tokenizer.json, and by name of the files that belong to it.

    See `omr_io.tokenizer.train_bpe` for arguments and errors.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    added = len(QWEN_SPECIAL_TOKENS) + len(QWEN_PLAIN_TOKENS)
    if vocab_size < len(alphabet) + added:
        raise ConfigError(
            f"vocab_size {vocab_size} has no room for {len(alphabet)} bytes and {added} tokens",
            mend=f"Use at least {len(alphabet) + added}",
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - added,
        min_frequency=2,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_checked_batches(texts), trainer)
    backend.add_special_tokens(list(QWEN_SPECIAL_TOKENS))
    plain = [tokenizers.AddedToken(t, normalized=False, special=False) for t in QWEN_PLAIN_TOKENS]
    backend.add_tokens(plain)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    companions = {
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": CHATML_TEMPLATE,
    }
    return backend.to_str(pretty=True) + "\n", companions


def _checked_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Check before the trainer sees them: it would report a TypeError without a place."""
    stream = iter(texts)
    first = 0
    while piece := list(islice(stream, _CHUNK)):
        require_texts(piece, first)
        try:
            "".join(piece).encode("utf-8")
        except UnicodeEncodeError as error:
            raise surrogate(piece, first) from error
        yield piece
        first += len(piece)
