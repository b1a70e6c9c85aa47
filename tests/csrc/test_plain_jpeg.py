"""Plain JPEGs, recognised in one pass: equal to the slow twin, and right about what it spares."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omr_io import _C
from omr_io.errors import ImageError
from omr_io.images import probe
from omr_io.images.metadata import strip_metadata
from omr_io.images.plain_jpeg import plain_jpeg
from omr_io.images.policy import unusual_kinds
from omr_io.reference import jpeg as slow
from tests.images.planted import all_planted, encode, jpeg_with, picture

ROOT = Path(__file__).parents[2]
USUAL = {
    (mode, progressive): encode(picture(mode), "JPEG", progressive=progressive)
    for mode in ("L", "RGB", "CMYK")
    for progressive in (False, True)
}
RESTARTS = encode(picture(), "JPEG", restart_marker_blocks=1)
PLANTED = [data for name, data, _ in all_planted() if "jpeg" in name.lower()]
SOME = [*USUAL.values(), RESTARTS, *PLANTED[:4]]
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
JFIF = b"JFIF\0\1\1\0\0\1\0\1"


@pytest.mark.parametrize(("mode", "progressive"), USUAL)
def test_what_encoders_write_is_recognised(mode: str, progressive: bool) -> None:
    data = USUAL[mode, progressive]
    assert _C.plain_jpeg(data) == (50, 37, {"L": 1, "RGB": 3, "CMYK": 4}[mode], progressive)
    assert plain_jpeg(data) == probe(data)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_so_are_other_ways_to_encode(optimize: bool, subsampling: int) -> None:
    data = encode(picture(), "JPEG", optimize=optimize, subsampling=subsampling)
    assert plain_jpeg(data) == probe(data)
    assert plain_jpeg(RESTARTS) == probe(RESTARTS)


@pytest.mark.parametrize(
    "segment",
    [
        (0xE1, EXIF), (0xFE, b"a comment"), (0xE2, b"MPF\0"), (0xE2, b"ICC_PROFILE\0"),
        (0xE0, b""), (0xE0, JFIF + b"\1\1"), (0xE0, JFIF + b"\0\0more"), (0xE0, b"JFXX\0"),
        (0xEE, b"Adobe\0\x64\0\0\0\0"), (0xEE, b"Adobe\0\x64\0\0\0\0\1more"), (0xEB, bytes(12)),
    ],
)  # fmt: skip
def test_what_says_something_is_not_plain(segment: tuple[int, bytes]) -> None:
    for data in USUAL.values():
        changed = jpeg_with(data, [segment])
        assert _C.plain_jpeg(changed) is None
        assert slow.plain_jpeg(changed) is None


def test_files_with_planted_metadata_are_not_plain() -> None:
    assert len(PLANTED) > 1
    assert [_C.plain_jpeg(data) for data in PLANTED] == [None] * len(PLANTED)


@pytest.mark.parametrize("data", [USUAL["L", False], USUAL["CMYK", True]], ids=["L", "CMYK"])
def test_neither_is_a_cut_file_nor_one_with_bytes_behind_its_end(data: bytes) -> None:
    assert _C.plain_jpeg(data) is not None
    assert {_C.plain_jpeg(data[:cut]) for cut in range(len(data))} == {None}
    assert {_C.plain_jpeg(data + more) for more in (b"\0", b"\xff", b"\xff\xd9", data)} == {None}


@given(
    st.sampled_from(SOME),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    st.lists(
        st.tuples(
            st.integers(0, 1 << 16),
            st.sampled_from([b"\xff", b"\xff\xff", b"\xff\xe0\0\x10" + JFIF + b"\0\0", b"\xff\xd9"])
            | st.binary(max_size=6),
        ),
        max_size=2,
    ),
    st.none() | st.integers(0, 1 << 16),
)
@example(b"", [], [], None)
@example(b"\xff\xd8\xff", [], [], None)
@example(b"\xff\xd8\xff\xd9", [], [], None)
def test_changed_files_are_judged_as_by_the_slow_way(data, flips, inserts, cut) -> None:
    broken = bytearray(data)
    for at, value in flips:
        if broken:
            broken[at % len(broken)] = value
    for at, piece in inserts:
        at %= len(broken) + 1
        broken[at:at] = piece
    text = bytes(broken[:cut])
    assert _C.plain_jpeg(text) == slow.plain_jpeg(text)
    info = plain_jpeg(text)
    if info is None:
        return
    assert probe(text) == info
    assert unusual_kinds(text, info) == ()
    for keep_icc in (False, True):
        assert strip_metadata(text, info, keep_icc=keep_icc) is text


@pytest.mark.parametrize(("at", "value"), [(4, b"\x0c"), (5, b"\0\0"), (7, b"\0\0"), (9, b"\2")])
def test_neither_is_a_frame_that_probe_refuses(at: int, value: bytes) -> None:
    data = USUAL["RGB", False]
    start = data.index(b"\xff\xc0") + at
    changed = data[:start] + value + data[start + len(value) :]
    assert _C.plain_jpeg(changed) is None
    with pytest.raises(ImageError):
        probe(changed)


@pytest.mark.slow
def test_no_mutation_reads_out_of_bounds(tmp_path: Path) -> None:
    """80,000 mutated files under the address and undefined-behaviour sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    texts = "Caf\u00e9?\nA. x\nB. y\u3000\n<answer>(A) x</answer>".encode()
    made = (USUAL["RGB", False], USUAL["CMYK", True], RESTARTS, texts)
    seeds = [tmp_path / f"{number}.bin" for number in range(len(made))]
    for seed, data in zip(seeds, made, strict=True):
        seed.write_bytes(data)
    binary = tmp_path / "fuzz_samples"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    units = ["crc32c", "jpeg_segments", "plain_question", "plain_rows", "tar_header", "texts"]
    sources = [ROOT / "tests/csrc/fuzz_samples.cpp", *(ROOT / f"csrc/{unit}.cpp" for unit in units)]
    subprocess.run(
        ["g++", *flags, "-DSTANDALONE", f"-I{ROOT / 'csrc'}", *sources, "-o", binary], check=True
    )
    done = subprocess.run([binary, "20000", *seeds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 80_000
