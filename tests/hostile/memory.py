"""Peak memory of convert, the loader and lint on groups of images, in a process of its own.

    python -m tests.hostile.memory FOLDER

FOLDER/GROUP/NAME.image. Groups go one after the other, "a-warm" first, so that what is imported or
kept is there before. Of each is printed what becomes of its images, and what each step adds to the
peak.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omr_io.config import VisionConfig
from omr_io.conversion import ConvertOptions, write_shard_set
from omr_io.errors import ImageError
from omr_io.images import probe
from omr_io.images.policy import ImagePolicy
from omr_io.index import ShardSet
from omr_io.lint import LintOptions, lint
from omr_io.loader import DataLoader, FailureBudget
from omr_io.tokenizer import train_bpe
from tests.shard_sets import encoded, record

WORDS = ["What is seen? A film of a patient, liver or spleen."]
SOUND = "sound"
Images = Mapping[str, bytes]


def status(field: str) -> int:
    """In bytes; of this program alone, where ru_maxrss begins with its parent's."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def reset() -> int:
    """Begin a new peak, where the system lets one; the bytes that are taken before."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return status("VmHWM")
    return status("VmRSS")


def measured(work: Callable[[], Any]) -> tuple[Any, int]:
    """A result, and what it added to the peak in bytes."""
    before = reset()
    result = work()
    return result, status("VmHWM") - before


def probed(images: Images) -> dict[str, str]:
    """Each header's size, or the reason of its error."""
    found = {}
    for name, data in images.items():
        try:
            info = probe(data)
            found[name] = f"{info.width}x{info.height}"
        except ImageError as error:
            found[name] = error.reason
    return found


def write(folder: Path, images: Images, **options: Any) -> dict[str, str]:
    """A shard set of all images, and a sound one; for each what it was refused for, or ""."""
    records = [record(n, [data], id=name) for n, (name, data) in enumerate(images.items(), 1)]
    sound = record(0, [encoded(0, size=(40, 40))], id=SOUND)
    settings = ConvertOptions(workers=1, **options)
    summary = write_shard_set(enumerate([sound, *records]), folder, settings)
    refused = {}
    if summary.refusals:
        rows = pq.read_table(folder / "rejects.parquet").to_pylist()
        refused = {row["id"]: row["reason"] for row in rows}
    return {name: refused.get(name, "") for name in images}


def loaded(folder: Path, tokenizer: Any) -> dict[str, str]:
    """For each image of a set why the loader put a blank there, or ""."""
    with ShardSet.open(folder) as shards:
        ids = {shards.key(n): shards.read_record(n).id for n in range(len(shards))}
    loader = DataLoader(
        folder,
        tokenizer=tokenizer,
        vision=VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64),
        seq_len=512,
        packs_per_step=1,
        num_threads=0,
        cache=False,
        failure_budget=FailureBudget(len(ids)),
    )
    found = dict.fromkeys(ids.values(), "")
    for batch in loader:
        found |= {ids[failure.key]: failure.reason for failure in batch.failures}
    loader.close()
    return found


def linted(folder: Path) -> int:
    """How many images lint calls broken."""
    report = lint(folder, (), LintOptions(pixels=True, threads=1))
    return sum(one.count for one in report.findings if one.rule == "broken-images")


def measure_group(place: Path, images: Images, tokenizer: Any) -> dict[str, Any]:
    """All steps on one group."""
    found: dict[str, Any] = {"probe": measured(lambda: probed(images))}
    found["convert"] = measured(lambda: write(place / "converted", images))
    # A set that holds them whatever they are, as one may come from anywhere.
    options = {"max_image_pixels": 1 << 40, "check": "header", "keep_metadata": True}
    found["unchecked"] = write(place / "set", images, unusual=ImagePolicy(()), **options)
    found["load"] = measured(lambda: loaded(place / "set", tokenizer))
    found["lint"] = measured(lambda: linted(place / "set"))
    return found


def main() -> None:
    """Measure every group of a folder."""
    folder = Path(sys.argv[1])
    tokenizer = train_bpe(WORDS, vocab_size=300)
    results = {}
    for group in sorted(folder.iterdir()):
        images = {path.stem: path.read_bytes() for path in sorted(group.glob("*.image"))}
        results[group.name] = measure_group(group, images, tokenizer)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
