"""Around Hugging Face `tokenizers`: read a tokenizer.json, name what is wrong with a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from omr_io.errors import DataError, TokenizerError


def build(source: str) -> tokenizers.Tokenizer:
    """A tokenizer of our own whose text never yields a special=True token.

    Raises:
        TokenizerError: not a tokenizer.json, or one whose ids are random or that loses text.
    """
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


_DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


def canonical(source: str) -> dict[str, Any]:
    """What of a tokenizer.json decides ids, in one spelling."""
    ignored = ("version", "truncation", "padding", "post_processor")
    tree = {name: value for name, value in json.loads(source).items() if name not in ignored}
    model = {
        name: value
        for name, value in tree["model"].items()
        if not (name in _DEFAULTS and value in _DEFAULTS[name])
    }
    if "merges" in model:
        merges = (m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"])
        model["merges"] = list(merges)
    tree["model"] = model
    tree["added_tokens"] = sorted(tree.get("added_tokens") or (), key=lambda token: token["id"])
    return tree


def read_text(file: Path) -> str | None:
    """The text of a file, or None where there is none."""
    try:
        return file.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error


def require_texts(texts: Sequence[str], first: int = 0) -> None:
    """Raise DataError for what is not a str, counting from `first`: HF takes a tuple as a pair."""
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise DataError(f"text {index} is a {type(text).__name__}, not a str")


def surrogate(texts: Sequence[str], first: int = 0) -> DataError | TokenizerError:
    """Say which of `texts` is not valid Unicode: the one thing Hugging Face refuses in a str."""
    for index, text in enumerate(texts, first):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return DataError(
                f"text {index} is not valid Unicode: a lone surrogate "
                f"U+{ord(text[error.start]):04X} at character {error.start}",
                mend="Decode the source with its true encoding",
            )
    return TokenizerError("Hugging Face tokenizers refused a valid text")
