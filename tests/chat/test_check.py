"""The check of a chat format against the template that a tokenizer brings."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from omr_io.chat import ChatFormat, Conversation, Turn
from omr_io.chat.jinja import JinjaTemplate
from omr_io.errors import ConfigError, OmrWarning, TokenizerError
from omr_io.tokenizer import Tokenizer
from omr_io.tokenizer.qwen_bpe import CHATML_TEMPLATE
from tests.chat.chats import CHATML_MASKED, LLAMA3_TEMPLATE, chat_of, small_llama
from tests.text_fixtures import qwen_source, qwen_tiktoken, record, small
from tests.vocabularies import vocabulary

# As Qwen2.5-VL's, in which a processor may number images and videos.
QWEN25_VL = """\
{% set count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}\
{% set count.value = count.value + 1 %}{% if numbered %}Picture {{ count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}\
{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# As those of thinking models: the reasoning of turns that are over is dropped.
FORGETS = CHATML_TEMPLATE.replace(
    "{%- for message in messages %}",
    "{%- for message in messages %}{%- set over = message.role == 'assistant' and not loop.last %}",
).replace("{{- part.text }}", "{{- part.text.split('</think>\\n\\n')[-1] if over else part.text }}")
# As Llama 3.1's: dates in a system turn that is always there.
LLAMA31 = LLAMA3_TEMPLATE.replace(
    "{{- bos_token }}",
    "{{- bos_token }}{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024"
    "\\n\\n<|eot_id|>' }}",
)
TURNS = (Turn("user", "Q"), Turn("assistant", "A"))


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    begin = {"__type": "AddedToken", "content": "<|begin_of_text|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin}
    files = {"tokenizer_config.json": json.dumps(config)}
    if template is not None:
        files["chat_template.jinja"] = template
    return Tokenizer(tokenizer._source, files)


def test_families_are_checked_when_they_are_made() -> None:
    assert FORGETS != CHATML_TEMPLATE
    assert LLAMA31 != LLAMA3_TEMPLATE
    for template in (CHATML_TEMPLATE, QWEN25_VL):
        ChatFormat.for_family("qwen2_5_vl", with_template(small(), template))
    ChatFormat.for_family("qwen3_vl", with_template(small(), CHATML_TEMPLATE))
    with pytest.raises(TokenizerError, match="gives other ids: from token 1 on"):
        ChatFormat.for_family("qwen3_vl", with_template(small(), QWEN25_VL))
    ChatFormat.for_family("llama3", small_llama())
    ChatFormat.for_family("llama3", small_llama(), system=" Be exact. ", instruction=" Answer.\n")
    with pytest.raises(TokenizerError, match=r"other ids.*user.* here and .*system.* there"):
        ChatFormat.for_family("llama3", with_template(small_llama(), LLAMA31))
    ChatFormat.for_family("llama3", with_template(small_llama(), LLAMA31), check=False)
    for old, new in (
        ("| trim", ""),
        ("{{- bos_token }}", ""),
        ("\\n\\n", "\\n"),
        ("'role'", "'x'"),
    ):
        assert old in LLAMA3_TEMPLATE
        other = with_template(small_llama(), LLAMA3_TEMPLATE.replace(old, new))
        with pytest.raises(TokenizerError, match="template"):
            ChatFormat.for_family("llama3", other)


def test_a_tokenizer_without_a_template_is_told() -> None:
    bare = with_template(small(), None)
    with pytest.warns(OmrWarning, match="brings no chat template"):
        chat = ChatFormat.for_family("qwen3_vl", bare)
    assert chat.encode_conversation(Conversation(TURNS)).trained.any()
    ChatFormat.for_family("qwen3_vl", bare, check=False)  # says nothing: warnings are errors here


def test_conversations_are_checked_when_the_first_is_encoded(tmp_path: Path) -> None:
    forgetful = with_template(small(), FORGETS)
    chat = ChatFormat.for_family("qwen3_vl", forgetful)
    chat.encode(record("Q"), [2])  # records are as the template has them
    for _ in range(2):
        for call in (chat.encode_conversations, chat.conversation_lengths):
            with pytest.raises(TokenizerError, match="own chat template gives other ids"):
                call([Conversation(TURNS)])
    forgetful.save(tmp_path)
    with pytest.raises(TokenizerError, match=r"the chat template of .* gives other ids"):
        chat.check_against(tmp_path)
    trusting = ChatFormat.for_family("qwen3_vl", forgetful, check=False)
    assert trusting.encode_conversation(Conversation(TURNS)).trained.any()
    good = ChatFormat.for_family("qwen3_vl", small())
    for _ in range(2):
        assert good.encode_conversation(Conversation(TURNS)).trained.any()
    assert pickle.loads(pickle.dumps(good)).fingerprint == good.fingerprint


@pytest.mark.parametrize(
    ("style", "template"),
    [("chatml", QWEN25_VL), ("chatml", CHATML_TEMPLATE), ("llama3", LLAMA3_TEMPLATE)],
)
def test_check_against_a_folder(tmp_path: Path, style: str, template: str) -> None:
    for system in ("Be exact.", "You are a helpful assistant."):
        chat = chat_of(style, system, "Answer.")
        with_template(chat.tokenizer, template).save(tmp_path)
        chat.check_against(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"cannot read .*tokenizer\.json"):
        chat.check_against(tmp_path)


@pytest.mark.parametrize(
    "template", [CHATML_TEMPLATE, CHATML_MASKED, QWEN25_VL, LLAMA3_TEMPLATE, LLAMA31, FORGETS]
)
def test_templates_render_as_transformers_renders_them(tmp_path: Path, template: str) -> None:
    from transformers import AutoTokenizer

    with_template(small_llama(), template).save(tmp_path)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    ours = JinjaTemplate.of({n.name: n.read_text() for n in tmp_path.iterdir()})
    assert ours is not None
    parts = [{"type": "image"}, {"type": "text", "text": " Q\n"}]
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": " Q \n"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "é 上 <b> & \"'"}],
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>a</think>b"}],
    ]
    if "part" in template:
        conversations.append([{"role": "user", "content": parts}])
    for conversation in conversations:
        for prompt in (False, True):
            theirs = hf.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=prompt
            )
            assert ours.render(conversation, generation_prompt=prompt) == theirs


