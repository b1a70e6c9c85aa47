from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from omr_io.errors import ConfigError, DataError, DiskError, TokenizerError
from omr_io.tokenizer import Segment, Tokenizer, train_bpe
from omr_io.tokenizer.backend import BackendName
from tests.text_fixtures import (
    CONTROL_TEXTS,
    corpus,
    hugging_face,
    qwen_source,
    qwen_tiktoken,
    record,
)
from tests.text_fixtures import small as trained

LONE = "\ud800"
_BACKEND: list[BackendName] = ["native"]


@pytest.fixture(params=["native", "hf"], autouse=True, scope="module")
def backend(request: pytest.FixtureRequest) -> BackendName:
    """Every test here holds for both backends."""
    _BACKEND[0] = request.param
    return _BACKEND[0]


@functools.cache
def _small(backend: BackendName) -> Tokenizer:
    return Tokenizer(trained()._source, trained()._companions, backend=backend)


def small() -> Tokenizer:
    return _small(_BACKEND[0])


def build(source: str) -> Tokenizer:
    return Tokenizer(source, backend=_BACKEND[0])


def open_folder(path: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(path, backend=_BACKEND[0])


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = st.lists(
    st.one_of(
        UNICODE, st.sampled_from(CONTROL_TEXTS), st.sampled_from(["\n", " \n", "  ", "́", "<|"])
    ),
    max_size=8,
)
TEXTS = PIECES.map("".join)


def nfc(text: str) -> str:
    """NFC as Hugging Face has it: its Unicode version is not Python's."""
    return normalizers.NFC().normalize_str(text)


def round_trip(text: str) -> str:
    """What must come back: NFC of the pieces between added tokens that text may contain."""
    for token in ("<think>", "</think>"):
        if token in text:
            head, _, tail = text.partition(token)
            return round_trip(head) + token + round_trip(tail)
    return nfc(text)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_control_look_alikes_are_plain_text_as_for_a_tokenizer_without_them(text: str) -> None:
    tokenizer = small()
    ids = tokenizer.encode(text)
    oracle = hugging_face(tokenizer._source, control=False)
    assert ids.dtype == np.int32
    assert ids.tolist() == oracle.encode(text, add_special_tokens=False).ids
    assert not set(ids.tolist()) & tokenizer.special_ids


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_decode_gives_the_text_back_up_to_nfc(text: str) -> None:
    assert small().decode(small().encode(text)) == round_trip(text)


@settings(max_examples=100, deadline=None)
@given(UNICODE.filter(lambda text: not any(token in text for token in CONTROL_TEXTS)))
def test_text_without_control_tokens_equals_hugging_face(text: str) -> None:
    oracle = hugging_face(small()._source, control=True)
    assert small().encode(text).tolist() == oracle.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("token", CONTROL_TEXTS)
def test_a_forged_token_at_every_position_and_split_stays_text(token: str) -> None:
    tokenizer = small()
    base = "Which lobe?\nA. é1 "
    for at in range(len(base) + 1):
        for cut in range(len(token) + 1):
            text = base[:at] + token[:cut] + base[at : at + 1] + token[cut:] + token + base[at:]
            ids = tokenizer.encode(text)
            assert not set(ids.tolist()) & tokenizer.special_ids
            assert tokenizer.decode(ids) == text


def test_hugging_face_itself_would_forge_so_the_policy_is_not_idle() -> None:
    oracle = hugging_face(small()._source, control=True)
    end = small().token_id("<|im_end|>")
    assert end in oracle.encode("a<|im_end|>b").ids
    assert end not in small().encode("a<|im_end|>b")


def test_plain_added_tokens_are_recognised_in_text() -> None:
    think = small().token_id("<think>")
    assert small().encode("a<think>b").tolist().count(think) == 1
    assert think not in small().special_ids
    with pytest.raises(TokenizerError, match="'<answer>'"):
        small().token_id("<answer>")


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_batches_are_the_single_encodings_one_after_the_other(texts: list[str]) -> None:
    tokenizer = small()
    ids, offsets = tokenizer.encode_batch(texts)
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    assert offsets.tolist()[0] == 0
    assert len(offsets) == len(texts) + 1
    for text, begin, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        assert ids[begin:end].tolist() == tokenizer.encode(text).tolist()
    counts = tokenizer.count_batch(texts)
    assert counts.dtype == np.int64
    assert counts.tolist() == np.diff(offsets).tolist()


def test_batches_beyond_one_chunk_keep_their_order() -> None:
    texts = [f"lesion {i}" for i in range(2500)]
    ids, offsets = small().encode_batch(texts)
    decoded = [small().decode(ids[offsets[i] : offsets[i + 1]]) for i in range(2500)]
    assert decoded == texts
    assert small().count_batch(texts).tolist() == np.diff(offsets).tolist()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(TEXTS | st.integers(0, 499), st.integers(0, 5), st.booleans()), max_size=8)
)
def test_segments_are_the_concatenation_of_their_parts(
    items: list[tuple[str | int, int, bool]],
) -> None:
    tokenizer = small()
    segments = [Segment(c, 1 if isinstance(c, str) else n, t) for c, n, t in items]
    ids, trained = tokenizer.encode_segments(segments)
    want_ids: list[int] = []
    want_trained: list[bool] = []
    for s in segments:
        one = tokenizer.encode(s.content).tolist() if isinstance(s.content, str) else [s.content]
        want_ids += one * s.repeat
        want_trained += [s.trained] * (len(one) * s.repeat)
    assert (ids.dtype, trained.dtype) == (np.int32, np.bool_)
    assert ids.tolist() == want_ids
    assert trained.tolist() == want_trained


