"""A record as a ChatML (Qwen) conversation: token ids and which of them are trained.

    <|im_start|>system\\n{system}<|im_end|>\\n                     if there is a system prompt
    <|im_start|>user\\n
      <|vision_start|> N x <|image_pad|> <|vision_end|>           for each image, before the text
      {question}                                                  then "\\n{instruction}", if any
    <|im_end|>\\n<|im_start|>assistant\\n
      {completion}<|im_end|>                                      these tokens are trained
    \\n

Images always come first; a literal "<image>" in a question is text like any other. The ids equal
what transformers' `apply_chat_template` gives, placeholders expanded as Qwen's processors do, for
texts that spell no control token. Texts that do spell one stay text (see `omr_io.tokenizer.core`).

Prompt and completion are encoded apart, so that a prompt's ids always begin the ids of its training
sample. Hugging Face encodes "assistant\\n" and the completion as one text; the ids differ only when
the completion begins with a line break, or with spaces up to one, which then would merge with the
"\\n" before it. A model that generates from the prompt never sees that merge, so apart is right.

Legend: T tokens of a sample, n records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omr_io import config
from omr_io.chat.check import check_template
from omr_io.config import VisionFamily
from omr_io.errors import ConfigError, DataError, TokenizerError, Where
from omr_io.tokenizer import Segment, Tokenizer
from omr_io.types import Int32Array, Int64Array, Record

_CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_DEFAULT_SYSTEM: dict[VisionFamily, str | None] = {
    # The templates of these two put this turn in front of a conversation that has no system turn.
    "qwen2_vl": "You are a helpful assistant.",
    "qwen2_5_vl": "You are a helpful assistant.",
    "qwen3_vl": None,
}
_CHUNK = 1024  # records whose texts are counted at a time


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The tokens of a conversation.

    Attributes:
        input_ids: (T,) int32; image placeholders are expanded, one id a merged patch.
        trained: (T,) bool; True on the completion and the `<|im_end|>` that closes it.
        num_prompt_tokens: tokens before the completion, those of the generation prompt.
    """

    input_ids: Int32Array
    trained: NDArray[np.bool_]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a record becomes a conversation; see the module docstring for the format.

    Args:
        tokenizer: must have ChatML's control tokens, and Qwen's for images, as special tokens.
        system: the system prompt, or None for no system turn.
        instruction: appended to each question after a line break, or None.

    Raises:
        TokenizerError: a control token is missing, or is not special, so that text could forge it.
    """

    tokenizer: Tokenizer
    system: str | None = None
    instruction: str | None = None
    _ids: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = tuple(self.tokenizer.token_id(content) for content in _CONTROL)
        for content, token in zip(_CONTROL, ids, strict=True):
            if token not in self.tokenizer.special_ids:
                raise TokenizerError(
                    f"{content!r} is not a special token, so that any text could contain it",
                    mend='Set "special": true for it in tokenizer.json',
                )
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def for_family(
        cls,
        family: VisionFamily,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        instruction: str | None = None,
    ) -> ChatFormat:
        """The format of a model family: without `system`, the one its own template puts there.

        That is "You are a helpful assistant." for Qwen2-VL and Qwen2.5-VL, none for Qwen3-VL.

        Raises:
            ConfigError: the family is not known.
            TokenizerError: as for `ChatFormat`.
        """
        if family not in _DEFAULT_SYSTEM:
            raise ConfigError(
                f"no chat format for the family {family!r}",
                mend=f"Use one of {', '.join(_DEFAULT_SYSTEM)}",
            )
        default = _DEFAULT_SYSTEM[family]
        return cls(tokenizer, default if system is None else system, instruction)

    @property
    def image_token_id(self) -> int:
        """`<|image_pad|>`: mm_token_type_ids is input_ids == image_token_id."""
        return self._ids[4]

    @property
    def end_token_id(self) -> int:
        """`<|im_end|>`: closes a completion, and stops generation."""
        return self._ids[1]

    @property
    def pad_token_id(self) -> int:
        """`<|endoftext|>`: fills what is left of a pack.

        Raises:
            TokenizerError: the tokenizer has no such token.
        """
        return self.tokenizer.token_id("<|endoftext|>")

    @property
    def fingerprint(self) -> str:
        """16 hex digits; changes with the tokenizer, the options, or the format itself."""
        return config.fingerprint(
            "chatml-qwen/1", self.tokenizer.fingerprint, self.system, self.instruction
        )

    def segments(
        self, record: Record, image_tokens: Sequence[int], *, completion: str | None = "corpus"
    ) -> list[Segment]:
        """The conversation as typed segments; arguments as for `encode`. Encodes nothing."""
        start, end, vision_start, vision_end, image_pad = self._ids
        made: list[Segment] = []
        if self.system is not None:
            made += [Segment(start), Segment(f"system\n{self.system}"), Segment(end), Segment("\n")]
        made.append(Segment(start))
        question = record.question
        if self.instruction is not None:
            question = f"{question}\n{self.instruction}"
        if image_tokens:
            made.append(Segment("user\n"))
            for count in image_tokens:
                made += [Segment(vision_start), Segment(image_pad, count), Segment(vision_end)]
            made.append(Segment(question))
        else:
            made.append(Segment(f"user\n{question}"))  # one text: Hugging Face sees no seam here
        made += [Segment(end), Segment("\n"), Segment(start), Segment("assistant\n")]
        if completion is not None:
            text = corpus_completion(record) if completion == "corpus" else completion
            made += [Segment(text, trained=True), Segment(end, trained=True), Segment("\n")]
        return made

    def encode(
        self,
        record: Record,
        image_tokens: Sequence[int],
        *,
        completion: str | Literal["corpus"] | None = "corpus",
    ) -> EncodedText:
        """Encode a record's conversation.

        Args:
            record: its question, and its completion; its images may have been left unread.
            image_tokens: for each image the number of its merged patches, at least 1.
            completion: "corpus" takes `corpus_completion(record)`, None gives the generation
                prompt, anything else is the completion itself (which thus cannot be the one
                word "corpus").

        Raises:
            ConfigError: a count below 1, or counts that do not match `record.images`.
            DataError: a text is not valid Unicode; it names the record.
            TokenizerError: the vocabulary itself lets a text become a control token.
        """
        if any(count < 1 for count in image_tokens):
            raise ConfigError(f"image_tokens {list(image_tokens)} must all be at least 1")
        if record.images and len(record.images) != len(image_tokens):
            raise ConfigError(
                f"{len(image_tokens)} counts of image tokens for {len(record.images)} images",
                where=_where(record),
            )
        segments = self.segments(record, image_tokens, completion=completion)
        try:
            input_ids, trained = self.tokenizer.encode_segments(segments)
        except DataError as error:
            raise DataError(error.what, where=_where(record), mend=error.mend) from error
        prompt = int(trained.argmax()) if completion is not None else len(trained)
        return EncodedText(input_ids, trained, prompt)

    def lengths(
        self, records: Iterable[Record], num_images: Iterable[int] | None = None
    ) -> tuple[Int64Array, Int64Array]:
        """Count the tokens of `encode(record, ..., completion="corpus")`, many at a time.

        Args:
            records: read once, as a stream.
            num_images: images of each record; None takes the records' own.

        Returns:
            text_tokens (n,) int64, all tokens but the image placeholders, so that
            text_tokens[i] + sum(image_tokens of i) == len(input_ids); and label_tokens (n,) int64,
            those that are trained.

        Raises:
            ConfigError: `num_images` has another length than `records`.
            DataError: a text is not valid Unicode; it names the record.
        """
        text_tokens = [np.empty(0, dtype=np.int64)]
        label_tokens = [np.empty(0, dtype=np.int64)]
        for chunk in _chunks(_with_images(records, num_images)):
            texts, labels = self._count(chunk)
            text_tokens.append(texts)
            label_tokens.append(labels)
        return np.concatenate(text_tokens), np.concatenate(label_tokens)

    def check_against(self, folder: str | Path) -> None:
        """Compare with the chat template of a Hugging Face folder on probe conversations.

        Raises:
            TokenizerError: the template or the tokenizer there gives other ids; shows where.
            ConfigError: transformers is not installed.
        """

        def encode(
            record: Record, image_tokens: Sequence[int], completion: str | None
        ) -> list[int]:
            ids: list[int] = self.encode(
                record, image_tokens, completion=completion
            ).input_ids.tolist()
            return ids

        check_template(encode, Path(folder), system=self.system, instruction=self.instruction)

    def _count(self, chunk: Sequence[tuple[Record, int]]) -> tuple[Int64Array, Int64Array]:
        seen: dict[str, int] = {}  # each text is counted once: most segments are the same few
        rows: list[list[Segment]] = []
        for record, images in chunk:
            segments = self.segments(record, (0,) * images)
            rows.append(segments)
            for segment in segments:
                if isinstance(segment.content, str):
                    seen.setdefault(segment.content, len(seen))
        try:
            counts = self.tokenizer.count_batch(list(seen)).tolist()
        except DataError:
            for record, images in chunk:  # again one by one, to name the record
                self.encode(record, (1,) * images)
            raise

        def tokens(segment: Segment) -> int:
            content = segment.content
            return int(counts[seen[content]]) if isinstance(content, str) else segment.repeat

        total = [sum(map(tokens, row)) for row in rows]
        trained = [sum(tokens(segment) for segment in row if segment.trained) for row in rows]
        return np.array(total, dtype=np.int64), np.array(trained, dtype=np.int64)


def corpus_completion(record: Record) -> str:
    """What the model learns to say: the reasoning as it stands in the corpus.

    It is already wrapped as `<think>...</think>` and `<answer>X</answer>`. A record without
    reasoning has `<answer>X</answer>` alone.
    """
    return record.reasoning or f"<answer>{record.answer}</answer>"


def _where(record: Record) -> Where:
    return Where(source=record.source or None, key=record.id)


def _with_images(
    records: Iterable[Record], num_images: Iterable[int] | None
) -> Iterator[tuple[Record, int]]:
    counts = None if num_images is None else iter(num_images)
    for record in records:
        count = len(record.images) if counts is None else next(counts, None)
        if count is None:
            raise ConfigError("num_images has fewer entries than there are records")
        yield record, count
    if counts is not None and next(counts, None) is not None:
        raise ConfigError("num_images has more entries than there are records")


def _chunks(items: Iterator[tuple[Record, int]]) -> Iterator[list[tuple[Record, int]]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk
