"""The C++ tar scanner against tarfile, and against damage."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.errors import TarError
from omr_io.tar import TarTable, scan_tar, scan_tar_file

BLOCK = 512
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
ROOT = Path(__file__).parents[2]


def make_tar(members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with two zero blocks at its end and no padding to a record."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return out.getvalue()[:end] + bytes(2 * BLOCK)


def content(tar: bytes, table: TarTable) -> list[tuple[str, int, bytes]]:
    rows = zip(table.names, table.data_offsets.tolist(), table.sizes.tolist(), strict=True)
    return [(name, offset, tar[offset : offset + size]) for name, offset, size in rows]


def by_tarfile(tar: bytes) -> list[tuple[str, int, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [
            (info.name, info.offset_data, opened.extractfile(info).read())
            for info in opened
            if info.isreg()
        ]


def short_members(count: int = 12) -> list[tuple[str, bytes]]:
    rng = random.Random(3)
    return [
        (f"{i:04d}.jpg", rng.randbytes(rng.choice([0, 1, 511, 512, 900]))) for i in range(count)
    ]


def long_members(count: int = 8) -> list[tuple[str, bytes]]:
    rng = random.Random(4)
    return [(f"{'é' * 60}/{i:04d}-{'x' * 120}.jpg", rng.randbytes(700)) for i in range(count)]


TARS = {
    "ustar": make_tar(short_members(), tarfile.USTAR_FORMAT),
    "gnu long": make_tar(long_members(), tarfile.GNU_FORMAT),
    "pax long": make_tar(long_members(), tarfile.PAX_FORMAT),
}


@pytest.mark.parametrize("kind", TARS)
def test_equals_tarfile(kind):
    tar = TARS[kind]
    assert content(tar, scan_tar(tar)) == by_tarfile(tar)
    assert len(scan_tar(tar).names) in (8, 12)


NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=160
).filter(lambda name: not name.endswith("/"))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=5),
    st.sampled_from(["gnu", "pax"]),
)
def test_equals_tarfile_on_any_names(members, kind):
    tar = make_tar(members, FORMATS[kind])
    assert content(tar, scan_tar(tar)) == by_tarfile(tar)
    assert [(name, data) for name, _, data in content(tar, scan_tar(tar))] == members


@pytest.mark.parametrize("padding", [0, 1, 17])
def test_zeros_after_the_trailer_are_padding(padding):
    tar = TARS["ustar"] + bytes(BLOCK * padding)
    assert content(tar, scan_tar(tar)) == by_tarfile(tar)


def member_headers(tar: bytes) -> list[int]:
    """Offsets of every header block, extended ones too, found without the scanner under test."""
    offsets, at = [], 0
    while tar[at : at + BLOCK] != bytes(BLOCK):
        offsets.append(at)
        size = int(tar[at + 124 : at + 135], 8)
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return offsets


def scan_or_error(tar: bytearray) -> TarTable | TarError:
    try:
        return scan_tar(tar, "a.tar")
    except TarError as error:
        return error


@pytest.mark.parametrize("kind", TARS)
def test_no_header_flip_is_silent(kind):
    """600 one-bit flips: an error with an offset, or exactly the same members."""
    tar = TARS[kind]
    whole = content(tar, scan_tar(tar))
    headers = member_headers(tar)
    rng = random.Random(11)
    errors = 0
    for _ in range(600):
        at, bit = rng.choice(headers) + rng.randrange(BLOCK), rng.randrange(8)
        damaged = bytearray(tar)
        damaged[at] ^= 1 << bit
        outcome = scan_or_error(damaged)
        if isinstance(outcome, TarError):
            assert outcome.where.shard == "a.tar"
            # The damaged block itself is named.
            assert at // BLOCK == outcome.where.offset // BLOCK
            errors += 1
        else:
            assert content(bytes(damaged), outcome) == whole
    assert errors >= 590  # the rest hit spare bits of the checksum's own field


def test_tarfile_loses_members_where_the_scanner_does_not():
    """The reason for the scanner; should this fail, tarfile has become strict."""
    tar = bytearray(TARS["ustar"])
    tar[member_headers(bytes(tar))[5] + 10] ^= 1
    assert len(by_tarfile(bytes(tar))) == 5
    with pytest.raises(TarError, match="checksum"):
        scan_tar(tar)


@pytest.mark.parametrize("kind", TARS)
def test_no_trailer_flip_is_silent(kind):
    tar = TARS[kind]
    for at in range(len(tar) - 2 * BLOCK, len(tar)):
        damaged = bytearray(tar)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(TarError):
            scan_tar(damaged)


@pytest.mark.parametrize("kind", TARS)
def test_every_truncation_is_an_error(kind):
    tar = TARS[kind]
    rng = random.Random(5)
    cuts = {*range(0, len(tar), BLOCK), *(rng.randrange(len(tar)) for _ in range(200))}
    for cut in cuts:
        with pytest.raises(TarError) as caught:
            scan_tar(tar[:cut])
        assert 0 <= caught.value.where.offset <= cut


def set_field(tar: bytes, at: int, offset: int, value: bytes) -> bytes:
    """Overwrite a header's field and mend the checksum, so that only the field is wrong."""
    out = bytearray(tar)
    out[at + offset : at + offset + len(value)] = value
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])
    return bytes(out)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (b"1", "hard link"), (b"2", "symbolic link"), (b"3", "character device"),
        (b"4", "block device"), (b"6", "named pipe"), (b"7", "contiguous"), (b"S", "sparse"),
        (b"M", "another volume"), (b"Z", "unknown type 90"),
    ],
)  # fmt: skip
def test_only_regular_files_are_members(flag, words):
    at = member_headers(TARS["ustar"])[3]
    tar = set_field(TARS["ustar"], at, 156, flag)
    with pytest.raises(TarError, match=words) as caught:
        scan_tar(tar)
    assert caught.value.where.offset == at


