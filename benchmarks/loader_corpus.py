"""A corpus with OpenMedReason's statistics for the loader's benchmark: anybody can make it.

    python -m benchmarks.loader_corpus FOLDER [--samples 2000] [--seed 0]

Every sample has an image of its own: log-normal areas of median 0.37 Mpx and sigma 0.75, a short
side of at least 224 and an aspect of at most 3, soft shapes with grain, as JPEG of about 50 KB at
the median, one in seven progressive, one in nine grey. Texts are words of `texts.biomedical`:
questions of 45 to 120 tokens (some up to 250) with options A to D, traces of median 400 and 95th
percentile 650 tokens, in tokens of a byte-level BPE of 16,384 entries trained on them (the real
Qwen's cannot be had everywhere; with it the same texts have some 15% more tokens). Seeded.

FOLDER then holds `parquet` (OpenMedReason's schema), `shards` (a shard set of it, whose tars are
WebDataset) and `tokenizer`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks import texts
from omr_io.conversion import ConvertOptions, convert
from omr_io.shards.layout import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    FileDigest,
    ShardEntry,
    read_manifest,
)
from omr_io.shards.tar_writer import TRAILER
from omr_io.storage import write_atomically
from omr_io.tokenizer import train_bpe

MEDIAN_AREA, SIGMA_AREA = 0.37e6, 0.75
SHORT_SIDE, ASPECT, LARGEST_AREA = 224, 3.0, 6e6
TOKENS_A_WORD = 1.28
"""Of the texts here, with the tokenizer trained on them."""

VOCABULARY = 16_384
ROWS_A_GROUP = 100  # of Parquet: some 5 MB, as the Hub's own conversions have
ROWS_A_SHARD = 4500
FILES = 4  # of Parquet, and of tars: a worker reads a file


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where the parts of a made corpus lie."""

    folder: Path

    @property
    def parquet(self) -> Path:
        """OpenMedReason's schema."""
        return self.folder / "parquet"

    @property
    def shards(self) -> Path:
        """The shard set; its tars are what webdataset reads."""
        return self.folder / "shards"

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json and its chat template."""
        return self.folder / "tokenizer"


def make(folder: Path, samples: int, seed: int = 0, *, median_area: float = MEDIAN_AREA) -> Corpus:
    """Make the corpus in a folder that does not exist yet, or is empty.

    Args:
        samples: how many.
        seed: the same seed, the same bytes (with the same Pillow).
        median_area: of the images in pixels; smaller ones make small tests quick.
    """
    corpus = Corpus(folder)
    corpus.parquet.mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = ("question", "reasoning", "answer")
    schema = pa.schema([("image", image), *((name, pa.string()) for name in names)])
    written = list(_texts(samples, seed))
    a_file = -(-samples // FILES)
    for file, first in enumerate(range(0, samples, a_file)):
        stem = f"train-{file:05d}-of-{FILES:05d}"
        with pq.ParquetWriter(
            corpus.parquet / f"{stem}.parquet", schema, use_dictionary=False
        ) as writer:
            last = min(first + a_file, samples)
            for start in range(first, last, ROWS_A_GROUP):
                rows = []
                for number in range(start, min(start + ROWS_A_GROUP, last)):
                    name = f"{stem}-{number - first:08d}.jpg"  # the keys that conversion makes
                    picture_ = {"bytes": picture(seed, number, median_area), "path": name}
                    rows.append({"image": picture_} | written[number])
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    options = ConvertOptions(check="header", max_shard_samples=a_file, workers=1, threads=1)
    convert(corpus.parquet, corpus.shards, options)
    learned = [text for row in written for text in (row["question"], row["reasoning"])]
    train_bpe(learned, vocab_size=VOCABULARY).save(corpus.tokenizer)
    return corpus


def image_size(rng: np.random.Generator, median_area: float = MEDIAN_AREA) -> tuple[int, int]:
    """(height, width) of one image."""
    area = min(median_area * np.exp(rng.normal(0, SIGMA_AREA)), LARGEST_AREA)
    aspect = min(np.exp(abs(rng.normal(0, 0.35))), ASPECT)
    short = max(round((area / aspect) ** 0.5), SHORT_SIDE)
    long = min(round(max(area / short, short)), int(short * ASPECT))
    return (short, long) if rng.random() < 0.6 else (long, short)


def picture(seed: int, number: int, median_area: float = MEDIAN_AREA) -> bytes:
    """The JPEG of one sample."""
    rng = np.random.default_rng([seed, number])
    height, width = image_size(rng, median_area)
    shape = (height // 40 + 2, width // 40 + 2, 3)
    soft = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-9, 10, (64, 1 << 12, 1), np.int16).reshape(-1)
    places = rng.integers(0, len(grain) - width, height)
    pixels += np.stack([grain[place : place + width] for place in places])[..., None]
    made = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if number % 9 == 4:
        made = made.convert("L")
    out = io.BytesIO()
    quality = int(rng.integers(58, 78))
    made.save(out, "JPEG", quality=quality, progressive=number % 7 == 3)
    return out.getvalue()


def _texts(samples: int, seed: int) -> Iterator[dict[str, str]]:
    """Question, reasoning and answer of each sample."""
    rng = random.Random(seed)
    tags = ("<think>", "</think>", "<answer>", "\nA. ", "\nB. ")
    running = "\n".join(texts.biomedical(min(samples, 4000) * 3000, seed=seed + 7))
    for tag in tags:
        running = running.replace(tag, " ")
    words = running.split(" ")

    def some(tokens: float) -> str:
        count = max(int(tokens / TOKENS_A_WORD), 3)
        at = rng.randrange(len(words) - count)
        return " ".join(words[at : at + count]).strip() or "finding"

    for number in range(samples):
        answer = "ABCD"[number % 4]
        options = [some(rng.uniform(3, 9)).replace("\n", " ") for _ in "ABCD"]
        listed = "".join(f"\n{letter}. {o}" for letter, o in zip("ABCD", options, strict=True))
        length = rng.uniform(45, 120) if rng.random() < 0.95 else rng.uniform(120, 250)
        trace = min(max(rng.lognormvariate(np.log(400), 0.295), 60), 2000)
        yield {
            "question": some(max(length - 42, 8)).replace("\n", " ") + listed,
            "reasoning": f"<think>{some(trace - 14)}</think>\n<answer>{answer}</answer>",
            "answer": answer,
        }


def repeat(shards: Path, folder: Path, samples: int, a_shard: int = ROWS_A_SHARD) -> Path:
    """A shard set of at least so many samples at the cost of one tar, for starts and memory.

    The tar holds all samples of `shards`, as often as a_shard takes (4,500 fit a tar of 256 MB),
    and all others are hard links to it; every sample has a key of its own in the index. So it has
    the index, the lengths and the plans of a large corpus, and bytes that all lie in the cache.
    """
    manifest = read_manifest(shards)
    with pa.memory_map(str(shards / INDEX_NAME)) as mapped:
        table = pa.ipc.open_file(mapped).read_all().combine_chunks()
    folder.mkdir(parents=True)
    bounds = np.cumsum([0, *(shard.samples for shard in manifest.shards)]).tolist()
    first_tar = folder / "train-000000.tar"
    shifts: list[int] = []  # of each sample of `table`, copy after copy
    with first_tar.open("wb") as out:
        for _ in range(-(-a_shard // len(table))):
            for place, shard in enumerate(manifest.shards):
                shifts += [out.tell()] * (bounds[place + 1] - bounds[place])
                out.write((shards / shard.name).read_bytes()[: -len(TRAILER)])
        out.write(TRAILER)
        num_bytes = out.tell()
    copies = len(shifts) // len(table)
    rows = pa.concat_tables([table] * copies).combine_chunks()
    parts = _shifted(rows["parts"].combine_chunks(), np.array(shifts, np.int64))
    digest = hashlib.sha256(first_tar.read_bytes()).hexdigest()
    entries: list[ShardEntry] = []
    tables: list[pa.Table] = []
    keys = rows["key"].to_pylist()
    for place in range(-(-samples // len(rows))):
        changed: dict[str, Any] = {
            "shard": pa.array([place] * len(rows), type=pa.int32()),
            "key": pa.array([f"{place}-{at}-{key}" for at, key in enumerate(keys)]),
            "parts": parts,
        }
        columns = [changed.get(name, rows[name]) for name in INDEX_SCHEMA.names]
        tables.append(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))
        name = f"train-{place:06d}.tar"
        if place:
            os.link(first_tar, folder / name)
        entry = replace(manifest.shards[0], name=name, bytes=num_bytes, sha256=digest)
        entries.append(replace(entry, samples=len(rows)))
    made = len(rows) * len(entries)
    out_bytes = io.BytesIO()
    with pa.ipc.new_file(out_bytes, INDEX_SCHEMA) as writer:
        writer.write_table(pa.concat_tables(tables).combine_chunks())
    written = write_atomically(folder / INDEX_NAME, out_bytes.getvalue())
    index = FileDigest(INDEX_NAME, len(out_bytes.getvalue()), written.sha256())
    counts = {"rows": made, "samples": made, "images": made, "refused": 0}
    whole = replace(manifest, shards=tuple(entries), index=index, rejects=None, counts=counts)
    write_atomically(folder / MANIFEST_NAME, whole.to_bytes())
    return folder


def _shifted(parts: pa.ListArray, shifts_n: NDArray[np.int64]) -> pa.ListArray:
    """Parts of n samples, so many bytes further on in their tar."""
    structs = parts.flatten()
    counts = np.diff(parts.offsets.to_numpy())
    fields = list(structs.type)
    arrays = [structs.field(field.name) for field in fields]
    at = [field.name for field in fields].index("offset")
    moved = arrays[at].to_numpy() + np.repeat(shifts_n, counts)
    arrays[at] = pa.array(moved, type=fields[at].type)
    made = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(parts.offsets, made, type=parts.type)


def describe(corpus: Corpus) -> dict[str, float]:
    """What the corpus is like: to be held against the statistics it is made for."""
    from omr_io.index import ShardSet
    from omr_io.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(corpus.tokenizer)
    with ShardSet.open(corpus.shards) as shards:
        areas = shards.image_widths.astype(float) * shards.image_heights
        records = [shards.read_record(i, images=False) for i in range(len(shards))]
        sizes = shards.image_sizes()
        short = np.minimum(shards.image_widths, shards.image_heights)
        long = np.maximum(shards.image_widths, shards.image_heights)
        formats = shards.image_formats()
    questions = [len(tokenizer.encode(record.question)) for record in records]
    traces = [len(tokenizer.encode(record.reasoning)) for record in records]
    return {
        "samples": len(records),
        "median_megapixels": float(np.median(areas)) / 1e6,
        "sigma_of_log_area": float(np.std(np.log(areas))),
        "short_side": float(short.min()),
        "aspect": float((long / short).max()),
        "median_image_kilobytes": float(np.median(sizes)) / 1e3,
        "mean_image_kilobytes": float(np.mean(sizes)) / 1e3,
        "progressive": formats.count("jpeg-progressive") / len(formats),
        "question_tokens_p5": float(np.percentile(questions, 5)),
        "question_tokens_p95": float(np.percentile(questions, 95)),
        "question_tokens_max": float(max(questions)),
        "trace_tokens_median": float(np.median(traces)),
        "trace_tokens_p95": float(np.percentile(traces, 95)),
    }


def main() -> None:
    """Make a corpus and say what it is like."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(describe(make(given.folder, given.samples, given.seed)), indent=1))


if __name__ == "__main__":
    main()
