from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.chat import ChatFormat, Completion, corpus_completion
from omr_io.errors import ConfigError, DataError, TokenizerError
from omr_io.tokenizer import Tokenizer
from omr_io.tokenizer.qwen_bpe import CHATML_TEMPLATE
from omr_io.types import EncodedImage, Record
from tests.text_fixtures import CONTROL_TEXTS, corpus, qwen_source, qwen_tiktoken, record, small

SPECIAL = CONTROL_TEXTS[:8]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLAIN = UNICODE.filter(lambda text: not any(token in text for token in CONTROL_TEXTS))
# <think> and <answer> may be in honest text; the special tokens may not.
HONEST = st.lists(
    st.one_of(
        PLAIN, st.sampled_from(["<think>", "</think>", "<answer>", "\n", " \n", "\r\n", "  "])
    ),
    max_size=6,
).map("".join)
FORGED = st.lists(st.one_of(UNICODE, st.sampled_from(CONTROL_TEXTS)), max_size=6).map("".join)
IMAGES = st.lists(st.integers(1, 9), max_size=3)
MAYBE = st.none() | HONEST

# HF marks what stands between these tags in return_assistant_tokens_mask: the oracle of `trained`.
MASK_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content }}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- message.content }}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}"""

DEFAULT_SYSTEM_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
) + CHATML_TEMPLATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    small().save(folder)
    return folder


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def messages(chat: ChatFormat, question: str, images: int, completion: str | None) -> list[Any]:
    if chat.instruction is not None:
        question += "\n" + chat.instruction
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    made: list[Any] = [{"role": "user", "content": content}]
    if chat.system is not None:
        made.insert(0, {"role": "system", "content": chat.system})
    if completion is not None:
        made.append({"role": "assistant", "content": completion})
    return made


def rendered(hf: Any, chat: ChatFormat, question: str, counts: list[int], text: str | None) -> str:
    shown = hf.apply_chat_template(
        messages(chat, question, len(counts), text),
        tokenize=False,
        add_generation_prompt=text is None,
    )
    for count in counts:
        shown = shown.replace("<|image_pad|>", "<placeholder>" * count, 1)
    return str(shown.replace("<placeholder>", "<|image_pad|>"))


def merges_with_the_line_break(completion: str) -> bool:
    """The one documented case in which apart and joint encoding differ."""
    spaces = completion[: len(completion) - len(completion.lstrip())]
    return "\n" in spaces or "\r" in spaces


@settings(max_examples=100, deadline=None)
@given(question=HONEST, counts=IMAGES, system=MAYBE, instruction=MAYBE)
def test_prompt_equals_transformers(
    hf: Any, question: str, counts: list[int], system: str | None, instruction: str | None
) -> None:
    chat = ChatFormat(small(), system, instruction)
    got = chat.encode(record(question), counts, completion=None)
    assert got.input_ids.dtype == np.int32
    shown = rendered(hf, chat, question, counts, None)
    assert got.input_ids.tolist() == hf(shown, add_special_tokens=False)["input_ids"]
    assert got.num_prompt_tokens == len(got.input_ids)
    assert not got.trained.any()
    # With one placeholder an image there is nothing to expand: ask the template for ids itself.
    ones = chat.encode(record(question), [1] * len(counts), completion=None)
    conversation = messages(chat, question, len(counts), None)
    direct = hf.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert ones.input_ids.tolist() == list(direct)


@settings(max_examples=100, deadline=None)
@given(question=HONEST, counts=IMAGES, completion=HONEST)
def test_training_sample_equals_transformers(
    hf: Any, question: str, counts: list[int], completion: str
) -> None:
    chat = ChatFormat(small(), "Be exact.")
    got = chat.encode(record(question), counts, completion=completion).input_ids.tolist()
    shown = rendered(hf, chat, question, counts, completion)
    joint = hf(shown, add_special_tokens=False)["input_ids"]
    if merges_with_the_line_break(completion):
        assert hf.decode(got) == hf.decode(joint)
    else:
        assert got == joint


def test_joint_and_apart_differ_just_where_the_completion_begins_with_a_line_break(hf: Any) -> None:
    chat = ChatFormat(small())
    heads = ["", " ", "  ", "\t", "\n", "\n\n", " \n", "\r\n", "\u0301", "\u3000", "<think>", "'s"]
    differ = []
    for head in heads:
        got = chat.encode(record("Q"), [], completion=head + "x").input_ids.tolist()
        joint = hf(rendered(hf, chat, "Q", [], head + "x"), add_special_tokens=False)["input_ids"]
        if got != joint:
            differ.append(head)
    # Which of the documented heads do merge is up to the vocabulary: this one has "\n\n".
    assert differ == ["\n", "\n\n"]
    # The corpus' own completions begin with a tag, so that not one of them is concerned.
    assert not merges_with_the_line_break(record("Q").reasoning)


@settings(max_examples=100, deadline=None)
@given(question=FORGED, counts=IMAGES, completion=FORGED, system=MAYBE)
def test_prompt_begins_the_sample_and_only_the_completion_is_trained(
    question: str, counts: list[int], completion: str, system: str | None
) -> None:
    tokenizer = small()
    chat = ChatFormat(tokenizer, system)
    prompt = chat.encode(record(question), counts, completion=None)
    sample = chat.encode(record(question), counts, completion=completion)
    n = sample.num_prompt_tokens
    assert n == len(prompt.input_ids) < len(sample.input_ids)
    assert sample.input_ids[:n].tolist() == prompt.input_ids.tolist()
    trained = [*tokenizer.encode(completion).tolist(), chat.end_token_id]
    assert sample.input_ids[n:].tolist() == [*trained, *tokenizer.encode("\n").tolist()]
    assert sample.input_ids[sample.trained].tolist() == trained
    assert sample.trained.sum() == sample.trained[n : n + len(trained)].sum()


def test_trained_tokens_are_those_that_transformers_marks(hf: Any) -> None:
    chat = ChatFormat(small(), "Be exact.")
    for text in corpus(30):
        question, _, completion = text.partition("\n\n<think>")
        completion = "<think>" + completion
        got = chat.encode(record(question), [], completion=completion)
        conversation = [
            {"role": "system", "content": "Be exact."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": completion},
        ]
        want = hf.apply_chat_template(
            conversation,
            chat_template=MASK_TEMPLATE,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        assert got.input_ids.tolist() == list(want["input_ids"])
        assert got.trained.tolist() == [mask == 1 for mask in want["assistant_masks"]]
        assert got.trained.any()


@settings(max_examples=100, deadline=None)
@given(question=FORGED, counts=IMAGES, completion=FORGED, system=MAYBE)
def test_forged_control_tokens_never_appear(
    question: str, counts: list[int], completion: str, system: str | None
) -> None:
    chat = ChatFormat(small(), system)
    honest = chat.encode(record("honest"), counts, completion="honest").input_ids
    forged = chat.encode(record(question), counts, completion=completion + " ").input_ids
    special = sorted(small().special_ids)
    want = honest[np.isin(honest, special)].tolist()
    assert forged[np.isin(forged, special)].tolist() == want
    assert (forged == chat.image_token_id).sum() == sum(counts)


@settings(max_examples=50, deadline=None)
@given(
    items=st.lists(st.tuples(FORGED, FORGED, IMAGES), max_size=5), system=MAYBE, instruction=MAYBE
)
def test_lengths_are_those_of_encode(
    items: list[tuple[str, str, list[int]]], system: str | None, instruction: str | None
) -> None:
    chat = ChatFormat(small(), system, instruction)
    image = EncodedImage(b"")
    records = [
        dataclasses.replace(record(question, reasoning), images=(image,) * len(counts))
        for question, reasoning, counts in items
    ]
    text_tokens, label_tokens = chat.lengths(iter(records))
    assert (text_tokens.dtype, label_tokens.dtype) == (np.int64, np.int64)
    encoded = [chat.encode(r, c) for r, (_, _, c) in zip(records, items, strict=True)]
    pads = [sum(counts) for _, _, counts in items]
    assert (text_tokens + pads).tolist() == [len(e.input_ids) for e in encoded]
    assert label_tokens.tolist() == [int(e.trained.sum()) for e in encoded]
    bare = [dataclasses.replace(r, images=()) for r in records]
    again, _ = chat.lengths(bare, [len(counts) for _, _, counts in items])
    assert again.tolist() == text_tokens.tolist()


def test_lengths_beyond_one_chunk_and_of_nothing() -> None:
    chat = ChatFormat(small())
    records = [record("word " * (i % 7)) for i in range(2100)]
    text_tokens, label_tokens = chat.lengths(records)
    assert len(text_tokens) == len(label_tokens) == 2100
    for i in (0, 1023, 1024, 2048, 2099):
        assert text_tokens[i] == len(chat.encode(records[i], []).input_ids)
    assert [len(a) for a in chat.lengths([])] == [0, 0]


def test_lengths_needs_as_many_counts_as_records() -> None:
    chat = ChatFormat(small())
    for counts in ([1], [1, 1, 1]):
        with pytest.raises(ConfigError, match="num_images"):
            chat.lengths([record("a"), record("b")], counts)


def test_corpus_completion_is_taken_as_it_stands() -> None:
    assert corpus_completion(record("Q", "<think>x</think> ")) == "<think>x</think> "
    assert corpus_completion(record("Q", "")) == "<answer>B</answer>"
    chat = ChatFormat(small())
    sample = chat.encode(record("Q", ""), [])
    assert small().decode(sample.input_ids[sample.trained]) == "<answer>B</answer><|im_end|>"


def test_any_text_can_be_a_completion() -> None:
    chat = ChatFormat(small())
    for text in ("corpus", "Completion.CORPUS", "", "None"):
        sample = chat.encode(record("Q"), [], completion=text)
        assert small().decode(sample.input_ids[sample.trained]) == text + "<|im_end|>"
    own = chat.encode(record("Q"), [], completion=Completion.CORPUS)
    assert small().decode(own.input_ids[own.trained]) == f"{record('Q').reasoning}<|im_end|>"


def test_images_come_first_and_a_literal_placeholder_stays_text() -> None:
    chat = ChatFormat(small(), instruction="Answer with a letter.")
    got = chat.encode(record("Is <image> clear?"), [2, 1], completion="B")
    assert small().decode(got.input_ids) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|vision_end|>Is <image> clear?\nAnswer with a letter."
        "<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    )
    assert small().decode([chat.image_token_id]) == "<|image_pad|>"
    assert small().decode([chat.end_token_id]) == "<|im_end|>"
    assert small().decode([chat.pad_token_id]) == "<|endoftext|>"


def test_counts_must_fit_the_images() -> None:
    chat = ChatFormat(small())
    one = dataclasses.replace(record("Q"), images=(EncodedImage(b""),))
    for item, counts in ((one, [1, 1]), (one, []), (one, [0]), (record("Q"), [-1])):
        with pytest.raises(ConfigError, match="image"):
            chat.encode(item, counts)


@pytest.mark.parametrize("field", ["question", "reasoning"])
def test_a_lone_surrogate_names_the_record(field: str) -> None:
    chat = ChatFormat(small())
    bad: Record = dataclasses.replace(record("Q"), **{field: "x\ud800"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"U\+D800.*train\.parquet#17"):
        chat.encode(bad, [])
    with pytest.raises(DataError, match=r"U\+D800.*train\.parquet#17"):
        chat.lengths([record("Q")] * 3 + [bad])


def test_families() -> None:
    helpful = "You are a helpful assistant."
    assert ChatFormat.for_family("qwen2_5_vl", small()).system == helpful
    assert ChatFormat.for_family("qwen2_vl", small()).system == helpful
    assert ChatFormat.for_family("qwen3_vl", small()).system is None
    assert ChatFormat.for_family("qwen2_5_vl", small(), system="Mine").system == "Mine"
    assert ChatFormat.for_family("qwen3_vl", small(), instruction="I").instruction == "I"
    with pytest.raises(ConfigError, match="llama"):
        ChatFormat.for_family("llama", small())  # type: ignore[arg-type]


def test_fingerprint_follows_options_and_tokenizer() -> None:
    tree = json.loads(small()._source)
    tree["model"]["merges"].pop()
    other = Tokenizer(json.dumps(tree))
    formats = [
        ChatFormat(small()),
        ChatFormat(small(), system=""),
        ChatFormat(small(), system="x"),
        ChatFormat(small(), instruction="x"),
        ChatFormat(other),
    ]
    prints = [chat.fingerprint for chat in formats]
    assert len(set(prints)) == len(formats)
    again = pickle.loads(pickle.dumps(formats[2]))
    assert again.fingerprint == prints[2]
    assert again.encode(record("Q"), [2]).input_ids.tolist() == (
        formats[2].encode(record("Q"), [2]).input_ids.tolist()
    )


def test_a_tokenizer_without_chatml_is_refused() -> None:
    tree = json.loads(small()._source)
    for token in tree["added_tokens"]:
        if token["content"] == "<|image_pad|>":
            token["special"] = False
    with pytest.raises(TokenizerError, match=r"<\|image_pad\|>"):
        ChatFormat(Tokenizer(json.dumps(tree)))
    kept = [t for t in tree["added_tokens"] if t["content"] != "<|im_end|>"]
    with pytest.raises(TokenizerError, match=r"<\|im_end\|>"):
        ChatFormat(Tokenizer(json.dumps(tree | {"added_tokens": kept})))


def with_template(tmp_path: Path, template: str | None, name: str = "chat_template.jinja") -> Path:
    small().save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    if name.endswith("json"):
        (tmp_path / name).write_text(json.dumps({"chat_template": template}))
    elif template is not None:
        (tmp_path / name).write_text(template)
    return tmp_path


def test_check_accepts_the_template_it_implements(folder: Path, tmp_path: Path) -> None:
    for system in (None, "Be exact."):
        for instruction in (None, "Answer with a letter."):
            ChatFormat(small(), system, instruction).check_against(folder)
    for i, name in enumerate(("chat_template.jinja", "chat_template.json")):
        other = with_template(tmp_path / str(i), DEFAULT_SYSTEM_TEMPLATE, name)
        ChatFormat.for_family("qwen2_5_vl", small()).check_against(other)
        with pytest.raises(TokenizerError, match="gives other ids: from token 1 on"):
            ChatFormat.for_family("qwen3_vl", small()).check_against(other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("assistant\\n'", "assistant\\n<think>\\n'"),  # as the thinking models' prompts
        ("{{- part.text }}", "{{- part.text | trim }}"),
        ("{{- part.text }}", "{{- part.text.split('</think>')[-1] }}"),
        ("<|vision_end|>'", "<|vision_end|>\\n'"),
        ("<|vision_start|>", "Picture: <|vision_start|>"),
        ("{{- '<|im_end|>\\n' }}", "{{- '<|im_end|>' }}"),
        ("<|image_pad|>", "<image>"),
        ("<|vision_start|>", "<|vision_pad|>"),  # as many ids, but others
        ("{%- if message.content is string %}", "{%- if undefined_thing.x is string %}"),
    ],
)
def test_check_refuses_templates_that_differ(tmp_path: Path, old: str, new: str) -> None:
    assert old in CHATML_TEMPLATE
    other = with_template(tmp_path, CHATML_TEMPLATE.replace(old, new))
    with pytest.raises(TokenizerError, match="template"):
        ChatFormat(small()).check_against(other)


def test_check_refuses_another_tokenizer_and_folders_without_a_template(tmp_path: Path) -> None:
    bare = with_template(tmp_path / "bare", None)
    with pytest.raises(TokenizerError, match="no chat template"):
        ChatFormat(small()).check_against(bare)
    with pytest.raises(TokenizerError, match="cannot read"):
        ChatFormat(small()).check_against(tmp_path / "nowhere")
    tree = json.loads(small()._source)
    del tree["model"]["merges"][10:]
    fewer = Tokenizer(json.dumps(tree), small()._companions)
    fewer.save(tmp_path / "fewer")
    with pytest.raises(TokenizerError, match="other ids"):
        ChatFormat(small()).check_against(tmp_path / "fewer")


@pytest.mark.slow
def test_real_qwen_vocabulary_in_a_chat(tmp_path: Path) -> None:
    ranks = qwen_tiktoken()
    tokenizer = Tokenizer(qwen_source(ranks), small()._companions)
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(DEFAULT_SYSTEM_TEMPLATE)
    chat = ChatFormat.for_family("qwen2_5_vl", tokenizer)
    chat.check_against(tmp_path)
    # In Qwen2.5 neither tag is a token, and "\n\n" is: the documented difference, seen for real.
    apart = chat.encode(record("Q"), [4], completion="\n\nx").input_ids
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(tmp_path)
    joint = hf(rendered(hf, chat, "Q", [4], "\n\nx"), add_special_tokens=False)["input_ids"]
    assert hf.decode(apart) == hf.decode(joint)
    assert len(apart) != len(joint)
