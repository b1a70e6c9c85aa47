"""Pipelines that are taken, and those that are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers

from omr_io.errors import ConfigError, TokenizerError
from omr_io.tokenizer import Tokenizer
from omr_io.tokenizer.letters import byte_letters, decoded, to_bytes, to_letters
from omr_io.tokenizer.pipeline import PATTERNS, parse
from tests.text_fixtures import corpus, hugging_face, small

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> str:
    tree = json.loads(small()._source)
    change(tree)
    return json.dumps(tree)


def parts(tree: dict[str, Any]) -> list[Any]:
    found: list[Any] = tree["pre_tokenizer"]["pretokenizers"]
    return found


GPT4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}]*[\p{Ll}]+|\s+"
CASELESS = next(iter(PATTERNS)).replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT])")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["model"].update(type="WordPiece"), 'model "WordPiece"'),
        (lambda t: t["model"].pop("type"), "the model null"),
        (lambda t: t["model"].update(unk_token="<unk>"), "unk_token"),
        (lambda t: t["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda t: t["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda t: t["model"].update(novelty=1), "model's 'novelty'"),
        (lambda t: t.update(novelty=1), "its 'novelty'"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "normalizer .*NFKC"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer .*Lowercase"),
        (
            lambda t: t.update(
                normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFC"}]}
            ),
            "normalizer .*Sequence",
        ),
        (lambda t: t.update(pre_tokenizer=None), "pre_tokenizer null"),
        (lambda t: t.update(pre_tokenizer=parts(t)[1]), "pre_tokenizer .*ByteLevel"),
        (lambda t: parts(t).reverse(), "pre_tokenizer"),
        (lambda t: parts(t).append({"type": "Digits", "individual_digits": True}), "of 3 parts"),
        (lambda t: parts(t)[0].update(pattern={"Regex": GPT4O}), r"Split by .*Lu"),
        (lambda t: parts(t)[0].update(pattern={"Regex": CASELESS}), r"Split by .*sS"),
        (lambda t: parts(t)[0].update(pattern={"String": " "}), "String"),
        (lambda t: parts(t)[0].update(behavior="Removed"), "Removed"),
        (lambda t: parts(t)[0].update(invert=True), "invert"),
        (lambda t: parts(t)[1].update(add_prefix_space=True), "add_prefix_space"),
        (lambda t: parts(t)[1].update(use_regex=True), "use_regex"),
        (lambda t: parts(t)[1].pop("use_regex"), "ByteLevel"),
        (lambda t: t.update(decoder=None), "decoder null"),
        (lambda t: t.update(decoder={"type": "WordPiece", "prefix": "", "cleanup": True}), "WordP"),
        (lambda t: t["added_tokens"].append(t["added_tokens"][0]), "listed twice: '<.endoftext"),
        (lambda t: t["model"]["vocab"].update(gap=495), "gaps: the added token"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change: Change, named: str) -> None:
    with pytest.raises(TokenizerError, match=named) as error:
        Tokenizer(changed(change))
    assert 'backend="hf"' in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(normalizer=None),
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": []}),
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        lambda t: t["model"].update(continuing_subword_prefix="", end_of_word_suffix=""),
        lambda t: t["model"].update(ignore_merges=True, dropout=None, fuse_unk=True),
        lambda t: parts(t)[1].update(trim_offsets=False),
        lambda t: parts(t)[0].update(pattern={"Regex": list(PATTERNS)[1]}),
        lambda t: t["decoder"].update(use_regex=False, trim_offsets=False),
        lambda t: t["model"].update(merges=[" ".join(pair) for pair in t["model"]["merges"]]),
        # A pair that is listed twice has the rank of the last.
        lambda t: t["model"]["merges"].append(t["model"]["merges"][0]),
        lambda t: t["model"]["merges"].insert(0, t["model"]["merges"][40]),
        lambda t: t["added_tokens"].pop(3),  # Hugging Face then renumbers those that follow
        lambda t: t["added_tokens"].reverse(),
        lambda t: t["model"]["vocab"].update({"no letters": 490, "\u0958": 491}),
    ],
)
def test_what_is_accepted_equals_hugging_face(change: Change) -> None:
    source = changed(change)
    ours, theirs = Tokenizer(source), tokenizers.Tokenizer.from_str(source)
    theirs.encode_special_tokens = True
    added = {i: t.special for i, t in theirs.get_added_tokens_decoder().items()}
    assert ours.special_ids == {i for i, special in added.items() if special}
    assert ours.vocab_size == 1 + max(theirs.get_vocab(with_added_tokens=True).values())
    for text in (
        *corpus(60),
        "123456 7.8 'S '\u017f\r\n\r\n  x",
        "<think>e\u0301</think><|im_end|>",
    ):
        ids = ours.encode(text).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids)
    for content, number in theirs.get_vocab(with_added_tokens=True).items():
        assert ours.token_id(content) == number
        for skip in (False, True):
            assert ours.decode([number], skip_special_tokens=skip) == theirs.decode(
                [number], skip_special_tokens=skip
            )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["model"]["vocab"].update(two=3), "two tokens have the id 3"),
        (lambda t: t["model"]["vocab"].update(two=True), "no whole number"),
        (lambda t: t["model"]["vocab"].update(two=-1), "no whole number"),
        (lambda t: t["model"]["merges"].append("a b c"), "merge .* is"),
        (lambda t: t["model"]["merges"].append(["a", 3]), "merge .* is"),
        (lambda t: t["model"]["merges"].append(["a", "Ā" * 9]), "ĀĀĀĀĀĀĀĀĀ', which is no token"),
        (lambda t: t["model"].update(ignore_merges="yes"), "ignore_merges"),
        (lambda t: t["added_tokens"][0].pop("lstrip"), "added token"),
        (lambda t: t["added_tokens"][0].update(content=None), "added token"),
        (lambda t: t["added_tokens"][0].update(content="\ud800"), "not valid Unicode"),
    ],
)
def test_what_is_broken_is_named(change: Change, named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        Tokenizer(changed(change))


def test_deep_json_is_an_error_and_no_crash() -> None:
    with pytest.raises(TokenizerError):
        Tokenizer("[" * 200_000)
    with pytest.raises(TokenizerError):
        Tokenizer("\ud800")


def test_backend_hf_takes_what_native_refuses() -> None:
    source = changed(lambda t: t.update(normalizer={"type": "Lowercase"}))
    tokenizer = Tokenizer(source, backend="hf")
    oracle = hugging_face(source, control=False)
    assert tokenizer.backend == "hf"
    for text in corpus(20):
        assert tokenizer.encode(text.upper()).tolist() == oracle.encode(text.upper()).ids


@pytest.mark.parametrize("options", [{"backend": "rust"}, {"on_special_text": "drop"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Use one of"):
        Tokenizer(small()._source, **options)
    with pytest.raises(ConfigError, match="Use one of"):
        Tokenizer.from_pretrained("nowhere", **options)


def test_letters_of_bytes_are_gpt2s() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_letters()) == sorted(ByteLevel.alphabet())
    every = bytes(range(256))
    assert to_bytes(to_letters(every)) == every
    for letter in byte_letters():
        assert to_bytes(letter) == bytes([byte_letters().index(letter)])
    for other in (" ", "\xad", "\u0144", "中", "\U0001f9e0"):
        assert to_bytes(f"a{other}") is None
        assert decoded(f"a{other}") == f"a{other}".encode()


def test_real_files_forms_are_recognised() -> None:
    """As the tokenizer.json of Qwen2.5 and of Llama 3 on the hub write what surrounds them."""
    qwen = parse(small()._source).pipeline
    assert (qwen.pattern, qwen.nfc) == ("qwen2", True)

    def llama(tree: dict[str, Any]) -> None:
        parts(tree)[0].update(pattern={"Regex": list(PATTERNS)[1]})
        parts(tree)[1].update(trim_offsets=True)
        tree.update(normalizer=None, decoder=parts(tree)[1] | {"use_regex": True})
        tree["model"].update(ignore_merges=True)

    parsed = parse(changed(llama))
    assert (parsed.pipeline.pattern, parsed.pipeline.nfc) == ("llama3", False)
    assert parsed.ignore_merges
