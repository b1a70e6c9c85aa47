"""Rank files and folders of the slow tokenizers."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from omr_io import _C
from omr_io.errors import ConfigError, TokenizerError
from omr_io.tokenizer import Tokenizer
from omr_io.tokenizer.letters import to_bytes
from omr_io.tokenizer.pipeline import parse
from omr_io.tokenizer.sources import tiktoken_json
from tests.text_fixtures import (
    CONTROL_TEXTS,
    corpus,
    hugging_face,
    qwen_source,
    qwen_tiktoken,
    small,
)


def ranks() -> list[bytes]:
    """A small vocabulary by rank, whose merges are those of the small tokenizer."""
    vocab = json.loads(small()._source)["model"]["vocab"]
    tokens = [to_bytes(t) for t, _ in sorted(vocab.items(), key=lambda item: item[1])]
    return [token for token in tokens if token is not None]


def rank_file(folder: Path, tokens: list[bytes], name: str = "small.tiktoken") -> Path:
    file = folder / name
    lines = (b"%s %d\n" % (b64encode(token), rank) for rank, token in enumerate(tokens))
    file.write_bytes(b"".join(lines))
    return file


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3", "llama3.1"])
def test_ranks_and_what_they_save_give_the_same_ids(tmp_path: Path, family: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_tiktoken(rank_file(tmp_path, ranks()), family)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    hf = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(hf) == tokenizer.vocab_size
    oracle = hugging_face(tokenizer._source, control=False)
    for text in (*corpus(30), "12345 <tool_call>'\u017f e\u0301", "".join(CONTROL_TEXTS)):
        ids = tokenizer.encode(text).tolist()
        assert (
            ids == again.encode(text).tolist() == oracle.encode(text, add_special_tokens=False).ids
        )
        plain = hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert plain == ids


def test_merges_of_ranks_are_those_that_were_trained() -> None:
    trained = parse(small()._source)
    made = parse(tiktoken_json(_bytes(ranks()), "qwen2"))
    assert made.tokens == trained.tokens
    assert made.merges == trained.merges


def _bytes(tokens: list[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (b64encode(t), rank) for rank, t in enumerate(tokens))


def test_last_pairs() -> None:
    tokens = [b"a", b"b", b"c", b"ab", b"abc", b"xyz", b"bc", b"aa", b"aaa", b"aaaa"]
    pairs = _C.last_pairs(tokens)
    # xyz has no parts; aaaa is aa+aa since aa comes before aaa.
    assert pairs == [None, None, None, (0, 1), (3, 2), None, (1, 2), (0, 0), (7, 0), (7, 7)]
    for wrong in ([b"a", b"a"], [b""]):
        with pytest.raises(ValueError, match="token"):
            _C.last_pairs(wrong)


def test_added_tokens_of_the_families(tmp_path: Path) -> None:
    file, first = rank_file(tmp_path, ranks()), len(ranks())
    qwen2, qwen3 = (Tokenizer.from_tiktoken(file, name) for name in ("qwen2", "qwen3"))
    assert (qwen2.vocab_size, qwen3.vocab_size) == (first + 22, first + 26)
    assert qwen3.special_ids == qwen2.special_ids == frozenset(range(first, first + 14))
    assert qwen3.token_id("</think>") == first + 25
    with pytest.raises(TokenizerError):
        qwen2.token_id("<think>")
    llama3, llama31 = (Tokenizer.from_tiktoken(file, name) for name in ("llama3", "llama3.1"))
    for llama in (llama3, llama31):
        assert llama.special_ids == frozenset(range(first, first + 256))
        for at, name in ((0, "begin_of_text"), (6, "start_header_id"), (9, "eot_id")):
            assert llama.token_id(f"<|{name}|>") == first + at
    assert llama3.token_id("<|reserved_special_token_250|>") == first + 255
    assert llama31.token_id("<|reserved_special_token_247|>") == first + 255
    assert llama31.token_id("<|python_tag|>") == first + 10


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"YQ== 0\nnonsense\n", "line 2 is b'nonsense'"),
        (b"YQ== 0\n!!!! 1\n", "line 2"),
        (b"YQ== 0\nYg== one\n", "line 2"),
        (b"YQ== 0\nYg== 2\n", "line 2 of the rank file has the rank 2 where 1 is next"),
        (b"YQ== 0\nYQ== 1\n", "a token occurs twice"),
        (b"YQ== 0\n", "255 of the 256 bytes"),
        (b"", "256 of the 256 bytes"),
        (b"\x80\x04 pickled", "line 1"),
    ],
)
def test_broken_rank_files(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(TokenizerError, match=named) as error:
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", "qwen2")
    assert "x.tiktoken" in str(error.value)


def test_wrong_ways_to_a_rank_file(tmp_path: Path) -> None:
    file = rank_file(tmp_path, ranks(), "tokenizer.model")
    for path in (file, tmp_path):
        with pytest.raises(TokenizerError, match=r"tokenizer\.model is a rank file.*from_tiktoken"):
            Tokenizer.from_pretrained(path)
    with pytest.raises(ConfigError, match=r"family 'gpt2'.*qwen2"):
        Tokenizer.from_tiktoken(file, "gpt2")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="does not exist"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere", "qwen2")


def slow_folder(folder: Path, **config: Any) -> Path:
    tree = json.loads(small()._source)
    merges = "\n".join(" ".join(pair) for pair in tree["model"]["merges"])
    (folder / "vocab.json").write_text(json.dumps(tree["model"]["vocab"]))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(t.pop("id")): t for t in tree["added_tokens"]}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_folder_of_the_slow_tokenizer(tmp_path: Path, backend: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_pretrained(slow_folder(tmp_path), backend=backend)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.special_ids == small().special_ids
    for text in corpus(30):
        ids = tokenizer.encode(text).tolist()
        assert ids == small().encode(text).tolist()
        assert ids == hf(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, "'GPT2Tokenizer' say nothing"),
        ({"tokenizer_class": None}, "None say nothing"),
        ({"added_tokens_decoder": None}, "broken"),
        ({"added_tokens_decoder": {"x": {}}}, "broken"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named) as error:
        Tokenizer.from_pretrained(slow_folder(tmp_path, **config))
    assert str(tmp_path) in str(error.value)


@pytest.mark.slow
def test_the_real_ranks_of_qwen_give_its_merges() -> None:
    file = qwen_tiktoken()
    made = json.loads(tiktoken_json(file.read_bytes(), "qwen2"))
    slow = json.loads(qwen_source(file))
    assert made["model"]["vocab"] == slow["model"]["vocab"]
    assert made["model"]["merges"] == slow["model"]["merges"]
    assert made["added_tokens"] == slow["added_tokens"]
