"""The C++ tokenizer as a backend."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from omr_io import _C
from omr_io.errors import DataError, TokenizerError
from omr_io.tokenizer import canonical, texts
from omr_io.tokenizer.backend import SpecialText
from omr_io.tokenizer.compiled import Compiled
from omr_io.tokenizer.letters import to_bytes
from omr_io.types import Int32Array, Int64Array


class NativeBackend:
    """See `omr_io.tokenizer.backend.Backend`."""

    def __init__(self, compiled: Compiled, on_special_text: SpecialText) -> None:
        pipeline = compiled.pipeline
        self._compiled = compiled
        self.vocab_size = pipeline.vocab_size
        self.special_ids = frozenset(token.id for token in pipeline.added if token.special)
        self._ids = {content: i for i, content in pipeline.unreachable}
        self._ids.update((token.content, token.id) for token in pipeline.added)
        self._contents = {i: content for content, i in self._ids.items()}
        self.codec = _C.Encoder(
            compiled.vocabulary,
            pattern=pipeline.pattern,
            nfc=pipeline.nfc,
            added=[
                (t.content, t.id, t.special, t.normalized, t.lstrip, t.rstrip, t.single_word)
                for t in pipeline.added
            ],
            extra=pipeline.extra(),
            refuse_special=on_special_text == "error",
        )

    @property
    def source(self) -> str:
        """See `Backend`. Unpacked each time: it is rarely wanted, and large."""
        return zlib.decompress(self._compiled.packed).decode()

    @property
    def packed(self) -> bytes:
        """See `Backend`."""
        return self._compiled.packed

    @cached_property
    def fingerprint(self) -> str:
        """See `Backend`."""
        return self._compiled.fingerprint or canonical.fingerprint(self.source)

    def token_id(self, content: str) -> int | None:
        """See `Backend`."""
        if content in self._ids:
            return self._ids[content]
        data = to_bytes(content)
        found = self._compiled.vocabulary.find(data) if data else -1
        return None if found < 0 else found

    def knows(self, number: int) -> bool:
        """See `Backend`."""
        return 0 <= number < self.vocab_size and self.codec.knows(number)

    def encode(self, text: str) -> Int32Array:
        """See `Backend`."""
        try:
            return self.codec.encode(text)
        except _C.TextError as error:
            raise self._error(error, (text,)) from None

    def encode_batch(
        self, batch: tuple[str, ...], out: Int32Array | None, threads: int
    ) -> tuple[Int32Array | None, Int64Array, int]:
        """See `Backend`."""
        try:
            return self.codec.encode_batch(batch, out, threads)
        except _C.TextError as error:
            raise self._error(error, batch) from None

    def count_batch(self, batch: tuple[str, ...], threads: int) -> Int64Array:
        """See `Backend`."""
        try:
            return self.codec.count_batch(batch, threads)
        except _C.TextError as error:
            raise self._error(error, batch) from None

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """See `Backend`."""
        try:
            return self.codec.decode(np.asarray(ids, dtype=np.int64), skip_special)
        except KeyError as error:
            raise texts.unknown_id(error.args[0], self.vocab_size) from None

    def _error(self, error: _C.TextError, batch: tuple[str, ...]) -> DataError | TokenizerError:
        reason, index, position, value = error.args
        if reason == "type":
            return texts.not_text(batch[index], index)
        if reason == "surrogate":
            return texts.lone_surrogate(index, position, value)
        if reason == "control-text":
            return texts.control_text(index, position, self._contents[value])
        if reason == "control-id":
            return texts.control_id(self._contents[value])
        return DataError(f"text {index} has {value} bytes", mend="Cut it: 4 GiB is the most")
