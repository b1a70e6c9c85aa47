"""Records and shard sets for tests; images are real files by Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from omr_io.conversion import ConvertOptions, ConvertSummary, write_shard_set
from omr_io.types import EncodedImage, Option, Record, Refusal, RubricUnit


def encoded(seed: int, format: str = "JPEG", size: tuple[int, int] = (24, 32), **save) -> bytes:
    """An image file of `size` (height, width); `seed` decides its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **save)
    return out.getvalue()


def unit(number: int) -> RubricUnit:
    return RubricUnit(
        axis="knowledge", unit_id=f"u{number}", topic="t", claim="ç", presence_question="p?",
        correctness_question="c?", source_quote="q", importance="high",
    )  # fmt: skip


def record(number: int, images: Iterable[bytes] = (), **changes) -> Record:
    fields = {
        "id": f"case.{number:04d}",
        "question": f"Which is it, no. {number}? é\nA. one\nB. two",
        "options": (Option("A", "one"), Option("B", "two")),
        "answer": "AB"[number % 2],
        "reasoning": f"<think>Because {number}.</think>\n<answer>{'AB'[number % 2]}</answer>",
        "rubric": (unit(number),) if number % 5 == 0 else (),
        "images": tuple(
            EncodedImage(data, f"im{number}-{place}") for place, data in enumerate(images)
        ),
        "source": f"t.parquet#{number}",
        "extra": {"study": f"s{number}"},
    }
    return Record(**(fields | changes))


def mixed_records(count: int = 30) -> list[Record]:
    """Records with one image mostly, some with none, two or three, in several formats."""
    formats = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
    out = []
    for number in range(count):
        how_many = (1, 1, 1, 0, 2, 1, 3, 1)[number % 8]
        names = [
            formats[(number + place) % 6 if number % 4 == 0 else 0] for place in range(how_many)
        ]
        out.append(
            record(number, [encoded(number * 4 + place, name) for place, name in enumerate(names)])
        )
    return out


def single_records(count: int = 20) -> list[Record]:
    """Records with one JPEG each."""
    return [record(number, [encoded(number)]) for number in range(count)]


def write(folder: Path, records: Iterable[Record | Refusal], **options) -> ConvertSummary:
    return write_shard_set(enumerate(records), folder, ConvertOptions(**options))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path in it; folders end in "/"."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": (
            b"" if path.is_dir() else path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
    }
