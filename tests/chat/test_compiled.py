"""The compiled template against the slow one, which tests against transformers hold in place."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io import _C
from omr_io.chat import ChatFormat, Completion
from omr_io.chat.reference import ReferenceChat
from omr_io.chat.template import CHATML, CompiledChat, Role, Row
from omr_io.errors import ConfigError, DataError, SampleTooLongError
from omr_io.tokenizer import Tokenizer
from tests.chat.chats import FORGED, chat_of, reference_of
from tests.text_fixtures import CONTROL_TEXTS, record, small

STYLES = ("chatml", "llama3")
MAYBE = st.none() | FORGED
TEXT_ROLES = (Role.SYSTEM, Role.USER, Role.QUESTION, Role.TRAINED, Role.CONTEXT)


def rows_of(images: bool) -> st.SearchStrategy[Row]:
    counts = st.lists(st.integers(0, 9), max_size=3).map(tuple) if images else st.just(())
    turn = st.one_of(
        st.tuples(st.sampled_from([*TEXT_ROLES]), FORGED, st.just(())),
        st.tuples(st.sampled_from([Role.USER, Role.QUESTION]), FORGED, counts),
        st.tuples(
            st.sampled_from([Role.BEGIN, Role.OPENING, Role.GENERATE]), st.just(""), st.just(())
        ),
    )
    return st.lists(turn, min_size=1, max_size=5).map(tuple)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    style=st.sampled_from(STYLES),
    system=MAYBE,
    instruction=MAYBE,
    limit=st.integers(0, 60),
    cut=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_turns_equal_the_reference(
    data: Any,
    style: str,
    system: str | None,
    instruction: str | None,
    limit: int,
    cut: bool,
    threads: int,
) -> None:
    chat = chat_of(style, system, instruction)
    compiled, slow = chat._engine, reference_of(chat)
    assert isinstance(compiled, CompiledChat)
    rows = data.draw(st.lists(rows_of(style == "chatml"), max_size=5))
    got, want = (
        attempt(lambda e=e: e.encode(rows, max_tokens=limit, cut=cut, threads=threads))
        for e in (compiled, slow)
    )
    if isinstance(want, tuple):
        assert isinstance(got, tuple)
        for ours, theirs in zip(got, want, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.tolist() == theirs.tolist()
    else:
        assert (type(got), got.args) == (type(want), want.args)
    for ours, theirs in zip(compiled.count(rows), slow.count(rows), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()


def attempt(call: Any) -> Any:
    try:
        return tuple(call())
    except _C.ChatLengthError as error:
        return error


@pytest.mark.parametrize("style", STYLES)
def test_both_backends_give_the_same(style: str) -> None:
    formats = [chat_of(style, "Be exact.", "Answer.", hf=hf) for hf in (False, True)]
    assert isinstance(formats[0]._engine, CompiledChat)
    assert isinstance(formats[1]._engine, ReferenceChat)
    assert formats[0].fingerprint == formats[1].fingerprint
    records = [record(f"Which? {text} naïve 上", f"a{text} ") for text in ("", *CONTROL_TEXTS)]
    counts = [[i % 3 + 1] * (i % 3) if style == "chatml" else [] for i in range(len(records))]
    for completions in (Completion.CORPUS, None, ["x"] * len(records)):
        ours, theirs = (f.encode_batch(records, counts, completions=completions) for f in formats)
        assert len(ours) == len(theirs) == len(records)
        for one, two in zip(ours, theirs, strict=True):
            assert one.input_ids.tolist() == two.input_ids.tolist()
            assert one.trained.tolist() == two.trained.tolist()
            assert one.num_prompt_tokens == two.num_prompt_tokens
    ours, theirs = (f.lengths(records, map(len, counts)) for f in formats)
    assert [a.tolist() for a in ours] == [a.tolist() for a in theirs]


def test_control_tokens_forged_at_every_position_stay_text() -> None:
    chat = chat_of("chatml", "Be exact.")
    text = "ab\n 上é"
    texts = [text[:i] + token + text[i:] for token in CONTROL_TEXTS for i in range(len(text) + 1)]
    texts += [token[:i] + text + token[i:] for token in CONTROL_TEXTS for i in range(len(token))]
    special = np.array(sorted(small().special_ids))
    honest = chat.encode(record("x", "y"), [3]).input_ids
    want = honest[np.isin(honest, special)].tolist()
    batch = chat.encode_batch([record(t, t) for t in texts], [[3]] * len(texts))
    for sample, forged in zip(batch, texts, strict=True):
        assert sample.input_ids[np.isin(sample.input_ids, special)].tolist() == want
        n = sample.num_prompt_tokens
        assert sample.input_ids[n:-2].tolist() == small().encode(forged).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    chat = chat_of("chatml", "Be exact.", "Answer.")
    records = [record(f"{i} " + "Which quadrant? µm 上 " * (i % 90)) for i in range(1500)]
    counts = [[i % 5 + 1] * (i % 3) for i in range(1500)]
    one = chat.encode_batch(records, counts)
    many = chat.encode_batch(records, counts, threads=threads)
    for name in ("input_ids", "trained", "offsets", "num_prompt_tokens"):
        assert np.array_equal(getattr(one, name), getattr(many, name))
    for i in (0, 1, 749, 750, 1499):
        alone = chat.encode(records[i], counts[i])
        assert many[i].input_ids.tolist() == alone.input_ids.tolist()
        assert many[i].trained.tolist() == alone.trained.tolist()
    text, labels = chat.lengths(records, map(len, counts))
    assert (text + [sum(c) for c in counts]).tolist() == np.diff(many.offsets).tolist()
    assert labels.tolist() == [int(sample.trained.sum()) for sample in many]
    bad = [*records[:1200], record("\ud800"), *records[:200], record("\udfff")]
    with pytest.raises(DataError, match=r"U\+D800.*key r1"):
        chat.encode_batch(bad, [()] * len(bad), threads=threads)


def test_python_threads_share_a_format() -> None:
    chat = chat_of("chatml")
    want = chat.encode(record("Which?"), [2]).input_ids.tolist()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(100):
            if chat.encode(record("Which?" + "x" * (i % seed)), [2]).input_ids[0] != want[0]:
                wrong.append(i)
            if chat.encode(record("Which?"), [2]).input_ids.tolist() != want:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_empty_batch_and_slices_of_one() -> None:
    chat = chat_of("chatml")
    empty = chat.encode_batch([], [])
    assert (len(empty), empty.input_ids.size, empty.offsets.tolist()) == (0, 0, [0])
    assert list(empty) == []
    batch = chat.encode_batch([record("a"), record("b")], [[], []])
    assert batch[-1].input_ids.tolist() == batch[1].input_ids.tolist()
    with pytest.raises(IndexError):
        batch[2]


@pytest.mark.parametrize("hf", [False, True])
def test_what_is_no_text_is_refused(hf: bool) -> None:
    chat = chat_of("chatml", hf=hf)
    for form in (chat, chat_of("llama3", instruction="Answer.", hf=hf)):
        with pytest.raises(DataError, match=r"NoneType.*key r1"):
            form.encode(record(None), [])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="bytes"):
        chat.encode(record("Q"), [], completion=b"x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 image_tokens for 2 records"):
        chat.encode_batch([record("a"), record("b")], [[]])
    with pytest.raises(ConfigError, match="1 completions for 2 records"):
        chat.encode_batch([record("a"), record("b")], [[], []], completions=["x"])
    with pytest.raises(ConfigError, match="threads 0"):
        chat.encode_batch([], [], threads=0)


def test_the_core_refuses_rows_that_are_none() -> None:
    core = chat_of("chatml")._engine._core  # type: ignore[attr-defined]
    wrong: list[Any] = [
        [[(3, "x", ())]], [((3, "x"),)], [((3, b"x", ()),)], [((3, "x", []),)], [(("3", "x", ()),)],
        3,
    ]  # fmt: skip
    for rows in wrong:
        with pytest.raises(TypeError):
            core.encode(rows)
    for turn in (
        (8, "x", ()),
        (-1, "x", ()),
        (3, "x", (-1,)),
        (3, "x", (1 << 40,)),
        (5, "x", (1,)),
    ):
        with pytest.raises(ValueError, match=r"role|images|placeholders"):
            core.encode([(turn,)])
    with pytest.raises(TypeError):
        core.encode([((3, "x", ("1",)),)])
    with pytest.raises(ValueError, match="no kind"):
        _C.ChatTemplate(
            small()._backend.codec,  # type: ignore[attr-defined]
            [([("verse", False, [], "", "")], [])],
            before=[], pad=0, after=[],
        )  # fmt: skip


def test_policy_error_names_the_record() -> None:
    strict = Tokenizer(small()._source, on_special_text="error")
    chat = ChatFormat(strict, "Be exact.")
    assert chat.encode(record("Q"), [2]).input_ids.tolist() == (
        ChatFormat(small(), "Be exact.").encode(record("Q"), [2]).input_ids.tolist()
    )
    for bad in (record("a<|im_end|>"), record("Q", "a<|im_end|>")):
        with pytest.raises(DataError, match=r"<\|im_end\|>.*key r1"):
            chat.encode(bad, [])
        with pytest.raises(DataError, match=r"<\|im_end\|>.*key r1"):
            chat.lengths([record("Q"), bad])


# Truncation


@pytest.mark.parametrize("hf", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_truncation_cuts_the_end_of_the_completion_and_nothing_else(style: str, hf: bool) -> None:
    chat = chat_of(style, "Be exact.", hf=hf)
    item, counts = record("Which?", "The apex is lucent."), [5, 2] if style == "chatml" else []
    whole = chat.encode(item, counts)
    total, prompt = len(whole.input_ids), whole.num_prompt_tokens
    closing = total - prompt - len(chat.tokenizer.encode(item.reasoning))
    assert closing == (2 if style == "chatml" else 1)
    text, labels = chat.lengths([item], [len(counts)])
    pads = np.array([sum(counts)])
    for limit in range(1, total + 3):
        planned, trained = chat.truncated_lengths(text, pads, labels, limit)
        if limit <= prompt:
            with pytest.raises(
                SampleTooLongError, match=f"{total} tokens, {prompt} .* {limit} .*r1"
            ):
                chat.encode(item, counts, max_tokens=limit, truncate="completion")
            assert (planned[0], trained[0]) == (text[0], labels[0])
            continue
        got = chat.encode(item, counts, max_tokens=limit, truncate="completion")
        kept = min(limit, total)
        assert got.input_ids.tolist() == whole.input_ids[:kept].tolist()
        assert got.trained.tolist() == whole.trained[:kept].tolist()
        assert got.num_prompt_tokens == prompt
        assert got.num_cut_completion == max(0, total - kept - closing)
        assert got.num_cut_completion + got.num_cut_closing == total - kept
        # A completion that was cut does not end with what stops generation.
        assert (chat.end_token_id in got.input_ids[prompt:]) == (kept > total - closing)
        assert planned[0] + pads[0] == kept
        assert trained[0] == got.trained.sum() >= 1
    for limit in (total, None):
        assert len(chat.encode(item, counts, max_tokens=limit).input_ids) == total
    with pytest.raises(SampleTooLongError, match="truncate="):
        chat.encode(item, counts, max_tokens=total - 1)
    with pytest.raises(SampleTooLongError, match="max_pixels"):
        chat.encode(item, counts, completion=None, max_tokens=3, truncate="completion")


def test_an_option_of_truncation_that_cannot_be_right() -> None:
    chat = chat_of("chatml")
    with pytest.raises(ConfigError, match="max_tokens 0"):
        chat.encode(record("Q"), [], max_tokens=0)
    with pytest.raises(ConfigError, match="truncate 'tail'"):
        chat.encode(record("Q"), [], truncate="tail")  # type: ignore[arg-type]


def test_the_constants_are_encoded_once() -> None:
    """Whitespace at the ends of instruction and system prompt meets its neighbours as text."""
    for system, instruction in ((" \n", "\n x \n"), ("", ""), ("s  ", "  i")):
        chat = chat_of("chatml", system, instruction)
        slow = ReferenceChat(small(), CHATML, system, instruction)
        for question in ("", " ", "Q\n", "\n", "Q "):
            row = chat._rows.record(record(question), (), None)
            want = slow.encode([row], max_tokens=0, cut=False, threads=1).input_ids.tolist()
            assert chat.encode(record(question), [], completion=None).input_ids.tolist() == want
