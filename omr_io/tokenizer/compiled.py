"""A tokenizer.json in its compiled form, and where that is kept between runs.

A compiled tokenizer is kept as two files in the cache folder (see `omr_io.cache`: by default
~/.cache/omr_io/tokenizers/, $OMR_IO_CACHE_DIR elsewhere, set to nothing: nowhere): the vocabulary's
tables, which are mapped into memory as they lie there, so that processes share them, and the rest:
the pipeline, the fingerprint, and the tokenizer.json compressed, which `save` and pickling need.
Their names begin with the SHA-256 of the source and of the version of this format. The 16 that
were used last are kept; all may be deleted at any time, and damaged ones are made anew.

With it a Qwen tokenizer is there in 0.03 s, without it in 1 s or two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from omr_io import _C
from omr_io.cache import Cache, cache_root
from omr_io.errors import TokenizerError
from omr_io.tokenizer import canonical
from omr_io.tokenizer.pipeline import Added, Pipeline, Source, parse

_FORMAT = "omr_io compiled tokenizer 1"
_MOST_KEPT = 16
_LEAST_BYTES = 1 << 18  # a smaller source is parsed in some 20 ms, and would only crowd out others


@dataclass(frozen=True, slots=True)
class Compiled:
    """A tokenizer ready for work.

    Attributes:
        vocabulary: the tables.
        pipeline: what surrounds them.
        fingerprint: of `canonical`; None: not computed yet.
        packed: the tokenizer.json, compressed by zlib (Qwen's: 7 MB become 2.6).
    """

    vocabulary: _C.Vocabulary
    pipeline: Pipeline
    fingerprint: str | None
    packed: bytes


def compile_source(source: str) -> Compiled:
    """Compile the text of a tokenizer.json.

    Raises:
        TokenizerError: as `pipeline.parse`.
    """
    parsed = parse(source)
    packed = zlib.compress(source.encode(), 1)
    return Compiled(build_vocabulary(parsed), parsed.pipeline, None, packed)


def build_vocabulary(parsed: Source) -> _C.Vocabulary:
    """The tables of a parsed tokenizer.json."""
    try:
        merges = np.array(parsed.merges, dtype=np.uint32).reshape(-1, 3)
        return _C.Vocabulary.build(parsed.tokens, merges, ignore_merges=parsed.ignore_merges)
    except ValueError as error:
        raise TokenizerError(
            f"the vocabulary cannot be compiled: {error}",
            mend='Tokenizer.from_pretrained(..., backend="hf") may take it',
        ) from error


def key_of(kind: str, data: bytes) -> str:
    """The name in the cache of what `data` compiles to; `kind` says how it is read."""
    digest = hashlib.sha256(f"{_FORMAT}\0{kind}\0".encode())
    digest.update(data)
    return digest.hexdigest()


def cached(key: str, size: int, make: Callable[[], str]) -> Compiled:
    """What is kept under `key`, or else what `make`'s tokenizer.json compiles to, kept from now on.

    Args:
        key: of `key_of`.
        size: of the source in bytes; small ones are not kept.
        make: gives the text of the tokenizer.json; raises TokenizerError.
    """
    root = cache_root() if size >= _LEAST_BYTES else None
    cache = Cache(None if root is None else root / "tokenizers", max_files=2 * _MOST_KEPT)
    found = _load(cache, key)
    if found is not None:
        return found
    source = make()
    made = compile_source(source)
    if cache.folder is None:
        return made
    made = dataclasses.replace(made, fingerprint=canonical.fingerprint(source))
    _store(cache, key, made)
    return _load(cache, key) or made  # mapped tables take no memory of this process alone


def _load(cache: Cache, key: str) -> Compiled | None:
    body = cache.load(f"{key}.pipeline")
    if body is None or cache.folder is None:
        return None
    tables = cache.folder / f"{key}.vocabulary"
    try:
        size = int.from_bytes(body[:8], "little")
        tree = json.loads(body[8 : 8 + size])
        pipeline = Pipeline(
            tree["pattern"],
            tree["nfc"],
            tuple(Added(**token) for token in tree["added"]),
            tuple((i, content) for i, content in tree["unreachable"]),
            tree["vocab_size"],
        )
        vocabulary = _C.Vocabulary.map(str(tables))  # it has a checksum of its own
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        # Damaged, another version's, or removed just now by another process: made again.
        cache.discard(f"{key}.pipeline")
        return None
    with suppress(OSError):  # a folder that may only be read is a cache as well
        os.utime(tables)
    return Compiled(vocabulary, pipeline, tree["fingerprint"], body[8 + size :])


def _store(cache: Cache, key: str, made: Compiled) -> None:
    """Keep both files: the tables first, so that where there is a pipeline there are tables."""
    assert cache.folder is not None
    tree = dataclasses.asdict(made.pipeline) | {"fingerprint": made.fingerprint}
    head = json.dumps(tree).encode()
    temporary = cache.folder / f".{key}.vocabulary.{secrets.token_hex(8)}"
    try:
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(made.vocabulary.compiled())
        temporary.replace(cache.folder / f"{key}.vocabulary")
    except OSError:
        with suppress(OSError):
            temporary.unlink()
    # Told by an OmrWarning if it cannot be written, and what is over the bound is removed.
    cache.store(f"{key}.pipeline", len(head).to_bytes(8, "little") + head + made.packed)