def test_directories_are_skipped():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("folder/a.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    assert scan_tar(out.getvalue()).names == ("folder/a.txt",)


def test_the_old_null_type_is_a_regular_file():
    tar = set_field(TARS["ustar"], 0, 156, b"\0")
    assert content(tar, scan_tar(tar)) == by_tarfile(tar)


def test_base_256_size():
    size = int(TARS["ustar"][124:135], 8)
    tar = set_field(TARS["ustar"], 0, 124, b"\x80" + size.to_bytes(11, "big"))
    assert content(tar, scan_tar(tar)) == by_tarfile(tar)
    for wrong in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + (2**63).to_bytes(11, "big")):
        with pytest.raises(TarError, match="base-256 number out of range"):
            scan_tar(set_field(TARS["ustar"], 0, 124, wrong))


@pytest.mark.parametrize(
    "size", [b"9" * 11 + b"\0", b"\0" * 12, b"12x4\0\0\0\0\0\0\0\0", b" " * 12]
)
def test_sizes_that_are_no_numbers(size):
    with pytest.raises(TarError, match="size is not an octal number"):
        scan_tar(set_field(TARS["ustar"], 0, 124, size))


def test_data_past_the_end():
    at = member_headers(TARS["ustar"])[-1]
    for size in (b"00000100000\0", b"77777777777\0"):
        with pytest.raises(TarError, match="past the end") as caught:
            scan_tar(set_field(TARS["ustar"], at, 124, size))
        assert caught.value.where.offset == at


def test_signed_checksum():
    tar = bytearray(make_tar([("é.txt", b"x")], tarfile.GNU_FORMAT))
    signed = sum(np.frombuffer(bytes(tar[:148]) + b" " * 8 + bytes(tar[156:512]), np.int8).tolist())
    tar[148:156] = b"%06o\0 " % signed
    assert signed != int(make_tar([("é.txt", b"x")], tarfile.GNU_FORMAT)[148:154], 8)
    assert scan_tar(tar).names == ("é.txt",)


def pax(payload: bytes, kind: bytes = b"x", then: bytes = b"") -> bytes:
    header = tarfile.TarInfo("pax").tobuf(tarfile.USTAR_FORMAT)
    header = set_field(header, 0, 124, b"%011o\0" % len(payload))
    header = set_field(header, 0, 156, kind)
    body = payload + bytes(-len(payload) % BLOCK)
    return header + body + (then or make_tar([("a.txt", b"data")], tarfile.USTAR_FORMAT))


def test_pax_path_and_size_win_over_the_header():
    member = make_tar([("a.txt", b"data")], tarfile.USTAR_FORMAT)
    table = scan_tar(pax(b"16 path=b/c.txt\n" + b"9 size=2\n", then=member))
    assert (table.names, table.sizes.tolist()) == (("b/c.txt",), [2])


