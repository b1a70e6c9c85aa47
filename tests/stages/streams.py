"""Streams for tests: a shard set as webdataset reads it, and a record as such a sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from omr_io.shards.sample_json import encode_record
from omr_io.types import Record


def urls(shards: Path) -> list[str]:
    return [str(path) for path in sorted(shards.glob("*.tar"))]


def samples(shards: Path) -> Iterator[dict[str, Any]]:
    """What webdataset's own reader gives of all shards, in order."""
    return iter(wds.DataPipeline(wds.SimpleShardList(urls(shards)), wds.tarfile_to_samples()))


def as_sample(record: Record, key: str, endings: tuple[str, ...]) -> dict[str, Any]:
    """A record as webdataset gives it; `endings` of its images' formats."""
    several = len(endings) > 1
    names = [f"img{i}.{end}" if several else end for i, end in enumerate(endings)]
    images = {name: image.data for name, image in zip(names, record.images, strict=True)}
    meta = {"__key__": key, "__url__": "/data/test-000000.tar"}
    return meta | images | {"json": encode_record(record, names)}