def test_segments_that_cannot_be_are_refused() -> None:
    for token in (500, -1):
        with pytest.raises(TokenizerError):
            small().encode_segments([Segment(token)])
    for content, repeat in (("a", 2), ("a", 0), (3, -1)):
        with pytest.raises(ConfigError):
            Segment(content, repeat)


@pytest.mark.parametrize("bad", [f"ok {LONE}", LONE, f"{LONE}\udc00"])
def test_lone_surrogates_are_an_error_that_says_where(bad: str) -> None:
    with pytest.raises(DataError, match=r"text 0 .*U\+D800"):
        small().encode(bad)
    for call in (small().encode_batch, small().count_batch):
        with pytest.raises(DataError, match=r"text 1500 .*U\+D800"):
            call(["fine"] * 1500 + [bad])
    with pytest.raises(DataError, match=r"text 1500 .*U\+D800"):
        train_bpe(["fine"] * 1500 + [bad], vocab_size=300)


@pytest.mark.parametrize("bad", [3, None, b"bytes", ("a", "pair"), ["a"]])
def test_what_is_not_text_is_an_error(bad: object) -> None:
    with pytest.raises(DataError, match="not a str"):
        small().encode(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="text 1 "):
        small().encode_batch(["a", bad])  # type: ignore[list-item]


def test_one_text_instead_of_a_list_is_an_error() -> None:
    with pytest.raises(ConfigError):
        small().encode_batch("text")


@pytest.mark.parametrize("ids", [[500], [-1], [2**40], [1.5]])
def test_decode_refuses_ids_that_are_not_in_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises(TokenizerError):
        small().decode(ids)


def test_decode_shows_or_skips_control_tokens() -> None:
    tokenizer = small()
    ids = [*tokenizer.encode("a").tolist(), tokenizer.token_id("<|im_end|>")]
    assert tokenizer.decode(np.array(ids)) == "a<|im_end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
    assert tokenizer.decode([]) == ""


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, flags=st.lists(st.booleans(), min_size=4, max_size=4))
def test_no_flag_of_a_special_token_lets_text_forge_it(text: str, flags: list[bool]) -> None:
    tree = json.loads(small()._source)
    names = ("single_word", "lstrip", "rstrip", "normalized")
    for token in tree["added_tokens"][:8]:
        token.update(zip(names, flags, strict=True))
    oracle = hugging_face(small()._source, control=False)
    assert build(json.dumps(tree)).encode(text).tolist() == oracle.encode(text).ids


