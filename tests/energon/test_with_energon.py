"""The real Megatron Energon, in an environment of its own: lint passes, samples come back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from omr_io.energon import write_energon_metadata
from omr_io.energon.metadata import MADE_AS
from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.types import Record
from tests.shard_sets import mixed_records, record, write

pytestmark = pytest.mark.slow

# Without its own dependencies: s3fs and boto do not fit our pins, and reading local files needs
# neither. torch, numpy, Pillow and webdataset are those of the tests.
PACKAGES = (
    f"megatron-energon=={MADE_AS}", "attrs", "bracex", "cffi", "deprecated", "deprecation",
    "filetype", "importlib-metadata", "jmespath", "jsonschema", "jsonschema-specifications",
    "lark", "mfusepy", "multi-storage-client", "opentelemetry-api", "prettytable", "psutil",
    "pycparser", "pyroute2", "rapidyaml", "referencing", "rpds-py", "wcmatch", "wcwidth", "wrapt",
    "xattr",
)  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with Energon, on top of the one the tests run in."""
    root = tmp_path_factory.mktemp("energon") / "venv"
    subprocess.run([sys.executable, "-m", "venv", root], check=True, timeout=300)
    purelib = subprocess.run(
        [root / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(purelib) / "zz-outer.pth").write_text("\n".join(sorted(outer)) + "\n")
    install = [root / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return root / "bin"


@pytest.fixture(scope="module")
def rows() -> list[Record]:
    return [*mixed_records(30), record(77, options=(), answer="words", reasoning="")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[Record]) -> Path:
    path = tmp_path_factory.mktemp("set") / "mixed"
    write(path, rows, max_shard_samples=8)
    write_energon_metadata(path)
    return path


def lint(environment: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [environment / "energon", "lint", folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_lint_passes_and_can_fail(environment: Path, folder: Path, tmp_path: Path) -> None:
    done = lint(environment, folder)
    assert done.returncode == 0, done.stderr
    assert "Skipping empty split part test" in done.stdout
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    index = broken / "train-000001.tar.idx"
    index.write_bytes(index.read_bytes()[:-8])
    assert lint(environment, broken).returncode != 0


def test_indexes_equal_those_of_energon_prepare(
    environment: Path, folder: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(folder, theirs, ignore=shutil.ignore_patterns(".nv-meta", "*.tar.idx"))
    subprocess.run(
        [environment / "energon", "prepare", theirs, "--num-workers", "1", "--non-interactive",
         "--split-parts", "train:.*", "--sample-type", "CrudeWebdataset", "--no-progress"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    names = sorted(path.name for path in theirs.glob("*.tar.idx"))
    assert len(names) == 4
    for name in names:
        assert (theirs / name).read_bytes() == (folder / name).read_bytes()
    info = ".nv-meta/.info.json"
    assert json.loads((theirs / info).read_text()) == json.loads((folder / info).read_text())
    assert (theirs / ".nv-meta/dataset.yaml").read_text() == (
        folder / ".nv-meta/crude.yaml"
    ).read_text()
    tables = []
    for root in (theirs, folder):
        with sqlite3.connect(root / ".nv-meta/index.sqlite") as database:
            shape = "SELECT name, type, [notnull] FROM pragma_table_info(?)"
            columns = [
                database.execute(shape, [table]).fetchall() for table in ("samples", "sample_parts")
            ]
            indexes = database.execute(
                "SELECT m.name, i.name FROM sqlite_master m, pragma_index_info(m.name) i "
                "WHERE m.type = 'index' ORDER BY m.name, i.seqno"
            ).fetchall()
            values = [
                database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4").fetchall()
                for table in ("samples", "sample_parts")
            ]
            tables.append((columns, indexes, values))
        database.close()
    assert tables[0] == tables[1]


READ = """
import sys
import numpy as np
import torch
from megatron.energon import (
    Cooker, CrudeSample, DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset, stateless
)
folder, out, config = sys.argv[1:4]

class Encoder(DefaultTaskEncoder):
    if config == "crude.yaml":
        @stateless
        def cook(sample):
            return sample
        cookers = [Cooker(cook)]
    def batch(self, samples):
        return samples
    def encode_sample(self, sample):
        return sample

dataset = get_val_dataset(
    folder, split_part="train", batch_size=1, task_encoder=Encoder(), dataset_config=config,
    worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
)
found = []
for [sample] in get_loader(dataset):
    if config == "crude.yaml":
        found.append({name: value for name, value in sample.items() if name[0] != "_"}
                     | {"__key__": sample["__key__"]})
    else:
        found.append({"__key__": sample.__key__, "sequence": sample.sequence})
torch.save(found, out)
"""


def read(environment: Path, folder: Path, out: Path, config: str) -> list[dict]:
    """All samples, through Energon's own loader."""
    import torch

    command = [environment / "python", "-c", READ, folder, out, config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=False)


def test_samples_come_back(
    environment: Path, folder: Path, tmp_path: Path, rows: list[Record]
) -> None:
    found = read(environment, folder, tmp_path / "out.pt", "dataset.yaml")
    assert len(found) == len(rows)
    with ShardSet.open(folder) as shards:
        for i, (sample, row) in enumerate(zip(found, rows, strict=True)):
            *images, question, completion = sample["sequence"]
            assert sample["__key__"].endswith(shards.key(i))
            assert question == row.question
            assert completion == (row.reasoning or row.answer)
            expected = CpuDecoder().decode([image.data for image in row.images], shards.images(i))
            assert len(images) == len(expected)
            for image, pixels in zip(images, expected, strict=True):
                shown = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                np.testing.assert_array_equal(shown, pixels)


def test_crude_samples_come_back(
    environment: Path, folder: Path, tmp_path: Path, rows: list[Record]
) -> None:
    found = read(environment, folder, tmp_path / "out.pt", "crude.yaml")
    assert [sample["json"]["id"] for sample in found] == [row.id for row in rows]
    for sample, row in zip(found, rows, strict=True):
        assert sample["json"]["answer"] == row.answer
        parts = [image["part"] for image in sample["json"]["images"]]
        assert set(parts) == {name for name in sample if name not in ("json", "__key__")}
