"""Hugging Face `tokenizers` as a backend: any pipeline that it reads, at its own speed."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from omr_io.errors import TokenizerError
from omr_io.tokenizer import canonical, texts
from omr_io.tokenizer.backend import SpecialText
from omr_io.tokenizer.pipeline import MAX_VOCAB_SIZE
from omr_io.types import Int32Array, Int64Array

_CHUNK = 1024  # texts handed to Hugging Face at a time: bounds the memory of its Encoding objects


class HfBackend:
    """See `omr_io.tokenizer.backend.Backend`."""

    def __init__(self, source: str, on_special_text: SpecialText) -> None:
        """Raise TokenizerError for no tokenizer.json, or one whose ids are random."""
        self.source = source
        self._backend = _build(source)
        ids = np.fromiter(self._backend.get_vocab(with_added_tokens=True).values(), dtype=np.int64)
        added = self._backend.get_added_tokens_decoder()
        self.vocab_size = int(ids.max(initial=-1)) + 1
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise TokenizerError(f"a token has the id {self.vocab_size - 1}: no real vocabulary's")
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._known_V = np.zeros(self.vocab_size, dtype=np.bool_)
        self._known_V[ids] = True
        self._special_V = np.zeros(self.vocab_size, dtype=np.bool_)
        self._special_V[sorted(self.special_ids)] = True
        self._refused = None
        if on_special_text == "error" and self.special_ids:
            contents = sorted((added[i].content for i in self.special_ids), key=len, reverse=True)
            self._refused = re.compile("|".join(map(re.escape, contents)))

    @cached_property
    def fingerprint(self) -> str:
        """See `Backend`."""
        return canonical.fingerprint(self.source)

    @property
    def packed(self) -> bytes:
        """See `Backend`."""
        return zlib.compress(self.source.encode(), 1)

    def token_id(self, content: str) -> int | None:
        """See `Backend`."""
        found: int | None = self._backend.token_to_id(content)
        return found

    def knows(self, number: int) -> bool:
        """See `Backend`."""
        return 0 <= number < self.vocab_size and bool(self._known_V[number])

    def encode(self, text: str) -> Int32Array:
        """See `Backend`."""
        ids: Int32Array = self.encode_batch((text,), None, 1)[0]
        return ids

    def encode_batch(
        self, batch: tuple[str, ...], out: Int32Array | None, threads: int
    ) -> tuple[Any, Int64Array, int]:
        """See `Backend`. Hugging Face decides how many threads there are."""
        parts: list[Int32Array] = [np.empty(0, dtype=np.int32)]
        counts: list[int] = []
        for encodings in self._encodings(batch):
            counts += map(len, encodings)
            flat = chain.from_iterable(encoding.ids for encoding in encodings)
            parts.append(np.fromiter(flat, dtype=np.int32))
        ids = self._without_control(np.concatenate(parts))
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        if out is None:
            return ids, offsets, len(ids)
        if len(ids) > len(out):
            return None, offsets, len(ids)
        out[: len(ids)] = ids
        return out[: len(ids)], offsets, len(ids)

    def count_batch(self, batch: tuple[str, ...], threads: int) -> Int64Array:
        """See `Backend`."""
        counts = [len(one) for encodings in self._encodings(batch) for one in encodings]
        return np.array(counts, dtype=np.int64)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """See `Backend`."""
        for number in ids:
            if not self.knows(number):
                raise texts.unknown_id(number, self.vocab_size)
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def _encodings(self, batch: tuple[str, ...]) -> Iterator[list[tokenizers.Encoding]]:
        texts.require_texts(batch)
        self._refuse_control_text(batch)
        for start in range(0, len(batch), _CHUNK):
            piece = list(batch[start : start + _CHUNK])
            try:
                yield self._backend.encode_batch_fast(piece, add_special_tokens=False)
            except TypeError as error:
                raise texts.surrogate(batch) from error

    def _refuse_control_text(self, batch: tuple[str, ...]) -> None:
        if self._refused is None:
            return
        normalizer = self._backend.normalizer
        for index, text in enumerate(batch):
            found = self._refused.search(text)
            if found is None and normalizer is not None:
                try:
                    found = self._refused.search(normalizer.normalize_str(text))
                except TypeError as error:
                    raise texts.surrogate(batch) from error
            if found is not None:
                raise texts.control_text(index, found.start(), found.group())

    def _without_control(self, ids_T: Int32Array) -> Int32Array:
        """Check what the policy promises, for a vocabulary whose merges spell a control token."""
        special_T = self._special_V[ids_T]
        if special_T.any():
            raise texts.control_id(self._backend.id_to_token(int(ids_T[special_T][0])))
        return ids_T


def _build(source: str) -> tokenizers.Tokenizer:
    """A tokenizer of our own whose text never yields a special=True token."""
    try:
        model = dict(dict(json.loads(source))["model"])
        backend = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # Hugging Face raises bare Exception for what it cannot parse
        raise TokenizerError(
            f"this is not a tokenizer.json that Hugging Face tokenizers reads: {error}",
            mend="Fetch the file again; a Git LFS pointer or a cut download looks like this",
        ) from error
    if model.get("dropout"):
        raise TokenizerError(
            f"the model asks for BPE dropout {model['dropout']}, so that its ids are random",
            mend='Set "dropout" to null in tokenizer.json',
        )
    _require_all_bytes(backend, model)
    backend.no_truncation()
    backend.no_padding()
    # Of a match with a special=True token nothing is cut out of the text: it stays plain text.
    backend.encode_special_tokens = True
    return backend


def _require_all_bytes(backend: tokenizers.Tokenizer, model: Mapping[str, Any]) -> None:
    """Refuse a vocabulary without some bytes: Hugging Face drops them from a text in silence."""
    if model.get("type", "BPE") != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        return
    vocab = backend.get_vocab(with_added_tokens=False)
    missing = sum(letter not in vocab for letter in ByteLevel.alphabet())
    if missing:
        raise TokenizerError(
            f"{missing} of the 256 bytes have no token, so that text with them would be lost",
            mend="Use a byte-level BPE such as Qwen's, or one of `train_bpe`",
        )
