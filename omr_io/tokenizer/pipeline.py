"""A tokenizer.json → what the C++ encoder is made of, or a refusal that names what it lacks.

Implemented exactly, and therefore accepted: byte-level BPE without random or unknown tokens; NFC or
no normaliser; the Split of Qwen2 (Qwen2.5, Qwen3) or of Llama 3, then ByteLevel; the ByteLevel
decoder; added tokens of any kind. Post-processor, truncation and padding are not looked at: they
are never applied. Everything else is refused by name, and `backend="hf"` takes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from omr_io.errors import TokenizerError
from omr_io.tokenizer.letters import byte_letters, decoded, to_bytes

PATTERNS: Mapping[str, str] = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama3",
}
"""The regular expressions that csrc/tokenizer/split.hpp implements, and their names there."""

MAX_VOCAB_SIZE = 1 << 24  # a corrupt id must not ask for gigabytes of tables
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
_COMPONENTS = ("model", "normalizer", "pre_tokenizer", "decoder")
_NOT_APPLIED = ("version", "truncation", "padding", "post_processor")
_REFUSED_OF_MODEL = (
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
)
_OF_MODEL = ("type", "dropout", "fuse_unk", "ignore_merges", "vocab", "merges", *_REFUSED_OF_MODEL)
_USE_HF = 'Tokenizer.from_pretrained(..., backend="hf") takes it, through Hugging Face tokenizers'


@dataclass(frozen=True, slots=True)
class Added:
    """An added token, with the id that Hugging Face gives it."""

    content: str
    id: int
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What surrounds the vocabulary.

    Attributes:
        pattern: "qwen2" or "llama3".
        nfc: whether texts are normalised.
        added: in the order of the tokenizer.json.
        unreachable: (id, content) of the vocabulary's tokens that no text can become, because
            they are not written in the letters that stand for bytes.
        vocab_size: one more than the largest id.
    """

    pattern: str
    nfc: bool
    added: tuple[Added, ...]
    unreachable: tuple[tuple[int, str], ...]
    vocab_size: int

    def extra(self) -> list[tuple[int, bytes, bool]]:
        """(id, what it decodes to, special) of the tokens that the vocabulary's tables lack."""
        tokens = {i: (i, decoded(content), False) for i, content in self.unreachable}
        tokens.update({t.id: (t.id, decoded(t.content), t.special) for t in self.added})
        return list(tokens.values())


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed tokenizer.json.

    Attributes:
        tokens: by id, as bytes; b"" where an id has no token that text can become.
        merges: (left, right, merged) ids, by rank.
        ignore_merges: a piece that is a token becomes it, whatever the merges say.
    """

    pipeline: Pipeline
    tokens: list[bytes]
    merges: list[tuple[int, int, int]]
    ignore_merges: bool


def parse(source: str) -> Source:
    """Parse the text of a tokenizer.json.

    Raises:
        TokenizerError: it is none, or asks for what is not implemented; says which component.
    """
    tree = _object(source)
    for name in tree:
        if name not in (*_NOT_APPLIED, "added_tokens", *_COMPONENTS):
            _refuse(f"its {name!r}")
    model = tree.get("model")
    if not isinstance(model, dict):
        raise _broken('it has no "model"')
    nfc = _normalizer(tree.get("normalizer"))
    pattern = _pre_tokenizer(tree.get("pre_tokenizer"))
    _decoder(tree.get("decoder"))
    ignore_merges = _model(model)
    vocab = _vocab(model.get("vocab"))
    tokens, unreachable = _tokens(vocab)
    merges = _merges(model.get("merges"), vocab, unreachable)
    added = _added(tree.get("added_tokens") or [], vocab)
    vocab_size = 1 + max([len(tokens) - 1, *(token.id for token in added)])
    pipeline = Pipeline(pattern, nfc, added, tuple(unreachable.items()), vocab_size)
    try:
        pipeline.extra()
    except UnicodeEncodeError as error:
        raise _broken(f"a token is not valid Unicode: {error}") from error
    return Source(pipeline, tokens, merges, ignore_merges)


def _object(source: str) -> dict[str, Any]:
    try:
        tree = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise _broken(str(error)) from error
    if not isinstance(tree, dict):
        raise _broken("it is no JSON object")
    return tree


def _broken(why: str) -> TokenizerError:
    return TokenizerError(
        f"this is not a tokenizer.json that Hugging Face tokenizers reads: {why}",
        mend="Fetch the file again; a Git LFS pointer or a cut download looks like this",
    )


def _refuse(what: str) -> NoReturn:
    raise TokenizerError(f"the native tokenizer does not implement {what}", mend=_USE_HF)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}..."


def _model(model: Mapping[str, Any]) -> bool:
    """Whether merges are ignored for whole tokens."""
    if model.get("type") != "BPE":
        _refuse(f"the model {_shown(model.get('type'))}: byte-level BPE only")
    if model.get("dropout"):
        raise TokenizerError(
            f"the model asks for BPE dropout {model['dropout']}, so that its ids are random",
            mend='Set "dropout" to null in tokenizer.json',
        )
    for name in _REFUSED_OF_MODEL:
        if model.get(name) not in (None, "", False):
            _refuse(f"the model's {name} {_shown(model[name])}")
    for name in model:
        if name not in _OF_MODEL:
            _refuse(f"the model's {name!r}")
    ignore_merges = model.get("ignore_merges", False)
    if not isinstance(ignore_merges, bool):
        raise _broken(f"ignore_merges is {_shown(ignore_merges)}")
    return ignore_merges


def _normalizer(node: object) -> bool:
    """Whether texts are brought into NFC."""
    if isinstance(node, dict) and node.get("type") == "Sequence":
        parts = node.get("normalizers")
        if isinstance(parts, list) and len(parts) < 2:
            return _normalizer(parts[0] if parts else None)
    if node is None:
        return False
    if node == {"type": "NFC"}:
        return True
    _refuse(f"the normalizer {_shown(node)}")


def _pre_tokenizer(node: object) -> str:
    """The name of the pattern that texts are split by."""
    parts = node.get("pretokenizers") if isinstance(node, dict) else None
    if not (isinstance(node, dict) and node.get("type") == "Sequence" and isinstance(parts, list)):
        _refuse(f"the pre_tokenizer {_shown(node)}")
    if len(parts) != 2:
        _refuse(f"a pre_tokenizer of {len(parts)} parts: {_shown(parts)}")
    split, byte_level = parts
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if not isinstance(byte_level, dict) or letters != {
        name: value for name, value in byte_level.items() if name != "trim_offsets"
    }:
        _refuse(f"the pre_tokenizer {_shown(byte_level)}")
    pattern = split.get("pattern") if isinstance(split, dict) else None
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if split != {
        "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False,
    }:  # fmt: skip
        _refuse(f"the pre_tokenizer {_shown(split)}")
    if not isinstance(regex, str) or regex not in PATTERNS:
        _refuse(f"a Split by {_shown(regex)}: those of Qwen2 and Llama 3 only")
    return PATTERNS[regex]


def _decoder(node: object) -> None:
    known = {"type", "add_prefix_space", "trim_offsets", "use_regex"}  # it looks at none of them
    if not (isinstance(node, dict) and node.get("type") == "ByteLevel" and node.keys() <= known):
        _refuse(f"the decoder {_shown(node)}")


def _vocab(node: object) -> dict[str, int]:
    if not isinstance(node, dict):
        raise _broken("the model's vocab is no object")
    largest = max(node.values(), default=-1, key=lambda i: i if type(i) is int else -1)
    if not all(type(i) is int and i >= 0 for i in node.values()):
        raise _broken("an id of the vocab is no whole number from 0 on")
    if largest >= MAX_VOCAB_SIZE:
        raise TokenizerError(f"a token has the id {largest}: no real vocabulary's")
    return node


def _tokens(vocab: Mapping[str, int]) -> tuple[list[bytes], dict[int, str]]:
    """The tokens by id, and the content of those that are not written in bytes' letters."""
    tokens = [b""] * (1 + max(vocab.values(), default=-1))
    unreachable: dict[int, str] = {}
    for content, i in vocab.items():
        data = to_bytes(content)
        if tokens[i] or i in unreachable:
            raise _broken(f"two tokens have the id {i}: one is {content!r}")
        if data:
            tokens[i] = data
        else:
            unreachable[i] = content
    missing = sum(letter not in vocab for letter in byte_letters())
    if missing:
        raise TokenizerError(
            f"{missing} of the 256 bytes have no token, so that text with them would be lost",
            mend="Use a byte-level BPE such as Qwen's, or one of `train_bpe`",
        )
    return tokens, unreachable


