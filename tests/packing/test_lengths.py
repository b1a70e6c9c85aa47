"""Lengths: what is refused, in memory and mapped, and what the digest says."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from omr_io.errors import DataError
from omr_io.packing import EpochPlan, Lengths
from omr_io.packing import lengths as module
from tests.packing.made import corpus_like, make_lengths, mapped


def test_lengths_that_are_no_lengths():
    with pytest.raises(DataError, match="row 1"):
        make_lengths([3, 0])
    with pytest.raises(DataError, match="negative"):
        make_lengths([3, 4], label_tokens=[-1, 0])
    with pytest.raises(DataError, match="one length"):
        Lengths(*(np.ones(n, np.int64) for n in (2, 2, 2, 3)))
    with pytest.raises(DataError, match="one-dimensional"):
        Lengths(*(np.ones((2, 2), np.int64) for _ in range(4)))
    for dtype in (np.int16, np.uint32, np.float64):
        with pytest.raises(DataError, match="int32 or int64"):
            Lengths(*(np.ones(2, dtype) for _ in range(4)))


def test_tokens_of_int32_do_not_overflow():
    most = np.full(2, 2**31 - 1, np.int32)
    made = Lengths(most, most, most, most)
    assert made.tokens.tolist() == [2**32 - 2] * 2
    assert made.tokens_of(np.asarray([1])).dtype == np.int64


def test_the_digest_is_that_of_all_columns_whatever_their_dtype_or_place(tmp_path, monkeypatch):
    lengths = corpus_like(1000)
    columns = (lengths.text_tokens, lengths.image_tokens, lengths.label_tokens, lengths.patches)
    expected = hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:16]
    assert lengths.digest() == expected
    monkeypatch.setattr(module, "_CHUNK", 64)  # as a long column is read
    assert lengths.digest() == expected
    assert mapped(lengths, tmp_path).digest() == expected
    assert mapped(lengths, tmp_path, np.int64).digest() == expected
    assert Lengths(*(np.repeat(column, 2)[::2] for column in columns)).digest() == expected
    other = lengths.patches.copy()
    other[-1] += 1
    assert Lengths(*columns[:3], other).digest() != expected


def test_mapped_lengths_are_checked_when_their_window_is_read(tmp_path):
    lengths = make_lengths(np.full(100, 9))
    for name, wrong in (("text_tokens", 0), ("label_tokens", -1)):
        bad = mapped(lengths, tmp_path, np.int64)
        path = tmp_path / f"{name}.bin"
        column = np.memmap(path, np.int64, "r+")
        column[57] = wrong
        column.flush()
        bad = mapped_again(tmp_path)
        assert bad.mapped
        plan = EpochPlan(bad, epoch=0, seed=0, seq_len=64, packs_per_step=1, window=25)
        failures = [failure(plan, number) for number in range(4)]
        (one,) = filter(None, failures)
        assert "row 57" in one
        with pytest.raises(DataError, match="row 57"):
            plan.count_steps(threads=2)


def mapped_again(folder) -> Lengths:
    names = ("text_tokens", "image_tokens", "label_tokens", "patches")
    return Lengths(*(np.memmap(folder / f"{name}.bin", np.int64, "r") for name in names))


def failure(plan: EpochPlan, number: int) -> str:
    try:
        plan.window(number)
    except DataError as error:
        return str(error)
    return ""


def resident() -> int:
    """Bytes of mapped files that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssFile", "RssShmem")  # the latter where the temporary folder is in memory
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells RssFile")
@pytest.mark.parametrize("offset", [0, 24])
def test_released_rows_take_no_memory_and_can_be_read_again(tmp_path, offset):
    path = tmp_path / "column.bin"
    count = 4_000_000  # 16 MB
    numbers = np.arange(-offset // 4, count, dtype=np.int32) + offset // 4
    numbers.tofile(path)
    column = np.memmap(path, np.int32, "r", offset=offset)
    lengths = Lengths(*[column] * 4)
    whole, part = column.copy(), slice(1001, count - 999)
    mapped_in = resident()
    lengths.release(part)
    assert mapped_in - resident() > 14_000_000
    np.testing.assert_array_equal(column, whole)
    lengths.release(slice(5, 6))  # less than a page
    lengths.release(np.asarray([5, 6]))
    make_lengths([1, 2]).release(slice(0, 2))


def test_what_was_written_to_a_copy_on_write_mapping_stays(tmp_path):
    path = tmp_path / "column.bin"
    np.ones(100_000, np.int32).tofile(path)
    column = np.memmap(path, np.int32, "c")
    column[:] = 7
    Lengths(*[column] * 4).release(slice(0, 100_000))
    assert (column == 7).all()
