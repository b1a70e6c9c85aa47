"""A chat template turn by turn, as typed segments: slow and obvious.

It is the oracle of the compiled template (csrc/tokenizer/chat.cpp), and what encodes chats where
the tokenizer is Hugging Face's (backend="hf").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omr_io.chat.template import Control, EncodedRows, Item, Role, Row, Style
from omr_io.errors import DataError
from omr_io.tokenizer import Segment, Tokenizer
from omr_io.types import Int32Array, Int64Array


class ReferenceChat:
    """Does what `omr_io.chat.template.CompiledChat` does.

    Args:
        tokenizer, style, system, instruction: those of the `ChatFormat`.
    """

    def __init__(
        self, tokenizer: Tokenizer, style: Style, system: str | None, instruction: str | None
    ) -> None:
        self.tokenizer, self.style = tokenizer, style
        self.system, self.instruction = system, instruction
        self._ids = {content: tokenizer.token_id(content) for content in style.controls}

    def segments(self, row: Row) -> list[list[Segment]]:
        """The segments of each turn of a conversation. Encodes nothing."""
        return [self._turn(Role(role), text, images) for role, text, images in row]

    def encode(
        self, rows: Sequence[Row], *, max_tokens: int, cut: bool, threads: int
    ) -> EncodedRows:
        """See `omr_io.chat.template.Engine`; `threads` makes no difference."""
        del threads
        made = [self._encode(number, row, max_tokens, cut) for number, row in enumerate(rows)]
        ids = [np.empty(0, np.int32), *(one[0] for one in made)]
        trained = [np.empty(0, np.bool_), *(one[1] for one in made)]
        return EncodedRows(
            np.concatenate(ids),
            np.concatenate(trained),
            np.cumsum([len(one) for one in ids], dtype=np.int64),
            np.array([one[2] for one in made], dtype=np.int64),
            np.array([one[3] for one in made], dtype=np.int64),
        )

    def count(self, rows: Sequence[Row]) -> tuple[Int64Array, Int64Array]:
        """See `omr_io.chat.template.Engine`."""
        made = [
            [segment for turn in self.segments(row) for segment in turn if segment.content != ""]
            for row in rows
        ]
        # Each text is counted once: most segments are the same few.
        seen: dict[str, int] = {}
        for segments in made:
            for segment in segments:
                if isinstance(segment.content, str):
                    seen.setdefault(segment.content, len(seen))
        try:
            counts = self.tokenizer.count_batch(list(seen)).tolist()
        except DataError:
            for number, row in enumerate(rows):  # again one by one, to name it
                self._encode(number, row, 0, False)
            raise
        pad = None if self.style.image is None else self._ids[self.style.image[1].content]

        def tokens(segment: Segment) -> int:
            content = segment.content
            if isinstance(content, str):
                return int(counts[seen[content]])
            return 0 if content == pad else segment.repeat

        text = [sum(map(tokens, one)) for one in made]
        labels = [sum(tokens(segment) for segment in one if segment.trained) for one in made]
        return np.array(text, dtype=np.int64), np.array(labels, dtype=np.int64)

    def _encode(
        self, number: int, row: Row, max_tokens: int, cut: bool
    ) -> tuple[Int32Array, NDArray[np.bool_], int, int]:
        from omr_io import _C

        ids, trained = [], []
        for place, segments in enumerate(self.segments(row)):
            try:
                ids_T, trained_T = self.tokenizer.encode_segments(segments)
            except DataError as error:
                raise _C.ChatTextError(error.what, number, place) from error
            ids.append(ids_T)
            trained.append(trained_T)
        ids_T, trained_T = np.concatenate(ids), np.concatenate(trained)
        total = len(ids_T)
        if max_tokens and total > max_tokens:
            # What may be cut is the last turn from where it is trained on; one token of it stays.
            before = total - len(trained[-1])
            fixed = before + int(trained[-1].argmax()) if trained[-1].any() else total
            if not cut or max_tokens <= fixed:
                raise _C.ChatLengthError(number, total, fixed)
            ids_T, trained_T = ids_T[:max_tokens], trained_T[:max_tokens]
        prompt = int(trained_T.argmax()) if trained_T.any() else len(ids_T)
        return ids_T, trained_T, prompt, total - len(ids_T)

    def _turn(self, role: Role, text: str, images: tuple[int, ...]) -> list[Segment]:
        style = self.style
        if not isinstance(text, str):
            raise TypeError(f"a text is a {type(text).__name__}")
        match role:
            case Role.BEGIN:
                return self._typed(style.begin)
            case Role.OPENING if self.system is None:
                return self._typed(style.begin)
            case Role.OPENING:
                assert self.system is not None
                system = self.system.strip() if style.trims else self.system
                return [*self._typed(style.begin), *self._turn(Role.SYSTEM, system, ())]
            case Role.GENERATE:
                return self._typed(style.head("assistant"))
            case Role.TRAINED | Role.CONTEXT:
                close, *rest = self._typed(style.tail)
                trained = role is Role.TRAINED
                return [
                    *self._typed(style.head("assistant")),
                    Segment(text, trained=trained),
                    Segment(close.content, trained=trained),
                    *rest,
                ]
            case _:
                pass
        if role is Role.QUESTION and self.instruction is not None:
            text = f"{text}\n{self.instruction}"
        head = self._typed(style.head("system" if role is Role.SYSTEM else "user"))
        if not images:
            # One text with what precedes it: Hugging Face sees no seam here.
            text = f"{head.pop().content}{text}"
        return [*head, *self._images(images), Segment(text), *self._typed(style.tail)]

    def _images(self, images: tuple[int, ...]) -> list[Segment]:
        if not images:
            return []
        assert self.style.image is not None
        before, pad, after = (self._ids[item.content] for item in self.style.image)
        blocks = ([Segment(before), Segment(pad, count), Segment(after)] for count in images)
        return [segment for block in blocks for segment in block]

    def _typed(self, items: Sequence[Item]) -> list[Segment]:
        return [
            Segment(self._ids[item.content] if isinstance(item, Control) else item)
            for item in items
        ]
