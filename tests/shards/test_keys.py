"""Keys: any id becomes a name that WebDataset, DALI and tar take whole."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.shards.keys import MAX_KEY, key_for
from omr_io.shards.tar_writer import tar_header

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120)


@settings(max_examples=100, deadline=None)
@given(IDS)
def test_webdataset_takes_the_key_whole(sample_id):
    from webdataset.tariterators import base_plus_ext

    key = key_for(sample_id)
    assert base_plus_ext(f"{key}.img0.jpg") == (key, "img0.jpg")
    assert key.isascii()
    assert key.isprintable()
    assert not set(key) & set(" ./\\")
    assert not key.startswith(("_", "-.", "."))
    assert len(key) <= MAX_KEY
    tar_header(f"{key}.img999.jpeg", 0)  # fits without PAX


@settings(max_examples=100, deadline=None)
@given(st.lists(IDS, min_size=2, max_size=20, unique=True))
def test_different_ids_have_different_keys(ids):
    assert len({key_for(sample_id) for sample_id in ids}) == len(ids)


@settings(max_examples=100, deadline=None)
@given(IDS)
def test_a_short_key_reads_back(sample_id):
    key = key_for(sample_id)
    if "~" not in key:
        assert unquote(key) == sample_id


@pytest.mark.parametrize(
    ("sample_id", "key"),
    [
        ("demo-train-000001", "demo-train-000001"),
        ("1.2.840.113", "1%2E2%2E840%2E113"),
        ("1.2.840.114", "1%2E2%2E840%2E114"),
        ("a/b c%é", "a%2Fb%20c%25%C3%A9"),
        ("__meta__", "%5F_meta__"),
        ("~", "%7E"),
        ("\0\n", "%00%0A"),
    ],
)
def test_known_keys(sample_id, key):
    assert key_for(sample_id) == key


def test_long_ids_are_cut_stably_and_stay_apart():
    one, two = key_for("é" * 500), key_for("é" * 499 + "e")
    assert one != two
    assert one.startswith("%C3%A9")
    # SHA-256 of the id, so that a key never changes between versions.
    assert one.rpartition("~")[2] == "8b671e21c36a4d79"
    assert all(len(piece) >= 2 for piece in one.rpartition("~")[0].split("%")[1:])


@pytest.mark.parametrize("sample_id", ["", "\ud800"])
def test_ids_that_cannot_be_keys(sample_id):
    with pytest.raises(ValueError, match=r"empty|surrogates"):
        key_for(sample_id)
