"""Batches: out=, threads, forks, interrupts, errors that name the first text."""

from __future__ import annotations

import _thread
import itertools
import os
import pickle
import random
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import ConfigError, DataError
from omr_io.tokenizer import Tokenizer
from tests.text_fixtures import corpus, hugging_face, small


def large(megabytes: float, seed: int = 0) -> list[str]:
    """Texts of very different lengths and all three kinds of str."""
    rng = random.Random(seed)
    base = corpus(50)
    texts, size = [], 0
    while size < megabytes * 1e6:
        text = " ".join(rng.choices(base, k=rng.choice((0, 1, 1, 2, 40))))
        text = rng.choice((text, text.encode("ascii", "ignore").decode(), f"{text} \U0001f9e0"))
        texts.append(text)
        size += len(text)
    return texts


@pytest.mark.parametrize("threads", [1, 2, 3, 8, None])
def test_threads_give_the_same_ids(threads: int | None) -> None:
    texts = large(3)
    tokenizer = small()
    ids, offsets = tokenizer.encode_batch(texts, threads=threads)
    oracle = hugging_face(tokenizer._source, control=False)
    theirs = [one.ids for one in oracle.encode_batch_fast(texts[::9], add_special_tokens=False)]
    assert [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(0, len(texts), 9)] == theirs
    alone, alone_offsets = tokenizer.encode_batch(texts, threads=1)
    assert np.array_equal(ids, alone)
    assert np.array_equal(offsets, alone_offsets)
    counts = tokenizer.count_batch(texts, threads=threads)
    assert np.array_equal(counts, np.diff(offsets))
    out = np.full(len(ids) + 7, -7, dtype=np.int32)
    view, again = tokenizer.encode_batch(texts, out, threads=threads)
    assert np.shares_memory(view, out)
    assert np.array_equal(view, ids)
    assert np.array_equal(again, offsets)
    assert (out[len(ids) :] == -7).all()


