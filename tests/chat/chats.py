"""Tokenizers, templates and texts for the tests of chats."""

from __future__ import annotations

import functools
import json

import tokenizers
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from omr_io.chat import ChatFormat
from omr_io.chat.reference import ReferenceChat
from omr_io.chat.template import CHATML, LLAMA3
from omr_io.tokenizer import Tokenizer
from tests.text_fixtures import CONTROL_TEXTS, corpus, small

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
# The generation tags make transformers say what is trained; they leave the text as it is.
LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
CHATML_MASKED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content }}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- message.content }}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FORGED = st.lists(
    st.one_of(UNICODE, st.sampled_from((*CONTROL_TEXTS, *LLAMA3_SPECIAL))), max_size=6
).map("".join)
PLAIN = UNICODE.filter(lambda text: "<" not in text)
# Texts that spell no control token.
HONEST = st.lists(
    st.one_of(PLAIN, st.sampled_from(["<think>", "<answer>", "\n", " \n", "\r\n", "  ", "12345"])),
    max_size=6,
).map("".join)


@functools.cache
def small_llama() -> Tokenizer:
    """A tokenizer of 500 entries with Llama 3's pipeline and control tokens, made by HF."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.add_special_tokens(list(LLAMA3_SPECIAL))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": LLAMA3_TEMPLATE,
    }
    return Tokenizer(backend.to_str(), {"tokenizer_config.json": json.dumps(settings)})


def chat_of(
    style: str, system: str | None = None, instruction: str | None = None, *, hf: bool = False
) -> ChatFormat:
    """A chat format of a small tokenizer, of the native or of Hugging Face's backend."""
    tokenizer = small() if style == "chatml" else small_llama()
    if hf:
        tokenizer = Tokenizer(tokenizer._source, tokenizer._companions, backend="hf")
    return ChatFormat(tokenizer, system, instruction, style)  # type: ignore[arg-type]


def reference_of(chat: ChatFormat) -> ReferenceChat:
    """The slow oracle of a chat format."""
    style = CHATML if chat.style == "chatml" else LLAMA3
    return ReferenceChat(chat.tokenizer, style, chat.system, chat.instruction)