def test_where_a_template_is_looked_for() -> None:
    config = json.dumps({"chat_template": "config", "bos_token": "<s>", "eos_token": None})
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    legacy = json.dumps({"chat_template": "legacy"})
    cases: list[tuple[dict[str, str], str | None]] = [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": config}, "config"),
        ({"tokenizer_config.json": json.dumps({"chat_template": named})}, "named"),
        ({"tokenizer_config.json": json.dumps({"chat_template": named[:1]})}, None),
        ({"tokenizer_config.json": config, "chat_template.jinja": "jinja"}, "jinja"),
        ({"chat_template.json": legacy, "chat_template.jinja": "jinja"}, "legacy"),
    ]
    for files, want in cases:
        found = JinjaTemplate.of(files)
        assert (None if found is None else found.source) == want
    template = JinjaTemplate.of({"tokenizer_config.json": config})
    assert template is not None
    assert dict(template.tokens) == {"bos_token": "<s>"}
    for name in ("tokenizer_config.json", "chat_template.json"):
        for text in ("{", "[1]"):
            with pytest.raises(TokenizerError, match=name):
                JinjaTemplate.of({name: text})


def test_a_template_reaches_nothing_outside_its_sandbox() -> None:
    for source in (
        "{{ messages.__class__.__mro__ }}{{ raise_exception('reached') }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set _ = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ):
        with pytest.raises(TokenizerError, match="the chat template fails"):
            JinjaTemplate(source, {}).render([], generation_prompt=False)


def test_an_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omr_io.chat.jinja.version", lambda package: "3.1.5")
    with pytest.raises(ConfigError, match=r"jinja2 3\.1\.5"):
        ChatFormat.for_family("qwen3_vl", small())
    monkeypatch.setattr("omr_io.chat.jinja.version", lambda package: "3.2")
    ChatFormat.for_family("qwen3_vl", small())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "hf"])
def test_the_real_qwen_vocabulary(tmp_path: Path, backend: Any) -> None:
    ranks = qwen_tiktoken()
    files = {"chat_template.jinja": QWEN25_VL}
    tokenizer = Tokenizer(qwen_source(ranks), files, backend=backend)
    chat = ChatFormat.for_family("qwen2_5_vl", tokenizer)
    tokenizer.save(tmp_path)
    chat.check_against(tmp_path)


@pytest.mark.slow
def test_the_real_llama_vocabulary(tmp_path: Path) -> None:
    ranks = Tokenizer.from_tiktoken(vocabulary("llama3.tiktoken"), "llama3")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}
    files = {
        "tokenizer_config.json": json.dumps(config),
        "chat_template.jinja": LLAMA3_TEMPLATE,
    }
    tokenizer = Tokenizer(ranks._source, files)
    tokenizer.save(tmp_path)
    chat = ChatFormat.for_family("llama3", tokenizer, system="Be exact.")
    chat.check_against(tmp_path)
    # The ids of the model's own documentation: <|begin_of_text|>, a header, "\n\n", <|eot_id|>.
    prompt = chat.encode(record("Hi"), [], completion=None).input_ids.tolist()
    assert prompt[:5] == [128000, 128006, 9125, 128007, 271]
    assert prompt[-6:] == [13347, 128009, 128006, 78191, 128007, 271]
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(tmp_path)
    turns = (Turn("user", "Fever of 38.9 °C?\n"), Turn("assistant", " 上 Yes"), Turn("user", "Why"))
    messages = [{"role": "system", "content": "Be exact."}]
    messages += [{"role": turn.role, "content": turn.text} for turn in turns]
    want = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    got = chat.encode_conversation(Conversation(turns), generation_prompt=True)
    assert got.input_ids.tolist() == list(want)
