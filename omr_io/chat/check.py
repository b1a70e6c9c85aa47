"""Compare a chat format with the jinja chat template that a Hugging Face folder brings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omr_io.chat.conversation import Conversation, Turn
from omr_io.chat.jinja import JinjaTemplate
from omr_io.errors import TokenizerError
from omr_io.tokenizer import Segment, Tokenizer
from omr_io.tokenizer.files import read_text
from omr_io.types import Record

if TYPE_CHECKING:
    from omr_io.chat.format import ChatFormat

TEMPLATE_FILES = (
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_COMPLETION = "<think>\nThe apex is lucent.\n\nNo markings.\n</think>\n\n<answer>B</answer>"
_QUESTION = "What does the image show?\nA. naïve T-cells, 12.5 µm\nB. pneumothorax, 上腹部"
# Question, image tokens, completion (None: the generation prompt). Templates are known to trim
# texts, to drop or add a <think> block, and to put numbers or line breaks around images.
_RECORDS: tuple[tuple[str, tuple[int, ...], str | None], ...] = (
    (_QUESTION, (4,), _COMPLETION),
    (_QUESTION, (4,), None),
    (_QUESTION, (), "B"),
    (_QUESTION, (1, 7, 3), "<answer>B</answer>"),
    (_QUESTION, (2, 2), None),
    ("  leading and trailing space \n\n", (2,), "both kept \n"),
    ("\n\nleading line breaks", (), "kept"),
    ("\u3000e\u0301 decomposed, \x1c and ideographic space\u3000", (), "σ² ≤ 0.5 \u00a0"),
    ("", (2,), None),
)
# A prompt is a conversation that does not end with the assistant. Templates are known to drop the
# reasoning of turns that are over, and to put in a system turn or the date.
_TURNS: tuple[tuple[Turn, ...], ...] = (
    (Turn("user", _QUESTION), Turn("assistant", _COMPLETION), Turn("user", "Why?")),
    (
        Turn("user", _QUESTION, (2,)),
        Turn("assistant", _COMPLETION),
        Turn("user", "And in these?", (3, 1)),
        Turn("assistant", _COMPLETION),
    ),
    (
        Turn("system", "Be exact, naïve one."),
        Turn("user", " space before"),
        Turn("assistant", "space after \n"),
        Turn("user", "\n\nline breaks\n\n"),
        Turn("assistant", "B"),
    ),
    (Turn("system", " Be exact. "), Turn("user", "Which?"), Turn("user", "Which, then?")),
    (Turn("assistant", "Ask me."), Turn("user", "Which?"), Turn("assistant", "B")),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A template and tokenizer to be compared with.

    Attributes:
        name: of it, for errors.
        template: what writes a conversation as one text.
        encode: text → ids; a control token spelt in it becomes one.
        decode: ids → text.
    """

    name: str
    template: JinjaTemplate
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def own_peer(tokenizer: Tokenizer) -> Peer | None:
    """The template that came with a tokenizer, and the tokenizer itself; None without a template.

    The ids of its texts are the tokenizer's own: what is compared is the template.
    """
    template = JinjaTemplate.of(tokenizer._companions)
    if template is None:
        return None
    control = {tokenizer.decode([i]): i for i in tokenizer.special_ids}
    longest_first = sorted(control, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(text: str) -> list[int]:
        segments: list[Segment] = []
        end = 0
        for match in pattern.finditer(text):
            segments += [Segment(text[end : match.start()]), Segment(control[match[0]])]
            end = match.end()
        ids: list[int] = tokenizer.encode_segments([*segments, Segment(text[end:])])[0].tolist()
        return ids

    return Peer("the tokenizer's own chat template", template, encode, tokenizer.decode)


def folder_peer(folder: Path) -> Peer:
    """The template of a folder, and its tokenizer.json as Hugging Face tokenizers reads it.

    Raises:
        TokenizerError: one of them is missing, or cannot be read.
    """
    import tokenizers

    source = read_text(folder / "tokenizer.json")
    if source is None:
        raise TokenizerError(f"cannot read {folder / 'tokenizer.json'}: it does not exist")
    found = ((name, read_text(folder / name)) for name in TEMPLATE_FILES)
    template = JinjaTemplate.of({name: text for name, text in found if text is not None})
    if template is None:
        raise TokenizerError(
            f"{folder} has no chat template", mend="Use the folder of a VL Instruct model"
        )
    try:
        hf = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # Hugging Face raises bare Exception for what it cannot parse
        raise TokenizerError(f"Hugging Face cannot read {folder}: {error}") from error
    hf.no_truncation()
    hf.no_padding()

    def encode(text: str) -> list[int]:
        ids: list[int] = hf.encode(text, add_special_tokens=False).ids
        return ids

    def decode(ids: list[int]) -> str:
        return str(hf.decode(ids, skip_special_tokens=False))

    return Peer(f"the chat template of {folder}", template, encode, decode)


def check_records(chat: ChatFormat, peer: Peer) -> None:
    """Raise TokenizerError where records, as probes, get other ids than `peer` gives them."""
    for question, image_tokens, completion in _RECORDS:
        if image_tokens and not chat.has_images:
            continue
        record = Record(id="probe", question=question, options=(), answer="B", reasoning="")
        ours = chat.encode(record, image_tokens, completion=completion).input_ids.tolist()
        if chat.instruction is not None:
            question = f"{question}\n{chat.instruction}"
        turns = [Turn("user", question, image_tokens)]
        if completion is not None:
            turns.append(Turn("assistant", completion))
        _compare(chat, peer, turns, ours)


def check_conversations(chat: ChatFormat, peer: Peer) -> None:
    """Raise TokenizerError where conversations of several turns get other ids."""
    for turns in _TURNS:
        if chat.has_images or not any(turn.image_tokens for turn in turns):
            prompt = turns[-1].role != "assistant"
            ours = chat.encode_conversation(Conversation(turns), generation_prompt=prompt)
            _compare(chat, peer, turns, ours.input_ids.tolist())


def _compare(chat: ChatFormat, peer: Peer, turns: Sequence[Turn], ours: list[int]) -> None:
    counts = [count for turn in turns for count in turn.image_tokens]
    if chat.system is not None and turns[0].role != "system":
        turns = [Turn("system", chat.system), *turns]
    for messages in _spellings(turns, parts=chat.has_images):
        text = peer.template.render(messages, generation_prompt=turns[-1].role != "assistant")
        theirs = peer.encode(_expand(text, counts, chat.image_token) if counts else text)
        if ours != theirs:
            raise TokenizerError(
                f"{peer.name} gives other ids: {_difference(chat, peer, ours, theirs)}",
                mend="Use ChatFormat.for_family with the family of that model (Qwen2-VL and "
                "Qwen2.5-VL put in a system turn), and the tokenizer of an Instruct model",
            )


def _spellings(turns: Sequence[Turn], *, parts: bool) -> Iterator[list[dict[str, Any]]]:
    """The conversation as messages, their content as parts and, where there are no images, as str.

    Templates treat the two apart, and processors and tokenizers are given either.
    """
    if parts:
        yield [
            {
                "role": turn.role,
                "content": [{"type": "image"}] * len(turn.image_tokens)
                + [{"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
    if not any(turn.image_tokens for turn in turns):
        yield [{"role": turn.role, "content": turn.text} for turn in turns]


def _expand(text: str, image_tokens: Sequence[int], placeholder: str) -> str:
    """Repeat each placeholder, as Qwen's processors do before they encode."""
    head, *tails = text.split(placeholder)
    if len(tails) != len(image_tokens):
        raise TokenizerError(
            f"the chat template gives {len(tails)} image placeholders for {len(image_tokens)}"
            f" images: {text!r}",
            mend="Use the tokenizer of a Qwen VL model",
        )
    return head + "".join(
        placeholder * count + tail for count, tail in zip(image_tokens, tails, strict=True)
    )


def _difference(chat: ChatFormat, peer: Peer, ours: list[int], theirs: list[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    near = slice(max(0, at - 4), at + 8)
    here, there = chat.tokenizer.decode(ours[near]), peer.decode(theirs[near])
    return f"from token {at} on, around {here!r} here and {there!r} there"
