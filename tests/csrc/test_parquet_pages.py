"""Parquet's pages under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_io.corpus.formats.parquet import ParquetFile

ROOT = Path(__file__).parents[2]
WRITTEN: list[dict[str, Any]] = [
    {"compression": compression, "data_page_version": version, "use_dictionary": dictionary}
    for compression in ("none", "snappy")
    for version in ("1.0", "2.0")
    for dictionary in (False, True)
]


def seed_of(path: Path, how: dict[str, Any]) -> bytes:
    """A column chunk as fuzz_pages takes it."""
    values = [None if n % 7 == 3 else b"cat dog " * (n % 5) + b"%d" % (n % 9) for n in range(70)]
    table = pa.table({"b": pa.array(values, pa.binary())})
    pq.write_table(table, path, data_page_size=300, write_batch_size=20, **how)
    data = path.read_bytes()
    file = ParquetFile.open(path)
    layout = file._layout(file.spans()[0], ["b"])
    assert layout is not None
    ((start, size, level, snappy, *_),) = layout.chunks
    return bytes([snappy, level, 70, 0, 2, 3, 0, 0]) + data[start : start + size]


def footer_seed(path: Path) -> bytes:
    """The footer of a file of several row groups."""
    image = pa.array([{"bytes": b"x", "path": "a"}] * 9)
    table = pa.table({"image": image, "list": [["a"]] * 9, "number": range(9)})
    pq.write_table(table, path, row_group_size=4)
    data = path.read_bytes()
    return bytes(8) + data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


@pytest.mark.slow
def test_no_mutation_reads_out_of_bounds(tmp_path: Path) -> None:
    """180,000 mutated chunks and footers."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    written = [*WRITTEN, {"write_page_checksum": True, "use_dictionary": False}]
    made = [seed_of(tmp_path / "a.parquet", how) for how in written]
    made.append(footer_seed(tmp_path / "a.parquet"))
    seeds = [tmp_path / f"{number}.bin" for number in range(len(made))]
    for seed, data in zip(seeds, made, strict=True):
        seed.write_bytes(data)
    binary = tmp_path / "fuzz_pages"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-D_GLIBCXX_ASSERTIONS"]
    sources = [ROOT / "tests/csrc/fuzz_pages.cpp", *(ROOT / "csrc").glob("parquet_*.cpp")]
    subprocess.run(
        ["g++", *flags, "-DSTANDALONE", f"-I{ROOT / 'csrc'}", *sources, "-o", binary], check=True
    )
    done = subprocess.run([binary, "18000", *seeds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(18_000 * len(seeds)), str(len(seeds))]