@pytest.mark.parametrize("threads", [2, 5])
def test_what_threads_tell_each_other_changes_no_id(threads: int) -> None:
    """Enough pieces that caches are shared; then each thread meets what the others met."""
    letters = [chr(c) for c in range(ord("A"), ord("z") + 1) if chr(c).isalpha()]
    words = ["".join(three) for three in itertools.product(letters, repeat=3)]
    words += [word * 5 for word in words[::40]]  # beyond 15 bytes: a cache of their own
    random.Random(0).shuffle(words)
    texts = [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    texts = [text + text for text in texts]  # large enough for several threads
    tokenizer = small()
    oracle = hugging_face(tokenizer._source, control=False)
    theirs = [one.ids for one in oracle.encode_batch_fast(texts, add_special_tokens=False)]
    for order in (range(len(texts)), range(len(texts) - 1, -1, -1), range(len(texts))):
        ids, offsets = tokenizer.encode_batch([texts[i] for i in order], threads=threads)
        made = [ids[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
        assert made == [theirs[i] for i in order]


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_threads_that_cannot_be(threads: Any) -> None:
    for call in (small().encode_batch, small().count_batch):
        with pytest.raises(ConfigError, match="threads"):
            call(["a"], threads=threads)


def test_empty_batches() -> None:
    for texts in ([], [""], ["", ""], iter(["", ""]), ("", "")):
        count = 2 if not isinstance(texts, list) else len(texts)
        ids, offsets = small().encode_batch(texts)  # type: ignore[arg-type]
        assert (ids.shape, ids.dtype, offsets.tolist()) == ((0,), np.int32, [0] * (count + 1))
    out = np.empty(0, dtype=np.int32)
    assert small().encode_batch([""], out)[0].shape == (0,)
    assert small().count_batch([]).shape == (0,)


@pytest.mark.parametrize("backend", ["native", "hf"])
@pytest.mark.parametrize("megabytes", [0.001, 2])
def test_out_that_is_too_small_says_what_is_needed(backend: Any, megabytes: float) -> None:
    texts = large(megabytes)
    tokenizer = Tokenizer(small()._source, backend=backend)
    need = int(small().count_batch(texts).sum())
    exact = np.empty(need, dtype=np.int32)
    ids, _ = tokenizer.encode_batch(texts, exact)
    assert np.array_equal(ids, small().encode_batch(texts)[0])
    for room in {0, 1, need // 2, need - 1}:
        with pytest.raises(ConfigError, match=rf"room for {room} ids.*at least {need}"):
            tokenizer.encode_batch(texts, np.empty(room, dtype=np.int32))


@pytest.mark.parametrize(
    "out",
    [
        np.empty(99, dtype=np.int64),
        np.empty((9, 11), dtype=np.int32),
        np.empty(99, dtype=np.int32)[::2],
        np.frombuffer(bytes(400), dtype=np.int32),
        [0] * 99,
        np.empty(99, dtype=">i4"),
    ],
    ids=["int64", "two-dimensional", "strided", "read-only", "list", "big-endian"],
)
def test_out_that_cannot_be_used(out: Any) -> None:
    with pytest.raises(ConfigError, match="out is"):
        small().encode_batch(["a"], out)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), threads=st.sampled_from([1, 2, 5]), backend=st.sampled_from(["native", "hf"])
)
def test_the_first_wrong_text_is_named_with_any_schedule(
    data: st.DataObject, threads: int, backend: Any
) -> None:
    texts = LARGE.copy() if backend == "native" else LARGE[:300]
    where = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
    for index in where:
        texts[index] = f"{texts[index][:50]}\udfff{texts[index][50:]}"
    first = min(where)
    tokenizer = small() if backend == "native" else SMALL_HF
    at = texts[first].index("\udfff")
    with pytest.raises(DataError, match=rf"text {first} .*U\+DFFF at character {at}"):
        tokenizer.encode_batch(texts, threads=threads)
    with pytest.raises(DataError, match=rf"text {first} "):
        tokenizer.count_batch(texts, threads=threads)


LARGE = large(1.5, seed=1)
SMALL_HF = Tokenizer(small()._source, backend="hf")


def test_what_is_no_text_is_named_before_any_work() -> None:
    for bad in (None, b"bytes", 3):
        with pytest.raises(DataError, match=r"text 7 is a .*, not a str"):
            small().encode_batch([*LARGE[:7], bad, *LARGE])  # type: ignore[list-item]


def test_a_str_of_a_subclass_is_a_text() -> None:
    class Text(str):
        __slots__ = ()

    assert small().encode(Text("naïve")).tolist() == small().encode("naïve").tolist()


def test_lone_surrogates_at_every_position_and_kind() -> None:
    for pad in ("a", "é", "中", "\U0001f9e0"):
        for at in range(40):
            with pytest.raises(DataError, match=rf"U\+DC80 at character {at}"):
                small().encode(f"{pad * at}\udc80{pad * (40 - at)}")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "0123456789abcdef", "é", "中", "\U0001f9e0"]), max_size=60))
def test_transcoding_of_all_kinds(parts: list[str]) -> None:
    """ASCII in runs of 16 beside every width: the bytes that arrive are those of UTF-8."""
    text = "".join(parts)
    assert small().decode(small().encode(text)) == text


def test_no_utf8_is_kept_in_the_str() -> None:
    import sys

    text = "".join(["naïve 中 "] * 100)
    before = sys.getsizeof(text)
    small().encode(text)
    small().encode_batch([text])
    assert sys.getsizeof(text) == before