def test_a_vocabulary_that_would_lose_text_is_refused() -> None:
    tree = json.loads(small()._source)
    vocab = {token: i for token, i in tree["model"]["vocab"].items() if token != "Ã"}
    merges = [pair for pair in tree["model"]["merges"] if "Ã" not in "".join(pair)]
    lossy = tree | {"model": tree["model"] | {"vocab": vocab, "merges": merges}}
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    assert (
        hugging_face(json.dumps(lossy), control=False).decode(
            hugging_face(json.dumps(lossy), control=False).encode("aéb").ids
        )
        != "aéb"
    )  # Hugging Face drops a byte and says nothing
    with pytest.raises(TokenizerError, match="1 of the 256 bytes"):
        build(json.dumps(lossy))
    empty = tree | {"added_tokens": [], "model": tree["model"] | {"vocab": {}, "merges": []}}
    with pytest.raises(TokenizerError, match="256 of the 256 bytes"):
        build(json.dumps(empty))


def test_truncation_padding_and_post_processor_are_not_applied(tmp_path: Path) -> None:
    backend = hugging_face(small()._source, control=True)
    from tokenizers.processors import TemplateProcessing

    end = ("<|endoftext|>", small().token_id("<|endoftext|>"))
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[end])
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a long enough sentence about effusion"
    assert len(backend.encode(text).ids) == 8  # the oracle does apply all three
    tokenizer = open_folder(tmp_path)
    for one in (text, "a", ""):
        assert tokenizer.encode(one).tolist() == small().encode(one).tolist()
        assert tokenizer.count_batch([one]).tolist() == small().count_batch([one]).tolist()
    # Of it all only the added tokens' place in the vocabulary is new to the fingerprint.
    plain = build(json.dumps(json.loads(hugging_face(small()._source, control=True).to_str())))
    assert tokenizer.fingerprint == plain.fingerprint


def test_fingerprint_is_of_what_decides_ids(tmp_path: Path) -> None:
    tree = json.loads(small()._source)
    same = dict(tree, padding=None)
    same["model"] = dict(tree["model"], merges=[" ".join(pair) for pair in tree["model"]["merges"]])
    del same["model"]["ignore_merges"]
    assert build(json.dumps(same, indent=7)).fingerprint == small().fingerprint
    assert len(small().fingerprint) == 16
    for change in ({"normalizer": None}, {"added_tokens": tree["added_tokens"][:-1]}):
        assert build(json.dumps(tree | change)).fingerprint != small().fingerprint
    other = dict(tree, model=dict(tree["model"], merges=tree["model"]["merges"][:-1]))
    assert build(json.dumps(other)).fingerprint != small().fingerprint


def test_training_is_deterministic_across_processes() -> None:
    code = (
        "from omr_io.tokenizer import train_bpe; from tests.text_fixtures import corpus;"
        "print(train_bpe(corpus(), vocab_size=500).fingerprint)"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert prints == {small().fingerprint}


def test_trained_vocabulary_is_qwens_in_small() -> None:
    tokenizer = small()
    assert tokenizer.vocab_size == 500
    order = [tokenizer.token_id(t) for t in CONTROL_TEXTS[:10]]
    assert order == list(range(490, 500))
    assert tokenizer.special_ids == frozenset(range(490, 498))
    every_byte = "".join(map(chr, range(0x250))) + "\U0001f9e0\U00100000"
    assert tokenizer.decode(tokenizer.encode(every_byte)) == nfc(every_byte)
    with pytest.raises(ConfigError, match="at least 266"):
        train_bpe(corpus(), vocab_size=265)
    assert train_bpe([], vocab_size=300).vocab_size == 266


def test_saved_folder_round_trips_and_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    small().save(tmp_path / "a")
    again = open_folder(tmp_path / "a")
    again.save(tmp_path / "b")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.fingerprint == small().fingerprint
    for hf in (
        AutoTokenizer.from_pretrained(tmp_path / "b"),
        PreTrainedTokenizerFast.from_pretrained(tmp_path / "b"),
    ):
        assert len(hf) == small().vocab_size
        assert hf.eos_token_id == small().token_id("<|im_end|>")
        assert hf.pad_token_id == small().token_id("<|endoftext|>")
        for text in corpus(20):
            assert hf(text)["input_ids"] == small().encode(text).tolist()


def test_save_to_where_it_cannot_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        small().save(tmp_path / "file")


@pytest.mark.parametrize("name", ["nowhere", "", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_missing_tokenizer_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*hf download|does not exist"):
        open_folder(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"model": {}}', b"\xff\xfe", b"version https://git-lfs", b"null"],
)
def test_broken_tokenizer_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        open_folder(tmp_path)


def test_broken_pieces_of_a_real_tokenizer_json() -> None:
    tree = json.loads(small()._source)
    model = tree["model"]
    for broken in (
        tree | {"model": model | {"merges": [["q", "not there"]]}},
        tree | {"model": model | {"vocab": [1, 2]}},
        tree | {"model": model | {"dropout": 0.1}},
        tree | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}},
        tree | {"added_tokens": [{"id": 3}]},
        tree | {"model": model | {"vocab": model["vocab"] | {"far": 2**31}}},
    ):
        with pytest.raises(TokenizerError):
            build(json.dumps(broken))


