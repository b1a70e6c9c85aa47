"""What goes into a chat template and what comes out of it."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omr_io.errors import DataError, Where
from omr_io.types import Int32Array, Int64Array

TurnRole = Literal["system", "user", "assistant"]
Trained = Literal["all", "last"]
Truncate = Literal["refuse", "completion"]
"""What to do with more tokens than max_tokens: refuse them, or cut the end of the completion."""


class Completion(enum.Enum):
    """Which completion a record gets, where it is none of the caller's."""

    CORPUS = "corpus"
    """`corpus_completion(record)`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        text: as it stands; control tokens spelt in it stay text.
        image_tokens: for each of its images the number of merged patches; they come before the
            text. Only in user turns.
    """

    role: TurnRole
    text: str
    image_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order: a system turn, if any, comes first.

    Attributes:
        turns: at least one that is not the system's.
        trained: which assistant turns carry a loss: "all", or the "last" only.
        id: names the conversation in errors.

    Raises:
        DataError: a role, an order or a content that no template has.
    """

    turns: tuple[Turn, ...]
    trained: Trained = "all"
    id: str = ""

    def __post_init__(self) -> None:
        if self.trained not in ("all", "last"):
            raise self._error(f'trained is {self.trained!r}, not "all" or "last"')
        for place, turn in enumerate(self.turns):
            if turn.role not in ("system", "user", "assistant"):
                raise self._error(f"turn {place} has the role {turn.role!r}")
            if turn.role == "system" and place > 0:
                raise self._error(f"turn {place} is a system turn: only the first can be")
            if not isinstance(turn.text, str):
                raise self._error(f"the text of turn {place} is a {type(turn.text).__name__}")
            if turn.image_tokens and turn.role != "user":
                raise self._error(f"turn {place} has images, and is not the user's")
            if any(count < 1 for count in turn.image_tokens):
                raise self._error(
                    f"image_tokens {list(turn.image_tokens)} of turn {place} must be at least 1"
                )
        if not self.turns or self.turns[-1].role == "system":
            raise self._error("the conversation has no turn beside the system's")

    def _error(self, what: str) -> DataError:
        return DataError(what, where=self.where)

    @property
    def where(self) -> Where:
        """Its place, for errors."""
        return Where(key=self.id or None)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The tokens of a conversation.

    Attributes:
        input_ids: (T,) int32; image placeholders are expanded, one id a merged patch.
        trained: (T,) bool; True on the completion and the control token that closes it.
        num_prompt_tokens: tokens before the first trained one, in a prompt all of them.
        num_cut_completion: tokens that `max_tokens` cut off the end of the last completion.
        num_cut_closing: tokens that it cut off after that completion: without its closing token
            nothing teaches the model to stop there.
    """

    input_ids: Int32Array
    trained: NDArray[np.bool_]
    num_prompt_tokens: int
    num_cut_completion: int = 0
    num_cut_closing: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBatch(Sequence[EncodedText]):
    """The tokens of n conversations in flat arrays; as a sequence, one `EncodedText` each (views).

    Attributes:
        input_ids: (T,) int32, of one conversation after the other.
        trained: (T,) bool.
        offsets: (n + 1,) int64; conversation i is offsets[i]:offsets[i + 1].
        num_prompt_tokens, num_cut_completion, num_cut_closing: (n,) int64, as in `EncodedText`.
    """

    input_ids: Int32Array
    trained: NDArray[np.bool_]
    offsets: Int64Array
    num_prompt_tokens: Int64Array
    num_cut_completion: Int64Array
    num_cut_closing: Int64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> EncodedText:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(f"conversation {number} of {len(self)}")
        number %= len(self)
        begin, end = self.offsets[number : number + 2]
        return EncodedText(
            self.input_ids[begin:end],
            self.trained[begin:end],
            int(self.num_prompt_tokens[number]),
            int(self.num_cut_completion[number]),
            int(self.num_cut_closing[number]),
        )

    def __iter__(self) -> Iterator[EncodedText]:
        return (self[number] for number in range(len(self)))
