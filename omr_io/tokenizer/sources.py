"""Rank files of tiktoken, and folders with vocab.json and merges.txt → a tokenizer.json."""

from __future__ import annotations

import json
from binascii import Error as Base64Error
from binascii import a2b_base64
from pathlib import Path
from typing import Any

from omr_io import _C
from omr_io.errors import TokenizerError
from omr_io.tokenizer.families import Family, tokenizer_json
from omr_io.tokenizer.files import read_bytes
from omr_io.tokenizer.letters import to_letters

_QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_RANK_FILES = ("tokenizer.model", "qwen.tiktoken")


def rank_file_in(path: Path) -> Path | None:
    """The rank file that `path` is, or that is in that folder, by its name; None: there is none."""
    if path.is_dir():
        return next((path / name for name in _RANK_FILES if (path / name).is_file()), None)
    return path if path.suffix == ".tiktoken" or path.name in _RANK_FILES else None


def tiktoken_json(data: bytes, family: Family) -> str:
    """The tokenizer.json of the ranks in a file of tiktoken: a line a token, base64 and rank.

    A merge is the last pair that is left when its token is encoded with lower ranks only (see
    csrc/tokenizer/ranks.hpp), so a token that lower ranks do not lead to has none.

    Raises:
        TokenizerError: a line is something else, or the ranks are not 0, 1, 2, ...
    """
    tokens = _ranks(data)
    try:
        pairs = _C.last_pairs(tokens)
    except ValueError as error:
        raise TokenizerError(f"this is no rank file of tiktoken: {error}") from error
    letters = [to_letters(token) for token in tokens]
    vocab = {token: rank for rank, token in enumerate(letters)}
    merges = [(letters[pair[0]], letters[pair[1]]) for pair in pairs if pair is not None]
    return tokenizer_json(family, vocab, merges)


def _ranks(data: bytes) -> list[bytes]:
    tokens: list[bytes] = []
    for number, line in enumerate(data.splitlines()):
        if not line:
            continue
        try:
            token, rank = line.split()
            found, at = a2b_base64(token, strict_mode=True), int(rank)
        except (ValueError, Base64Error) as error:
            raise TokenizerError(
                f"this is no rank file of tiktoken: its line {number + 1} is {line[:80]!r}",
                mend="Each line is a token in base64, a space and its rank",
            ) from error
        if at != len(tokens):
            raise TokenizerError(
                f"line {number + 1} of the rank file has the rank {at} where {len(tokens)} is next",
                mend="Ranks are 0, 1, 2, ... in order, as in the files of Qwen and Llama 3",
            )
        tokens.append(found)
    return tokens


def folder_files(folder: Path) -> tuple[bytes, bytes, bytes] | None:
    """vocab.json, merges.txt and tokenizer_config.json of a folder; None: it has not all three."""
    vocab, merges, config = (
        read_bytes(folder / name) for name in ("vocab.json", "merges.txt", "tokenizer_config.json")
    )
    if vocab is None or merges is None or config is None:
        return None
    return vocab, merges, config


def folder_json(vocab: bytes, merges: bytes, config: bytes) -> str:
    """The tokenizer.json of a folder of Qwen2's slow tokenizer.

    Raises:
        TokenizerError: the configuration names another class, or a file is broken.
    """
    try:
        settings: dict[str, Any] = json.loads(config)
        name = settings.get("tokenizer_class")
        if name not in _QWEN_CLASSES:
            raise TokenizerError(
                f"vocab.json and merges.txt of {name!r} say nothing of its pipeline",
                mend="transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER) "
                "makes the tokenizer.json of it",
            )
        added = [
            {"id": int(number), **token}
            for number, token in dict(settings["added_tokens_decoder"]).items()
        ]
        lines = merges.decode("utf-8").split("\n")
        pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip("\r")]
        pairs = [pair for pair in pairs if not pair[0].startswith("#version")]
        return tokenizer_json(
            "qwen2", json.loads(vocab), pairs, sorted(added, key=lambda token: token["id"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(
            f"its vocab.json, merges.txt or tokenizer_config.json is broken: {error!r}",
            mend="Fetch the files again; tokenizer_config.json must list added_tokens_decoder",
        ) from error
