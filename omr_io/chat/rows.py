"""Records and conversations as the rows that an engine encodes, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from omr_io import _C
from omr_io.chat.conversation import Completion, Conversation, EncodedBatch, Truncate
from omr_io.chat.template import Engine, Role, Row, Style
from omr_io.errors import ConfigError, DataError, OmrError, SampleTooLongError, Where
from omr_io.tokenizer import Tokenizer
from omr_io.types import Int64Array, Record

_GENERATE: tuple[int, str, tuple[int, ...]] = (Role.GENERATE, "", ())


class RowWriter:
    """Writes the rows of a chat format.

    Args:
        style: its form.
        has_system: whether it has a system turn for conversations that bring none.
        instruction: follows a record's question.
    """

    def __init__(self, style: Style, has_system: bool, instruction: str | None) -> None:
        self.style, self.instruction = style, instruction
        opens = bool(style.begin) or has_system
        self._opening: Row = ((Role.OPENING, "", ()),) if opens else ()

    def record(
        self, record: Record, counts: tuple[int, ...], completion: str | Completion | None
    ) -> Row:
        """The row of a record; `counts` are the placeholders of its images."""
        if isinstance(completion, Completion):
            completion = corpus_completion(record)
        question, role = record.question, Role.QUESTION
        # What is no str is left for the engine to refuse.
        if self.style.trims and isinstance(question, str):
            # The template strips the whole text of a turn, the instruction included.
            if self.instruction is not None:
                question = f"{question}\n{self.instruction}"
            question, role = question.strip(), Role.USER
            completion = completion.strip() if isinstance(completion, str) else completion
        last = _GENERATE if completion is None else (Role.TRAINED, completion, ())
        return (*self._opening, (role, question, counts), last)

    def conversation(self, conversation: Conversation, generation_prompt: bool) -> Row:
        """The row of a conversation.

        Raises:
            DataError: it ends with the wrong turn, or has images where the form has none.
        """
        turns = conversation.turns
        if (turns[-1].role == "assistant") is generation_prompt:
            raise DataError(
                f"the conversation ends with a turn of the {turns[-1].role}",
                where=conversation.where,
                mend="To train, end it with the assistant's; for a generation prompt, the user's",
            )
        last = len(turns) - 1
        row: list[tuple[int, str, tuple[int, ...]]] = []
        if turns[0].role != "system":
            row += self._opening
        elif self.style.begin:
            row.append((Role.BEGIN, "", ()))
        for place, turn in enumerate(turns):
            role = Role.SYSTEM if turn.role == "system" else Role.USER
            if turn.role == "assistant":
                all_ = conversation.trained == "all" and not generation_prompt
                role = Role.TRAINED if all_ or place == last else Role.CONTEXT
            if turn.image_tokens and self.style.image is None:
                raise DataError(
                    f"turn {place} has images; its form, {self.style.name}, has none",
                    where=conversation.where,
                )
            text = turn.text.strip() if self.style.trims else turn.text
            row.append((role, text, turn.image_tokens))
        return (*row, _GENERATE) if generation_prompt else tuple(row)


class Runner:
    """Runs an engine and says what is wrong in the user's terms.

    Args:
        tokenizer, style: those of the chat format.
        engine: what encodes.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine, style: Style) -> None:
        self._tokenizer, self._engine = tokenizer, engine
        self.num_closing = sum(
            len(tokenizer.encode(item)) if isinstance(item, str) else 1 for item in style.tail
        )
        """Tokens after the text of a completion."""

    def encode(
        self,
        rows: Sequence[Row],
        where: Callable[[int], Where],
        max_tokens: int | None,
        truncate: Truncate,
        threads: int,
    ) -> EncodedBatch:
        """Encode rows; see `ChatFormat.encode` for options and errors. `where` places row i."""
        if truncate not in ("refuse", "completion"):
            raise ConfigError(f"truncate {truncate!r}", mend='Use "refuse" or "completion"')
        if threads < 1 or (max_tokens is not None and max_tokens < 1):
            raise ConfigError(f"threads {threads} and max_tokens {max_tokens} must be at least 1")
        try:
            made = self._engine.encode(
                rows, max_tokens=max_tokens or 0, cut=truncate == "completion", threads=threads
            )
        except _C.ChatTextError as error:
            what, row, turn = error.args
            self._blame(rows[row][turn][1], what, where(row))
        except _C.ChatLengthError as error:
            row, tokens, fixed = error.args
            raise _too_long(where(row), tokens, fixed, max_tokens or 0, truncate) from None
        except TypeError:
            raise _not_text(rows, where) from None
        num_cut = made.num_cut
        completion = np.maximum(num_cut - self.num_closing, 0)
        return EncodedBatch(
            made.input_ids,
            made.trained,
            made.offsets,
            made.num_prompt_tokens,
            completion,
            num_cut - completion,
        )

    def count(
        self, rows: Sequence[Row], where: Callable[[int], Where]
    ) -> tuple[Int64Array, Int64Array]:
        """Text tokens and label tokens, (n,) int64, of rows. Raises DataError."""
        try:
            return self._engine.count(rows)
        except _C.ChatTextError as error:
            what, row, turn = error.args
            self._blame(rows[row][turn][1], what, where(row))
        except TypeError:
            raise _not_text(rows, where) from None

    def _blame(self, text: str, what: str, where: Where) -> NoReturn:
        """Say what is wrong with a text in the tokenizer's words, and where it is."""
        try:
            self._tokenizer.encode(text)
        except OmrError as error:
            raise type(error)(error.what, where=where, mend=error.mend) from error
        raise DataError(what, where=where)


def corpus_completion(record: Record) -> str:
    """What the model learns to say: the reasoning as it stands in the corpus.

    It is already wrapped as `<think>...</think>` and `<answer>X</answer>`. A record without
    reasoning has `<answer>X</answer>` alone.
    """
    return record.reasoning or f"<answer>{record.answer}</answer>"


def _too_long(
    where: Where, tokens: int, fixed: int, max_tokens: int, truncate: Truncate
) -> SampleTooLongError:
    if truncate == "refuse":
        mend = 'Raise max_tokens, or cut completions with truncate="completion"'
    else:
        mend = "Raise max_tokens, or use smaller images (max_pixels): prompts are never cut"
    return SampleTooLongError(
        f"{tokens} tokens, {fixed} of them before what is trained last, are more than max_tokens "
        f"{max_tokens}",
        where=where,
        mend=mend,
    )


def _not_text(rows: Sequence[Row], where: Callable[[int], Where]) -> DataError:
    for number, row in enumerate(rows):
        texts: list[object] = [text for _, text, _ in row if type(text) is not str]
        if texts:
            return DataError(f"a text is a {type(texts[0]).__name__}", where=where(number))
    return DataError("a conversation has an image count that is no number")
