"""A record or a conversation as ids, in ChatML (Qwen) or Llama-3's form, and what of it is trained.

ChatML, where the system turn is there if there is a system prompt:

    <|im_start|>system\\n{system}<|im_end|>\\n
    <|im_start|>user\\n
      <|vision_start|> N x <|image_pad|> <|vision_end|>           for each image, before the text
      {question}                                                  then "\\n{instruction}", if any
    <|im_end|>\\n<|im_start|>assistant\\n
      {completion}<|im_end|>                                      these tokens are trained
    \\n

Llama-3, which has no images and, as its template does, strips the whitespace around each text:

    <|begin_of_text|>
    <|start_header_id|>user<|end_header_id|>\\n\\n{question}<|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\\n\\n
      {completion}<|eot_id|>                                      these tokens are trained

A literal "<image>" in a question is text like any other. The ids equal what transformers'
`apply_chat_template` gives, placeholders expanded as Qwen's processors do, for texts that spell no
control token. Texts that do spell one stay text (see `omr_io.tokenizer.core`).

Prompt and completion are encoded apart, so that a prompt's ids always begin the ids of its training
sample. Hugging Face encodes "assistant\\n" and the completion as one text; the ids differ only when
the completion begins with a line break, or with spaces up to one, which then would merge with the
"\\n" before it. A model that generates from the prompt never sees that merge, so apart is right.

The work is done by a compiled template in C++ (csrc/tokenizer/chat.cpp), or, where the tokenizer is
Hugging Face's, by `omr_io.chat.reference`.

Legend: T tokens of a sample, n records or conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal
from warnings import warn

import numpy as np

from omr_io import config
from omr_io.chat import check as checks
from omr_io.chat.conversation import (
    Completion,
    Conversation,
    EncodedBatch,
    EncodedText,
    Truncate,
)
from omr_io.chat.rows import RowWriter, Runner
from omr_io.chat.template import CHATML, LLAMA3, CompiledChat, Engine, Style, require_controls
from omr_io.config import VisionFamily
from omr_io.errors import ConfigError, OmrError, OmrWarning, Where
from omr_io.tokenizer import Segment, Tokenizer
from omr_io.types import Int64Array, Record

ChatStyle = Literal["chatml", "llama3"]
ChatFamily = VisionFamily | Literal["llama3"]

_STYLES: dict[str, Style] = {"chatml": CHATML, "llama3": LLAMA3}
_FAMILIES: dict[str, tuple[ChatStyle, str | None]] = {
    # The templates of these two put this turn in front of a conversation that has no system turn.
    "qwen2_vl": ("chatml", "You are a helpful assistant."),
    "qwen2_5_vl": ("chatml", "You are a helpful assistant."),
    "qwen3_vl": ("chatml", None),
    "llama3": ("llama3", None),
}
_CHUNK = 1024  # records whose texts are counted at a time


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a record becomes a conversation; see the module docstring for the forms.

    Args:
        tokenizer: must have the form's control tokens as special tokens.
        system: the system prompt of conversations that bring none, or None for no system turn.
        instruction: appended to each record's question after a line break, or None.
        style: "chatml" or "llama3".

    Raises:
        ConfigError: there is no such style.
        TokenizerError: a control token is missing, or is not special, so that text could forge it.
    """

    tokenizer: Tokenizer
    system: str | None = None
    instruction: str | None = None
    style: ChatStyle = "chatml"
    _style: Style = field(init=False, repr=False, compare=False)
    _engine: Engine = field(init=False, repr=False, compare=False)
    _rows: RowWriter = field(init=False, repr=False, compare=False)
    _runner: Runner = field(init=False, repr=False, compare=False)
    # The template that conversations of several turns are still to be compared with.
    _unchecked: list[checks.Peer] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.style not in _STYLES:
            raise ConfigError(
                f"no chat style {self.style!r}", mend=f"Use one of {', '.join(_STYLES)}"
            )
        style = _STYLES[self.style]
        require_controls(self.tokenizer, style)
        engine = self._make_engine(style)
        values = {
            "_style": style,
            "_engine": engine,
            "_rows": RowWriter(style, self.system is not None, self.instruction),
            "_runner": Runner(self.tokenizer, engine, style),
            "_unchecked": [],
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _make_engine(self, style: Style) -> Engine:
        options = (self.tokenizer, style, self.system, self.instruction)
        encoder = getattr(self.tokenizer._backend, "codec", None)
        if encoder is not None:
            return CompiledChat(encoder, *options)
        from omr_io.chat.reference import ReferenceChat

        return ReferenceChat(*options)

    def __reduce__(self) -> tuple[object, ...]:
        return ChatFormat, (self.tokenizer, self.system, self.instruction, self.style)

    @classmethod
    def for_family(
        cls,
        family: ChatFamily,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        instruction: str | None = None,
        check: bool = True,
    ) -> ChatFormat:
        """The format of a model family: without `system`, the one its own template puts there.

        That is "You are a helpful assistant." for Qwen2-VL and Qwen2.5-VL, none for the others.

        Args:
            family: "qwen2_vl", "qwen2_5_vl", "qwen3_vl" or "llama3" (not 3.1 and later, whose
                templates put dates into the system turn).
            tokenizer: of the model.
            system, instruction: see `ChatFormat`.
            check: compare with the chat template that came with the tokenizer: on records now, on
                conversations of several turns when the first is encoded. An OmrWarning says where
                there is none to compare with.

        Raises:
            ConfigError: the family is not known, or jinja2 is missing or too old for the check.
            TokenizerError: as for `ChatFormat`; or the template gives other ids, and shows where.
        """
        if family not in _FAMILIES:
            raise ConfigError(
                f"no chat format for the family {family!r}",
                mend=f"Use one of {', '.join(_FAMILIES)}",
            )
        style, default = _FAMILIES[family]
        made = cls(tokenizer, default if system is None else system, instruction, style)
        if check:
            made._check_own_template(family)
        return made

    def _check_own_template(self, family: str) -> None:
        peer = checks.own_peer(self.tokenizer)
        if peer is None:
            warn(
                f"the tokenizer brings no chat template, so that nothing says whether the format of"
                f" {family!r} is the model's. Give a folder with its chat template, or compare by "
                "check_against(FOLDER); check=False if you know it",
                OmrWarning,
                stacklevel=3,
            )
            return
        checks.check_records(self, peer)
        self._unchecked.append(peer)

    @property
    def has_images(self) -> bool:
        """Whether the form has a place for images."""
        return self._style.image is not None

    @property
    def image_token(self) -> str:
        """What an image's placeholder is spelt as.

        Raises:
            ConfigError: the form has no images.
        """
        if self._style.image is None:
            raise ConfigError(f"the style {self.style!r} has no images")
        return self._style.image[1].content

    @property
    def image_token_id(self) -> int:
        """`<|image_pad|>`: mm_token_type_ids is input_ids == image_token_id.

        Raises:
            ConfigError: the form has no images.
        """
        return self.tokenizer.token_id(self.image_token)

    @property
    def end_token_id(self) -> int:
        """`<|im_end|>` or `<|eot_id|>`: closes a completion, and stops generation."""
        closing = self._style.tail[0]
        assert not isinstance(closing, str)
        return self.tokenizer.token_id(closing.content)

    @property
    def pad_token_id(self) -> int:
        """`<|endoftext|>` or `<|end_of_text|>`: fills what is left of a pack.

        Raises:
            TokenizerError: the tokenizer has no such token.
        """
        return self.tokenizer.token_id(self._style.pad)

    @property
    def fingerprint(self) -> str:
        """16 hex digits; changes with the tokenizer, the options, or the format itself."""
        return config.fingerprint(
            self._style.name, self.tokenizer.fingerprint, self.system, self.instruction
        )

    # Records

    def segments(
        self,
        record: Record,
        image_tokens: Sequence[int],
        *,
        completion: str | Completion | None = Completion.CORPUS,
    ) -> list[Segment]:
        """The conversation as typed segments; arguments as for `encode`. Encodes nothing."""
        from omr_io.chat.reference import ReferenceChat

        reference = ReferenceChat(self.tokenizer, self._style, self.system, self.instruction)
        turns = reference.segments(self._rows.record(record, tuple(image_tokens), completion))
        return [segment for turn in turns for segment in turn]

    def encode(
        self,
        record: Record,
        image_tokens: Sequence[int],
        *,
        completion: str | Completion | None = Completion.CORPUS,
        max_tokens: int | None = None,
        truncate: Truncate = "refuse",
    ) -> EncodedText:
        """Encode a record's conversation.

        Args:
            record: its question, and its completion; its images may have been left unread.
            image_tokens: for each image the number of its merged patches, at least 1
                (`omr_io.images.num_image_tokens` gives them from image_grid_thw).
            completion: Completion.CORPUS takes `corpus_completion(record)`, None gives the
                generation prompt, a str is the completion itself.
            max_tokens: of the conversation, image placeholders included; None: no limit.
            truncate: what to do with more: "refuse", or cut the end of the "completion", and the
                token that closes it, which would teach the model to stop there. Prompt and images
                are never cut, and one trained token stays. The result counts what was cut.

        Raises:
            ConfigError: a count below 1, or counts that do not match `record.images`; an option
                that cannot be right.
            DataError: a text is not valid Unicode; it names the record.
            SampleTooLongError: there are more than max_tokens, and they cannot be cut.
            TokenizerError: the vocabulary itself lets a text become a control token.
        """
        return self.encode_batch(
            [record],
            [image_tokens],
            completions=[completion],
            max_tokens=max_tokens,
            truncate=truncate,
        )[0]

    def encode_batch(
        self,
        records: Sequence[Record],
        image_tokens: Sequence[Sequence[int]],
        *,
        completions: Sequence[str | Completion | None] | Completion | None = Completion.CORPUS,
        max_tokens: int | None = None,
        truncate: Truncate = "refuse",
        threads: int = 1,
    ) -> EncodedBatch:
        """Encode the conversations of n records at once, without the GIL.

        Args:
            records, image_tokens: as for `encode`, one each.
            completions: one each, as for `encode`; Completion.CORPUS or None are for all.
            max_tokens, truncate: as for `encode`.
            threads: at most so many; fewer where there is little text. The ids are the same.

        Raises:
            As `encode`, for the first record that is wrong; ConfigError for another number of
            `image_tokens` or `completions` than of records.
        """
        if completions is None or isinstance(completions, Completion):
            completions = [completions] * len(records)
        for name, count in (("image_tokens", len(image_tokens)), ("completions", len(completions))):
            if count != len(records):
                raise ConfigError(f"{count} {name} for {len(records)} records")
        counts = [tuple(one) for one in image_tokens]
        for record, one in zip(records, counts, strict=True):
            if one or record.images:
                self._check_images(record, one)
        rows = list(map(self._rows.record, records, counts, completions))
        return self._runner.encode(rows, _places(records), max_tokens, truncate, threads)

    def lengths(
        self, records: Iterable[Record], num_images: Iterable[int] | None = None
    ) -> tuple[Int64Array, Int64Array]:
        """Count the tokens of `encode(record, ...)`, many at a time.

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
        stream = _with_images(records, num_images)
        while chunk := list(islice(stream, _CHUNK)):
            self._require_images(max(images for _, images in chunk))
            rows = [self._rows.record(r, (0,) * n, Completion.CORPUS) for r, n in chunk]
            texts, labels = self._runner.count(rows, _places([record for record, _ in chunk]))
            text_tokens.append(texts)
            label_tokens.append(labels)
        return np.concatenate(text_tokens), np.concatenate(label_tokens)

    def truncated_lengths(
        self,
        text_tokens: Int64Array,
        image_tokens: Int64Array,
        label_tokens: Int64Array,
        max_tokens: int,
    ) -> tuple[Int64Array, Int64Array]:
        """What `lengths` become when `encode` cuts completions at max_tokens.

        Args:
            text_tokens, label_tokens: (n,) int64, of `lengths`.
            image_tokens: (n,) int64 placeholders of all images of each record.

        Returns:
            text_tokens and label_tokens, (n,) int64. They stay as they are where a record fits, and
            where its prompt alone is too long, so that it cannot be cut.
        """
        over = np.maximum(text_tokens + image_tokens - max_tokens, 0)
        after = self._runner.num_closing - 1  # what stands after the trained tokens is cut first
        labels = label_tokens - np.maximum(over - after, 0)
        can = labels >= 1
        return np.where(can, text_tokens - over, text_tokens), np.where(can, labels, label_tokens)

    # Conversations

    def encode_conversation(
        self,
        conversation: Conversation,
        *,
        generation_prompt: bool = False,
        max_tokens: int | None = None,
        truncate: Truncate = "refuse",
    ) -> EncodedText:
        """Encode one conversation; see `encode_conversations`."""
        return self.encode_conversations(
            [conversation],
            generation_prompt=generation_prompt,
            max_tokens=max_tokens,
            truncate=truncate,
        )[0]

    def encode_conversations(
        self,
        conversations: Sequence[Conversation],
        *,
        generation_prompt: bool = False,
        max_tokens: int | None = None,
        truncate: Truncate = "refuse",
        threads: int = 1,
    ) -> EncodedBatch:
        """Encode n conversations of any number of turns. The instruction is not appended.

        Args:
            conversations: for training each must end with an assistant turn.
            generation_prompt: write the head of an assistant turn after the last, which must be the
                user's; nothing is trained then.
            max_tokens, truncate: as for `encode`; only the last turn is ever cut.
            threads: as for `encode_batch`.

        Raises:
            DataError: a conversation ends with the wrong turn, or has images where the form has
                none; a text is not valid Unicode. It names the conversation.
            SampleTooLongError, ConfigError, TokenizerError: as `encode`.
        """
        rows = [self._rows.conversation(one, generation_prompt) for one in conversations]
        self._check_turns()
        return self._runner.encode(
            rows, lambda i: conversations[i].where, max_tokens, truncate, threads
        )

    def conversation_lengths(
        self, conversations: Sequence[Conversation]
    ) -> tuple[Int64Array, Int64Array]:
        """text_tokens and label_tokens of n conversations, as `lengths` has them."""
        rows = [self._rows.conversation(one, False) for one in conversations]
        self._check_turns()
        return self._runner.count(rows, lambda i: conversations[i].where)

    def check_against(self, folder: str | Path) -> None:
        """Compare with the chat template and tokenizer of a Hugging Face folder on probes.

        Raises:
            TokenizerError: the template or the tokenizer there gives other ids; shows where.
            ConfigError: jinja2 is missing or too old.
        """
        peer = checks.folder_peer(Path(folder))
        checks.check_records(self, peer)
        checks.check_conversations(ChatFormat(*self.__reduce__()[1]), peer)  # type: ignore[misc]

    # Checks

    def _check_turns(self) -> None:
        if self._unchecked:
            peer = self._unchecked.pop()
            try:
                checks.check_conversations(self, peer)
            except OmrError:
                self._unchecked.append(peer)  # so that it is refused the next time too
                raise

    def _check_images(self, record: Record, counts: tuple[int, ...]) -> None:
        self._require_images(len(counts))
        if counts and min(counts) < 1:
            raise ConfigError(f"image_tokens {list(counts)} must all be at least 1")
        if record.images and len(record.images) != len(counts):
            raise ConfigError(
                f"{len(counts)} counts of image tokens for {len(record.images)} images",
                where=_where(record),
            )

    def _require_images(self, count: int) -> None:
        if count and not self.has_images:
            raise ConfigError(
                f"the style {self.style!r} has no images", mend="Leave them out, or use a Qwen VL"
            )


def _where(record: Record) -> Where:
    return Where(source=record.source or None, key=record.id)


def _places(records: Sequence[Record]) -> Callable[[int], Where]:
    return lambda number: _where(records[number])


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
