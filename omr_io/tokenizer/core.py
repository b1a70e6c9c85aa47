"""Text to token ids, exactly as Hugging Face `tokenizers` does it, minus the control tokens.

Legend: T tokens, n texts, V vocabulary size.

Policy for special-looking text. A `tokenizer.json` lists added tokens of two kinds. Those with
special=True (`<|im_end|>`, `<|image_pad|>`, ...) steer the model, so text never becomes one of
them: `<|im_end|>` inside a question is encoded as the ordinary characters it consists of (or is
refused, with on_special_text="error"), and the control tokens of a chat come from typed segments
only. Those with special=False (`<think>`, `<tool_call>`) are vocabulary, and are recognised inside
text just as Hugging Face does with encode_special_tokens=True.

The ids come from C++ (backend="native"), for the pipelines that `omr_io.tokenizer.pipeline` names;
any other is refused, and can be had through Hugging Face tokenizers with backend="hf".
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from omr_io import config
from omr_io.errors import ConfigError, DiskError, TokenizerError
from omr_io.tokenizer import texts as wrong
from omr_io.tokenizer.backend import Backend, BackendName, SpecialText
from omr_io.tokenizer.families import Family
from omr_io.tokenizer.opening import Opened, make_backend, open_pretrained, open_ranks
from omr_io.types import Int32Array, Int64Array


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

    Make one with `Tokenizer.from_pretrained`, `Tokenizer.from_tiktoken` or `train_bpe`. It never
    changes after that, and may be shared by threads, forked and sent to another process (pickled it
    carries its tokenizer.json, compressed: 2.6 MB for Qwen's). Truncation, padding and the
    post-processor that a tokenizer.json may ask for are not applied.
    """

    backend: BackendName
    """Whose code makes the ids."""
    on_special_text: SpecialText
    """What a text is that spells a control token."""

    def __init__(
        self,
        source: str,
        companions: Mapping[str, str] | None = None,
        *,
        backend: BackendName = "native",
        on_special_text: SpecialText = "text",
    ) -> None:
        """Build from the text of a tokenizer.json and of the files that belong to it, by name.

        Args:
            source: the text of a tokenizer.json.
            companions: texts of what `save` writes beside it.
            backend: "native", the C++ of omr_io; "hf", Hugging Face tokenizers, for pipelines
                that native refuses.
            on_special_text: "text": a control token spelt in a text is text; "error": it is a
                DataError. It is part of the fingerprint.

        Raises:
            TokenizerError: the text is not a tokenizer.json, or asks for random tokens (dropout),
                or for what the native backend does not implement; it names the component.
            ConfigError: there is no such backend or policy.
        """
        _require_options(backend, on_special_text)
        opened = Opened(make_backend(source, backend, on_special_text), companions or {})
        self._fill(opened, backend, on_special_text)

    def _fill(self, opened: Opened, backend: BackendName, on_special_text: SpecialText) -> None:
        self._backend: Backend = opened.backend
        self._companions = dict(opened.companions)
        self.backend = backend
        self.on_special_text = on_special_text
        self.vocab_size = self._backend.vocab_size
        """V: one more than the largest id, so that it sizes an embedding."""
        self.special_ids = self._backend.special_ids
        """The ids of the control tokens, which no text can yield."""

    @classmethod
    def _of(cls, opened: Opened, backend: BackendName, on_special_text: SpecialText) -> Tokenizer:
        made = cls.__new__(cls)
        made._fill(opened, backend, on_special_text)
        return made

    def __reduce__(self) -> tuple[object, ...]:
        state = (self._backend.packed, self._companions, self.backend, self.on_special_text)
        return _restored, state

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        backend: BackendName = "native",
        on_special_text: SpecialText = "text",
    ) -> Tokenizer:
        """Read a tokenizer.json, or a folder that holds one, or vocab.json and merges.txt.

        Nothing is downloaded. What it compiles to is kept in a cache folder, so that the next time
        takes hundredths of a second: see `omr_io.tokenizer.compiled`.

        Args:
            path: of the folder (also one with the vocab.json, merges.txt and
                tokenizer_config.json of Qwen2's slow tokenizer), or of the file.
            backend, on_special_text: as for `Tokenizer`.

        Raises:
            TokenizerError: there is no such file, or it is not a usable tokenizer.json.
            ConfigError: there is no such backend or policy.
        """
        _require_options(backend, on_special_text)
        opened = open_pretrained(Path(path), backend, on_special_text)
        return cls._of(opened, backend, on_special_text)

    @classmethod
    def from_tiktoken(
        cls,
        path: str | Path,
        family: Family,
        *,
        backend: BackendName = "native",
        on_special_text: SpecialText = "text",
    ) -> Tokenizer:
        """Read a rank file of tiktoken, as Qwen's qwen.tiktoken and Llama 3's tokenizer.model.

        Args:
            path: of the file: a line a token, base64 and rank.
            family: "qwen2" (Qwen2.5, Qwen2.5-VL too), "qwen3", "llama3" or "llama3.1" (Llama 3.2
                and 3.3 too). It says what the file does not: pipeline and added tokens.
            backend, on_special_text: as for `Tokenizer`.

        Raises:
            TokenizerError: there is no such file, or it is no rank file.
            ConfigError: there is no such family, backend or policy.
        """
        _require_options(backend, on_special_text)
        _require_one_of("family", family, get_args(Family))
        opened = open_ranks(Path(path), family, backend, on_special_text)
        return cls._of(opened, backend, on_special_text)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all of tokenizer.json that decides ids, and the policy.

        Formatting, the two ways to write merges, defaults left out or spelt out, truncation,
        padding and the post-processor make no difference; nor does the backend.
        """
        ids = self._backend.fingerprint
        if self.on_special_text == "text":
            return ids
        return config.fingerprint("tokenizer/1", ids, self.on_special_text)

    def token_id(self, content: str) -> int:
        """The id of the token spelt `content`, an added token or one of the vocabulary.

        Raises:
            TokenizerError: there is no such token.
        """
        found = self._backend.token_id(content)
        if found is None:
            raise TokenizerError(
                f"the tokenizer has no token {content!r}",
                mend="Use the tokenizer of the model family that you train",
            )
        return int(found)

    def encode(self, text: str) -> Int32Array:
        """Encode one text: (T,) int32.

        Raises:
            DataError: `text` is not a str, is not valid Unicode (a lone surrogate), or spells a
                control token where that is an error.
        """
        return self._backend.encode(text)

    def encode_batch(
        self,
        texts: Sequence[str],
        out: Int32Array | None = None,
        *,
        threads: int | None = None,
    ) -> tuple[Int32Array, Int64Array]:
        """Encode n texts, in parallel and without the GIL, into one flat array.

        Args:
            texts: any sequence or iterable of str but a str itself.
            out: a contiguous int32 array to write the ids into, instead of a new one. A text gives
                at most one id for each byte that its NFC has in UTF-8.
            threads: at most so many; None: all cores that the process may run on. A batch of less
                than 256 KB a thread takes fewer. (With backend="hf" Hugging Face decides.) In the
                workers of another loader, 1 is the right number.

        Returns:
            ids (T,) int32 and offsets (n+1,) int64; text i is ids[offsets[i]:offsets[i+1]].
            With `out`, ids is a view of its first T numbers.

        Raises:
            DataError: as `encode`; it names the first text that is wrong.
            ConfigError: one text instead of many, `threads` is below 1, `out` is no such array or
                too small; it says how many ids there are. Then what is in `out` means nothing.
        """
        batch = wrong.as_tuple(texts)
        _require_out(out)
        ids, offsets, count = self._backend.encode_batch(batch, out, _threads(threads))
        if ids is None:
            raise ConfigError(
                f"out has room for {0 if out is None else len(out)} ids, the texts have {count}",
                mend=f"Give an int32 array of at least {count}",
            )
        return ids, offsets

    def count_batch(self, texts: Sequence[str], *, threads: int | None = None) -> Int64Array:
        """The number of tokens of n texts: (n,) int64. Arguments, errors: as `encode_batch`."""
        return self._backend.count_batch(wrong.as_tuple(texts), _threads(threads))

    def encode_segments(self, segments: Sequence[Segment]) -> tuple[Int32Array, NDArray[np.bool_]]:
        """Encode typed segments one after the other, each text by itself.

        Join texts that belong together before: "a" and "b" apart may give other ids than "ab".

        Returns:
            input_ids (T,) int32 and trained (T,) bool.

        Raises:
            DataError: as `encode`.
            TokenizerError: an id is not in the vocabulary.
        """
        parts = [np.empty(0, dtype=np.int32)]
        for segment in segments:
            if isinstance(segment.content, str):
                parts.append(self.encode(segment.content))
            else:
                if not self._backend.knows(segment.content):
                    raise wrong.unknown_id(segment.content, self.vocab_size)
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
        if ids_T.size and ids_T.dtype.kind not in "iu":
            raise TokenizerError(f"token ids are integers, got {ids_T.dtype}")
        return self._backend.decode(ids_T.tolist(), skip_special_tokens)

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

    @property
    def _source(self) -> str:
        return self._backend.source


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with Qwen's pipeline, special tokens and chat template.

    The same texts in the same order give the same tokenizer. All 256 bytes are in it, so any text
    can be encoded; the special tokens come last, as in Qwen. Hugging Face tokenizers does the
    training.

    Args:
        texts: read once, as a stream.
        vocab_size: entries including the bytes and the special tokens. The result has fewer when
            the texts have too few pairs that occur twice.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
        DataError: a text is not a str, or is not valid Unicode.
    """
    from omr_io.tokenizer.qwen_bpe import train_qwen_bpe

    return Tokenizer(*train_qwen_bpe(texts, vocab_size=vocab_size))


def _restored(
    packed: bytes, companions: Mapping[str, str], backend: BackendName, policy: SpecialText
) -> Tokenizer:
    """What pickle calls: the compiled form is taken from the cache where it is there."""
    source = zlib.decompress(packed).decode()
    return Tokenizer._of(Opened(make_backend(source, backend, policy), companions), backend, policy)


def _require_options(backend: object, on_special_text: object) -> None:
    _require_one_of("backend", backend, get_args(BackendName))
    _require_one_of("on_special_text", on_special_text, get_args(SpecialText))


def _require_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r} is none", mend=f"Use one of {', '.join(known)}")


def _require_out(out: object) -> None:
    if out is None:
        return
    if not (isinstance(out, np.ndarray) and out.dtype == np.int32 and out.ndim == 1):
        shown = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ConfigError(f"out is {shown}", mend="Give a one-dimensional NumPy array of int32")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ConfigError("out is not contiguous, or cannot be written to")


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0))
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is {threads!r}", mend="Use a number from 1 on, or None")
    return threads
