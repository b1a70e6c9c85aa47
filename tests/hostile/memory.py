"""Peak memory of one thing after the other, in a process of its own.

    python -m tests.hostile.memory FOLDER

FOLDER has NAME.image files; "warm-*" come first and set the baseline. Each goes alone through
convert, through the loader and through lint, and what each adds to the peak is printed.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omr_io.config import VisionConfig
from omr_io.conversion import ConvertOptions, write_shard_set
from omr_io.images import probe
from omr_io.images.policy import ImagePolicy
from omr_io.lint import LintOptions, lint
from omr_io.loader import DataLoader, FailureBudget
from omr_io.tokenizer import train_bpe
from tests.shard_sets import encoded, record

WORDS = ["What is seen? A film of a patient, liver or spleen."]


def peak() -> int:
    """In bytes; of this program alone, where ru_maxrss begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def now() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def reset() -> int:
    """Begin a new peak, where the system lets one; the bytes that are taken before."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return now()


def write(folder: Path, image: bytes, **options: Any) -> Any:
    """A sound record, and one with the image."""
    records = enumerate([record(0, [encoded(0, size=(40, 40))]), record(1, [image])])
    return write_shard_set(records, folder, ConvertOptions(**options))


def converted(folder: Path, image: bytes) -> dict[str, Any]:
    """`convert` with its default check: what becomes of the row."""
    summary = write(folder / "converted", image)
    return {"samples": summary.samples, "refusals": dict(summary.refusals)}


def unchecked(folder: Path, image: bytes) -> Path | None:
    """A shard set that holds the image whatever it is, as one may come from anywhere.

    None where even its header cannot be read.
    """
    everything = ImagePolicy(())
    options = {"max_image_pixels": 1 << 40, "check": "header", "keep_metadata": True}
    summary = write(folder / "set", image, unusual=everything, **options)
    return folder / "set" if summary.samples == 2 else None


def loaded(shards: Path, tokenizer: Any) -> list[str]:
    """Why the loader put a blank there."""
    loader = DataLoader(
        shards,
        tokenizer=tokenizer,
        vision=VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64),
        seq_len=512,
        packs_per_step=1,
        num_threads=0,
        cache=False,
        failure_budget=FailureBudget(10),
    )
    reasons = [failure.reason for batch in loader for failure in batch.failures]
    loader.close()
    return reasons


def measured(work: Callable[[], Any]) -> tuple[Any, int, float]:
    before, started = reset(), time.monotonic()
    result = work()
    return result, peak() - before, time.monotonic() - started


def main() -> None:
    """Measure every image of a folder."""
    folder = Path(sys.argv[1])
    tokenizer = train_bpe(WORDS, vocab_size=300)
    lint_options = LintOptions(pixels=True, threads=1)
    results = {}
    for path in sorted(folder.glob("*.image"), key=lambda path: (path.stem[:5] != "warm-", path)):
        image = path.read_bytes()
        place = folder / "work"
        place.mkdir()
        found: dict[str, Any] = {}
        found["probe"] = measured(lambda image=image: probing(image))  # type: ignore[misc]
        found["convert"] = measured(lambda i=image, p=place: converted(p, i))  # type: ignore[misc]
        shards = unchecked(place, image)
        if shards is not None:
            found["load"] = measured(lambda s=shards: loaded(s, tokenizer))  # type: ignore[misc]
            found["lint"] = measured(  # type: ignore[misc]
                lambda s=shards: [one.rule for one in lint(s, (), lint_options).findings]
            )
        results[path.stem] = found
        shutil.rmtree(place)
    print(json.dumps(results))


def probing(image: bytes) -> str:
    from omr_io.errors import ImageError

    try:
        info = probe(image)
    except ImageError as error:
        return error.reason
    return f"{info.width}x{info.height}"


if __name__ == "__main__":
    main()
