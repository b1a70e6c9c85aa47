"""The C++ list of a JPEG's segments against its slow twin: equal, and equal complaints."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omr_io import _C
from omr_io.reference.jpeg import jpeg_segments
from tests.shard_sets import encoded

PLAIN = encoded(1, size=(40, 48))
PROGRESSIVE = encoded(2, size=(40, 48), progressive=True)
RESTARTS = encoded(3, size=(40, 48), restart_marker_blocks=1, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")


def outcome(segments, data: bytes, tables: bool) -> object:
    try:
        return segments(data, tables=tables)
    except ValueError as error:
        return str(error)


def test_a_file_is_covered_without_a_gap() -> None:
    for data in (PLAIN, PROGRESSIVE, RESTARTS):
        found = _C.jpeg_segments(data)
        assert found[0][0] == 2
        assert found[-1][1:] == (len(data), 0xD9)
        assert all(one[1] == next_[0] for one, next_ in pairwise(found))
        assert found == jpeg_segments(data)
    assert [m for *_, m in _C.jpeg_segments(PROGRESSIVE)].count(0xDA) > 1


@given(
    st.sampled_from([PLAIN, PROGRESSIVE, RESTARTS]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=4)), max_size=2),
    st.integers(0, 1 << 16),
    st.booleans(),
)
@example(b"", [], [], 0, False)
@example(b"\xff\xd8", [], [], 2, True)
@example(b"\xff\xd8\xff", [], [], 3, False)
@example(b"\xff\xd8\xff\xff\xff\xd9", [], [], 6, True)
@example(b"\xff\xd8\xff\xda\0\x08\1\0\0\0\0\0\xff", [], [], 13, False)
def test_damage_is_told_in_the_same_words(data, flips, inserts, cut, tables) -> None:
    broken = bytearray(data)
    for at, value in flips:
        if broken:
            broken[at % len(broken)] = value
    for at, piece in inserts:
        at %= len(broken) + 1
        broken[at:at] = piece
    text = bytes(broken[: cut if cut < len(broken) else None])
    assert outcome(_C.jpeg_segments, text, tables) == outcome(jpeg_segments, text, tables)


@pytest.mark.parametrize("cut", range(0, len(PLAIN), 7))
def test_a_cut_file_is_refused(cut: int) -> None:
    with pytest.raises(_C.JpegFormatError):
        _C.jpeg_segments(PLAIN[:cut])
