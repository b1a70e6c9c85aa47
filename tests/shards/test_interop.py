"""Our shards in the libraries that labs use: the same keys, bytes and fields.

What each makes of samples that differ in their parts (no image, several, several formats):

- webdataset gives each sample its own fields ("jpg", "img0.jpg", "json");
- datasets takes the fields from the first five samples, which must have the same ones, and fails
  with a clear error otherwise;
- DALI takes the extensions that are asked for. "missing_component_behavior" decides about a sample
  without one: "empty" (the default), "skip" or "error".
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from omr_io.images import probe
from omr_io.images.metadata import strip_metadata
from omr_io.index import ShardSet
from omr_io.shards.keys import key_for
from omr_io.types import Record
from tests.shard_sets import encoded, mixed_records, record, single_records, write


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> tuple[Path, list[Record]]:
    """Two shards of 12 and 8 samples with one JPEG each."""
    folder = tmp_path_factory.mktemp("single")
    # `extra` differs from row to row, as in a corpus merged from several.
    records = [
        dataclasses.replace(item, extra={"n": i} if i % 2 else {"tags": ["a"], "s": "x"})
        for i, item in enumerate(single_records(20))
    ]
    write(folder, records, max_shard_samples=12)
    return folder, records


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("mixed")
    records = mixed_records(24)
    write(folder, records, max_shard_samples=10)
    return folder, records


def tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def same_json(value: dict, item: Record) -> bool:
    options = [dataclasses.asdict(option) for option in item.options]
    return (value["id"], value["question"], value["options"], value["answer"]) == (
        item.id, item.question, options, item.answer,
    ) and value["reasoning"] == item.reasoning  # fmt: skip


def webdataset_samples(folder: Path) -> list[dict]:
    wds = pytest.importorskip("webdataset")
    return list(wds.WebDataset(tars(folder), shardshuffle=False))


def test_webdataset(single):
    folder, records = single
    samples = webdataset_samples(folder)
    assert [sample["__key__"] for sample in samples] == [key_for(item.id) for item in records]
    for sample, item in zip(samples, records, strict=True):
        assert sample["jpg"] == item.images[0].data
        assert same_json(json.loads(sample["json"]), item)


def test_webdataset_with_any_number_of_images(mixed):
    folder, records = mixed
    samples = webdataset_samples(folder)
    assert len(samples) == len(records)
    for sample, item in zip(samples, records, strict=True):
        value = json.loads(sample["json"])
        parts = [image["part"] for image in value["images"]]
        images = [strip_metadata(image.data, probe(image.data)) for image in item.images]
        assert [sample[part] for part in parts] == images
        assert {*parts, "json", "__key__", "__url__", "__local_path__"} >= set(sample)


def test_webdataset_decodes(single):
    wds = pytest.importorskip("webdataset")
    folder, records = single
    pipeline = wds.WebDataset(tars(folder), shardshuffle=False).decode("rgb8")
    for sample, item in zip(pipeline, records, strict=True):
        assert sample["jpg"].shape == (24, 32, 3)
        assert sample["json"]["id"] == item.id


def load(folder: Path, cache: Path, streaming: bool):
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset(
        "webdataset", data_files={"train": tars(folder)}, split="train", streaming=streaming,
        cache_dir=str(cache),
    )  # fmt: skip
    return data.cast_column("jpg", datasets.Image(decode=False))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets(single, tmp_path, offline, streaming):
    folder, records = single
    rows = list(load(folder, tmp_path, streaming))
    assert [row["__key__"] for row in rows] == [key_for(item.id) for item in records]
    for row, item in zip(rows, records, strict=True):
        assert row["jpg"]["bytes"] == item.images[0].data
        assert same_json(row["json"], item)


def test_datasets_refuses_samples_that_differ_in_their_parts(mixed, tmp_path, offline):
    with pytest.raises(ValueError, match="don't share the same prefix or the same types"):
        load(mixed[0], tmp_path, True)


def dali_samples(folder: Path, ext: list[str], **options) -> list[tuple[bytes, ...]]:
    """Every sample that DALI's reader gives, in order, by our .idx and without a GPU."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, types

    paths = tars(folder)
    index = [str(Path(path).with_suffix(".idx")) for path in paths]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read():
        parts = fn.readers.webdataset(
            paths=paths, index_paths=index, ext=ext, dtypes=[types.UINT8] * len(ext),
            name="reader", **options,
        )  # fmt: skip
        return tuple(parts) if len(ext) > 1 else parts

    pipeline = read()
    pipeline.build()
    count = pipeline.epoch_size("reader")
    out = []
    for _ in range(count):
        parts = pipeline.run()
        out.append(tuple(np.asarray(part.as_array()[0]).tobytes() for part in parts))
    return out


def test_dali(single):
    folder, records = single
    samples = dali_samples(folder, ["jpg", "json"])
    assert len(samples) == len(records)
    for (jpeg, text), item in zip(samples, records, strict=True):
        assert jpeg == item.images[0].data
        assert same_json(json.loads(text), item)


def test_dali_with_any_number_of_images(mixed):
    folder, records = mixed
    shards = ShardSet.open(folder)
    samples = dali_samples(folder, ["jpg", "img0.jpg", "img1.jpg", "img2.jpg", "json"])
    assert len(samples) == len(records)
    for i, (*images, text) in enumerate(samples):
        assert same_json(json.loads(text), records[i])
        names = [part.name.partition(".")[2] for part in shards.parts(i)]
        expected = dict(zip(names, [image.data for image in records[i].images], strict=False))
        asked = ["jpg", "img0.jpg", "img1.jpg", "img2.jpg"]
        assert images == [expected.get(name, b"") for name in asked]


def test_ids_that_other_readers_would_merge_stay_apart(tmp_path):
    """DICOM ids share everything up to their first dot."""
    ids = ["1.2.840.1", "1.2.840.2", "1/2", "1 2", "__x__", ".hidden", "é" * 300, "é" * 299 + "e"]
    records = [record(i, [encoded(i)], id=name) for i, name in enumerate(ids)]
    write(tmp_path, records)
    assert [json.loads(sample["json"])["id"] for sample in webdataset_samples(tmp_path)] == ids
    texts = dali_samples(tmp_path, ["json"])
    assert [json.loads(text)["id"] for (text,) in texts] == ids


def test_datasets_keeps_an_extra_field_that_comes_late(tmp_path, offline):
    """Nested fields that it first meets after five samples it would drop, hence extra as text."""
    records = [
        dataclasses.replace(item, extra={"a": None} if i < 10 else {"a": "x", "b": i})
        for i, item in enumerate(single_records(12))
    ]
    write(tmp_path / "set", records)
    rows = list(load(tmp_path / "set", tmp_path / "cache", False))
    assert [json.loads(row["json"]["extra"]) for row in rows] == [item.extra for item in records]