def _merges(
    node: object, vocab: Mapping[str, int], unreachable: Mapping[int, str]
) -> list[tuple[int, int, int]]:
    """By rank; a pair that is listed twice has the rank of the last, as for Hugging Face."""
    if not isinstance(node, list):
        raise _broken("the model's merges are no list")
    found: dict[tuple[int, int], int] = {}
    for rank, pair in enumerate(node):
        left, right = _pair(pair, rank)
        try:
            key, merged = (vocab[left], vocab[right]), vocab[left + right]
        except KeyError as error:
            raise _broken(f"merge {rank} names {error.args[0]!r}, which is no token") from error
        found.pop(key, None)
        found[key] = merged
    return [
        (left, right, merged)
        for (left, right), merged in found.items()
        if not unreachable or not ({left, right, merged} & unreachable.keys())
    ]


def _pair(pair: object, rank: int) -> tuple[str, str]:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or len(parts) != 2:
        raise _broken(f"merge {rank} is {_shown(pair)}")
    left, right = parts
    if not (isinstance(left, str) and isinstance(right, str)):
        raise _broken(f"merge {rank} is {_shown(pair)}")
    return left, right


def _added(nodes: Sequence[object], vocab: Mapping[str, int]) -> tuple[Added, ...]:
    """The added tokens with the ids that Hugging Face gives them.

    It takes a token's id in the vocabulary, and else the next free one, whatever the file says.
    """
    taken: dict[int, str] = {}
    made: list[Added] = []
    names: set[str] = set()
    for node in nodes:
        content, flags = _added_token(node)
        if not content:
            continue  # Hugging Face leaves it out as well
        if content in names:
            _refuse(f"an added token that is listed twice: {content!r}")
        names.add(content)
        number = vocab.get(content)
        if number is None:
            number = max(len(vocab), 1 + max(taken, default=-1))
        taken[number] = content
        made.append(Added(content, number, **flags))
    ids = set(vocab.values()) if made else set()
    for token in made:
        if token.id in ids and vocab.get(token.content) != token.id:
            _refuse(f"a vocabulary with gaps: the added token {token.content!r} falls into one")
    _require_defined(made)
    return tuple(made)


def _require_defined(added: Sequence[Added]) -> None:
    """Refuse tokens on which Hugging Face panics: one's rstrip reaches over another's lstrip."""
    for token in added:
        if token.lstrip and not token.rstrip and token.content.isspace() and not token.special:
            reaching = (o for o in added if o.rstrip and o.normalized == token.normalized)
            other = next((o for o in reaching if not o.special), None)
            if other is not None:
                raise TokenizerError(
                    f"the added tokens {other.content!r} (rstrip) and {token.content!r} (lstrip) "
                    "claim the same whitespace: Hugging Face tokenizers panics on such texts",
                    mend="Take one of the two flags away in tokenizer.json",
                )


def _added_token(node: object) -> tuple[str, dict[str, bool]]:
    if not (isinstance(node, dict) and type(node.get("id")) is int):
        raise _broken(f"an added token is {_shown(node)}")
    content = node.get("content")
    flags = {name: node.get(name) for name in _FLAGS}
    if not isinstance(content, str) or not all(isinstance(v, bool) for v in flags.values()):
        raise _broken(f"an added token is {_shown(node)}")
    return content, flags  # type: ignore[return-value]
