"""The two forms of a conversation, ChatML and Llama-3, and their compilation for the C++ core.

A turn is `head`, its images, its text, `tail`. Texts that stand side by side are encoded as one, as
Hugging Face does, but for the text of an assistant turn, which is encoded apart (see `format`).
`omr_io.chat.reference` does the same slowly, turn by turn, and is what this is tested against.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import TokenizerError
from omr_io.tokenizer import Tokenizer
from omr_io.types import Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by what it is written as."""

    content: str


Item = str | Control


@dataclass(frozen=True, slots=True)
class Style:
    """How conversations are written.

    Attributes:
        name: with a version: part of the fingerprint.
        begin: before the first turn.
        before_role, after_role: around the role's name; together they are the head of a turn.
        tail: after the text of a turn; begins with the control token that closes it.
        image: what stands before an image's placeholders, the placeholder, and what stands after
            them; None where images have no place.
        pad: fills what is left of a pack.
        trims: whether a text loses the whitespace around it, as Python's str.strip does.
    """

    name: str
    begin: tuple[Control, ...]
    before_role: tuple[Control, ...]
    after_role: tuple[Item, ...]
    tail: tuple[Item, ...]
    image: tuple[Control, Control, Control] | None
    pad: str
    trims: bool

    def head(self, role: str) -> tuple[Item, ...]:
        """What stands before a turn's content; a text at its end is one with the turn's."""
        first, *others = self.after_role
        named = (role + first,) if isinstance(first, str) else (role, first)
        return (*self.before_role, *named, *others)

    @property
    def controls(self) -> tuple[str, ...]:
        """Every control token, each once."""
        items: tuple[Item, ...] = (
            *self.begin, *self.before_role, *self.after_role, *self.tail, *(self.image or ()),
        )  # fmt: skip
        return tuple(dict.fromkeys(i.content for i in items if isinstance(i, Control)))


CHATML = Style(
    name="chatml-qwen/1",
    begin=(),
    before_role=(Control("<|im_start|>"),),
    after_role=("\n",),
    tail=(Control("<|im_end|>"), "\n"),
    image=(Control("<|vision_start|>"), Control("<|image_pad|>"), Control("<|vision_end|>")),
    pad="<|endoftext|>",
    trims=False,
)
LLAMA3 = Style(
    name="llama3/1",
    begin=(Control("<|begin_of_text|>"),),
    before_role=(Control("<|start_header_id|>"),),
    after_role=(Control("<|end_header_id|>"), "\n\n"),
    tail=(Control("<|eot_id|>"),),
    image=None,
    pad="<|end_of_text|>",
    trims=True,
)


class Role(enum.IntEnum):
    """How a turn is written: what the first item of a turn in a `Row` says."""

    BEGIN = 0  # what precedes a conversation that has its own system turn
    OPENING = 1  # what precedes any other: with the format's system turn, if it has one
    SYSTEM = 2
    USER = 3
    QUESTION = 4  # a user turn whose text the format's instruction follows
    TRAINED = 5  # an assistant turn that carries a loss
    CONTEXT = 6  # one that does not
    GENERATE = 7  # the head of one


Row = tuple[tuple[int, str, tuple[int, ...]], ...]
"""A conversation: of each turn its `Role`, its text, and the placeholders of each image."""


class EncodedRows(NamedTuple):
    """Ids (T,) int32, trained (T,) bool, offsets (n + 1,), and of each row the tokens before the
    first trained one and the tokens that were cut off, (n,) int64."""

    input_ids: Int32Array
    trained: NDArray[np.bool_]
    offsets: Int64Array
    num_prompt_tokens: Int64Array
    num_cut: Int64Array


