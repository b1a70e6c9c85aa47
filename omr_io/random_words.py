"""Random orders that stay what they are for good.

They come from the raw 64-bit words of NumPy's PCG64, seeded by SHA-256: both are fixed, while
`Generator.permutation` may change with a NumPy release (NEP 19).
"""

from __future__ import annotations

import hashlib

import numpy as np

from omr_io.types import Int64Array


class RandomWords:
    """Orders drawn one after the other from a stream of words that a text decides.

    Args:
        label: what the stream is for, with all that decides it: "omr_io blend 1 seed 7 ...".
    """

    def __init__(self, label: str) -> None:
        digest = hashlib.sha256(label.encode()).digest()
        self._words = np.random.PCG64(int.from_bytes(digest, "little"))

    def order(self, count: int) -> Int64Array:
        """(count,) int64, a random order of range(count): that of as many random words.

        The low bits of a word give way to its number, so that words can be sorted as they are (10
        million take 0.1 s here, and 1.5 s by argsort) and no two are equal. What is left decides
        the order: 40 bits for 10 million, where 45 pairs or so then keep their order.
        """
        words = np.asarray(self._words.random_raw(count), np.uint64)
        low_bits = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
        words &= ~low_bits
        words |= np.arange(count, dtype=np.uint64)
        words.sort()
        words &= low_bits
        return words.view(np.int64)
