"""Conversations of several turns, in both forms, against transformers."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.chat import ChatFormat, Conversation, Turn
from omr_io.chat.conversation import Trained
from omr_io.errors import ConfigError, DataError, SampleTooLongError
from tests.chat.chats import (
    CHATML_MASKED,
    FORGED,
    HONEST,
    LLAMA3_TEMPLATE,
    chat_of,
)
from tests.text_fixtures import record

TEMPLATES = {"chatml": CHATML_MASKED, "llama3": LLAMA3_TEMPLATE}


@pytest.fixture(scope="module", params=["chatml", "llama3"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def hf(style: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(style)
    chat_of(style).tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def conversations(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[Turn]]:
    system = st.lists(st.builds(Turn, st.just("system"), texts), max_size=1)
    turn = st.builds(Turn, st.sampled_from(["user", "assistant"]), texts)
    turns = st.lists(turn, max_size=5)
    return st.tuples(system, turns).map(lambda both: [*both[0], *both[1]])


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def joins(text: str) -> bool:
    """The documented difference: an answer that begins with whitespace up to a line break."""
    head = text[: len(text) - len(text.lstrip())]
    return "\n" in head or "\r" in head


@settings(max_examples=100, deadline=None)
@given(turns=conversations(HONEST), last=HONEST, hf_backend=st.booleans())
def test_ids_and_mask_equal_transformers(
    style: str, hf: Any, turns: list[Turn], last: str, hf_backend: bool
) -> None:
    chat = chat_of(style, hf=hf_backend)
    turns = [*turns, Turn("assistant", last)]
    if style == "chatml" and any(t.role == "assistant" and joins(t.text) for t in turns):
        return
    want = hf.apply_chat_template(
        messages(turns),
        chat_template=TEMPLATES[style],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    got = chat.encode_conversation(Conversation(tuple(turns)))
    assert got.input_ids.tolist() == list(want["input_ids"])
    assert got.trained.tolist() == [mask == 1 for mask in want["assistant_masks"]]
    assert got.num_prompt_tokens == int(got.trained.argmax())
    only = chat.encode_conversation(Conversation(tuple(turns), trained="last"))
    assert only.input_ids.tolist() == got.input_ids.tolist()
    text = last.strip() if style == "llama3" else last
    answer = [*chat.tokenizer.encode(text).tolist(), chat.end_token_id]
    assert only.input_ids[only.trained].tolist() == answer
    assert only.num_prompt_tokens == len(want["input_ids"]) - len(answer) - (
        1 if style == "chatml" else 0
    )


@settings(max_examples=100, deadline=None)
@given(turns=conversations(HONEST), last=HONEST, system=st.none() | HONEST)
def test_generation_prompts_equal_transformers(
    style: str, hf: Any, turns: list[Turn], last: str, system: str | None
) -> None:
    chat = chat_of(style, system)
    turns = [*turns, Turn("user", last)]
    if style == "chatml" and any(t.role == "assistant" and joins(t.text) for t in turns):
        return
    got = chat.encode_conversation(Conversation(tuple(turns)), generation_prompt=True)
    if system is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    want = hf.apply_chat_template(
        messages(turns), chat_template=TEMPLATES[style], add_generation_prompt=True
    )
    want = want["input_ids"] if hasattr(want, "keys") else want
    assert got.input_ids.tolist() == list(want)
    assert got.num_prompt_tokens == len(got.input_ids)
    assert not got.trained.any()


def test_a_record_is_a_conversation_of_two_turns(style: str) -> None:
    for system in (None, "Be exact.", " s \n"):
        chat = chat_of(style, system)
        images = (3, 1) if style == "chatml" else ()
        for question in ("Which?", " \n", "上 "):
            item = record(question, " Left.\n")
            turns = (Turn("user", question, images), Turn("assistant", " Left.\n"))
            ours = chat.encode(item, images)
            theirs = chat.encode_conversation(Conversation(turns))
            assert ours.input_ids.tolist() == theirs.input_ids.tolist()
            assert ours.trained.tolist() == theirs.trained.tolist()
            prompt = chat.encode_conversation(Conversation(turns[:1]), generation_prompt=True)
            assert chat.encode(item, images, completion=None).input_ids.tolist() == (
                prompt.input_ids.tolist()
            )


@settings(max_examples=60, deadline=None)
@given(turns=conversations(FORGED), trained=st.sampled_from(get_args(Trained)))
def test_lengths_and_forged_tokens(style: str, turns: list[Turn], trained: Trained) -> None:
    chat = chat_of(style)
    special = np.array(sorted(chat.tokenizer.special_ids))

    def controls(turns: list[Turn]) -> list[int]:
        ids = chat.encode_conversation(Conversation(tuple(turns), trained)).input_ids
        return ids[np.isin(ids, special)].tolist()  # type: ignore[no-any-return]

    turns = [*turns, Turn("assistant", "B")]
    assert controls(turns) == controls([Turn(turn.role, "honest") for turn in turns])
    one = Conversation(tuple(turns), trained)
    encoded = chat.encode_conversations([one, one])
    text, labels = chat.conversation_lengths([one, one])
    assert text.tolist() == np.diff(encoded.offsets).tolist()
    assert labels.tolist() == [int(e.trained.sum()) for e in encoded]


def test_images_in_several_turns() -> None:
    chat = chat_of("chatml")
    one = Conversation(
        (
            Turn("user", "This?", (2,)),
            Turn("assistant", "No."),
            Turn("user", "These?", (1, 3)),
            Turn("assistant", "Yes."),
        ),
        trained="last",
    )
    got = chat.encode_conversation(one)
    pad, start, end = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
    assert chat.tokenizer.decode(got.input_ids) == (
        f"<|im_start|>user\n{start}{pad}{pad}{end}This?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
        f"<|im_start|>user\n{start}{pad}{end}{start}{pad}{pad}{pad}{end}These?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert chat.tokenizer.decode(got.input_ids[got.trained]) == "Yes.<|im_end|>"
    text, _ = chat.conversation_lengths([one])
    assert text[0] + 6 == len(got.input_ids)
    # Truncation never reaches an image, nor an earlier turn.
    total = len(got.input_ids)
    for limit in range(1, total):
        if limit <= got.num_prompt_tokens:
            with pytest.raises(SampleTooLongError, match="prompts are never cut"):
                chat.encode_conversation(one, max_tokens=limit, truncate="completion")
        else:
            cut = chat.encode_conversation(one, max_tokens=limit, truncate="completion")
            assert cut.input_ids.tolist() == got.input_ids[:limit].tolist()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turn"),
        ((Turn("system", "s"),), "no turn"),
        ((Turn("user", "q"), Turn("system", "s")), "turn 1 is a system turn"),
        ((Turn("tool", "q"),), "role 'tool'"),  # type: ignore[arg-type]
        ((Turn("user", None),), "NoneType"),  # type: ignore[arg-type]
        ((Turn("assistant", "a", (1,)),), "turn 0 has images"),
        ((Turn("user", "q", (1, 0)),), "at least 1"),
    ],
)
def test_what_no_template_has_is_refused(turns: tuple[Turn, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"{message}.*key c7"):
        Conversation(turns, id="c7")


def test_how_a_conversation_must_end(style: str) -> None:
    chat = chat_of(style)
    asked, answered = (Turn("user", "Q"),), (Turn("user", "Q"), Turn("assistant", "A"))
    with pytest.raises(DataError, match=r"ends with a turn of the user.*key c"):
        chat.encode_conversation(Conversation(asked, id="c"))
    with pytest.raises(DataError, match="ends with a turn of the assistant"):
        chat.encode_conversation(Conversation(answered), generation_prompt=True)
    with pytest.raises(DataError, match="ends with"):
        chat.conversation_lengths([Conversation(asked)])
    with pytest.raises(DataError, match='"last"'):
        Conversation(answered, trained="none")  # type: ignore[arg-type]
    bad = Conversation((Turn("user", "\ud800"), Turn("assistant", "A")), id="c9")
    for call in (chat.encode_conversations, chat.conversation_lengths):
        with pytest.raises(DataError, match=r"U\+D800.*key c9"):
            call([Conversation(answered), bad])


def test_llama_has_no_images() -> None:
    chat = chat_of("llama3")
    assert not chat.has_images
    for call in (
        lambda: chat.encode(record("Q"), [4]),
        lambda: chat.lengths([record("Q")], [1]),
        lambda: chat.image_token_id,
    ):
        with pytest.raises(ConfigError, match="'llama3' has no images"):
            call()
    turns = (Turn("user", "Q", (2,)), Turn("assistant", "A"))
    with pytest.raises(DataError, match="turn 0 has images"):
        chat.encode_conversation(Conversation(turns))


def test_llama_strips_as_its_template_does() -> None:
    chat = chat_of("llama3", " Be exact.\n", " Answer. ")
    got = chat.encode(record("\n Which?\u3000", " Left \x1c\n"), [])
    assert chat.tokenizer.decode(got.input_ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe exact.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich?\u3000\n Answer.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nLeft<|eot_id|>"
    )
    assert chat.tokenizer.decode(got.input_ids[got.trained]) == "Left<|eot_id|>"
    assert chat.tokenizer.decode([chat.pad_token_id]) == "<|end_of_text|>"
    assert chat.tokenizer.decode([chat.end_token_id]) == "<|eot_id|>"


def test_styles_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="chat style 'vicuna'"):
        ChatFormat(chat_of("chatml").tokenizer, style="vicuna")  # type: ignore[arg-type]
    assert chat_of("llama3").fingerprint != chat_of("llama3", "x").fingerprint
