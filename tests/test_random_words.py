"""Orders that stay what they are for good."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omr_io.random_words import RandomWords

ORDERS = [[0], [0, 3, 4, 1, 2], [7, 1, 2, 0, 6, 4, 3, 5]]


@given(st.text(max_size=20), st.lists(st.integers(0, 400), max_size=5))
def test_an_order_holds_every_number_once_and_is_that_of_its_words(label, counts):
    random = RandomWords(label)
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).digest()
    words = np.random.PCG64(int.from_bytes(digest, "little"))
    for count in counts:
        order = random.order(count)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(count))
        bits = max(count - 1, 0).bit_length()
        # Python's integers and its stable sort are the oracle.
        high = [int(words.random_raw()) >> bits for _ in range(count)]
        assert order.tolist() == sorted(range(count), key=lambda place: high[place])


def test_the_orders_are_what_they_were():
    random = RandomWords("omr_io")
    assert [random.order(count).tolist() for count in (1, 5, 8)] == ORDERS


@pytest.mark.parametrize("count", [3, 4])
def test_all_orders_are_about_equally_likely(count):
    random = RandomWords("orders")
    seen = Counter(tuple(random.order(count).tolist()) for _ in range(12_000))
    expected = 12_000 / {3: 6, 4: 24}[count]
    assert len(seen) == {3: 6, 4: 24}[count]
    chi_square = sum((times - expected) ** 2 / expected for times in seen.values())
    assert chi_square < {3: 20.5, 4: 49.7}[count]  # p = 0.001; the words are fixed