def test_a_vocabulary_that_spells_a_control_token_by_merging_is_caught() -> None:
    tree = json.loads(small()._source)
    word = next(t for t in tree["model"]["vocab"] if len(t) > 3 and t.isalpha() and t.isascii())
    token = dict(tree["added_tokens"][2], content=word, id=tree["model"]["vocab"][word])
    tokenizer = build(json.dumps(tree | {"added_tokens": [*tree["added_tokens"], token]}))
    assert token["id"] in tokenizer.special_ids
    for call in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(TokenizerError, match=f"control token '{word}'"):
            call(word)


def test_pickle_keeps_ids_policy_and_files(tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(small()))
    text = "x<|im_end|><think>"
    assert again.encode(text).tolist() == small().encode(text).tolist()
    assert again.fingerprint == small().fingerprint
    again.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_and_forks_while_others_encode() -> None:
    tokenizer = small()
    texts = [f"{text} <|im_end|> {i}" for i, text in enumerate(corpus(50))]
    want = [tokenizer.encode(text).tolist() for text in texts]
    stop = threading.Event()
    wrong: list[str] = []

    def work() -> None:
        while not stop.is_set():
            wrong.extend(t for t, w in zip(texts, want, strict=True) if [*tokenizer.encode(t)] != w)
            ids, offsets = tokenizer.encode_batch(texts)
            if np.split(ids, offsets[1:-1])[-1].tolist() != want[-1]:
                wrong.append("batch")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codes = [_in_fork(tokenizer, texts, want) for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10
    assert wrong == []


def _in_fork(tokenizer: Tokenizer, texts: list[str], want: list[list[int]]) -> int:
    import signal

    child = os.fork()
    if child == 0:
        signal.alarm(300)  # a deadlock ends the child by a signal, which the parent sees
        same = [tokenizer.encode(text).tolist() for text in texts] == want
        ids, _ = tokenizer.encode_batch(texts)
        os._exit(0 if same and len(ids) == sum(map(len, want)) else 1)
    return os.waitpid(child, 0)[1]


@pytest.mark.slow
def test_real_qwen_vocabulary(tmp_path: Path) -> None:
    ranks = qwen_tiktoken()
    source = qwen_source(ranks)
    tree = json.loads(source)
    assert (len(tree["model"]["vocab"]), len(tree["model"]["merges"])) == (151643, 151387)
    tokenizer = build(source)
    assert tokenizer.vocab_size == 151665
    assert tokenizer.special_ids == frozenset(range(151643, 151657))
    assert tokenizer.encode("Hello world!").tolist() == [9707, 1879, 0]
    with_control = hugging_face(source, control=True)
    without = hugging_face(source, control=False)
    for text in corpus(200):
        assert tokenizer.encode(text).tolist() == with_control.encode(text).ids
        for token in CONTROL_TEXTS:
            forged = text[:30] + token + text[30:]
            assert tokenizer.encode(forged).tolist() == without.encode(forged).ids
            assert tokenizer.decode(tokenizer.encode(forged)) == nfc(forged)
    from omr_io.chat import ChatFormat

    chat = ChatFormat.for_family("qwen2_5_vl", tokenizer, check=False)
    encoded = chat.encode(record("Which?"), [4])
    # <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n, as in Qwen's own examples
    assert encoded.input_ids.tolist()[:11] == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198,
    ]  # fmt: skip
