"""Text to token ids, exactly as Hugging Face `tokenizers` does it, minus the control tokens.

Legend: T tokens, n texts, V vocabulary size.

Policy for special-looking text. A `tokenizer.json` lists added tokens of two kinds. Those with
special=True (`<|im_end|>`, `<|image_pad|>`, ...) steer the model, so text never becomes one of
them: `<|im_end|>` inside a question is encoded as the ordinary characters it consists of, and the
control tokens of a chat come from typed segments only. Those with special=False (`<think>`,
`<tool_call>`) are vocabulary, and are recognised inside text just as Hugging Face does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from omr_io.errors import ConfigError, DiskError, TokenizerError
from omr_io.tokenizer.hf_backend import build, canonical, read_text, require_texts, surrogate
from omr_io.tokenizer.qwen_bpe import train_qwen_bpe
from omr_io.types import Int32Array, Int64Array

_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_MAX_VOCAB_SIZE = 1 << 24  # a corrupt id must not ask for gigabytes of tables
_CHUNK = 1024  # texts handed to Hugging Face at a time: bounds the memory of its Encoding objects


@dataclass(frozen=True, slots=True)
class Segment:
    """A typed piece of a conversation.

    Attributes:
        content: a token id, emitted as it stands, or a text, encoded by itself.
        repeat: how many times the id is emitted; image placeholders are one segment. 1 for texts.
        trained: whether its tokens carry a loss.

    Raises:
        ConfigError: `repeat` is negative, or not 1 for a text.
    """

    content: int | str
    repeat: int = 1
    trained: bool = False

    def __post_init__(self) -> None:
        if self.repeat != 1 and (self.repeat < 0 or isinstance(self.content, str)):
            raise ConfigError(f"a segment of {self.content!r} cannot repeat {self.repeat} times")


class Tokenizer:
    """A byte-level BPE vocabulary with its pipeline; see the module docstring for its policy.

    Make one with `Tokenizer.from_pretrained` or `train_bpe`. It never changes after that, and may
    be shared by threads, forked and sent to another process. Truncation, padding and the
    post-processor that a tokenizer.json may ask for are not applied.
    """

    def __init__(self, source: str, companions: Mapping[str, str] | None = None) -> None:
        """Build from the text of a tokenizer.json and of the files that belong to it, by name.

        Raises:
            TokenizerError: the text is not a tokenizer.json, or asks for random tokens (dropout).
        """
        self._source = source
        self._companions = dict(companions or {})
        self._backend = build(source)
        vocab = self._backend.get_vocab(with_added_tokens=True)
        ids = np.fromiter(vocab.values(), dtype=np.int64)
        added = self._backend.get_added_tokens_decoder()
        self.vocab_size = int(ids.max(initial=-1)) + 1
        """V: one more than the largest id, so that it sizes an embedding."""
        if self.vocab_size > _MAX_VOCAB_SIZE:
            raise TokenizerError(f"a token has the id {self.vocab_size - 1}: no real vocabulary's")
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        """The ids of the control tokens, which no text can yield."""
        self._known_V = np.zeros(self.vocab_size, dtype=np.bool_)
        self._known_V[ids] = True
        self._special_V = np.zeros(self.vocab_size, dtype=np.bool_)
        self._special_V[sorted(self.special_ids)] = True

    def __reduce__(self) -> tuple[object, ...]:
        return Tokenizer, (self._source, self._companions)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Read a folder that holds tokenizer.json, or that file itself. Nothing is downloaded.

        Raises:
            TokenizerError: there is no such file, or it is not a usable tokenizer.json.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        source = read_text(file)
        if source is None:
            raise TokenizerError(
                f"{file} does not exist",
                mend="Give a local folder with tokenizer.json, or that file; `hf download NAME "
                "--local-dir FOLDER` fetches one from the Hugging Face hub, and transformers' "
                "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) converts older files",
            )
        found = ((name, read_text(file.parent / name)) for name in _COMPANIONS)
        try:
            return cls(source, {name: text for name, text in found if text is not None})
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {error.what}", mend=error.mend) from error.__cause__

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all of tokenizer.json that decides ids.

        Formatting, the two ways to write merges, defaults left out or spelt out, truncation,
        padding and the post-processor make no difference.
        """
        text = json.dumps(canonical(self._source), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def token_id(self, content: str) -> int:
        """The id of the token spelt `content`, an added token or one of the vocabulary.

        Raises:
            TokenizerError: there is no such token.
        """
        found = self._backend.token_to_id(content)
        if found is None:
            raise TokenizerError(
                f"the tokenizer has no token {content!r}",
                mend="Use the tokenizer of the model family that you train",
            )
        return int(found)

    def encode(self, text: str) -> Int32Array:
        """Encode one text: (T,) int32.

        Raises:
            DataError: `text` is not a str, or is not valid Unicode (a lone surrogate).
        """
        require_texts((text,))
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise surrogate((text,)) from error
        return self._without_control(np.array(ids, dtype=np.int32))

    def encode_batch(self, texts: Sequence[str]) -> tuple[Int32Array, Int64Array]:
        """Encode n texts, in parallel, into one flat array.

        Returns:
            ids (T,) int32 and offsets (n+1,) int64; text i is ids[offsets[i]:offsets[i+1]].

        Raises:
            DataError: a text is not a str, or is not valid Unicode; it names which.
        """
        parts: list[Int32Array] = []
        counts: list[int] = []
        for encodings in self._encodings(texts):
            counts += map(len, encodings)
            flat = chain.from_iterable(encoding.ids for encoding in encodings)
            parts.append(np.fromiter(flat, dtype=np.int32))
        ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return self._without_control(ids), offsets

    def count_batch(self, texts: Sequence[str]) -> Int64Array:
        """The number of tokens of n texts, in parallel: (n,) int64. Raises as `encode_batch`."""
        counts = [len(one) for encodings in self._encodings(texts) for one in encodings]
        return np.array(counts, dtype=np.int64)

    def encode_segments(self, segments: Sequence[Segment]) -> tuple[Int32Array, NDArray[np.bool_]]:
        """Encode typed segments one after the other, each text by itself.

        Join texts that belong together before: "a" and "b" apart may give other ids than "ab".

        Returns:
            input_ids (T,) int32 and trained (T,) bool.

        Raises:
            DataError: a text is not a str, or is not valid Unicode.
            TokenizerError: an id is not in the vocabulary.
        """
        parts = [np.empty(0, dtype=np.int32)]
        for segment in segments:
            if isinstance(segment.content, str):
                parts.append(self.encode(segment.content))
            else:
                self._require_known(np.array([segment.content]))
                parts.append(np.full(segment.repeat, segment.content, dtype=np.int32))
        trained = np.array([False, *(segment.trained for segment in segments)], dtype=np.bool_)
        return np.concatenate(parts), np.repeat(trained, [len(part) for part in parts])

    def decode(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of (T,) ids. Bytes that are no UTF-8, as of a cut character, become U+FFFD.

        Raises:
            TokenizerError: an id is not in the vocabulary.
        """
        ids_T = np.asarray(ids).reshape(-1)
        self._require_known(ids_T)
        return str(self._backend.decode(ids_T.tolist(), skip_special_tokens=skip_special_tokens))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, and the configuration and chat template that came with it.

        transformers' AutoTokenizer reads the folder.

        Raises:
            DiskError: a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in {**self._companions, "tokenizer.json": self._source}.items():
                temporary = folder / f".{name}.{os.getpid()}"
                temporary.write_text(text, encoding="utf-8", newline="")
                temporary.replace(folder / name)
        except OSError as error:
            raise DiskError(f"cannot save the tokenizer in {folder}: {error}") from error

    def _encodings(self, texts: Sequence[str]) -> Iterator[list[tokenizers.Encoding]]:
        if isinstance(texts, str):
            raise ConfigError("expected a sequence of texts, got one text", mend="Put it in a list")
        require_texts(texts)
        for start in range(0, len(texts), _CHUNK):
            piece = list(texts[start : start + _CHUNK])
            try:
                yield self._backend.encode_batch_fast(piece, add_special_tokens=False)
            except TypeError as error:
                raise surrogate(texts) from error

    def _without_control(self, ids_T: Int32Array) -> Int32Array:
        """Check what the policy promises, for a vocabulary whose merges spell a control token."""
        if self._special_V[ids_T].any():
            token = int(ids_T[self._special_V[ids_T]][0])
            raise TokenizerError(
                f"a text yields the control token {self._backend.id_to_token(token)!r}",
                mend="This tokenizer.json cannot keep text and control tokens apart",
            )
        return ids_T

    def _require_known(self, ids_T: NDArray[np.integer[Any]]) -> None:
        if ids_T.size == 0:
            return
        if ids_T.dtype.kind not in "iu":
            raise TokenizerError(f"token ids are integers, got {ids_T.dtype}")
        inside_T = (ids_T >= 0) & (ids_T < self.vocab_size)
        known_T = inside_T & self._known_V[np.where(inside_T, ids_T, 0)]
        if not known_T.all():
            raise TokenizerError(
                f"id {int(ids_T[~known_T][0])} is not in the vocabulary of {self.vocab_size}",
                mend="Use the tokenizer that the ids were made with",
            )


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with Qwen's pipeline, special tokens and chat template.

    The same texts in the same order give the same tokenizer. All 256 bytes are in it, so any text
    can be encoded; the special tokens come last, as in Qwen.

    Args:
        texts: read once, as a stream.
        vocab_size: entries including the bytes and the special tokens. The result has fewer when
            the texts have too few pairs that occur twice.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
        DataError: a text is not a str, or is not valid Unicode.
    """
    return Tokenizer(*train_qwen_bpe(texts, vocab_size=vocab_size))
