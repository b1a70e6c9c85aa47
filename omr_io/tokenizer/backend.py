"""What a `Tokenizer` needs of the code that does its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from omr_io.types import Int32Array, Int64Array

BackendName = Literal["native", "hf"]
"""native: the C++ of omr_io. hf: Hugging Face tokenizers, for pipelines that native refuses."""

SpecialText = Literal["text", "error"]
"""What a text that spells a control token is: text like any other, or a DataError."""


class Backend(Protocol):
    """A tokenizer.json at work. Texts are a tuple of what the caller gave, not checked yet."""

    vocab_size: int
    special_ids: frozenset[int]

    @property
    def source(self) -> str:
        """The text of the tokenizer.json."""

    @property
    def packed(self) -> bytes:
        """`source` compressed by zlib."""

    @property
    def fingerprint(self) -> str:
        """See `omr_io.tokenizer.canonical`."""

    def token_id(self, content: str) -> int | None:
        """The id of a token as the tokenizer.json spells it."""

    def knows(self, number: int) -> bool:
        """Whether a token has this id."""

    def encode(self, text: str) -> Int32Array:
        """(T,) ids."""

    def encode_batch(
        self, texts: tuple[str, ...], out: Int32Array | None, threads: int
    ) -> tuple[Int32Array | None, Int64Array, int]:
        """Ids (None if `out` is too small), (n + 1,) offsets, and how many ids there are."""

    def count_batch(self, texts: tuple[str, ...], threads: int) -> Int64Array:
        """(n,) numbers of ids."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of ids; raises TokenizerError for one that no token has."""