def test_texts_may_be_taken_out_of_the_list_meanwhile() -> None:
    texts = [f"lesion {i} {'x' * (i % 50)} é" for i in range(40_000)]
    want = small().count_batch(texts).tolist()
    results: list[list[int]] = []
    for delay in (0, 0.001, 0.002, 0.005):
        shared = [f"lesion {i} {'x' * (i % 50)} é" for i in range(40_000)]
        work = threading.Thread(
            target=lambda held: results.append(small().count_batch(held).tolist()), args=(shared,)
        )
        work.start()
        time.sleep(delay)
        shared.clear()  # the strings have no other owner
        work.join()
    assert len(results) == 4
    assert all(result in ([], want) for result in results)


def test_encoding_releases_the_gil() -> None:
    tokenizer, texts = small(), large(6)
    turns = 0
    for _ in range(50):  # a busy machine may give this thread no turn for as long as one takes
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            tokenizer.encode_batch(texts, threads=1)
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        turns = 0
        while not done.is_set():
            turns += 1
            time.sleep(0.0005)
        thread.join()
        if turns > 2:
            break
    assert turns > 2


def test_keyboard_interrupt_stops_a_long_batch() -> None:
    texts = ["".join(random.Random(i).choices("abcdefgh ", k=200_000)) for i in range(40)] * 6
    timer = threading.Timer(0.15, _thread.interrupt_main)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            timer.start()
            for _ in range(1000):
                small().encode_batch(texts)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert small().encode("still works").size > 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_threads_encode_large_batches() -> None:
    tokenizer, texts = small(), large(2, seed=3)
    want, offsets = tokenizer.encode_batch(texts)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            tokenizer.encode_batch(texts, threads=2)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    try:
        for _ in range(8):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                child = os.fork()
            if child == 0:
                signal.alarm(300)  # a deadlock ends the child by a signal, which the parent sees
                ids, found = tokenizer.encode_batch(texts, threads=2)
                copy = pickle.loads(pickle.dumps(tokenizer))
                same = np.array_equal(ids, want) and np.array_equal(found, offsets)
                os._exit(0 if same and copy.encode("a").size == 1 else 1)
            codes.append(os.waitpid(child, 0)[1])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 8


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 499), max_size=30), skip=st.booleans())
def test_decoding_any_ids_equals_hugging_face(ids: list[int], skip: bool) -> None:
    """Broken UTF-8 as well: one U+FFFD for each maximal part, as Rust and Unicode have it."""
    oracle = hugging_face(small()._source, control=True)
    assert small().decode(ids, skip_special_tokens=skip) == oracle.decode(
        ids, skip_special_tokens=skip
    )


def test_decoding_takes_integers_of_any_kind() -> None:
    ids = small().encode("naïve lesion")
    for kind in (np.int8, np.uint16, np.int32, np.int64, np.uint64):
        if ids.max() <= np.iinfo(kind).max:
            assert small().decode(ids.astype(kind)) == "naïve lesion"
    assert small().decode(ids.reshape(1, -1)) == "naïve lesion"


@pytest.mark.parametrize("seed", range(4))
def test_short_texts_that_wait_for_each_other(seed: int) -> None:
    """Around all bounds of what waits: bytes of a text, bytes and pieces of all together."""
    rng = random.Random(seed)
    base = " ".join(corpus(200))
    parts = ["<think>", "é 中文 e\u0301 ", "1 2 3 ! ? ", "a" * 700, "<|im_end|>", " \n"]
    texts = []
    for _ in range(500):
        at = rng.randrange(len(base) - 9000)
        size = rng.choice((0, 1, 15, 16, 17, 300, 2000, 4080, 4096, 4097, 8200))
        text = base[at : at + size]
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            cut = rng.randint(0, len(text))
            text = text[:cut] + rng.choice(parts) * rng.choice((1, 1, 40)) + text[cut:]
        texts.append(text)
    tokenizer = small()
    want = [tokenizer.encode(text).tolist() for text in texts]
    for threads in (1, 2):
        ids, offsets = tokenizer.encode_batch(texts, threads=threads)
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == want
        with pytest.raises(DataError, match="text 400 is not valid"):
            tokenizer.encode_batch([*texts[:400], "\ud800", *texts[400:]], threads=threads)
