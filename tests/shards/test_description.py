"""Statistics of shard sets against counts made with plain loops; at the corpus' size too."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from omr_io.index import ShardSet
from omr_io.shards import describe
from omr_io.shards.layout import INDEX_SCHEMA, FileDigest, Manifest, ShardEntry
from omr_io.storage import LocalStorage
from omr_io.types import Option
from tests.shard_sets import encoded, mixed_records, record, write


def by_hand(shards: ShardSet) -> dict[str, object]:
    """The same facts, a sample at a time."""
    infos = [info for i in range(len(shards)) for info in shards.images(i)]
    letters = [(n, a) for n, a in zip(shards.num_options.tolist(), shards.answers(), strict=True)]
    table: dict[str, dict[str, int]] = {}
    for number, letter in letters:
        if number:
            row = table.setdefault(str(number), {})
            row[letter] = row.get(letter, 0) + 1
    hashes = [bytes(row) for row in shards.image_hashes]
    return {
        "samples": len(shards),
        "images": len(infos),
        "formats": dict(Counter(info.format for info in infos)),
        "modes": dict(Counter(info.mode for info in infos)),
        "images_per_sample": dict(Counter(str(len(shards.images(i))) for i in range(len(shards)))),
        "turned": sum(info.orientation != 1 for info in infos),
        "repeated_images": len(hashes) - len(set(hashes)),
        "num_options": dict(Counter(str(number) for number, _ in letters)),
        "answers": dict(Counter(letter for number, letter in letters if number)),
        "answers_by_options": table,
        "pixels": [info.width * info.height for info in infos],
        "short_side": [min(info.width, info.height) for info in infos],
        "long_side": [max(info.width, info.height) for info in infos],
        "aspect": [max(i.width, i.height) / min(i.width, i.height) for i in infos],
        "image_bytes": [
            part.size for i in range(len(shards)) for part in shards.parts(i)[:-1]
        ],
        "question_bytes": shards.question_bytes.tolist(),
        "reasoning_bytes": shards.reasoning_bytes.tolist(),
        "shard_samples": [shard.samples for shard in shards.manifest.shards],
        "shard_bytes": [shard.bytes for shard in shards.manifest.shards],
    }  # fmt: skip


def assert_same(shards: ShardSet) -> None:
    about = describe(shards)
    for name, expected in by_hand(shards).items():
        found = getattr(about, name)
        if isinstance(expected, list):
            values = sorted(expected)
            assert found.low == values[0], name
            assert found.high == values[-1], name
            assert found.median == pytest.approx(statistics.median(values)), name
            if len(values) > 1:
                cuts = statistics.quantiles(values, n=20, method="inclusive")
                assert (found.p5, found.p95) == pytest.approx((cuts[0], cuts[-1])), name
        else:
            assert found == expected, name


def test_statistics_equal_a_count_by_hand(tmp_path: Path) -> None:
    three = tuple(Option(letter, letter) for letter in "ABC")
    rows = mixed_records(40)
    rows += [
        record(100 + n, [encoded(0 if n < 3 else n, size=(30 + n, 50))], options=three, answer="C")
        for n in range(9)
    ]
    rows += [record(200 + n, [], options=(), answer="free text", reasoning="") for n in range(4)]
    write(tmp_path / "set", rows, max_shard_samples=7)
    with ShardSet.open(tmp_path / "set") as shards:
        assert_same(shards)
        about = describe(shards)
    assert about.without_reasoning == 4
    assert about.num_options["0"] == 4
    assert sum(about.answers.values()) == about.samples - 4
    assert "" not in about.answers
    assert "0" not in about.answers_by_options
    assert about.options["max_shard_samples"] == 7


def test_a_set_without_images(tmp_path: Path) -> None:
    write(tmp_path / "set", [record(n) for n in range(3)])
    with ShardSet.open(tmp_path / "set") as shards:
        about = describe(shards)
    assert about.images == 0
    assert about.pixels.high == about.aspect.median == 0
    assert about.images_per_sample == {"0": 3}


def corpus_sized(folder: Path, n: int) -> ShardSet:
    """An index of n samples with an image or two each, made without any loop."""
    rng = np.random.default_rng(0)
    counts = np.where(np.arange(n) % 50 == 0, 2, 1)
    total = int(counts.sum())
    ends = np.concatenate(([0], np.cumsum(counts)))
    images = pa.StructArray.from_arrays(
        [
            pa.array(rng.integers(224, 1400, total), pa.int32()),
            pa.array(rng.integers(224, 1400, total), pa.int32()),
            pa.array(np.array(["jpeg", "jpeg-progressive", "png"])[rng.integers(0, 3, total)]),
            pa.array(np.array(["RGB", "L"])[rng.integers(0, 2, total)]),
            pa.array(rng.integers(1, 9, total), pa.int8()),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), total, [None, pa.py_buffer(rng.bytes(16 * total))]
            ),
        ],
        fields=list(INDEX_SCHEMA.field("images").type.value_type),
    )
    num_parts = total + n
    parts = pa.StructArray.from_arrays(
        [
            pa.array(np.full(num_parts, "k.jpg")),
            pa.array(np.arange(num_parts), pa.int64()),
            pa.array(rng.integers(1000, 90_000, num_parts), pa.int64()),
            pa.array(np.zeros(num_parts), pa.uint32()),
        ],
        fields=list(INDEX_SCHEMA.field("parts").type.value_type),
    )
    num_options = rng.integers(2, 7, n)
    shard = np.arange(n) * 45 // n
    table = pa.Table.from_arrays(
        [
            pa.array(shard, pa.int32()),
            pa.array(np.char.mod("k%d", np.arange(n))),
            pa.ListArray.from_arrays(pa.array(ends + np.arange(n + 1), pa.int32()), parts),
            pa.ListArray.from_arrays(pa.array(ends, pa.int32()), images),
            pa.array(rng.integers(50, 900, n), pa.int32()),
            pa.array(rng.integers(500, 5000, n), pa.int32()),
            pa.array(num_options, pa.int16()),
            pa.array(np.array(list("ABCDEF"))[rng.integers(0, num_options)]),
        ],
        schema=INDEX_SCHEMA,
    )
    digest = FileDigest("x", 1, "")
    entries = [
        ShardEntry(f"t-{i}.tar", 1000 + i, "", int(count), digest)
        for i, count in enumerate(np.bincount(shard))
    ]
    manifest = Manifest(
        split="train", shards=tuple(entries), index=digest, rejects=None, sources=("a",),
        source_fingerprint="", options={}, counts={"rows": n, "samples": n, "images": total},
        refusals={},
    )  # fmt: skip
    return ShardSet(manifest, table, LocalStorage(folder), folder)


def test_the_whole_corpus_takes_a_moment(tmp_path: Path) -> None:
    shards = corpus_sized(tmp_path, 450_000)
    begin = time.process_time()
    about = describe(shards)
    assert time.process_time() - begin < 3  # 0.3 s; a loop over samples takes ten times as long
    assert sum(about.answers.values()) == 450_000
    assert sum(about.formats.values()) == about.images == 459_000
    assert set(about.answers_by_options["3"]) == set("ABC")
    assert_same(corpus_sized(tmp_path, 3_000))
