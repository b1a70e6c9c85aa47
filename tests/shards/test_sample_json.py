"""KEY.json: canonical, and read back strictly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import IntegrityError
from omr_io.shards.sample_json import decode_record, encode_record
from tests.shard_sets import encoded, record, unit

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, PLAIN, max_size=4))
def test_any_text_comes_back(sample_id, question, reasoning, extra):
    item = record(
        1, [encoded(1)], id=sample_id, question=question, reasoning=reasoning, extra=extra,
        rubric=(unit(1), unit(2)),
    )  # fmt: skip
    data = encode_record(item, ["jpg"])
    back, parts = decode_record(data, [encoded(1)])
    assert back == item
    assert parts == ("jpg",)


def test_the_order_of_extra_does_not_count():
    one = encode_record(record(1, extra={"a": 1, "b": {"c": 2, "d": 3}}), [])
    two = encode_record(record(1, extra={"b": {"d": 3, "c": 2}, "a": 1}), [])
    assert one == two


def changed(**fields) -> bytes:
    value = json.loads(encode_record(record(5), []))
    return json.dumps(value | fields).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, changed(more=1), changed(id=5),
        changed(options=[{"letter": "A"}]), changed(options=None), changed(rubric=[{"axis": "a"}]),
        changed(rubric=[{**json.loads(changed())["rubric"][0], "claim": 1}]),
        changed(images=[{"part": "jpg"}]), changed(images=5), changed(extra={}),
        changed(extra="[]"), changed(extra="{"), changed(answer=None),
        json.dumps(dict(reversed(json.loads(changed()).items()))).encode(),
    ],
)  # fmt: skip
def test_other_json_is_refused(data):
    with pytest.raises(IntegrityError, match="JSON"):
        decode_record(data, [])


def test_the_number_of_images_must_agree():
    data = encode_record(record(1, [encoded(1)]), ["jpg"])
    with pytest.raises(IntegrityError, match="names 1 images and there are 2"):
        decode_record(data, [b"", b""])
