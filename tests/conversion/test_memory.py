"""Peak memory does not follow the row group; measured in processes of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omr_io.index import ShardSet
from tests.conversion.small_corpora import SCHEMA, row
from tests.shard_sets import encoded

ROOT = Path(__file__).parents[2]

MEASURED = """
import json, resource, sys
from pathlib import Path
from omr_io.conversion import ConvertOptions, convert
import omr_io.conversion.merging

def high_water():  # of this program alone; ru_maxrss begins with its parent's
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

source, out, workers = sys.argv[1:]
before = high_water()
options = ConvertOptions(workers=int(workers), check="header", keep_metadata=True)
summary = convert(source, out, options)
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"samples": summary.samples, "before": before, "own": high_water(),
                  "children": children}))
"""


def one_group(path: Path, rows: int, row_bytes: int, **writing: Any) -> Path:
    """One row group, neither compressed nor with a dictionary, in pages of 16 rows at most.

    Each image has noise after its end. (A page is the least that Parquet lets one read.)
    """
    data = encoded(1) + np.random.default_rng(0).bytes(row_bytes)
    image = pa.array([{"bytes": data, "path": "x.jpg"}], SCHEMA.field("image").type)
    made = [row(f"case {number}", b"") for number in range(rows)]
    columns = {"image": pa.chunked_array([image] * rows)}  # one buffer, written again and again
    columns |= {
        name: pa.array([item[name] for item in made], SCHEMA.field(name).type)
        for name in ("id", "question", "reasoning", "answer")
    }
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    usual = {"compression": "none", "use_dictionary": False, "write_batch_size": 16}
    pq.write_table(table, path, row_group_size=rows, **(usual | writing))
    about = pq.read_metadata(path)
    assert about.num_row_groups == 1
    assert about.row_group(0).total_byte_size > rows * row_bytes
    return path


def peak(source: Path, out: Path, workers: int) -> tuple[int, dict]:
    """Peak memory in bytes of the process or one of its workers; what it reported."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(source), str(out), str(workers)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    report = json.loads(done.stdout)
    return max(report["own"], report["children"]), report


def test_peak_memory_is_not_that_of_the_row_group(tmp_path):
    """300 MB in one row group: the process grows by far less, however many threads prepare rows."""
    source = one_group(tmp_path / "train.parquet", 300, 1 << 20)
    _, report = peak(source, tmp_path / "set", 2)
    assert report["samples"] == 300
    grown = report["own"] - report["before"]
    assert 0 < grown < 150 << 20, report
    # What reading it whole takes, so that the bound above can fail.
    whole = MEASURED.replace(
        "summary = convert(source, out, options)",
        "import pyarrow.parquet as pq; table = pq.ParquetFile(source).read_row_group(0)",
    ).replace("summary.samples", "table.num_rows")
    done = subprocess.run(
        [sys.executable, "-c", whole, source, "", "1"], capture_output=True, check=True, cwd=ROOT
    )
    report = json.loads(done.stdout)
    assert report["own"] - report["before"] > 300 << 20
    shards = ShardSet.open(tmp_path / "set")
    assert shards.read_images(299)[0].startswith(encoded(1))


def test_peak_memory_is_not_that_of_a_page(tmp_path):
    """200 MB in one page, as pyarrow writes rows of 1 MB: read in parts, compressed or not."""
    for compression in ("none", "snappy"):
        writing = {"compression": compression, "data_page_size": 1 << 30, "write_batch_size": 1024}
        source = one_group(tmp_path / "train.parquet", 200, 1 << 20, **writing)
        _, report = peak(source, tmp_path / compression, 1)
        assert report["samples"] == 200
        assert report["own"] - report["before"] < 60 << 20, report


@pytest.mark.slow
def test_a_row_group_of_4_gb(tmp_path):
    """One and two workers in one test, one after the other: each takes 8 GB of disk."""
    source = one_group(tmp_path / "train.parquet", 4000, 1 << 20)
    for workers in (1, 2):
        out = tmp_path / f"set-{workers}"
        most, report = peak(source, out, workers)
        assert report["samples"] == 4000
        assert most < 1_000_000_000, (workers, most)
        shutil.rmtree(out)
    source.unlink()