class Engine(Protocol):
    """What encodes rows: the compiled template, or the reference."""

    def encode(
        self, rows: Sequence[Row], *, max_tokens: int, cut: bool, threads: int
    ) -> EncodedRows:
        """Encode; max_tokens 0 is no limit, `cut` cuts the end of what is longer.

        Raises:
            _C.ChatTextError: (what, row, turn): a text that cannot be encoded.
            _C.ChatLengthError: (row, tokens, prompt tokens): over the limit.
        """
        ...

    def count(self, rows: Sequence[Row]) -> tuple[Int64Array, Int64Array]:
        """(n,) int64 tokens but for image placeholders, and trained ones. Raises ChatTextError."""
        ...


class CompiledChat:
    """A style as the C++ core runs it: constant texts are encoded here, once.

    Args:
        encoder: the tokenizer's `_C.Encoder`.
        tokenizer, style, system, instruction: those of the `ChatFormat`.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Tokenizer,
        style: Style,
        system: str | None,
        instruction: str | None,
    ) -> None:
        from omr_io import _C

        self._tokenizer, self._style = tokenizer, style
        image = [tokenizer.token_id(item.content) for item in style.image or ()]
        roles = [self._role(role, system, instruction) for role in Role]
        block: Any = {"before": image[:1], "pad": image[1] if image else 0, "after": image[2:]}
        self._core = _C.ChatTemplate(encoder, roles, **block)

    def encode(
        self, rows: Sequence[Row], *, max_tokens: int, cut: bool, threads: int
    ) -> EncodedRows:
        """See `Engine`."""
        return EncodedRows(
            *self._core.encode(rows, max_tokens=max_tokens, cut=cut, threads=threads)
        )

    def count(self, rows: Sequence[Row]) -> tuple[Int64Array, Int64Array]:
        """See `Engine`."""
        made: tuple[Int64Array, Int64Array] = self._core.count(rows)
        return made

    def _role(self, role: Role, system: str | None, instruction: str | None) -> tuple[Any, Any]:
        style = self._style
        if role in (Role.BEGIN, Role.OPENING):
            items: list[Item] = list(style.begin)
            if role is Role.OPENING and system is not None:
                *head, last = style.head("system")
                assert isinstance(last, str)  # both styles have a line break there
                items += [*head, last + (system.strip() if style.trims else system), *style.tail]
            return [self._ids(items)], []
        if role is Role.GENERATE:
            return [self._ids(style.head("assistant"))], []
        if role in (Role.TRAINED, Role.CONTEXT):
            trained = role is Role.TRAINED
            closing = [self._ids(style.tail[:1], trained), self._ids(style.tail[1:])]
            return [self._ids(style.head("assistant")), self._text("", trained), *closing], []
        *head, last = style.head("system" if role is Role.SYSTEM else "user")
        after = f"\n{instruction}" if role is Role.QUESTION and instruction is not None else ""
        tail = self._ids(style.tail)
        plain = [self._ids(head), self._text(str(last), after=after), tail]
        if role is Role.SYSTEM or style.image is None:
            return plain, []
        images: tuple[Any, ...] = ("images", False, [], "", "")
        return plain, [self._ids([*head, last]), images, self._text("", after=after), tail]

    def _ids(self, items: Sequence[Item], trained: bool = False) -> tuple[Any, ...]:
        ids: list[int] = []
        for item in items:
            if isinstance(item, Control):
                ids.append(self._tokenizer.token_id(item.content))
            else:
                ids += self._tokenizer.encode(item).tolist()
        return ("ids", trained, ids, "", "")

    @staticmethod
    def _text(before: str, trained: bool = False, *, after: str = "") -> tuple[Any, ...]:
        return ("text", trained, [], before, after)


def require_controls(tokenizer: Tokenizer, style: Style) -> None:
    """Raise TokenizerError where the style's control tokens are missing, or can be forged."""
    for content in style.controls:
        if tokenizer.token_id(content) not in tokenizer.special_ids:
            raise TokenizerError(
                f"{content!r} is not a special token, so that any text could contain it",
                mend='Set "special": true for it in tokenizer.json',
            )