def test_a_global_pax_header_holds_for_all_and_an_empty_value_takes_it_back():
    members = make_tar([("a.txt", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT)
    assert scan_tar(pax(b"9 path=g\n", b"g", members)).names == ("g", "g")
    once = pax(b"8 path=\n", b"x", members)
    assert scan_tar(pax(b"9 path=g\n", b"g", once)).names == ("a.txt", "g")
    assert scan_tar(pax(b"14 comment=hi\n", b"g", members)).names == ("a.txt", "b.txt")


@pytest.mark.parametrize(
    "payload",
    [
        b"99 path=b.txt\n", b"10 path=b.txt\n", b"0 path=b\n", b"path=b\n", b"-9 path=b\n",
        b"12 path=b.txt", b"5 =b\n", b"6 path\n", b"9 path=\0\n", b"9 size=x\n",
        b"28 size=99999999999999999999\n", b"99999999999999999999999 path=b\n",
        b"22 GNU.sparse.major=1\n", b"3 \n", b"14 linkpath=b\n x", b"",
    ],
)  # fmt: skip
def test_bad_pax_records(payload):
    with pytest.raises(TarError) as caught:
        scan_tar(pax(payload))
    assert caught.value.where.offset <= BLOCK + len(payload)


def test_extended_headers_need_their_member():
    end = bytes(2 * BLOCK)
    for tar in (
        pax(b"9 path=b\n", then=end),
        pax(b"9 path=b\n", then=pax(b"9 path=c\n")),
        pax(b"9 path=b\n", then=pax(b"9 path=c\n", b"g")),
        pax(b"name\0", b"L", then=end),
        pax(b"name\0", b"L", then=pax(b"name\0", b"L")),
    ):
        with pytest.raises(TarError, match=r"lacks its member|two GNU long names"):
            scan_tar(tar)


def test_ambiguous_and_bad_long_names():
    for tar, words in (
        (pax(b"9 path=b\n", then=pax(b"name\0", b"L")), "a PAX and a GNU name"),
        (pax(b"link\0", b"K"), "no link"),
        (pax(b"name", b"L"), "empty or does not end"),
        (pax(b"\0", b"L"), "empty or does not end"),
        (pax(b"na\0me\0", b"L"), "holds a NUL"),
    ):
        with pytest.raises(TarError, match=words):
            scan_tar(tar)


def test_caps():
    long = b"x" * 4097
    with pytest.raises(TarError, match="over 4096"):
        scan_tar(pax(long + b"\0", b"L"))
    with pytest.raises(TarError, match="over 1048576"):
        scan_tar(pax(b"9 path=b\n" * 120_000))


def test_bad_magic_and_bad_utf8():
    with pytest.raises(TarError, match="magic") as caught:
        scan_tar(set_field(TARS["ustar"], 0, 257, b"ustaR\x0000"))
    assert caught.value.where.offset == 257
    with pytest.raises(TarError, match="UTF-8"):
        scan_tar(set_field(TARS["ustar"], 0, 0, b"\xff\xfe.jpg\0"))


def test_ustar_prefix():
    tar = make_tar([("p" * 90 + "/" + "n" * 80, b"x")], tarfile.USTAR_FORMAT)
    assert scan_tar(tar).names == ("p" * 90 + "/" + "n" * 80,)


def test_files_are_scanned_through_a_map(tmp_path):
    (tmp_path / "a.tar").write_bytes(TARS["pax long"])
    assert content(TARS["pax long"], scan_tar_file(tmp_path / "a.tar")) == by_tarfile(
        TARS["pax long"]
    )
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(TarError, match=r"shard empty\.tar, offset 0"):
        scan_tar_file(tmp_path / "empty.tar")


def test_only_contiguous_bytes_are_taken():
    with pytest.raises(ValueError, match="contiguous"):
        scan_tar(np.zeros((4, 512), np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        scan_tar(memoryview(bytes(4096))[::2])


@pytest.mark.slow
def test_no_mutation_reads_out_of_bounds(tmp_path):
    """60,000 mutated tars under the address and undefined-behaviour sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    seeds = []
    for kind, tar in TARS.items():
        seeds.append(tmp_path / f"{kind}.tar")
        seeds[-1].write_bytes(tar)
    binary = tmp_path / "fuzz_tar"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [ROOT / "tests/csrc/fuzz_tar.cpp", ROOT / "csrc/tar_scanner.cpp"]
    subprocess.run(
        ["g++", *flags, "-DSTANDALONE", f"-I{ROOT / 'csrc'}", *sources, "-o", binary], check=True
    )
    done = subprocess.run([binary, "20000", *seeds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 60_000
